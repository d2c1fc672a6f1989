//! The decoder: ternary linear layers between float norms, attention and activation.
//!
//! BitNet b1.58 (Wang et al. 2023, arXiv:2310.11453; Ma et al. 2024, arXiv:2402.17764; 2B-4T: 2025, arXiv:2504.12285) and the
//! ternary Llama family differ in three switches of one layer (sub-norms, activation, tied head), so there is one decoder
//! and no type per family; reading a family's files is the business of `format` and `config`.

mod cache;
mod load;
mod memory;
mod residency;
mod rope;

use std::sync::Arc;

use bitnet_kernels::backend::{Backend, Gated, Norm, Projection};
use bitnet_kernels::head::HeadRecord;
use bitnet_kernels::logits::Logits;
use bitnet_kernels::profile::{Phase, PhaseTime};
use bitnet_kernels::scalar::elementwise::Activation;
use bitnet_kernels::scalar::rope::RopeTable;

use crate::batch::Batch;
use crate::config::ArchConfig;
use crate::kv::KvCache;

pub use crate::format::packed::Place;
pub use cache::{CacheUse, CachedFile, CachedKind, CachedOrigin, PackedCache, free_bytes};
pub use load::{LoadOptions, LoadProgress};
use residency::Residency;

/// A model, immutable after loading.
pub struct Model<B: Backend> {
    backend: Arc<B>,
    parts: Arc<Parts<B>>,
}

/// What a model has in memory, whichever threads compute with it.
struct Parts<B: Backend> {
    config: ArchConfig,
    embed_tokens: B::Dense,
    layers: Vec<Layer<B>>,
    norm: Norm<B::Vector>,
    lm_head: B::Head,
    inverse_frequencies: Vec<f32>,
    /// Which layers are in memory, where not all may be.
    residency: Option<Residency>,
}

struct Layer<B: Backend> {
    input_layernorm: Norm<B::Vector>,
    q_proj: B::Ternary,
    k_proj: B::Ternary,
    v_proj: B::Ternary,
    attn_sub_norm: Option<Norm<B::Vector>>,
    o_proj: B::Ternary,
    post_attention_layernorm: Norm<B::Vector>,
    gate_proj: B::Ternary,
    up_proj: B::Ternary,
    ffn_sub_norm: Option<Norm<B::Vector>>,
    down_proj: B::Ternary,
}

impl<B: Backend> Layer<B> {
    /// The ternary matrices in the order of `load::LINEARS`.
    fn linears(&self) -> [&B::Ternary; 7] {
        let Self { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = self;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    }
}

/// Activation memory of one caller of [`Model::forward`].
pub struct Scratch<B: Backend> {
    hidden: B::Activations,
    q: B::Activations,
    attention: B::Activations,
    gated: B::Activations,
    rope: RopeTable,
    logits: Logits,
    operations: B::Scratch,
}

/// A place in the forward pass at which an observer sees the activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The residual stream before this layer; the number of layers stands for its end.
    Hidden(usize),
    /// What attention gives, before the sub-norm and `o_proj`.
    Attention(usize),
    /// The residual stream between attention and feed-forward.
    PostAttention(usize),
    /// Activated gate times up, before the sub-norm and `down_proj`.
    Gated(usize),
}

impl<B: Backend> Model<B> {
    /// The same model, in the same memory, on another backend: with other threads or instructions, say. How weights lie does not
    /// change.
    pub fn with_backend(&self, backend: Arc<B>) -> Self {
        Self { backend, parts: Arc::clone(&self.parts) }
    }

    /// The hyperparameters.
    pub fn config(&self) -> &ArchConfig {
        &self.parts.config
    }

    /// The device.
    pub fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    /// Bytes of all ternary matrices as they lie in memory: what one step reads of them.
    pub fn ternary_bytes(&self) -> u64 {
        let matrices = self.parts.layers.iter().flat_map(Layer::linears);
        matrices.map(|matrix| self.backend.ternary_bytes(matrix) as u64).sum()
    }

    /// Where the output head counts what happens, if it is one that leaves out logits.
    pub fn head_record(&self) -> Option<Arc<HeadRecord>> {
        self.backend.head_record(&self.parts.lm_head)
    }

    /// Says that these tokens will be computed soon: their rows of a table in a mapped file are fetched meanwhile.
    pub fn foresee(&self, ids: &[u32]) {
        self.backend.foresee(&self.parts.embed_tokens, ids);
    }

