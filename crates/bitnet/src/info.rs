//! What was loaded, and what was chosen for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bitnet_kernels::cpu::packing::ChosenPacking;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::KvType;
use bitnet_model::decoder::CacheUse;
use bitnet_model::format::{Checkpoint, TensorInfo};

use crate::lock::MemoryLock;

/// What a loaded model is and how it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Its own name, or its file's.
    pub name: String,
    /// The file or directory it was loaded from; none for the demo model.
    pub path: Option<PathBuf>,
    /// The architecture as its files name it.
    pub architecture: String,
    /// The encodings of its tensors by name.
    pub encodings: BTreeMap<&'static str, EncodingInfo>,
    /// Stored bytes by part.
    pub bytes: PartBytes,
    /// The device.
    pub device: String,
    /// The SIMD level in use.
    pub simd_level: &'static str,
    /// How ternary weights are packed, and why so.
    pub packing: ChosenPacking,
    /// Bytes of ternary weights in memory; each token reads all of them.
    pub ternary_bytes: u64,
    /// Compute threads.
    pub threads: usize,
    /// Longest sequence in tokens.
    pub context_length: usize,
    /// How keys and values are stored.
    pub kv_dtype: KvType,
    /// How the output head is held.
    pub head: HeadType,
    /// Most bytes that keys and values of all sequences may take; they are taken from the system as they fill.
    pub kv_cache_bytes: usize,
    /// Bytes that the keys and values of one token take.
    pub kv_bytes_per_token: usize,
    /// Whether packed weights came out of a file that keeps them.
    pub packed_cache: CacheUse,
    /// Whether memory stays in memory.
    pub memory_lock: MemoryLock,
    /// How long loading took.
    pub load_time: Duration,
}

/// Tensors in one encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodingInfo {
    /// How many.
    pub tensors: usize,
    /// Their stored bytes.
    pub bytes: u64,
}

/// Stored bytes of a model's parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartBytes {
    /// Ternary matrices.
    pub ternary: u64,
    /// The embedding table.
    pub embedding: u64,
    /// The output head, if it is not the embedding table.
    pub head: u64,
    /// Norms and scales.
    pub other: u64,
}

impl PartBytes {
    /// All parts.
    pub fn total(&self) -> u64 {
        self.ternary + self.embedding + self.head + self.other
    }

    fn add(&mut self, tensor: &TensorInfo) {
        let part = match tensor.name.as_str() {
            "model.embed_tokens.weight" => &mut self.embedding,
            "lm_head.weight" => &mut self.head,
            name if name.ends_with("_proj.weight") => &mut self.ternary,
            _ => &mut self.other,
        };
        *part += tensor.bytes;
    }
}

/// Encodings and parts of a checkpoint.
pub(crate) fn tensors(
    checkpoint: &Checkpoint,
) -> (BTreeMap<&'static str, EncodingInfo>, PartBytes) {
    let (mut encodings, mut parts) = (BTreeMap::<_, EncodingInfo>::new(), PartBytes::default());
    for tensor in checkpoint.tensors() {
        let encoding = encodings.entry(tensor.encoding).or_default();
        encoding.tensors += 1;
        encoding.bytes += tensor.bytes;
        parts.add(&tensor);
    }
    (encodings, parts)
}
