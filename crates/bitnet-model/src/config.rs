//! What a model is: its hyperparameters under their Hugging Face names.

mod gguf;
mod hf;
mod keys;

pub(crate) use self::{
    gguf::from_metadata,
    hf::{LinearForm, from_json},
};

/// Hyperparameters of a decoder with ternary linear layers, complete and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ArchConfig {
    /// The architecture as the file names it (`BitNetForCausalLM`, `bitnet-b1.58`, …).
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// What is applied to the gate.
    pub hidden_act: HiddenAct,
    /// Whether there are norms before `o_proj` and `down_proj`.
    pub sub_norms: bool,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Put before every text, if the tokenizer says so.
    pub bos_token_id: Option<u32>,
    /// Each of these ends a generation.
    pub eos_token_ids: Vec<u32>,
}

/// The function applied to the gate of the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenAct {
    /// `max(x, 0)²`, BitNet b1.58 2B-4T.
    Relu2,
    /// `x / (1 + e^-x)`, 1bitLLM's models and the Llama family.
    Silu,
}

/// Rotary position embedding: element `i` of a head turns with element `i + head_dim / 2`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f32,
    /// How frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
    /// What the frequency of each of the `head_dim / 2` pairs is divided by as well; none if empty. GGUF files have Llama 3.1's
    /// stretch in this form, as the tensor `rope_freqs.weight`.
    pub factors: Vec<f32>,
}

/// Changes to the rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// Stretch.
        factor: f32,
    },
    /// Llama 3.1's piecewise stretch.
    Llama3 {
        /// Stretch of the low frequencies.
        factor: f32,
        /// Wavelengths above `original / low_freq_factor` are stretched fully.
        low_freq_factor: f32,
        /// Wavelengths below `original / high_freq_factor` are left alone.
        high_freq_factor: f32,
        /// The context before stretching.
        original_max_position_embeddings: usize,
    },
}

/// Removes repeated ids, keeping the order.
fn dedup(ids: &mut Vec<u32>) {
    let mut seen = std::collections::BTreeSet::new();
    ids.retain(|&id| seen.insert(id));
}
