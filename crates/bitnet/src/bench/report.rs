//! What a benchmark found.

use serde::Serialize;

use super::advice::Advice;
use super::line::Line;
use super::machine::Machine;
use super::probes::CaseProbes;
use super::setup::{Forms, Setup};
use super::source::Build;
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
    /// What the scalar code on one thread gave: every case with these forms has to give the same.
    pub oracles: Vec<Oracle>,
    /// Every combination of what was varied.
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
    /// The encoding of the output head in its files.
    pub head_encoding: String,
    /// Longest sequence in tokens.
    pub context_length: usize,
}

impl ModelFacts {
    pub(super) fn new(
        info: &ModelInfo,
        ternary_weights: u64,
        head_encoding: String,
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
            head_encoding,
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

/// What is right with one form of the head and one type of keys and values: others give other logits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Oracle {
    /// How the output head was held.
    pub head: String,
    /// How keys and values were stored.
    pub kv_dtype: String,
    /// What came of it.
    #[serde(flatten)]
    pub outputs: Outputs,
}

/// A combination of what was varied.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// What was asked for.
    #[serde(flatten)]
    pub setup: Setup,
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
    /// How weights, keys and values lay in memory.
    pub forms: Forms,
    /// Seconds to load the model, of the case that did: those after it with the same weights share them.
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
