//! How fast a model runs here, beside how fast it could: tokens per second, and the memory and arithmetic behind them.
//!
//! Every figure is measured in the run that reports it. What the memory and the arithmetic units give at best is measured
//! between the runs of the model, since clocks and neighbours change from minute to minute. All levels and thread counts
//! have to give the same tokens and the same logits to the bit; one that does not is reported as wrong and not as fast.

pub(crate) mod bytes;
mod hash;
mod machine;
mod measure;
mod report;

pub use bytes::TokenBytes;
pub use machine::Machine;
pub use measure::run;
pub use report::{
    Agreement, BenchReport, Case, Measurement, ModelFacts, Outcome, ProbeSummary, Rate, Settings,
};

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchConfig {
    /// Numbers of compute threads; empty: the model's own.
    pub threads: Vec<usize>,
    /// SIMD levels by name; empty: the model's own.
    pub simd_levels: Vec<String>,
    /// Tokens of the prompt whose speed is measured; 0: none is.
    pub prompt_tokens: usize,
    /// Tokens generated, after a prompt of one token; 0: none are.
    pub generated_tokens: usize,
    /// Measurements of each.
    pub iterations: usize,
    /// Runs before them that are not counted.
    pub warmup: usize,
}

impl Default for BenchConfig {
    fn default() -> Self {
        Self {
            threads: Vec::new(),
            simd_levels: Vec::new(),
            prompt_tokens: 512,
            generated_tokens: 128,
            iterations: 3,
            warmup: 1,
        }
    }
}

/// What is being done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchProgress {
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// The step under way, as `avx2, 2 threads: prompt`.
    pub what: String,
}

#[cfg(all(test, feature = "demo-model"))]
mod tests;
