//! How an engine shares memory and steps among requests.

use std::time::Duration;

use bitnet_kernels::kv::{KvType, PAGE};
use bitnet_model::config::ArchConfig;
use bitnet_model::kv::{PageLayout, page_bytes};
use serde::{Deserialize, Serialize};

use crate::block_pool::EvictionStrategy;
use crate::error::InvalidConfig;

/// Memory that the key-value cache may use if nothing else is said. It is taken from the system as it fills.
const DEFAULT_KV_BYTES: usize = 1 << 30;
/// Floats of logits that one step may make, 64 MiB: what scoring a text needs beyond generating.
const STEP_LOGITS: usize = 16 << 20;

/// How requests share the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InferenceConfig {
    /// Sequences that advance together in a step; others wait.
    pub max_batch_size: usize,
    /// Tokens of a step, one of each running sequence and the rest from prompts. Longer prompts take several steps, so that
    /// they do not hold up the others.
    pub max_batch_tokens: usize,
    /// Milliseconds that a step may take as long as somebody waits for the next token of an answer: prompts are cut to pieces
    /// that fit. 0: prompts are computed as fast as possible, and answers wait for them.
    pub step_target_ms: u64,
    /// Requests that may wait for their turn; another one is refused.
    pub max_waiting: usize,
    /// Tokens that the prompts of those that wait may have together; a request that would exceed it is refused, unless it is the
    /// only one.
    pub max_waiting_tokens: usize,
    /// Milliseconds of waiting that count as much as one level of priority.
    pub priority_step_ms: u64,
    /// Most bytes of the key-value cache of all sequences, taken from the system as they fill. 0: 1 GiB, or one sequence of
    /// full length if that is more.
    pub kv_cache_bytes: usize,
    /// Whether keys and values of ended sequences are kept while there is room, so that a sequence that begins with the same
    /// tokens need not compute them: the next turn of a conversation, or another question with the same instructions.
    pub prefix_cache: bool,
    /// What goes first when the room is needed.
    pub eviction_strategy: EvictionStrategy,
}

impl Default for InferenceConfig {
    fn default() -> Self {
        Self {
            max_batch_size: 16,
            max_batch_tokens: 512,
            step_target_ms: 100,
            max_waiting: 256,
            max_waiting_tokens: 1 << 18,
            priority_step_ms: 1000,
            kv_cache_bytes: 0,
            prefix_cache: true,
            eviction_strategy: EvictionStrategy::default(),
        }
    }
}

/// How to run a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineConfig {
    /// Longest sequence in tokens, prompt and answer together; 0: what the model was made for. Bounds the cache.
    pub max_seq_len: usize,
    /// How keys and values are stored.
    pub kv_dtype: KvType,
    /// How requests share the engine.
    pub inference: InferenceConfig,
}

/// [`EngineConfig`] worked out for one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Tokens that a sequence may have.
    pub max_seq_len: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Sequences in a step.
    pub max_batch_size: usize,
    /// Tokens in a step.
    pub max_batch_tokens: usize,
    /// Rows of logits in a step.
    pub max_outputs: usize,
    /// How long a step may take while there are answers, if that matters.
    pub step_target: Option<Duration>,
    /// What a row of logits costs, in tokens.
    pub row_tokens: f64,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Tokens of their prompts.
    pub max_waiting_tokens: usize,
    /// How much earlier a request seems to have come for each level of priority.
    pub priority_step: Duration,
    /// Whether sequences share the pages of a common beginning.
    pub prefix_cache: bool,
    /// Which of the pages go first that are kept for sequences to come.
    pub eviction: EvictionStrategy,
    /// Where the cache takes memory.
    pub layout: PageLayout,
}

