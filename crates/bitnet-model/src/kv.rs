//! The bytes of the paged cache: knows layers and slots, not sequences.

use std::ops::Range;

use bitnet_kernels::backend::Backend;
use bitnet_kernels::kv::{GROUP, KvShape, KvType, PAGE};
use bitnet_kernels::memory::LARGE_PAGE;

use crate::config::ArchConfig;

/// Keys and values of all layers.
pub struct KvCache<B: Backend> {
    pub(crate) layers: Vec<B::KvLayer>,
    pages: usize,
}

impl<B: Backend> KvCache<B> {
    /// Room for `pages` pages of [`PAGE`] positions.
    pub fn new(backend: &B, config: &ArchConfig, dtype: KvType, pages: usize) -> Self {
        let shape = shape(config, dtype, pages);
        Self {
            layers: (0..config.num_hidden_layers).map(|_| backend.kv_layer(shape)).collect(),
            pages,
        }
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The addresses of all layers in this process's memory, whether the system has given any there or not.
    pub fn memory(&self, backend: &B) -> Vec<Range<usize>> {
        self.layers.iter().map(|layer| addresses(backend.kv_memory(layer))).collect()
    }

    /// Gives memory of pages back to the system whose content is of no use any more, as far as they are whole groups; see
    /// [`PageLayout::group`]. They may be written again.
    pub fn give_back(&mut self, backend: &B, pages: &Range<usize>) {
        for layer in &mut self.layers {
            backend.give_back(layer, pages.clone());
        }
    }
}

/// Where bytes are.
pub(crate) fn addresses(bytes: &[u8]) -> Range<usize> {
    let start = bytes.as_ptr().addr();
    start..start + bytes.len()
}

fn shape(config: &ArchConfig, dtype: KvType, pages: usize) -> KvShape {
    let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
    KvShape { pages, kv_heads, head_dim, dtype }
}

/// Bytes that one page of all layers takes.
pub fn page_bytes(config: &ArchConfig, dtype: KvType) -> usize {
    shape(config, dtype, 1).bytes_per_position() * PAGE * config.num_hidden_layers
}

/// Where in a cache the system gives memory when a page is written: the same in each layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLayout {
    /// Layers.
    pub layers: usize,
    /// Pages that lie together.
    pub group: usize,
    /// Bytes of these in a layer.
    pub group_bytes: usize,
    /// Bytes that the system gives at a time, all of them when the first is written.
    pub chunk_bytes: usize,
}

impl PageLayout {
    /// The layout of a cache with so many pages.
    pub fn new(config: &ArchConfig, dtype: KvType, pages: usize) -> Self {
        let group_bytes = shape(config, dtype, pages).group_bytes();
        // A layer that could fill a large page is made of such, where the system has them.
        let is_large = pages.div_ceil(GROUP).saturating_mul(group_bytes) >= LARGE_PAGE;
        let chunk_bytes = if is_large { LARGE_PAGE } else { group_bytes };
        Self { layers: config.num_hidden_layers, group: GROUP, group_bytes, chunk_bytes }
    }

    /// The chunks of each layer that some groups have parts in.
    pub fn chunks(&self, groups: Range<usize>) -> Range<usize> {
        let end = (groups.end * self.group_bytes).div_ceil(self.chunk_bytes);
        groups.start * self.group_bytes / self.chunk_bytes..end
    }

    /// Bytes of so many chunks in all layers.
    pub fn bytes(&self, chunks: usize) -> usize {
        self.layers * chunks * self.chunk_bytes
    }

    /// Bytes that so many pages have in all layers, if they lie together.
    pub fn bytes_of_pages(&self, pages: usize) -> usize {
        self.bytes(self.chunks(0..pages.div_ceil(self.group)).len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_memory_in_the_chunks_that_their_groups_reach_into() {
        let layout = PageLayout { layers: 3, group: 4, group_bytes: 640, chunk_bytes: 2048 };
        let chunks = [0..1, 2..3, 3..4, 4..5, 0..3].map(|groups| layout.chunks(groups));
        assert_eq!(chunks, [0..1, 0..1, 0..2, 1..2, 0..1]);
        assert_eq!(
            [0, 1, 12, 13].map(|pages| layout.bytes_of_pages(pages)),
            [0, 6144, 6144, 12288]
        );
    }
}
