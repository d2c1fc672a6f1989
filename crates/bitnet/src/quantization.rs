//! The encodings of ternary weights on disk.

use std::fmt;
use std::str::FromStr;

use bitnet_inference::InvalidConfig;
use bitnet_kernels::cpu::packed::Packing;

/// How ternary weights are stored in a file. All hold the same weights: none is better than another but for its size and for
/// the precision of the scale.
///
/// ```
/// use bitnet::QuantizationType;
///
/// let qtype = QuantizationType::I2S;
/// assert_eq!("i2_s".parse(), Ok(qtype));
/// assert_eq!(qtype.to_string(), "I2_S");
/// assert!(qtype.can_load() && !QuantizationType::TL2.can_load());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantizationType {
    /// 2 bits, an f32 scale per tensor: bitnet.cpp's, GGUF.
    I2S,
    /// bitnet.cpp's table look-up for Arm, 2 bits, tiled by settings in a file of their own.
    TL1,
    /// bitnet.cpp's table look-up for x86, 1.67 bits, tiled by settings in a file of their own.
    TL2,
    /// 1.69 bits: five weights in a byte, an f16 scale for each 256; GGUF.
    TQ1_0,
    /// 2.06 bits, an f16 scale for each 256; GGUF.
    TQ2_0,
    /// 2 bits, four rows in a byte, a scale per tensor: Hugging Face's safetensors.
    Packed,
    /// 2 bits with a scale for each group; GGUF.
    Q2_0,
    /// 2 bits with a scale for each 128, of PrismML's models; GGUF.
    PQ2_0,
}

/// Not a name of an encoding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no encoding of ternary weights; there are {}", names())]
pub struct UnknownQuantization {
    /// What was read.
    pub name: String,
}

fn names() -> String {
    QuantizationType::ALL.map(|qtype| qtype.to_string()).join(", ")
}

impl QuantizationType {
    /// All encodings that have a name here.
    pub const ALL: [Self; 8] = [
        Self::I2S,
        Self::TL1,
        Self::TL2,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::Packed,
        Self::Q2_0,
        Self::PQ2_0,
    ];

    /// Whether models in this encoding can be loaded; [`Self::refusal`] says why not.
    pub fn can_load(self) -> bool {
        self.refusal().is_none()
    }

    /// Whether models can be written in this encoding: those that can be loaded.
    pub fn can_write(self) -> bool {
        self.can_load()
    }

    /// Why models in this encoding cannot be had.
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            Self::TL1 | Self::TL2 => {
                Some("its tiles depend on the build that wrote it, and the file does not say how")
            }
            Self::Q2_0 | Self::PQ2_0 => Some(
                "its weights come in groups with a scale each, of models that are not run here",
            ),
            _ => None,
        }
    }

    /// How the weights lie in memory when a [`QuantizationConfig`] asks for this encoding.
    fn packing(self) -> Packing {
        match self {
            Self::TQ1_0 => Packing::FiveTrits,
            _ => Packing::TwoBits,
        }
    }

    /// Values of [`QuantizationConfig::block_size`] that this encoding can have.
    pub fn block_sizes(self) -> &'static [usize] {
        match self {
            Self::TQ1_0 | Self::TQ2_0 => &[256],
            // One scale for the whole tensor is one for each of its blocks, whatever their size.
            _ => &[32, 64, 128, 256],
        }
    }
}

/// How ternary weights are to lie in memory, for [`ModelConfig::packing`](crate::ModelConfig::packing). All forms hold the same
/// weights and give the same logits, so there is no quality to choose, only size and speed.
///
/// ```
/// use bitnet::{BitNetModel, QuantizationConfig, QuantizationType};
///
/// // For maximum speed (slight quality loss)
/// let fast_config = QuantizationConfig {
///     qtype: QuantizationType::I2S,
///     block_size: 32,
///     dynamic: true,
///     ..Default::default()
/// };
///
/// // For maximum quality (slower)
/// let quality_config = QuantizationConfig {
///     qtype: QuantizationType::TL2,
///     block_size: 128,
///     dynamic: false,
///     calibration_size: Some(1000),
///     ..Default::default()
/// };
///
/// let model = bitnet::ModelConfig { packing: Some(fast_config.packing()?), ..Default::default() };
/// let error = quality_config.packing().unwrap_err();
/// assert!(error.to_string().starts_with("`qtype` is TL2; it should be one of I2_S, TQ1_0, TQ2_0, packed"));
/// # Ok::<(), bitnet::InvalidConfig>(())
/// ```
///
/// There is no loss of quality with I2_S: the weights of a ternary model are ternary already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationConfig {
    /// The encoding: TQ1_0 stands for five weights in a byte, the others that can be loaded for two bits each.
    pub qtype: QuantizationType,
    /// Weights that share a scale, one of [`QuantizationType::block_sizes`]. I2_S and packed have one scale for the whole tensor,
    /// which serves blocks of any size.
    pub block_size: usize,
    /// Compute the scales of activations for each token, as models of this kind were trained. False is an error: fixed scales are
    /// not computed here.
    pub dynamic: bool,
    /// Samples to find fixed scales with; an error, as there are none.
    pub calibration_size: Option<usize>,
}

