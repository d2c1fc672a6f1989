//! ggml's tensor types: how many bytes they take, and which of them a model may use.

use std::path::Path;

use bitnet_kernels::dense::DenseType;

use crate::{error::LoadError, format::Encoding};

/// ggml's number of microsoft/BitNet's I2_S; mainline ggml has left it free.
pub const I2_S: u32 = 36;
/// ggml's number of TQ1_0.
pub const TQ1_0: u32 = 34;
/// ggml's number of TQ2_0.
pub const TQ2_0: u32 = 35;

/// ggml's number of a dense type.
pub fn dense_id(dtype: DenseType) -> u32 {
    match dtype {
        DenseType::F32 => 0,
        DenseType::F16 => 1,
        DenseType::Q4_0 => 2,
        DenseType::Q5_0 => 6,
        DenseType::Q8_0 => 8,
        DenseType::Q4K => 12,
        DenseType::Q5K => 13,
        DenseType::Q6K => 14,
        DenseType::BF16 => 30,
    }
}

fn supported(type_id: u32) -> Option<Encoding> {
    const DENSE: [DenseType; 9] = [
        DenseType::F32,
        DenseType::F16,
        DenseType::Q4_0,
        DenseType::Q5_0,
        DenseType::Q8_0,
        DenseType::Q4K,
        DenseType::Q5K,
        DenseType::Q6K,
        DenseType::BF16,
    ];
    match type_id {
        I2_S => Some(Encoding::I2S),
        TQ1_0 => Some(Encoding::Tq1_0),
        TQ2_0 => Some(Encoding::Tq2_0),
        _ => DENSE.into_iter().find(|&dtype| dense_id(dtype) == type_id).map(Encoding::Dense),
    }
}

/// How a tensor is stored and in how many bytes.
#[derive(Debug)]
pub struct Extent {
    pub encoding: Encoding,
    pub bytes: u64,
}

/// Why a tensor's type is not read.
pub enum Refusal {
    /// A type by its name, and the reason.
    Type(String, Why),
    /// A shape that does not make whole blocks.
    Blocks { encoding: Encoding, cols: u64, block: u64 },
}

/// The extent of a tensor of `dims` (fastest first) with `room` bytes until the next one or the end of the file.
pub fn extent(type_id: u32, dims: &[u64], room: u64, alignment: u64) -> Result<Extent, Refusal> {
    let elements = dims.iter().product::<u64>(); // at most 2^60, as the table's reader has checked
    let Some(encoding) = supported(type_id) else {
        return Err(refusal(type_id, dims, room, alignment));
    };
    if encoding == Encoding::I2S {
        // Codes four to a byte, then the scale and padding to 32 bytes; ggml's own size formula does not know that.
        return match elements.is_multiple_of(4) {
            true => Ok(Extent { encoding, bytes: elements / 4 + 32 }),
            false => Err(Refusal::Blocks { encoding, cols: elements, block: 4 }),
        };
    }
    let (block, block_bytes) = match encoding {
        Encoding::Tq1_0 => (256, 54),
        Encoding::Tq2_0 => (256, 66),
        Encoding::Dense(dtype) => dtype.block(),
        _ => unreachable!("GGUF types are these"),
    };
    let (block, block_bytes) = (block as u64, block_bytes as u64);
    if !dims[0].is_multiple_of(block) {
        return Err(Refusal::Blocks { encoding, cols: dims[0], block });
    }
    Ok(Extent { encoding, bytes: elements / block * block_bytes })
}

/// Why a type is not read, and what to do about it.
#[derive(Clone, Copy)]
pub struct Why {
    reason: &'static str,
    help: &'static str,
}

