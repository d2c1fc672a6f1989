//! What a benchmark found.

use serde::Serialize;

use super::advice::Advice;
use super::bytes::TokenBytes;
use super::machine::Machine;
use super::probes::{Bracket, CaseProbes, ProbeSummary};
use super::source::Build;
use super::watch::Conditions;
use crate::info::ModelInfo;

/// All that a benchmark found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchReport {
    /// Which program ran.
    #[serde(flatten)]
    pub build: Build,
    /// Where it ran.
    pub machine: Machine,
    /// What ran.
    pub model: ModelFacts,
    /// What was measured.
    pub settings: Settings,
    /// What the scalar code on one thread gave: every case has to give the same.
    pub oracle: Outputs,
    /// Each level with each number of threads.
    pub cases: Vec<Case>,
    /// What to run with.
    pub advice: Advice,
}

impl BenchReport {
    /// Whether every case that ran gave what the oracle gave.
    pub fn is_right(&self) -> bool {
        !self.cases.iter().any(|case| matches!(case.outcome, Outcome::Wrong { .. }))
    }
}

/// The model of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFacts {
    /// Its name.
    pub name: String,
    /// Its file, if it has one.
    pub path: Option<String>,
    /// SHA-256 of its files.
    pub sha256: Option<String>,
    /// The architecture as its files name it.
    pub architecture: String,
    /// Encodings of its tensors.
    pub encodings: Vec<String>,
    /// Stored bytes.
    pub bytes: u64,
    /// Ternary weights: multiplications and additions for one token.
    pub ternary_weights: u64,
    /// How ternary weights lie in memory.
    pub ternary_form: String,
    /// How the output head is held: `int8`, or its encoding in the file.
    pub head_dtype: String,
    /// How keys and values are stored.
    pub kv_dtype: String,
    /// Longest sequence in tokens.
    pub context_length: usize,
}

impl ModelFacts {
    pub(super) fn new(
        info: &ModelInfo,
        ternary_weights: u64,
        head_dtype: String,
        sha256: Option<String>,
    ) -> Self {
        Self {
            name: info.name.clone(),
            path: info.path.as_ref().map(|path| path.display().to_string()),
            sha256,
            architecture: info.architecture.clone(),
            encodings: info.encodings.keys().map(|&name| name.to_owned()).collect(),
            bytes: info.bytes.total(),
            ternary_weights,
            ternary_form: info.packing.packing.name().to_owned(),
            head_dtype,
            kv_dtype: info.kv_dtype.name().to_owned(),
            context_length: info.context_length,
        }
    }
}

/// What was measured, the same for all cases.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated in each measurement.
    pub generated_tokens: usize,
    /// Tokens in the cache when a generation begins.
    pub depths: Vec<usize>,
    /// Sequences generated together.
    pub batch_sizes: Vec<usize>,
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

impl Case {
    /// What it gave, if it ran and was right.
    pub fn measurement(&self) -> Option<&Measurement> {
        match &self.outcome {
            Outcome::Measured(measurement) => Some(measurement),
            Outcome::NotAvailable { .. } | Outcome::Wrong { .. } => None,
        }
    }
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
    /// It gave other tokens or logits than the oracle, or than another case or run: how fast does not matter.
    Wrong {
        /// What differed: `outputs of a short text`, or a measurement.
        what: String,
        /// What it gave.
        found: Outputs,
        /// What it should have given.
        expected: Outputs,
    },
    /// It ran.
    Measured(Box<Measurement>),
}

/// Hashes of what a model gave, to the bit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outputs {
    /// Of the generated tokens.
    pub tokens_hash: String,
    /// Of the logits of a short text; empty where only tokens were compared.
    pub logits_hash: String,
}

/// What a case gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// The level that ran.
    pub kernel: &'static str,
    /// Seconds to load the model.
    pub load_seconds: f64,
    /// What the machine gave at best when the case began.
    pub probes: CaseProbes,
    /// What was measured.
    pub lines: Vec<Line>,
    /// Hashes of what it gave on a short text, the same as the oracle's.
    #[serde(flatten)]
    pub outputs: Outputs,
}

impl Measurement {
    /// The line of a work, if it was measured.
    pub fn line(&self, wanted: impl Fn(Work) -> bool) -> Option<&Line> {
        self.lines.iter().find(|line| wanted(line.work))
    }
}

/// What a line measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "work")]
pub enum Work {
    /// A prompt, until its first token.
    Prompt {
        /// Its length.
        tokens: usize,
    },
    /// A generation after the first token.
    Generation {
        /// Tokens of one measurement.
        tokens: usize,
        /// Tokens in the cache when a measurement begins, on average.
        depth: usize,
    },
    /// Several generations at once.
    Batch {
        /// How many.
        sequences: usize,
        /// Steps of one measurement: tokens of each sequence.
        tokens: usize,
        /// Tokens of each in the cache when a measurement begins, on average.
        depth: usize,
    },
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prompt { tokens } => write!(f, "prompt of {tokens}"),
            Self::Generation { depth, .. } => write!(f, "generate at {depth}"),
            Self::Batch { sequences: 1, depth, .. } => write!(f, "1 sequence at {depth}"),
            Self::Batch { sequences, depth, .. } => write!(f, "{sequences} sequences at {depth}"),
        }
    }
}

/// What limits a work at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Reading memory.
    Memory,
    /// Multiplying and adding.
    Arithmetic,
}

