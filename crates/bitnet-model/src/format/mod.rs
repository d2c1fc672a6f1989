//! Model files: GGUF, and Hugging Face directories with safetensors.

pub mod gguf;
pub mod metadata;
pub mod packed;
pub mod ternary;

mod checkpoint;
mod directory;
pub(crate) mod impostor;
mod json;
mod mmap;
mod names;
mod safetensors;
pub(crate) mod source;

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use bitnet_kernels::dense::DenseType;

use self::metadata::Metadata;
pub use self::{checkpoint::Checkpoint, names::to_gguf as gguf_name, ternary::i2s::I2sLayout};
use crate::config::HiddenAct;

/// How to read a checkpoint, where its files leave that open.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Map files into memory. Without it each tensor is read when it is asked for, which survives a file that changes
    /// or a network drive that goes away, and keeps the embedding in the process's own memory.
    pub mmap: bool,
    /// Byte order of I2_S tensors.
    pub i2s_layout: I2sLayout,
    /// Byte order of packed uint8 tensors in safetensors.
    pub packed_layout: PackedLayout,
    /// Overrides the activation function that the files name or imply.
    pub hidden_act: Option<HiddenAct>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            mmap: true,
            i2s_layout: I2sLayout::default(),
            packed_layout: PackedLayout::default(),
            hidden_act: None,
        }
    }
}

/// Byte orders of packed uint8 tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PackedLayout {
    /// Hugging Face's `[rows / 4, cols]`, see [`ternary::hf`].
    #[default]
    HfRows,
    /// `[rows, cols / 4]` with the first weight on top, see [`ternary::wf_msb`].
    WfMsb,
}

/// One tensor of a checkpoint, for display.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// As the file calls it.
    pub file_name: String,
    /// As the engine calls it: Hugging Face's name.
    pub name: String,
    /// Which of [`Checkpoint::files`] holds it.
    pub file: usize,
    /// As stored, slowest dimension first.
    pub shape: Vec<usize>,
    /// Name of the encoding.
    pub encoding: &'static str,
    /// Stored bytes.
    pub bytes: u64,
}

/// Where the tokenizer of a checkpoint is described.
#[derive(Clone, Debug)]
pub enum TokenizerSource<'a> {
    /// In the metadata of its GGUF file, which is here.
    Gguf(&'a Path, &'a Metadata),
    /// In JSON files of this directory.
    Directory(PathBuf),
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Dense(DenseType),
    I2S,
    Tq1_0,
    Tq2_0,
    PackedU8,
    Other(&'static str),
}

impl Encoding {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dense(DenseType::F32) => "F32",
            Self::Dense(DenseType::F16) => "F16",
            Self::Dense(DenseType::BF16) => "BF16",
            Self::Dense(DenseType::Q8_0) => "Q8_0",
            Self::Dense(DenseType::Q6K) => "Q6_K",
            Self::Dense(DenseType::Q5K) => "Q5_K",
            Self::Dense(DenseType::Q4K) => "Q4_K",
            Self::Dense(DenseType::Q5_0) => "Q5_0",
            Self::Dense(DenseType::Q4_0) => "Q4_0",
            Self::I2S => "I2_S",
            Self::Tq1_0 => "TQ1_0",
            Self::Tq2_0 => "TQ2_0",
            Self::PackedU8 => "U8",
            Self::Other(name) => name,
        }
    }

    /// Floats without blocks, whose elements stand for themselves.
    fn plain_float(self) -> Option<DenseType> {
        match self {
            Self::Dense(dtype @ (DenseType::F32 | DenseType::F16 | DenseType::BF16)) => Some(dtype),
            _ => None,
        }
    }
}

/// A tensor and where its bytes are.
#[derive(Clone, Debug)]
struct Tensor {
    own_name: String,
    file: usize,
    shape: Vec<usize>,
    encoding: Encoding,
    range: Range<u64>,
}

#[cfg(test)]
mod tests;
