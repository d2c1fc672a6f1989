//! What a request wants, checked when it is built.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};

use crate::constraint::Constraint;
use crate::error::InvalidConfig;
use crate::options::RequestOptions;

/// Alternatives to a token whose log-probabilities can be asked for at most, as in other servers.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// How the next token is chosen: which filter the choice rests on.
///
/// Penalties, temperature and all filters that are set (`top_k`, `top_p`, `min_p`) apply in this order whatever the strategy;
/// it says which setting must not be missing, and which would contradict it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplingStrategy {
    /// The most likely token; of equals, the one with the lowest id. Needs `temperature` 0.
    #[default]
    Greedy,
    /// Any token by its probability. No filter may be set.
    Temperature,
    /// One of the `top_k` most likely tokens.
    TopK,
    /// One of the most likely tokens that together have probability `top_p`.
    TopP,
    /// One of the tokens that are at least `min_p` times as likely as the most likely one.
    MinP,
}

impl SamplingStrategy {
    /// The strategy that these settings amount to.
    pub fn of(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Self {
        if temperature == 0.0 {
            Self::Greedy
        } else if top_p < 1.0 {
            Self::TopP
        } else if top_k > 0 {
            Self::TopK
        } else if min_p > 0.0 {
            Self::MinP
        } else {
            Self::Temperature
        }
    }
}

/// Where drafts of the next tokens come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DraftStrategy {
    /// There are none.
    #[default]
    Off,
    /// What followed the last time that the text ended as it does now, as long as measured times say that it pays: for
    /// summaries, edits of a text, and answers that quote.
    Ngram,
}

/// What to generate. Written as a literal, so it is checked where it is used.
///
/// ```
/// use bitnet_inference::{GenerationConfig, SamplingStrategy};
///
/// let config = GenerationConfig { temperature: 0.7, ..Default::default() };
/// let error = config.sampling().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "`temperature` is 0.7; it should be 0 for SamplingStrategy::Greedy, or choose another strategy"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationConfig {
    /// What the choice of a token rests on.
    pub sampling_strategy: SamplingStrategy,
    /// Logits are divided by this: below 1 likely tokens become likelier, above 1 all become more alike. 0 with
    /// [`SamplingStrategy::Greedy`] only.
    pub temperature: f32,
    /// Keep this many of the most likely tokens; 0: all.
    pub top_k: usize,
    /// Keep the most likely tokens that together have this probability, above 0 and up to 1; 1: all.
    pub top_p: f32,
    /// Keep tokens that are at least this many times as likely as the most likely one, from 0 to 1; 0: all.
    pub min_p: f32,
    /// Logits of tokens among the last `repeat_last_n` are divided by this if positive, else multiplied; 1: as they are.
    pub repetition_penalty: f32,
    /// Tokens of prompt and answer that `repetition_penalty` looks back on.
    pub repeat_last_n: usize,
    /// Taken from the logits of tokens that the answer has already, from -2 to 2.
    pub presence_penalty: f32,
    /// Taken from a token's logit for each time that the answer has it already, from -2 to 2.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens before all else, from -100, which excludes nearly always, to 100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Same seed, same answer; none: another one each time.
    pub seed: Option<u64>,
    /// Tokens to generate before one that ends the text; `max_new_tokens` at most. A stop text may end it earlier.
    pub min_tokens: usize,
    /// Most tokens to generate; generation ends earlier at the end of the text or of the context.
    pub max_new_tokens: usize,
    /// Texts that end the generation; they are cut off.
    pub stop: Vec<String>,
    /// Tokens that end the generation, whatever `ignore_eos` says; each is among the generated tokens, and its text is not shown.
    pub stop_token_ids: Vec<u32>,
    /// Go on after a token that ends the text.
    pub ignore_eos: bool,
    /// Tell how likely each generated token was, and so many of the most likely tokens beside it, from 0 to 20; none: nothing.
    ///
    /// These are the natural logarithms of the probabilities that the model itself gives, which are those before bias,
    /// penalties, temperature and filters. All logits are computed for them.
    pub logprobs: Option<usize>,
    /// Whether likely next tokens are tried along with the one before them. The answer is the same.
    pub draft: DraftStrategy,
}