/// One measured speed beside what the machine could do in the same minute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// What was measured.
    #[serde(flatten)]
    pub work: Work,
    /// Tokens per second, of all sequences together.
    pub rate: Rate,
    /// Tokens that one step computes, and that share one reading of the weights.
    pub tokens_per_step: usize,
    /// What a step reads.
    pub bytes_per_step: TokenBytes,
    /// Bytes that a token reads: those of a step, divided by its tokens.
    pub bytes_per_token: f64,
    /// Ternary products that a token takes.
    pub macs_per_token: u64,
    /// Bytes read per second.
    pub bytes_per_second: f64,
    /// Ternary products per second.
    pub macs_per_second: f64,
    /// Bytes per second that the same threads read at best, right before and after.
    pub read_bandwidth: ProbeSummary,
    /// Products per second that the same threads form at best, right before and after.
    pub peak_macs: ProbeSummary,
    /// Tokens per second that the probes allow: the less of bandwidth / bytes and peak / products.
    pub bound: f64,
    /// Which of the two it is.
    pub limited_by: Limit,
    /// Share of `read_bandwidth.best` that was reached.
    pub of_bandwidth: f64,
    /// Share of `peak_macs.best` that was reached.
    pub of_peak: f64,
    /// Share of `bound` that was reached.
    pub of_bound: f64,
    /// What else happened on the machine.
    pub conditions: Conditions,
    /// Hash of the tokens generated in a run.
    pub tokens_hash: String,
}

/// What a line is made of.
pub(super) struct Measured {
    pub work: Work,
    pub rates: Vec<f64>,
    pub tokens_per_step: usize,
    pub bytes_per_step: TokenBytes,
    pub macs_per_token: u64,
    pub probes: Bracket,
    pub conditions: Conditions,
    pub tokens_hash: String,
}

impl Line {
    /// Works out the shares. None if nothing was measured.
    pub(super) fn new(measured: Measured) -> Option<Self> {
        let Measured { work, tokens_per_step, bytes_per_step, macs_per_token, .. } = measured;
        let rate = Rate::new(measured.rates)?;
        let (read_bandwidth, peak_macs) = (measured.probes.read(), measured.probes.macs());
        let bytes_per_token = bytes_per_step.total() as f64 / tokens_per_step as f64;
        let bytes_per_second = rate.median * bytes_per_token;
        let macs_per_second = rate.median * macs_per_token as f64;
        let by_memory = read_bandwidth.best / bytes_per_token;
        let by_arithmetic = peak_macs.best / macs_per_token as f64;
        let bound = by_memory.min(by_arithmetic);
        Some(Self {
            work,
            tokens_per_step,
            bytes_per_step,
            bytes_per_token,
            macs_per_token,
            bytes_per_second,
            macs_per_second,
            bound,
            limited_by: if by_memory <= by_arithmetic { Limit::Memory } else { Limit::Arithmetic },
            of_bandwidth: bytes_per_second / read_bandwidth.best,
            of_peak: macs_per_second / peak_macs.best,
            of_bound: rate.median / bound,
            read_bandwidth,
            peak_macs,
            rate,
            conditions: measured.conditions,
            tokens_hash: measured.tokens_hash,
        })
    }
}

/// A speed over several measurements.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Each measurement, in order.
    pub samples: Vec<f64>,
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The distance between least and greatest, as a share of the median.
    pub spread: f64,
}

impl Rate {
    pub(super) fn new(samples: Vec<f64>) -> Option<Self> {
        let (median, min, max) = middle(&samples)?;
        Some(Self { median, min, max, spread: (max - min) / median, samples })
    }
}

/// Median, least and greatest.
pub(super) fn middle(samples: &[f64]) -> Option<(f64, f64, f64)> {
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
        assert_eq!(Rate::new(vec![9.0, 11.0, 10.0]).unwrap().spread, 0.2);
    }

    fn measured(tokens_per_step: usize) -> Measured {
        let bytes_per_step =
            TokenBytes { ternary: 500, head: 300, other: 100, kv: 100, context: 1.0 };
        Measured {
            work: Work::Prompt { tokens: 7 },
            rates: vec![2.0, 3.0, 1.0],
            tokens_per_step,
            bytes_per_step,
            macs_per_token: 50,
            probes: Bracket::of(vec![3000.0, 4000.0], vec![150.0, 200.0]),
            conditions: Conditions::default(),
            tokens_hash: String::new(),
        }
    }

    #[test]
    fn one_token_at_a_time_is_limited_by_memory() {
        let line = Line::new(Measured { macs_per_token: 10, ..measured(1) }).unwrap();
        assert_eq!((line.bytes_per_token, line.bytes_per_second), (1000.0, 2000.0));
        assert_eq!((line.bound, line.limited_by), (4.0, Limit::Memory));
        assert_eq!((line.of_bandwidth, line.of_peak, line.of_bound), (0.5, 0.1, 0.5));
    }

    #[test]
    fn many_tokens_share_a_reading_and_are_limited_by_arithmetic() {
        let line = Line::new(measured(10)).unwrap();
        assert_eq!((line.bytes_per_token, line.bytes_per_second), (100.0, 200.0));
        assert_eq!((line.bound, line.limited_by), (4.0, Limit::Arithmetic));
        assert_eq!((line.of_bandwidth, line.of_peak, line.of_bound), (0.05, 0.5, 0.5));
        assert!(Line::new(Measured { rates: vec![], ..measured(1) }).is_none());
    }
}
