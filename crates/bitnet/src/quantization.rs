//! The encodings of ternary weights on disk.

use std::fmt;
use std::str::FromStr;

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
    pub const ALL: [Self; 6] =
        [Self::I2S, Self::TL1, Self::TL2, Self::TQ1_0, Self::TQ2_0, Self::Packed];

    /// Whether models in this encoding can be loaded. TL1 and TL2 cannot: their files say nothing about the tiles.
    pub fn can_load(self) -> bool {
        !matches!(self, Self::TL1 | Self::TL2)
    }

    /// Whether models can be written in this encoding. TL1 and TL2 cannot, as nothing could read them.
    pub fn can_write(self) -> bool {
        !matches!(self, Self::TL1 | Self::TL2)
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
            "`q4_k` is no encoding of ternary weights; there are I2_S, TL1, TL2, TQ1_0, TQ2_0, packed"
        );
    }
}