const TILES: Why = Why {
    reason: "its tiles depend on the kernel settings of the build that wrote it, which the file does not record",
    help: "convert the original checkpoint to I2_S",
};
const GROUPS: Why = Why {
    reason: "these weights come in groups with a scale each and belong to models that the engine does not run",
    help: "run this model with llama.cpp or PrismML's fork of it",
};
const NOT_READ: Why = Why {
    reason: "neither ternary nor one of the types read for embedding and head",
    help: "convert the model again, the embedding and head to F16, Q8_0 or Q6_K, everything else to I2_S, TQ1_0 or TQ2_0",
};
const IK: Why = Why {
    reason: "only ik_llama.cpp writes and reads it",
    help: "take the I2_S file that it was made from",
};
const SHARED: Why = Why {
    reason: "the number is used for both, and the size is that of neither",
    help: "the file is damaged or of an unknown fork: fetch it again, or convert the model to I2_S",
};
const UNKNOWN: Why = Why {
    reason: "no such type is known",
    help: "the file is damaged or newer than this program: fetch it again, or convert the model to I2_S",
};

/// What is known about the types that are not read. Forks have given one number to several, which only sizes tell apart.
fn refusal(type_id: u32, dims: &[u64], room: u64, alignment: u64) -> Refusal {
    let elements = dims.iter().product::<u64>();
    let fits = |block: u64, bytes: u64| {
        elements.is_multiple_of(block)
            && (elements / block).checked_mul(bytes).is_some_and(|bytes| {
                bytes.next_multiple_of(alignment) == room.next_multiple_of(alignment)
            })
    };
    let (name, why) = match type_id {
        38 => ("TL1 (type 38)", TILES),
        39 if fits(32, 17) => ("MXFP4 (type 39, told from TL2 by its size)", NOT_READ),
        39 if tl2_bytes(dims) == Some(room) => {
            ("TL2 (type 39, told from MXFP4 by its size)", TILES)
        }
        39 => ("MXFP4 or TL2 (type 39)", SHARED),
        42 if fits(128, 34) => {
            ("PQ2_0 under its old number (type 42, told from Q2_0 by its size)", GROUPS)
        }
        42 => ("Q2_0 (type 42)", GROUPS),
        41 => ("Q1_0 (type 41)", GROUPS),
        142 => ("PQ2_0 (type 142)", GROUPS),
        143 => ("PTQ1_0 (type 143)", GROUPS),
        37 => ("I8_S (type 37)", NOT_READ),
        40 => ("NVFP4 (type 40)", NOT_READ),
        134 => ("IQ1_BN (type 134)", IK),
        135 => ("IQ2_BN (type 135)", IK),
        3 => ("Q4_1 (type 3)", NOT_READ),
        7 => ("Q5_1 (type 7)", NOT_READ),
        9 => ("Q8_1 (type 9)", NOT_READ),
        10 => ("Q2_K (type 10)", NOT_READ),
        11 => ("Q3_K (type 11)", NOT_READ),
        15 => ("Q8_K (type 15)", NOT_READ),
        16..=23 | 29 => ("an IQ type", NOT_READ),
        24..=28 => ("a plain integer or f64 type", NOT_READ),
        _ => return Refusal::Type(format!("type {type_id}"), UNKNOWN),
    };
    Refusal::Type(name.to_owned(), why)
}

/// Bytes of a TL2 tensor, which has no fixed block; the last `K mod 256 + 256`-ish columns are stored in pairs.
fn tl2_bytes(dims: &[u64]) -> Option<u64> {
    let (cols, rows) = (*dims.first()?, *dims.get(1)?);
    let triples = cols.checked_sub(256)?.checked_mul(rows)? / 3 * 5 / 8;
    let pairs = rows.checked_mul(256)? / 2 * 4 / 8;
    triples.checked_add(pairs)?.checked_next_multiple_of(32)?.checked_add(32)
}

impl Refusal {
    pub fn into_error(self, path: &Path, tensor: &str) -> LoadError {
        match self {
            Self::Type(name, Why { reason, help }) => LoadError::Unsupported {
                path: path.into(),
                what: format!("tensor `{tensor}` in {name}"),
                reason: reason.into(),
                help: help.into(),
            },
            Self::Blocks { encoding, cols, block } => LoadError::Malformed {
                path: path.into(),
                place: format!("the shape of tensor `{tensor}`"),
                found: format!("{cols} elements in {}", encoding.name()),
                expected: format!("a multiple of {block}"),
            },
        }
    }
}