impl EngineConfig {
    /// What this means for a model, or which setting it cannot have.
    pub fn limits(&self, model: &ArchConfig) -> Result<Limits, InvalidConfig> {
        let max_seq_len = self.sequence_length(model)?;
        let InferenceConfig { max_batch_size, max_batch_tokens, max_waiting, .. } = self.inference;
        at_least_one("max_batch_size", max_batch_size)?;
        at_least_one("max_waiting", max_waiting)?;
        let InferenceConfig { max_waiting_tokens, step_target_ms, priority_step_ms, .. } =
            self.inference;
        at_least_one("max_waiting_tokens", max_waiting_tokens)?;
        at_most_a_day("step_target_ms", step_target_ms)?;
        at_most_a_day("priority_step_ms", priority_step_ms)?;
        if priority_step_ms == 0 {
            return Err(InvalidConfig::new("priority_step_ms", 0, "at least 1"));
        }
        if max_batch_tokens < max_batch_size {
            let expected =
                format!("at least max_batch_size, {max_batch_size}: a token for each sequence");
            return Err(InvalidConfig::new("max_batch_tokens", max_batch_tokens, expected));
        }
        let pages = self.pages(model, max_seq_len)?;
        self.try_to_reserve(model, max_seq_len, pages)?;
        Ok(Limits {
            max_seq_len,
            pages,
            max_batch_size,
            max_batch_tokens,
            max_outputs: (STEP_LOGITS / model.vocab_size).max(1),
            step_target: (step_target_ms > 0).then(|| Duration::from_millis(step_target_ms)),
            row_tokens: row_tokens(model),
            max_waiting,
            max_waiting_tokens,
            priority_step: Duration::from_millis(priority_step_ms),
            prefix_cache: self.inference.prefix_cache,
            eviction: self.inference.eviction_strategy,
            layout: PageLayout::new(model, self.kv_dtype, pages),
        })
    }

    fn sequence_length(&self, model: &ArchConfig) -> Result<usize, InvalidConfig> {
        let most = model.max_position_embeddings;
        match self.max_seq_len {
            0 => Ok(most),
            len if len <= most => Ok(len),
            len => {
                let expected = format!("at most {most}, the context this model was made for");
                Err(InvalidConfig::new("max_seq_len", len, expected))
            }
        }
    }

    /// Fails where the cache could not be made: a model may claim a context for which no machine has the memory, and an
    /// allocation that fails later would end the process.
    fn try_to_reserve(
        &self,
        model: &ArchConfig,
        max_seq_len: usize,
        pages: usize,
    ) -> Result<(), InvalidConfig> {
        let layers = model.num_hidden_layers;
        let layer = (page_bytes(model, self.kv_dtype) / layers).saturating_mul(pages);
        if !is_refused(layers, layer) {
            return Ok(());
        }
        let bytes = layer.saturating_mul(layers);
        let expected =
            format!("so small that its keys and values, now {bytes} bytes, fit in memory");
        Err(InvalidConfig::new("max_seq_len", max_seq_len, expected))
    }

    /// Pages within the memory allowed, at least those of one full sequence and at most those of a full batch.
    fn pages(&self, model: &ArchConfig, max_seq_len: usize) -> Result<usize, InvalidConfig> {
        let page = page_bytes(model, self.kv_dtype);
        let one = max_seq_len.div_ceil(PAGE);
        let all = one.saturating_mul(self.inference.max_batch_size);
        let bytes = self.inference.kv_cache_bytes;
        if bytes == 0 {
            return Ok((DEFAULT_KV_BYTES / page).clamp(one, all));
        }
        if bytes / page < one {
            let needed = page.saturating_mul(one);
            let expected =
                format!("0 or at least {needed} bytes, a sequence of {max_seq_len} tokens");
            return Err(InvalidConfig::new("kv_cache_bytes", bytes, expected));
        }
        Ok((bytes / page).min(all))
    }
}

/// Asks for the memory of each layer and gives it back untouched; whether the system refused any.
fn is_refused(layers: usize, bytes: usize) -> bool {
    let mut reserved: Vec<Vec<u8>> = Vec::new();
    !(0..layers).all(|_| {
        let mut layer = Vec::new();
        let given = layer.try_reserve_exact(bytes).is_ok();
        reserved.push(layer);
        given
    })
}

/// Products of a row of logits, two for each weight as its input has 16 bits, beside those of a token in all layers.
fn row_tokens(model: &ArchConfig) -> f64 {
    let hidden = model.hidden_size;
    let heads = 2 * (model.num_attention_heads + model.num_key_value_heads) * model.head_dim;
    let layer = hidden * (heads + 3 * model.intermediate_size);
    (2 * model.vocab_size * hidden) as f64 / (model.num_hidden_layers * layer) as f64
}