impl Default for GenerationConfig {
    /// Greedy, at most 256 tokens.
    fn default() -> Self {
        Self {
            sampling_strategy: SamplingStrategy::Greedy,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
            min_tokens: 0,
            max_new_tokens: 256,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            draft: DraftStrategy::Off,
        }
    }
}

/// How to draw a token, checked. Made by [`GenerationConfig::sampling`].
#[derive(Clone, Debug)]
pub struct SamplingParams {
    pub(crate) temperature: f32,
    pub(crate) top_k: usize,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) repeat_last_n: usize,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    /// By token, in ascending order.
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) min_tokens: usize,
    pub(crate) logprobs: Option<usize>,
    pub(crate) seed: u64,
    pub(crate) draft: DraftStrategy,
    pub(crate) constraint: Option<Constraint>,
}

impl SamplingParams {
    /// Draws only what a constraint allows; the text ends when it is whole and nothing may follow.
    pub fn constrained(self, constraint: Constraint) -> Self {
        Self { constraint: Some(constraint), ..self }
    }
}

impl GenerationConfig {
    /// Checks all settings and gives those of drawing a token; without a seed it takes one at random.
    pub fn sampling(&self) -> Result<SamplingParams, InvalidConfig> {
        self.check_ranges()?;
        self.check_strategy()?;
        Ok(SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            repeat_last_n: self.repeat_last_n,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect(),
            min_tokens: self.min_tokens,
            logprobs: self.logprobs,
            seed: self.seed.unwrap_or_else(random_seed),
            draft: self.draft,
            constraint: None,
        })
    }

    fn check_ranges(&self) -> Result<(), InvalidConfig> {
        let check = |field, value: f32, good: bool, expected: &str| match good {
            true => Ok(()),
            false => Err(InvalidConfig::new(field, value, expected)),
        };
        let finite_from_0 = |x: f32| x.is_finite() && x >= 0.0;
        let penalty = |x: f32| (-2.0..=2.0).contains(&x);
        let (t, p, m) = (self.temperature, self.top_p, self.min_p);
        check("temperature", t, finite_from_0(t), "a finite number from 0 up")?;
        check("top_p", p, p > 0.0 && p <= 1.0, "above 0 and up to 1, which keeps all tokens")?;
        check("min_p", m, (0.0..=1.0).contains(&m), "from 0, which keeps all tokens, to 1")?;
        let (r, pp, fp) = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty);
        check(
            "repetition_penalty",
            r,
            finite_from_0(r) && r > 0.0,
            "a finite number above 0; 1 is none",
        )?;
        check("presence_penalty", pp, penalty(pp), "from -2 to 2; 0 is none")?;
        check("frequency_penalty", fp, penalty(fp), "from -2 to 2; 0 is none")?;
        let is_bias = |bias: f32| (-100.0..=100.0).contains(&bias);
        if let Some((id, bias)) = self.logit_bias.iter().find(|(_, bias)| !is_bias(**bias)) {
            let found = format!("{bias} for token {id}");
            return Err(InvalidConfig::new("logit_bias", found, "from -100 to 100; 0 is none"));
        }
        if self.max_new_tokens == 0 {
            return Err(InvalidConfig::new("max_new_tokens", 0, "at least 1"));
        }
        if self.min_tokens > self.max_new_tokens {
            let expected = format!("at most max_new_tokens, {}", self.max_new_tokens);
            return Err(InvalidConfig::new("min_tokens", self.min_tokens, expected));
        }
        if let Some(count) = self.logprobs {
            check_top_logprobs("logprobs", count)?;
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(InvalidConfig::new(
                "stop",
                "an empty text",
                "a text of at least one character",
            ));
        }
        Ok(())
    }

    /// A filter that is missing, or one that the strategy would contradict, is an error and not ignored.
    fn check_strategy(&self) -> Result<(), InvalidConfig> {
        use SamplingStrategy::{Greedy, MinP, Temperature, TopK, TopP};
        let strategy = self.sampling_strategy;
        let wrong = |field, found: &dyn ToString, expected: String| {
            Err(InvalidConfig::new(field, found.to_string(), expected))
        };
        let needs = |what: &str| format!("{what} for SamplingStrategy::{strategy:?}");
        let or_another = |what: &str| format!("{}, or choose another strategy", needs(what));
        match strategy {
            Greedy if self.temperature != 0.0 => {
                wrong("temperature", &self.temperature, or_another("0"))
            }
            Temperature | TopK | TopP | MinP if self.temperature == 0.0 => {
                wrong("temperature", &0, or_another("above 0"))
            }
            TopK if self.top_k == 0 => wrong("top_k", &0, needs("at least 1")),
            TopP if self.top_p == 1.0 => wrong("top_p", &1, needs("below 1")),
            MinP if self.min_p == 0.0 => wrong("min_p", &0, needs("above 0")),
            Temperature if self.top_k != 0 => wrong("top_k", &self.top_k, or_another("0")),
            Temperature if self.top_p != 1.0 => wrong("top_p", &self.top_p, or_another("1")),
            Temperature if self.min_p != 0.0 => wrong("min_p", &self.min_p, or_another("0")),
            _ => Ok(()),
        }
    }
}

