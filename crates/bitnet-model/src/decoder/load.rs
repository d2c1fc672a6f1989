//! From a checkpoint to a model: every tensor is decoded, rearranged once, and its source pages are given back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bitnet_kernels::backend::{Backend, Norm};
use bitnet_kernels::head::HeadType;

use super::{Layer, Model, PackedCache, Parts, Place, Residency, rope};
use crate::config::ArchConfig;
use crate::error::LoadError;
use crate::format::Checkpoint;
use crate::parallel;

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Ternary matrices in place.
    pub done: usize,
    /// Ternary matrices in all.
    pub total: usize,
}

/// The ternary matrices of a layer by their Hugging Face names.
pub(super) const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Output and input features of `LINEARS[linear]`.
pub(super) fn shape(config: &ArchConfig, linear: usize) -> (usize, usize) {
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    );
    [
        (q, hidden),
        (kv, hidden),
        (kv, hidden),
        (hidden, q),
        (intermediate, hidden),
        (intermediate, hidden),
        (hidden, intermediate),
    ][linear]
}

/// The name of a ternary matrix by its position among those of all layers.
pub(super) fn linear_name(index: usize) -> String {
    format!("model.layers.{}.{}", index / LINEARS.len(), LINEARS[index % LINEARS.len()])
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions<'a> {
    /// How the output head is held.
    pub head: HeadType,
    /// Threads that read and pack weights.
    pub threads: usize,
    /// Where packed weights are kept between loads.
    pub cache: Option<&'a PackedCache>,
    /// Where weights out of a cache are; those that are packed anew without one are in memory.
    pub place: Place,
}

/// What is rearranged while a model is loaded.
pub(super) struct Weights<B: Backend> {
    /// The matrices of each layer in the order of [`LINEARS`].
    pub linears: Vec<B::Ternary>,
    pub lm_head: B::Head,
}

impl<B: Backend> Model<B> {
    /// Reads all weights with `threads` threads; `progress` is called from any of them. `head`: how the output head is held.
    ///
    /// # Errors
    /// The first one met, naming file and tensor.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: Arc<B>,
        head: HeadType,
        threads: usize,
        progress: &(dyn Fn(LoadProgress) + Sync),
    ) -> Result<Self, LoadError> {
        let options = LoadOptions { head, threads, cache: None, place: Place::Memory };
        Self::load_packing(checkpoint, backend, &options, progress)
    }

    /// Packs all weights.
    pub(super) fn load_packing(
        checkpoint: &Checkpoint,
        backend: Arc<B>,
        options: &LoadOptions<'_>,
        progress: &(dyn Fn(LoadProgress) + Sync),
    ) -> Result<Self, LoadError> {
        // Where the head takes another form, that reads its table, and looks for what is not finite as it goes.
        let read = (options.head != HeadType::File).then(|| head_name(checkpoint));
        checkpoint.check_tables(read, options.threads)?;
        let lm_head = load_head(checkpoint, &*backend, options.head)?;
        let linears = load_linears(checkpoint, &*backend, options.threads, progress)?;
        Self::assemble(checkpoint, backend, Weights { linears, lm_head }, None)
    }

    /// Adds what stays as it is in the file. `residency`: which layers are in memory, where not all may be.
    pub(super) fn assemble(
        checkpoint: &Checkpoint,
        backend: Arc<B>,
        weights: Weights<B>,
        residency: Option<Residency>,
    ) -> Result<Self, LoadError> {
        let config = checkpoint.config().clone();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embed_tokens =
            backend.upload_dense(checkpoint.dense("model.embed_tokens", vocab, hidden)?);
        let norm = load_norm(checkpoint, &*backend, "model.norm", hidden)?;
        let Weights { linears, lm_head } = weights;
        let mut linears = linears.into_iter();
        let layers = (0..config.num_hidden_layers)
            .map(|index| load_layer(checkpoint, &*backend, index, &mut linears))
            .collect::<Result<_, _>>()?;
        let inverse_frequencies = rope::inverse_frequencies(&config.rope, config.head_dim);
        let parts =
            Parts { config, embed_tokens, layers, norm, lm_head, inverse_frequencies, residency };
        Ok(Self { backend, parts: Arc::new(parts) })
    }
}

