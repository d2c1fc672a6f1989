//! What one token reads from memory, and how many products it takes. All figures of the benchmark that count bytes come from
//! here: a new form of weights, head or cache changes one line.

use bitnet_kernels::cpu::packed::Packing;
use bitnet_kernels::head::{HeadCounts, HeadType};
use bitnet_kernels::kv::{KvType, PAGE};
use bitnet_model::config::ArchConfig;
use bitnet_model::format::Checkpoint;
use bitnet_model::kv::page_bytes;
use serde::Serialize;

use crate::info::{self, PartBytes};
use crate::model::BitNetModel;

/// Bytes that generating one token reads, by part. Activations stay in cache and are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TokenBytes {
    /// Ternary weights as they lie in memory: rows and columns are filled up to whole blocks.
    pub ternary: u64,
    /// The output head, as it lies in memory.
    pub head: u64,
    /// Norms in f32, and one row of the embedding.
    pub other: u64,
    /// Keys and values of all earlier tokens.
    pub kv: u64,
    /// Earlier tokens, on average.
    pub context: f64,
}

/// How weights, keys and values lie in memory.
struct Forms {
    packing: Packing,
    head: HeadType,
    /// Bytes of keys and values of one token.
    kv_bytes: usize,
}

impl TokenBytes {
    /// Of a loaded model, with `context` earlier tokens on average.
    pub fn new(model: &BitNetModel, context: f64) -> Self {
        let info = model.info();
        let forms = Forms {
            packing: info.packing.packing,
            head: info.head,
            kv_bytes: info.kv_bytes_per_token,
        };
        Self::of_parts(model.config(), &info.bytes, forms, context)
    }

    /// Of a model that need not be loaded, with two bits a weight.
    pub fn of_checkpoint(
        checkpoint: &Checkpoint,
        kv_dtype: KvType,
        head: HeadType,
        context: f64,
    ) -> Self {
        let (config, (_, parts)) = (checkpoint.config(), info::tensors(checkpoint));
        let kv_bytes = page_bytes(config, kv_dtype) / PAGE;
        Self::of_parts(config, &parts, Forms { packing: Packing::TwoBits, head, kv_bytes }, context)
    }

    fn of_parts(config: &ArchConfig, parts: &PartBytes, forms: Forms, context: f64) -> Self {
        let stored = match config.tie_word_embeddings {
            true => parts.embedding,
            false => parts.head,
        };
        let embedding_row = parts.embedding / config.vocab_size as u64;
        Self {
            ternary: linears(config)
                .iter()
                .map(|&(rows, cols)| forms.packing.matrix_bytes(rows, cols) as u64)
                .sum::<u64>()
                * config.num_hidden_layers as u64,
            head: forms.head.bytes(config.vocab_size, config.hidden_size, stored),
            other: 4 * norm_weights(config) + embedding_row,
            kv: (forms.kv_bytes as f64 * context) as u64,
            context,
        }
    }

    /// What a step reads that generates a token for each of `count` sequences: weights once, keys and values for each.
    pub fn for_sequences(self, count: usize) -> Self {
        Self { kv: self.kv * count as u64, ..self }
    }

    /// With the rows that a two-stage head computed for each of `sequences` tokens, and with the whole head as often as it gave
    /// up; audits are not counted.
    pub fn with_head_counts(
        self,
        config: &ArchConfig,
        counts: HeadCounts,
        sequences: usize,
    ) -> Self {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let searches = (counts.found + counts.given_up).max(1) as f64;
        let share = |count: u64| count as f64 / searches * sequences as f64;
        let all = share(counts.given_up).min(1.0) * vocab as f64;
        let rows = share(counts.rows) + all;
        Self { head: self.head + (rows * HeadType::row_bytes(hidden) as f64) as u64, ..self }
    }

    /// All parts together.
    pub fn total(&self) -> u64 {
        self.ternary + self.head + self.other + self.kv
    }
}

/// Rows and columns of a layer's ternary matrices: q, k, v, o, gate, up, down.
pub(super) fn linears(config: &ArchConfig) -> [(usize, usize); 7] {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    [
        (q, hidden),
        (kv, hidden),
        (kv, hidden),
        (hidden, q),
        (ffn, hidden),
        (ffn, hidden),
        (hidden, ffn),
    ]
}

/// Ternary weights of a model: as many multiplications and additions make one token.
pub fn ternary_weights(config: &ArchConfig) -> u64 {
    let layer: usize = linears(config).iter().map(|(rows, cols)| rows * cols).sum();
    (layer * config.num_hidden_layers) as u64
}

fn norm_weights(config: &ArchConfig) -> u64 {
    let sub_norms = match config.sub_norms {
        true => config.num_attention_heads * config.head_dim + config.intermediate_size,
        false => 0,
    };
    let layer = 2 * config.hidden_size + sub_norms;
    (layer * config.num_hidden_layers + config.hidden_size) as u64
}