impl Default for QuantizationConfig {
    fn default() -> Self {
        let qtype = QuantizationType::I2S;
        Self { qtype, block_size: 128, dynamic: true, calibration_size: None }
    }
}

impl QuantizationConfig {
    /// How weights are packed for it.
    ///
    /// # Errors
    /// If the encoding cannot be had, cannot have this block size, or scales of activations were to be fixed.
    pub fn packing(&self) -> Result<Packing, InvalidConfig> {
        let invalid =
            |field, found: String, expected: String| Err(InvalidConfig { field, found, expected });
        if let Some(reason) = self.qtype.refusal() {
            let known = QuantizationType::ALL.into_iter().filter(|qtype| qtype.can_load());
            let known = known.map(|qtype| qtype.to_string()).collect::<Vec<_>>().join(", ");
            return invalid("qtype", self.qtype.to_string(), format!("one of {known}: {reason}"));
        }
        let sizes = self.qtype.block_sizes();
        if !sizes.contains(&self.block_size) {
            let sizes = sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let expected = format!("one of {sizes} with {}", self.qtype);
            return invalid("block_size", self.block_size.to_string(), expected);
        }
        if !self.dynamic {
            let expected = "true: activations get a scale for each token, fixed ones are not made";
            return invalid("dynamic", "false".into(), expected.into());
        }
        if let Some(samples) = self.calibration_size {
            let expected = "None: scales that are computed for each token need no samples";
            return invalid("calibration_size", samples.to_string(), expected.into());
        }
        Ok(self.qtype.packing())
    }
}

impl fmt::Display for QuantizationType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::I2S => "I2_S",
            Self::TL1 => "TL1",
            Self::TL2 => "TL2",
            Self::TQ1_0 => "TQ1_0",
            Self::TQ2_0 => "TQ2_0",
            Self::Packed => "packed",
            Self::Q2_0 => "Q2_0",
            Self::PQ2_0 => "PQ2_0",
        })
    }
}

impl FromStr for QuantizationType {
    type Err = UnknownQuantization;

    /// Case, `_` and `-` do not matter.
    fn from_str(name: &str) -> Result<Self, UnknownQuantization> {
        let plain = |name: &str| name.replace(['_', '-'], "").to_lowercase();
        let found = Self::ALL.into_iter().find(|qtype| plain(&qtype.to_string()) == plain(name));
        found.ok_or_else(|| UnknownQuantization { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_printed_and_as_the_guide_writes_them() {
        for qtype in QuantizationType::ALL {
            assert_eq!(qtype.to_string().parse(), Ok(qtype));
        }
        assert_eq!("i2s".parse(), Ok(QuantizationType::I2S));
        assert_eq!("tq2-0".parse(), Ok(QuantizationType::TQ2_0));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = "q4_k".parse::<QuantizationType>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`q4_k` is no encoding of ternary weights; there are I2_S, TL1, TL2, TQ1_0, TQ2_0, packed, Q2_0, PQ2_0"
        );
    }
    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let default = QuantizationConfig::default;
        let table = [
            (QuantizationConfig { qtype: QuantizationType::TL1, ..default() }, "tiles"),
            (QuantizationConfig { qtype: QuantizationType::Q2_0, ..default() }, "groups"),
            (QuantizationConfig { qtype: QuantizationType::PQ2_0, ..default() }, "groups"),
            (QuantizationConfig { block_size: 48, ..default() }, "32, 64, 128, 256 with I2_S"),
            (
                QuantizationConfig { qtype: QuantizationType::TQ2_0, ..default() },
                "one of 256 with TQ2_0",
            ),
            (QuantizationConfig { dynamic: false, ..default() }, "each token"),
            (QuantizationConfig { calibration_size: Some(9), ..default() }, "no samples"),
        ];
        for (config, reason) in table {
            let error = config.packing().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let packing = |qtype, block_size| {
            QuantizationConfig { qtype, block_size, ..default() }.packing().unwrap()
        };
        assert_eq!(packing(QuantizationType::I2S, 32), Packing::TwoBits);
        assert_eq!(packing(QuantizationType::TQ1_0, 256), Packing::FiveTrits);
    }
}
