//! The bytes of the paged cache: knows layers and slots, not sequences.

use bitnet_kernels::backend::Backend;
use bitnet_kernels::kv::{KvShape, KvType, PAGE};

use crate::config::ArchConfig;

/// Keys and values of all layers.
pub struct KvCache<B: Backend> {
    pub(crate) layers: Vec<B::KvLayer>,
    pages: usize,
}

impl<B: Backend> KvCache<B> {
    /// Room for `pages` pages of [`PAGE`] positions.
    pub fn new(backend: &B, config: &ArchConfig, dtype: KvType, pages: usize) -> Self {
        let shape = KvShape {
            pages,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            dtype,
        };
        Self {
            layers: (0..config.num_hidden_layers).map(|_| backend.kv_layer(shape)).collect(),
            pages,
        }
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.pages
    }
}

/// Bytes that one page of all layers takes.
pub fn page_bytes(config: &ArchConfig, dtype: KvType) -> usize {
    let shape = KvShape {
        pages: 1,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        dtype,
    };
    shape.bytes_per_position() * PAGE * config.num_hidden_layers
}
