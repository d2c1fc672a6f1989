//! What one token reads from memory, and how many integer products it takes. All figures of the benchmark that count bytes come from
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

impl TokenBytes {
    /// Of a loaded model, with `context` earlier tokens on average.
    pub fn new(model: &BitNetModel, context: f64) -> Self {
        let info = model.info();
        let kv_bytes = info.kv_bytes_per_token;
        Self::of_parts(
            model.config(),
            &info.bytes,
            info.ternary_bytes,
            info.head,
            kv_bytes,
            context,
        )
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
        let ternary = packed_bytes(config, Packing::TwoBits);
        Self::of_parts(config, &parts, ternary, head, kv_bytes, context)
    }

    fn of_parts(
        config: &ArchConfig,
        parts: &PartBytes,
        ternary: u64,
        head: HeadType,
        kv_bytes: usize,
        context: f64,
    ) -> Self {
        let stored = match config.tie_word_embeddings {
            true => parts.embedding,
            false => parts.head,
        };
        let embedding_row = parts.embedding / config.vocab_size as u64;
        Self {
            ternary,
            head: head.bytes(config.vocab_size, config.hidden_size, stored),
            other: 4 * norm_weights(config) + embedding_row,
            kv: (kv_bytes as f64 * context) as u64,
            context,
        }
    }

    /// What a step reads that generates a token for each of `count` sequences: weights once, keys and values for each.
    pub fn for_sequences(self, count: usize) -> Self {
        Self { kv: self.kv * count as u64, ..self }
    }

    /// With the rows that a two-stage head computed for each of `sequences` tokens; audits are not counted.
    pub fn with_head_counts(
        self,
        config: &ArchConfig,
        counts: HeadCounts,
        sequences: usize,
    ) -> Self {
        // Sequences that give up share one reading of all rows.
        let all = (given_up(counts) * sequences as f64).min(1.0) * config.vocab_size as f64;
        let rows = one_by_one(counts) * sequences as f64 + all;
        Self {
            head: self.head + (rows * HeadType::row_bytes(config.hidden_size) as f64) as u64,
            ..self
        }
    }

    /// Of a prompt that takes `steps` steps, of which only the last one has an output: what one of them reads on average.
    pub fn for_prompt(self, steps: usize) -> Self {
        Self { head: self.head / steps as u64, ..self }
    }

    /// All parts together.
    pub fn total(&self) -> u64 {
        self.ternary + self.head + self.other + self.kv
    }
}

/// Tokens of which a two-stage head computed all rows, as a share.
fn given_up(counts: HeadCounts) -> f64 {
    counts.given_up as f64 / (counts.found + counts.given_up).max(1) as f64
}

/// Rows that a two-stage head computed one by one for a token.
fn one_by_one(counts: HeadCounts) -> f64 {
    counts.rows as f64 / (counts.found + counts.given_up).max(1) as f64
}

/// Integer products of a token by part. One of int8 and a number of sixteen bits takes the instructions of two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TokenProducts {
    /// Ternary weights.
    pub ternary: f64,
    /// The output head: two for each weight of an int8 head, whose input has sixteen bits; for a two-stage head one for each
    /// weight and two for those of the rows that were computed, which were counted. None for a head in floats.
    pub head: f64,
    /// Attention to int8 keys and values: two for each number of both, since queries and weights have sixteen bits. None for
    /// those in floats.
    pub attention: f64,
}

impl TokenProducts {
    /// Of a token with `context` earlier ones on average, of which a share `outputs` needs logits.
    pub fn new(model: &BitNetModel, context: f64, counts: HeadCounts, outputs: f64) -> Self {
        let (config, info) = (model.config(), model.info());
        let row = config.hidden_size as f64;
        let all = config.vocab_size as f64 * row;
        let head = match info.head {
            HeadType::Int8 => 2.0 * all,
            HeadType::TwoStage => all + 2.0 * (one_by_one(counts) * row + given_up(counts) * all),
            HeadType::File => 0.0,
        };
        let width = (config.num_attention_heads * config.head_dim) as f64;
        let attention = match info.kv_dtype {
            KvType::Int8 => 2.0 * 2.0 * width * config.num_hidden_layers as f64 * context,
            _ => 0.0,
        };
        Self { ternary: ternary_weights(config) as f64, head: head * outputs, attention }
    }

    /// All parts together.
    pub fn total(&self) -> f64 {
        self.ternary + self.head + self.attention
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

/// Bytes of all ternary weights in one packing.
pub(super) fn packed_bytes(config: &ArchConfig, packing: Packing) -> u64 {
    let layer: usize =
        linears(config).iter().map(|&(rows, cols)| packing.matrix_bytes(rows, cols)).sum();
    layer as u64 * config.num_hidden_layers as u64
}

fn norm_weights(config: &ArchConfig) -> u64 {
    let sub_norms = match config.sub_norms {
        true => config.num_attention_heads * config.head_dim + config.intermediate_size,
        false => 0,
    };
    let layer = 2 * config.hidden_size + sub_norms;
    (layer * config.num_hidden_layers + config.hidden_size) as u64
}
