//! What computes the operations of a tier, asked of the code that computes them, for programs that show it.

use std::fmt;

use super::attention;
use super::isa::Isa;
use crate::kv::KvType;
use crate::scalar::attention::Form;

/// How a tier computes attention over keys and values of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionKernel {
    /// The type of keys and values.
    pub dtype: KvType,
    /// Bits of the vectors in its loops; 0 for portable loops, which use the vectors that the whole build may use.
    pub vector_bits: usize,
    /// What its products are made of.
    pub operands: Operands,
}

/// What is multiplied in attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// Int8 as it lies in memory with 16-bit integers, these taken as pairs.
    IntegerPairs,
    /// The same with the two bytes of 16-bit integers apart.
    IntegerBytes,
    /// Floats, widened on their way to the registers where few queries meet them.
    Stored,
    /// Floats that were made of what is stored before.
    Converted,
}

impl fmt::Display for AttentionKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dtype, vector_bits, operands } = self;
        match vector_bits {
            0 => write!(f, "portable loops, ")?,
            bits => write!(f, "loops of its own in {bits}-bit vectors, ")?,
        }
        match operands {
            Operands::IntegerPairs => write!(f, "{dtype} times 16-bit integers"),
            Operands::IntegerBytes => write!(f, "{dtype} times both bytes of 16-bit integers"),
            Operands::Stored => write!(f, "{dtype} read as it is stored"),
            Operands::Converted => write!(f, "{dtype} made f32 first"),
        }
    }
}

impl Isa {
    /// How attention is computed over keys and values of a type.
    pub fn attention_kernel(self, dtype: KvType) -> AttentionKernel {
        let operands = match (dtype, attention::form(self)) {
            (KvType::Int8, Form::Pairs) => Operands::IntegerPairs,
            (KvType::Int8, Form::Bytes) => Operands::IntegerBytes,
            _ if attention::reads_stored(self, dtype) => Operands::Stored,
            _ => Operands::Converted,
        };
        AttentionKernel { dtype, vector_bits: attention::vector_bits(self), operands }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tier_tells_its_own_loops() {
        for &isa in Isa::available() {
            let of = |dtype| isa.attention_kernel(dtype);
            let own = cfg!(target_arch = "x86_64") && isa != Isa::Scalar;
            assert_eq!(of(KvType::F16).vector_bits > 0, own, "{isa}");
            assert!(matches!(of(KvType::F16).operands, Operands::Stored | Operands::Converted));
            assert_eq!(of(KvType::F32).operands, Operands::Converted);
            let integers = of(KvType::Int8).to_string();
            assert!(integers.contains("int8 times"), "{integers}");
            let (rows, tokens) = isa.head_tile();
            assert!(rows.is_multiple_of(16) && rows > 0 && tokens > 0);
        }
    }
}