    /// Activation memory for a caller of [`Self::forward`].
    pub fn scratch(&self) -> Scratch<B> {
        let new = || self.backend.activations();
        Scratch {
            hidden: new(),
            q: new(),
            attention: new(),
            gated: new(),
            rope: RopeTable::default(),
            logits: Logits::default(),
            operations: self.backend.scratch(),
        }
    }

    /// Runs a batch through all layers. Returns a row of logits for each of `batch.outputs`.
    ///
    /// # Panics
    /// If an id is not below `vocab_size` or a slot not in the cache.
    pub fn forward<'s>(
        &self,
        batch: &Batch,
        kv: &mut KvCache<B>,
        scratch: &'s mut Scratch<B>,
    ) -> &'s Logits {
        self.forward_observed(batch, kv, scratch, &mut |_, _| {})
    }

    /// [`Self::forward`], showing the activations at every [`Point`] to `observe`.
    pub fn forward_observed<'s>(
        &self,
        batch: &Batch,
        kv: &mut KvCache<B>,
        scratch: &'s mut Scratch<B>,
        observe: &mut dyn FnMut(Point, &B::Activations),
    ) -> &'s Logits {
        assert!(
            batch.ids.iter().all(|&id| (id as usize) < self.config().vocab_size),
            "callers check token ids"
        );
        self.backend.step(batch.ids.len(), || self.compute(batch, kv, scratch, observe));
        &scratch.logits
    }

    fn phase(&self, phase: Phase) -> PhaseTime<'_> {
        self.backend.profile().phase(phase)
    }

    fn compute(
        &self,
        batch: &Batch,
        kv: &mut KvCache<B>,
        scratch: &mut Scratch<B>,
        observe: &mut dyn FnMut(Point, &B::Activations),
    ) {
        let parts = &*self.parts;
        scratch.rope.fill(&parts.inverse_frequencies, &batch.positions);
        let phase = self.phase(Phase::Embedding);
        self.backend.embed(&parts.embed_tokens, &batch.ids, &mut scratch.hidden);
        drop(phase);
        for (index, (layer, kv)) in parts.layers.iter().zip(&mut kv.layers).enumerate() {
            if let Some(residency) = &parts.residency {
                residency.enter(index);
            }
            observe(Point::Hidden(index), &scratch.hidden);
            self.attention(layer, batch, kv, scratch);
            observe(Point::Attention(index), &scratch.attention);
            let s = &mut *scratch;
            let phase = self.phase(Phase::Output);
            self.backend.project_add(
                &mut s.operations,
                &s.attention,
                layer.attn_sub_norm.as_ref(),
                &layer.o_proj,
                &mut s.hidden,
            );
            drop(phase);
            observe(Point::PostAttention(index), &s.hidden);
            self.feed_forward(layer, s);
            observe(Point::Gated(index), &s.gated);
            let _phase = self.phase(Phase::Down);
            self.backend.project_add(
                &mut s.operations,
                &s.gated,
                layer.ffn_sub_norm.as_ref(),
                &layer.down_proj,
                &mut s.hidden,
            );
        }
        observe(Point::Hidden(parts.layers.len()), &scratch.hidden);
        let _phase = self.phase(Phase::Head);
        self.backend.logits(
            &mut scratch.operations,
            &scratch.hidden,
            &batch.outputs,
            &parts.norm,
            &parts.lm_head,
            &mut scratch.logits,
        );
    }

    fn attention(&self, layer: &Layer<B>, batch: &Batch, kv: &mut B::KvLayer, s: &mut Scratch<B>) {
        let phase = self.phase(Phase::Project);
        let (rope, slots) = (&s.rope, &*batch.slots);
        let projection =
            Projection { q: &layer.q_proj, k: &layer.k_proj, v: &layer.v_proj, rope, slots };
        let norm = &layer.input_layernorm;
        self.backend.project(&mut s.operations, &s.hidden, norm, projection, &mut s.q, kv);
        drop(phase);
        let _phase = self.phase(Phase::Attention);
        self.backend.attention(&mut s.operations, &s.q, kv, &batch.spans, &mut s.attention);
    }

    fn feed_forward(&self, layer: &Layer<B>, s: &mut Scratch<B>) {
        let activation = match self.config().hidden_act {
            crate::config::HiddenAct::Relu2 => Activation::Relu2,
            crate::config::HiddenAct::Silu => Activation::Silu,
        };
        let weights = Gated { gate: &layer.gate_proj, up: &layer.up_proj, activation };
        let _phase = self.phase(Phase::Gated);
        self.backend.gated(
            &mut s.operations,
            &s.hidden,
            &layer.post_attention_layernorm,
            weights,
            &mut s.gated,
        );
    }
}