fn at_most_a_day(field: &'static str, ms: u64) -> Result<(), InvalidConfig> {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    match ms <= DAY {
        true => Ok(()),
        false => Err(InvalidConfig::new(field, ms, format!("at most {DAY}, a day"))),
    }
}

fn at_least_one(field: &'static str, value: usize) -> Result<(), InvalidConfig> {
    match value {
        0 => Err(InvalidConfig::new(field, value, "at least 1")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_model::config::{HiddenAct, RopeConfig, RopeScaling};

    /// The sizes of BitNet b1.58 2B-4T.
    fn model() -> ArchConfig {
        ArchConfig {
            architecture: "BitNetForCausalLM".into(),
            hidden_size: 2560,
            intermediate_size: 6912,
            num_hidden_layers: 30,
            num_attention_heads: 20,
            num_key_value_heads: 5,
            head_dim: 128,
            vocab_size: 128_256,
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-5,
            rope: RopeConfig {
                theta: 500_000.0,
                scaling: RopeScaling::Default,
                factors: Vec::new(),
            },
            hidden_act: HiddenAct::Relu2,
            sub_norms: true,
            tie_word_embeddings: true,
            bos_token_id: Some(128_000),
            eos_token_ids: vec![128_001],
        }
    }

    #[track_caller]
    fn check(config: EngineConfig, expected: Result<(usize, usize), &str>) {
        let found = config.limits(&model()).map(|l| (l.max_seq_len, l.pages));
        assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(String::from));
    }

    /// Bytes of a page: 64 positions × 30 layers × 2 × 5 heads × 128 × 2 bytes.
    const PAGE_BYTES: usize = 64 * 30 * 2 * 5 * 128 * 2;

    #[test]
    fn the_default_cache_is_a_gibibyte() {
        check(EngineConfig::default(), Ok((4096, (1 << 30) / PAGE_BYTES)));
    }

    #[test]
    fn a_full_sequence_has_room_also_where_it_is_more_than_the_default() {
        let mut model = model();
        model.max_position_embeddings = 1 << 17;
        let limits = EngineConfig::default().limits(&model).unwrap();
        assert_eq!(limits.pages, (1 << 17) / PAGE);
    }

    #[test]
    fn a_shorter_sequence_bounds_the_cache() {
        let inference = InferenceConfig { max_batch_size: 2, ..Default::default() };
        check(EngineConfig { max_seq_len: 100, inference, ..Default::default() }, Ok((100, 2 * 2)));
    }

    #[test]
    fn more_than_the_models_context_is_an_error() {
        check(
            EngineConfig { max_seq_len: 4097, ..Default::default() },
            Err(
                "`max_seq_len` is 4097; it should be at most 4096, the context this model was made for",
            ),
        );
    }

    #[test]
    fn a_cache_too_small_for_one_sequence_is_an_error() {
        let inference = InferenceConfig { kv_cache_bytes: PAGE_BYTES, ..Default::default() };
        check(
            EngineConfig { max_seq_len: 65, inference, ..Default::default() },
            Err(
                "`kv_cache_bytes` is 4915200; it should be 0 or at least 9830400 bytes, a sequence of 65 tokens",
            ),
        );
    }

    #[test]
    fn a_context_for_which_no_machine_has_the_memory_is_an_error() {
        let mut model = model();
        (model.max_position_embeddings, model.num_hidden_layers) = (i32::MAX as usize, 1 << 12);
        let error = EngineConfig::default().limits(&model).unwrap_err().to_string();
        assert!(error.starts_with("`max_seq_len` is 2147483647; it should be so small"), "{error}");
    }

    #[test]
    fn nothing_per_step_is_an_error() {
        let inference = InferenceConfig { max_batch_size: 0, ..Default::default() };
        check(
            EngineConfig { inference, ..Default::default() },
            Err("`max_batch_size` is 0; it should be at least 1"),
        );
        let inference =
            InferenceConfig { max_batch_size: 8, max_batch_tokens: 7, ..Default::default() };
        check(
            EngineConfig { inference, ..Default::default() },
            Err(
                "`max_batch_tokens` is 7; it should be at least max_batch_size, 8: a token for each sequence",
            ),
        );
    }
}