/// Whether so many alternatives to a token may be asked for.
pub(crate) fn check_top_logprobs(field: &'static str, count: usize) -> Result<(), InvalidConfig> {
    match count <= MAX_TOP_LOGPROBS {
        true => Ok(()),
        false => Err(InvalidConfig::new(field, count, format!("from 0 to {MAX_TOP_LOGPROBS}"))),
    }
}

/// Another number each time, without asking the environment: the keys of hash maps are random.
fn random_seed() -> u64 {
    RandomState::new().hash_one(0u8)
}

/// Tokens, and what to do with them.
#[derive(Clone, Debug)]
pub struct Request {
    /// The tokens, at least one.
    pub ids: Vec<u32>,
    /// What to do.
    pub work: Work,
    /// How it is served beside others.
    pub options: RequestOptions,
}

impl Request {
    /// A request that is served as any other.
    pub fn new(ids: Vec<u32>, work: Work) -> Self {
        Self { ids, work, options: RequestOptions::default() }
    }
}

/// What a request wants of its tokens.
#[derive(Clone, Debug)]
pub enum Work {
    /// More tokens.
    Generate {
        /// How to draw them.
        sampling: SamplingParams,
        /// Most of them.
        max_new_tokens: usize,
        /// Each of these is the last one.
        stop_ids: Vec<u32>,
    },
    /// `-ln p(ids[i] | ids[..i])` for every `i` from this one on; it is at least 1.
    Score {
        /// The first token that counts.
        from: usize,
    },
    /// How likely every `ids[i]` was after `ids[..i]`, for `i` from this one on, which is at least 1.
    Logprobs {
        /// The first token that counts.
        from: usize,
        /// The most likely tokens that are told with each, at most [`MAX_TOP_LOGPROBS`].
        top: usize,
    },
    /// Logits `[ids.len() - from, vocab_size]` after each token from this one on.
    Logits {
        /// The first token that counts.
        from: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(config: GenerationConfig, expected: Option<&str>) {
        let found = config.sampling().err().map(|error| error.to_string());
        assert_eq!(found.as_deref(), expected);
    }

    fn config(change: impl FnOnce(&mut GenerationConfig)) -> GenerationConfig {
        let mut config = GenerationConfig::default();
        change(&mut config);
        config
    }

    #[test]
    fn the_guides_configurations_are_valid() {
        check(config(|_| ()), None);
        check(
            GenerationConfig {
                sampling_strategy: SamplingStrategy::TopP,
                temperature: 0.7,
                top_p: 0.9,
                top_k: 50,
                ..Default::default()
            },
            None,
        );
        check(
            GenerationConfig {
                sampling_strategy: SamplingStrategy::Temperature,
                temperature: 1.0,
                repetition_penalty: 1.1,
                ..Default::default()
            },
            None,
        );
    }

    #[test]
    fn an_error_names_field_value_and_range() {
        let number = "a finite number from 0 up";
        for (value, printed) in [(f32::NAN, "NaN"), (-0.5, "-0.5"), (f32::INFINITY, "inf")] {
            check(
                config(|c| c.temperature = value),
                Some(&format!("`temperature` is {printed}; it should be {number}")),
            );
        }
        check(
            config(|c| c.top_p = 0.0),
            Some("`top_p` is 0; it should be above 0 and up to 1, which keeps all tokens"),
        );
        check(
            config(|c| c.top_p = f32::NAN),
            Some("`top_p` is NaN; it should be above 0 and up to 1, which keeps all tokens"),
        );
        check(
            config(|c| c.min_p = 1.5),
            Some("`min_p` is 1.5; it should be from 0, which keeps all tokens, to 1"),
        );
        check(
            config(|c| c.repetition_penalty = 0.0),
            Some("`repetition_penalty` is 0; it should be a finite number above 0; 1 is none"),
        );
        check(
            config(|c| c.presence_penalty = f32::NAN),
            Some("`presence_penalty` is NaN; it should be from -2 to 2; 0 is none"),
        );
        check(
            config(|c| c.frequency_penalty = -2.5),
            Some("`frequency_penalty` is -2.5; it should be from -2 to 2; 0 is none"),
        );
        check(
            config(|c| c.logit_bias = [(7, 1.0), (9, -100.5)].into()),
            Some("`logit_bias` is -100.5 for token 9; it should be from -100 to 100; 0 is none"),
        );
        check(
            config(|c| c.logit_bias = [(7, f32::NAN)].into()),
            Some("`logit_bias` is NaN for token 7; it should be from -100 to 100; 0 is none"),
        );
        check(
            config(|c| c.min_tokens = 257),
            Some("`min_tokens` is 257; it should be at most max_new_tokens, 256"),
        );
        check(config(|c| c.logprobs = Some(20)), None);
        check(
            config(|c| c.logprobs = Some(21)),
            Some("`logprobs` is 21; it should be from 0 to 20"),
        );
        check(
            config(|c| c.max_new_tokens = 0),
            Some("`max_new_tokens` is 0; it should be at least 1"),
        );
        check(
            config(|c| c.stop = vec!["a".into(), String::new()]),
            Some("`stop` is an empty text; it should be a text of at least one character"),
        );
    }

    #[test]
    fn a_setting_without_effect_is_an_error() {
        check(
            config(|c| c.sampling_strategy = SamplingStrategy::TopP),
            Some(
                "`temperature` is 0; it should be above 0 for SamplingStrategy::TopP, or choose another strategy",
            ),
        );
        check(
            config(|c| (c.sampling_strategy, c.temperature) = (SamplingStrategy::TopK, 1.0)),
            Some("`top_k` is 0; it should be at least 1 for SamplingStrategy::TopK"),
        );
        check(
            config(|c| {
                (c.sampling_strategy, c.temperature, c.top_k) =
                    (SamplingStrategy::Temperature, 1.0, 40);
            }),
            Some(
                "`top_k` is 40; it should be 0 for SamplingStrategy::Temperature, or choose another strategy",
            ),
        );
    }

    #[test]
    fn the_strategy_of_some_settings_accepts_them() {
        for temperature in [0.0, 0.8] {
            for (top_k, top_p, min_p) in
                [(0, 1.0, 0.0), (9, 1.0, 0.0), (9, 0.5, 0.1), (0, 1.0, 0.1)]
            {
                let sampling_strategy = SamplingStrategy::of(temperature, top_k, top_p, min_p);
                check(
                    GenerationConfig {
                        sampling_strategy,
                        temperature,
                        top_k,
                        top_p,
                        min_p,
                        ..Default::default()
                    },
                    None,
                );
            }
        }
    }

    #[test]
    fn seeds_differ_unless_given() {
        let seed = |seed| config(|c| c.seed = seed).sampling().unwrap().seed;
        assert_eq!(seed(Some(7)), 7);
        assert_ne!(seed(None), seed(None));
    }
}
