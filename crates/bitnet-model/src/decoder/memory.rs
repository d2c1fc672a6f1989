//! What a model and a computation with it have of the process's memory.

use std::ops::Range;

use bitnet_kernels::backend::Backend;

use super::{Layer, Model, Scratch};
use crate::kv::addresses;

impl<B: Backend> Model<B> {
    /// The addresses of its weights in this process's memory, which may overlap; those of some other model are the same where both
    /// share weights. Of norms and scales, which are small, there are none.
    pub fn memory(&self) -> Vec<Range<usize>> {
        let (backend, parts) = (&*self.backend, &*self.parts);
        let ternary = parts.layers.iter().flat_map(Layer::linears);
        let ternary = ternary.map(|matrix| addresses(backend.ternary_memory(matrix)));
        let head = backend.head_memory(&parts.lm_head).into_iter().map(addresses);
        let table = addresses(backend.dense_memory(&parts.embed_tokens));
        ternary.chain(head).chain([table]).collect()
    }

    /// Bytes that a computation's working memory has.
    pub fn scratch_bytes(&self, scratch: &Scratch<B>) -> usize {
        let Scratch { hidden, q, attention, gated, rope, logits, operations } = scratch;
        let activations = [hidden, q, attention, gated].map(|x| self.backend.activation_bytes(x));
        let operations = self.backend.scratch_bytes(operations);
        activations.iter().sum::<usize>() + rope.heap_bytes() + logits.heap_bytes() + operations
    }

    /// Bytes that this will be about, at most, in steps of so many tokens with so many rows of logits.
    pub fn scratch_bytes_at_most(&self, tokens: usize, rows: usize) -> usize {
        let config = self.config();
        let heads = config.num_attention_heads * config.head_dim;
        let floats = config.hidden_size + 2 * heads + config.intermediate_size;
        let integers = config.intermediate_size.max(config.hidden_size);
        let token = floats * size_of::<f32>() + integers;
        let all = tokens * token + rows * config.vocab_size * size_of::<f32>();
        all + all / 2 // vectors that grow may take more than they need
    }

    /// Gives back what it has in memory of its file, if not all layers may be.
    pub fn give_back(&self) {
        if let Some(residency) = &self.parts.residency {
            residency.release_all();
        }
    }
}