/// The table that is the output head.
fn head_name(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.config().tie_word_embeddings { "model.embed_tokens" } else { "lm_head" }
}

/// The output head, out of the embedding table where that is the same.
pub(super) fn load_head<B: Backend>(
    checkpoint: &Checkpoint,
    backend: &B,
    form: HeadType,
) -> Result<B::Head, LoadError> {
    let config = checkpoint.config();
    let name = head_name(checkpoint);
    let weights = checkpoint.dense(name, config.vocab_size, config.hidden_size)?;
    let taken = |rows| checkpoint.release_rows(name, rows);
    backend
        .upload_head(weights, form, &taken)
        .map_err(|invalid| checkpoint.invalid_head(name, form, &invalid))
}

fn load_norm<B: Backend>(
    checkpoint: &Checkpoint,
    backend: &B,
    name: &str,
    len: usize,
) -> Result<Norm<B::Vector>, LoadError> {
    let weight = backend.upload_vector(checkpoint.vector(name, len)?);
    Ok(Norm { weight, eps: checkpoint.config().rms_norm_eps })
}

fn load_layer<B: Backend>(
    checkpoint: &Checkpoint,
    backend: &B,
    index: usize,
    linears: &mut impl Iterator<Item = B::Ternary>,
) -> Result<Layer<B>, LoadError> {
    let config = checkpoint.config();
    let norm = |name: &str, len| {
        load_norm(checkpoint, backend, &format!("model.layers.{index}.{name}"), len)
    };
    let sub_norm = |name: &str, len| config.sub_norms.then(|| norm(name, len)).transpose();
    let mut linear = || linears.next().expect("every layer's matrices were loaded");
    Ok(Layer {
        input_layernorm: norm("input_layernorm", config.hidden_size)?,
        q_proj: linear(),
        k_proj: linear(),
        v_proj: linear(),
        attn_sub_norm: sub_norm(
            "self_attn.attn_sub_norm",
            config.num_attention_heads * config.head_dim,
        )?,
        o_proj: linear(),
        post_attention_layernorm: norm("post_attention_layernorm", config.hidden_size)?,
        gate_proj: linear(),
        up_proj: linear(),
        ffn_sub_norm: sub_norm("mlp.ffn_sub_norm", config.intermediate_size)?,
        down_proj: linear(),
    })
}

/// All ternary matrices, layer by layer in the order of [`LINEARS`].
fn load_linears<B: Backend>(
    checkpoint: &Checkpoint,
    backend: &B,
    threads: usize,
    progress: &(dyn Fn(LoadProgress) + Sync),
) -> Result<Vec<B::Ternary>, LoadError> {
    let config = checkpoint.config();
    let total = config.num_hidden_layers * LINEARS.len();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let loaded: Mutex<Vec<Option<B::Ternary>>> = Mutex::new((0..total).map(|_| None).collect());
    let work = || -> Result<(), LoadError> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= total {
                return Ok(());
            }
            let name = linear_name(index);
            let (rows, cols) = shape(config, index % LINEARS.len());
            let weights = checkpoint
                .ternary(&name, rows, cols)
                .inspect_err(|_| next.store(total, Ordering::Relaxed))?;
            checkpoint.release(&name);
            let uploaded = backend.upload_ternary(weights);
            loaded.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(uploaded);
            progress(LoadProgress { done: done.fetch_add(1, Ordering::Relaxed) + 1, total });
        }
    };
    parallel::share(threads, work)?;
    let loaded = loaded.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(loaded
        .into_iter()
        .map(|linear| linear.expect("no thread met an error, so each index was loaded"))
        .collect())
}
