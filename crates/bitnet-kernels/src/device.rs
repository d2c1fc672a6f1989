//! Which device computes.

use std::fmt;
use std::str::FromStr;

/// A device to run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The best device that this build and this machine have.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by its index.
    Cuda(usize),
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not a name of a device.
    #[error("`{0}` is no device; devices are `auto`, `cpu` and `cuda:N`")]
    Unknown(String),
    /// This program was built without it.
    #[error("{0} is not available: this program has the CPU backend only")]
    NotBuilt(Device),
}

impl Device {
    /// What `Auto` stands for here, or why the device cannot be used. Never another device than the one asked for.
    pub fn resolve(self) -> Result<Self, DeviceError> {
        match self {
            Self::Auto | Self::Cpu => Ok(Self::Cpu),
            Self::Cuda(_) => Err(DeviceError::NotBuilt(self)),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(name.to_owned());
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = name.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_printed() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(3)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda:x".parse::<Device>(), Err(DeviceError::Unknown("cuda:x".into())));
    }

    #[test]
    fn a_device_that_is_missing_is_an_error_and_not_the_cpu() {
        assert_eq!(Device::Cuda(0).resolve(), Err(DeviceError::NotBuilt(Device::Cuda(0))));
        assert_eq!(Device::Auto.resolve(), Ok(Device::Cpu));
    }
}
