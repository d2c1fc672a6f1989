//! Which numbers of threads and sequences to run with.

use serde::Serialize;

use super::line::Line;
use super::report::{Case, Work};

/// A choice that is this much slower than the fastest is as good: measurements differ by as much.
const AS_GOOD: f64 = 0.97;

/// What to run with, by what was measured. Prompts and generations are apart, since one waits for arithmetic and the other for
/// memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Advice {
    /// For prompts: the fewest threads that are as good as the fastest.
    pub prompt: Option<Choice>,
    /// For the generation of one sequence at the first depth, likewise.
    pub generation: Option<Choice>,
    /// For many sequences: the fewest together that are as good as the fastest.
    pub batch: Option<Choice>,
}

/// A case that was among the fastest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The level that ran.
    pub simd_level: String,
    /// Compute threads.
    pub threads: usize,
    /// Sequences together.
    pub sequences: usize,
    /// Tokens per second of all together.
    pub tokens_per_second: f64,
}

impl Advice {
    /// Of all cases that ran and were right.
    pub(super) fn new(cases: &[Case]) -> Self {
        Self {
            prompt: best(cases, |work| matches!(work, Work::Prompt { .. })),
            generation: best(cases, |work| matches!(work, Work::Generation { .. })),
            batch: best(cases, |work| matches!(work, Work::Batch { .. })),
        }
    }
}

/// The fewest threads, and then the fewest sequences, among the lines that are as good as the fastest.
fn best(cases: &[Case], wanted: impl Fn(Work) -> bool) -> Option<Choice> {
    let mut choices = Vec::new();
    for case in cases {
        let Some(measurement) = case.measurement() else { continue };
        // Of generations at several depths the first one counts; of batches all do.
        let first = measurement.line(&wanted).map(|line| line.work);
        let counts = |line: &&Line| match line.work {
            Work::Batch { .. } => wanted(line.work),
            work => Some(work) == first,
        };
        choices.extend(measurement.lines.iter().filter(counts).map(|line| Choice {
            simd_level: measurement.kernel.to_owned(),
            threads: case.setup.threads,
            sequences: match line.work {
                Work::Batch { sequences, .. } => sequences,
                Work::Prompt { .. } | Work::Generation { .. } => 1,
            },
            tokens_per_second: line.rate.median,
        }));
    }
    let fastest = choices.iter().map(|choice| choice.tokens_per_second).fold(0.0, f64::max);
    choices.retain(|choice| choice.tokens_per_second >= AS_GOOD * fastest);
    choices.into_iter().min_by(|a, b| {
        (a.threads, a.sequences)
            .cmp(&(b.threads, b.sequences))
            .then(b.tokens_per_second.total_cmp(&a.tokens_per_second))
    })
}
