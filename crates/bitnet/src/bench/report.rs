//! What a benchmark found.

use serde::Serialize;

use super::bytes::TokenBytes;
use super::machine::Machine;
use crate::info::ModelInfo;

/// All that a benchmark found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchReport {
    /// Version of this library.
    pub version: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// What ran.
    pub model: ModelFacts,
    /// What was measured.
    pub settings: Settings,
    /// Each level with each number of threads.
    pub cases: Vec<Case>,
}

/// The model of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFacts {
    /// Its name.
    pub name: String,
    /// Its file, if it has one.
    pub path: Option<String>,
    /// The architecture as its files name it.
    pub architecture: String,
    /// Encodings of its tensors.
    pub encodings: Vec<String>,
    /// Stored bytes.
    pub bytes: u64,
    /// Ternary weights: multiplications and additions for one token.
    pub ternary_weights: u64,
    /// How keys and values are stored.
    pub kv_dtype: String,
}

impl ModelFacts {
    pub(super) fn new(info: &ModelInfo, ternary_weights: u64) -> Self {
        Self {
            name: info.name.clone(),
            path: info.path.as_ref().map(|path| path.display().to_string()),
            architecture: info.architecture.clone(),
            encodings: info.encodings.keys().map(|&name| name.to_owned()).collect(),
            bytes: info.bytes.total(),
            ternary_weights,
            kv_dtype: info.kv_dtype.name().to_owned(),
        }
    }
}

/// What was measured, the same for all cases.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after a prompt of one token.
    pub generated_tokens: usize,
    /// Measurements of each.
    pub iterations: usize,
    /// Runs before them that were not counted.
    pub warmup: usize,
}

/// A SIMD level with a number of threads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// The level as it was asked for.
    pub simd_level: String,
    /// Compute threads.
    pub threads: usize,
    /// Whether there are fewer processors than threads.
    pub oversubscribed: bool,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// This machine does not have the level.
    NotAvailable {
        /// Why.
        reason: String,
    },
    /// It ran.
    Measured(Box<Measurement>),
}

/// Whether a case gave the same tokens and logits as the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Agreement {
    /// It is the first one, with which the others are compared.
    Reference,
    /// It gave the same.
    Same,
    /// It gave something else: one of both is wrong, and neither's speed counts.
    Different,
}

/// What a case gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// The level that ran.
    pub kernel: &'static str,
    /// Seconds to load the model.
    pub load_seconds: f64,
    /// Prompt tokens per second.
    pub prompt: Option<Rate>,
    /// Generated tokens per second, the first of each run not counted.
    pub generation: Option<Rate>,
    /// Ternary products per second during the prompt.
    pub prompt_macs_per_second: Option<f64>,
    /// Products per second that the same threads form in registers at best.
    pub peak_macs_per_second: ProbeSummary,
    /// What a generated token reads.
    pub bytes_per_token: TokenBytes,
    /// Bytes per second read while generating.
    pub bytes_per_second: Option<f64>,
    /// Bytes per second that the same threads read from memory at best.
    pub read_bandwidth: ProbeSummary,
    /// Hash of the generated tokens.
    pub tokens_hash: String,
    /// Hash of the logits of a short prompt, to the bit.
    pub logits_hash: String,
    /// Whether tokens and logits are those of the other cases.
    pub agreement: Agreement,
}

impl Measurement {
    /// How much of the memory's best bandwidth generation reached.
    pub fn bandwidth_share(&self) -> Option<f64> {
        Some(self.bytes_per_second? / self.read_bandwidth.best)
    }

    /// How much of the arithmetic's peak the prompt reached.
    pub fn peak_share(&self) -> Option<f64> {
        Some(self.prompt_macs_per_second? / self.peak_macs_per_second.best)
    }
}

/// Tokens per second over several measurements.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Tokens of each.
    pub tokens: usize,
    /// Each measurement, in order.
    pub samples: Vec<f64>,
    /// The one in the middle.
    pub median: f64,
    /// The slowest.
    pub min: f64,
    /// The fastest.
    pub max: f64,
}

impl Rate {
    pub(super) fn new(tokens: usize, samples: Vec<f64>) -> Option<Self> {
        let (median, min, max) = middle(&samples)?;
        Some(Self { tokens, median, min, max, samples })
    }

    /// The distance between fastest and slowest, as a share of the median.
    pub fn spread(&self) -> f64 {
        (self.max - self.min) / self.median
    }
}

/// A probe's turns, before and after the case.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ProbeSummary {
    /// The fastest turn, which was disturbed least.
    pub best: f64,
    /// The one in the middle.
    pub median: f64,
}

impl ProbeSummary {
    pub(super) fn new(turns: &[f64]) -> Self {
        let (median, _, best) = middle(turns).unwrap_or_default();
        Self { best, median }
    }
}

/// Median, least and greatest.
fn middle(samples: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.0,
    };
    Some((median, min, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(middle(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(middle(&[4.0, 1.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(middle(&[]), None);
        assert_eq!(Rate::new(1, vec![9.0, 11.0, 10.0]).unwrap().spread(), 0.2);
    }
}
