//! What goes into a synthetic file: metadata, tensors, and the pieces in which their data is made.

use std::ops::Range;

use anyhow::Result;
use bitnet_kernels::dense::DenseType;
use bitnet_model::format::gguf::write::{TensorSpec, TensorType};
use bitnet_model::format::metadata::{Metadata, Value};

use super::preset::Dimensions;
use super::vocabulary;
use crate::failure::Failure;

/// Elements of a table that are made at a time.
const PIECE_ELEMENTS: usize = 4 << 20;

/// A file to be written.
#[derive(Debug)]
pub struct Plan {
    metadata: Metadata,
    tensors: Vec<TensorSpec>,
    pieces: Vec<Piece>,
    /// The pieces of each tensor.
    pieces_of: Vec<Range<usize>>,
    pub seed: u64,
}

/// Rows of a tensor whose data is made at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub kind: TensorType,
    pub rows: usize,
    pub cols: usize,
}

impl Plan {
    pub fn new(it: &Dimensions, ternary: TensorType, head: DenseType, seed: u64) -> Result<Self> {
        if it.vocab < vocabulary::SMALLEST {
            let (vocab, least) = (it.vocab, vocabulary::SMALLEST);
            return Err(Failure::input(format!("a vocabulary of {vocab} tokens is too small"))
                .hint(format!("256 bytes, merges and special tokens make {least}"))
                .into());
        }
        let tensors = tensors(it, ternary, head);
        for tensor in &tensors {
            if tensor.bytes().is_none() {
                let TensorSpec { name, shape, kind } = tensor;
                let problem =
                    format!("tensor {name} of shape {shape:?} cannot be stored as {kind:?}");
                return Err(Failure::input(problem)
                    .hint(
                        "take dimensions that are multiples of 256, or --type i2_s and --head f16",
                    )
                    .into());
            }
        }
        let (mut pieces, mut pieces_of) = (Vec::new(), Vec::new());
        for tensor in &tensors {
            let start = pieces.len();
            pieces.extend(cut(tensor));
            pieces_of.push(start..pieces.len());
        }
        Ok(Self { metadata: metadata(it), tensors, pieces, pieces_of, seed })
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub fn pieces_of(&self, tensor: usize) -> Range<usize> {
        self.pieces_of[tensor].clone()
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().filter_map(TensorSpec::bytes).sum()
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
    }
}

/// A ternary tensor is made at once, since its scale stands at its end; tables are cut.
fn cut(tensor: &TensorSpec) -> Vec<Piece> {
    let cols = *tensor.shape.last().expect("every tensor here has a shape");
    let rows = tensor.shape.iter().product::<usize>() / cols;
    let at_once = match tensor.kind {
        TensorType::Dense(_) => (PIECE_ELEMENTS / cols).max(1),
        _ => rows,
    };
    let piece = |start: usize| Piece { kind: tensor.kind, rows: at_once.min(rows - start), cols };
    (0..rows).step_by(at_once).map(piece).collect()
}

fn tensors(it: &Dimensions, ternary: TensorType, head: DenseType) -> Vec<TensorSpec> {
    let spec = |name: &str, shape: &[usize], kind| TensorSpec {
        name: name.into(),
        shape: shape.into(),
        kind,
    };
    let (q, kv) = (it.heads * it.head_dim, it.kv_heads * it.head_dim);
    let table = [it.vocab, it.hidden];
    let norm = TensorType::Dense(DenseType::F32);
    let mut all = vec![spec("token_embd.weight", &table, TensorType::Dense(head))];
    for layer in 0..it.layers {
        let mut add = |name: &str, shape: &[usize], kind| {
            all.push(spec(&format!("blk.{layer}.{name}.weight"), shape, kind));
        };
        add("attn_norm", &[it.hidden], norm);
        add("attn_q", &[q, it.hidden], ternary);
        add("attn_k", &[kv, it.hidden], ternary);
        add("attn_v", &[kv, it.hidden], ternary);
        add("attn_output", &[it.hidden, q], ternary);
        add("ffn_norm", &[it.hidden], norm);
        add("ffn_gate", &[it.ffn, it.hidden], ternary);
        add("ffn_up", &[it.ffn, it.hidden], ternary);
        add("ffn_down", &[it.hidden, it.ffn], ternary);
        if it.architecture != "llama" {
            add("attn_sub_norm", &[q], norm);
            add("ffn_sub_norm", &[it.ffn], norm);
        }
    }
    all.push(spec("output_norm.weight", &[it.hidden], norm));
    if !it.tied_head {
        all.push(spec("output.weight", &table, TensorType::Dense(head)));
    }
    all
}

fn metadata(it: &Dimensions) -> Metadata {
    let size = |size: usize| Value::Int(size as i128);
    let own = [
        ("vocab_size", size(it.vocab)),
        ("context_length", size(it.context)),
        ("embedding_length", size(it.hidden)),
        ("block_count", size(it.layers)),
        ("feed_forward_length", size(it.ffn)),
        ("attention.head_count", size(it.heads)),
        ("attention.head_count_kv", size(it.kv_heads)),
        ("attention.key_length", size(it.head_dim)),
        ("attention.value_length", size(it.head_dim)),
        ("rope.dimension_count", size(it.head_dim)),
        ("attention.layer_norm_rms_epsilon", Value::Float(it.rms_norm_eps)),
        ("rope.freq_base", Value::Float(it.rope_theta)),
    ];
    let mut metadata = Metadata::default();
    metadata.0.extend(own.map(|(key, value)| (format!("{}.{key}", it.architecture), value)));
    metadata.0.insert("general.architecture".into(), Value::String(it.architecture.into()));
    metadata.0.insert("general.name".into(), Value::String(it.name.clone()));
    vocabulary::add(&mut metadata, it.vocab);
    metadata
}
