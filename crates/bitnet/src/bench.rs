//! How fast a model runs here, beside how fast it could: tokens per second, and the memory and arithmetic behind them.
//!
//! Every figure is measured in the run that reports it. What the memory and the arithmetic units give at best is measured
//! right before and right after each single measurement, since clocks and neighbours change from minute to minute, and what is
//! reported is the median of the ratios. All cases have to give the tokens and the logits of the scalar code on one thread, to
//! the bit; one that does not is reported as wrong and not as fast.
//!
//! [`run`] measures a model, [`kernel::run`] one product of a given shape, [`ablation::run`] what each step from the plainest
//! code to the fastest brings, and [`load::run`] how a model gets into memory. [`modes::run`] compares ways to answer several prompts,
//! [`phases::run`] says where the time of a step goes, [`traffic::run`] how requests fare that come at their own times,
//! and [`overhead::run`] what the engine adds to the model.

pub mod ablation;
mod advice;
pub(crate) mod bytes;
mod drive;
pub mod hash;
pub mod kernel;
mod line;
pub mod load;
mod machine;
mod measure;
pub mod modes;
pub mod overhead;
pub mod phases;
mod plan;
mod probes;
mod product;
mod report;
mod setup;
mod source;
pub mod traffic;
mod watch;

use bitnet_kernels::cpu::packed::Packing;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::KvType;

use crate::builder::ModelBuilder;
use crate::error::Error;
use crate::lock::MemoryLock;
use crate::model::BitNetModel;

pub use advice::{Advice, Choice};
pub use bytes::{TokenBytes, TokenProducts};
pub use line::{Figure, Limit, Line};
pub use machine::Machine;
pub use measure::run;
pub use probes::{Around, CaseProbes, Probe, ProbeSummary};
pub use report::{
    BenchReport, Case, Measurement, ModelFacts, Oracle, Outcome, Outputs, Settings, Work,
};
pub use setup::{Forms, Setup};
pub use source::Build;
pub use watch::{Conditions, Megahertz};

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchConfig {
    /// Numbers of compute threads; empty: the model's own.
    pub threads: Vec<usize>,
    /// SIMD levels by name; empty: the model's own.
    pub simd_levels: Vec<String>,
    /// Packings of ternary weights, none for what is found to be faster; empty: the model's own.
    pub packings: Vec<Option<Packing>>,
    /// Forms of the output head; empty: the model's own.
    pub heads: Vec<HeadType>,
    /// Types of keys and values; empty: the model's own.
    pub kv_dtypes: Vec<KvType>,
    /// Tokens of the prompt whose speed is measured; 0: none is.
    pub prompt_tokens: usize,
    /// Tokens generated in each measurement; 0: none are.
    pub generated_tokens: usize,
    /// Tokens in the cache when a generation begins, one line of the report for each; empty: one, of a prompt of one token.
    pub depths: Vec<usize>,
    /// Sequences that are generated together, one line for each, at the first of `depths`.
    pub batch_sizes: Vec<usize>,
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
            packings: Vec::new(),
            heads: Vec::new(),
            kv_dtypes: Vec::new(),
            prompt_tokens: 512,
            generated_tokens: 128,
            depths: Vec::new(),
            batch_sizes: Vec::new(),
            iterations: 5,
            warmup: 1,
        }
    }
}

impl BenchConfig {
    /// Whether all sequences fit into a context of so many tokens.
    pub fn fits(&self, context: usize) -> bool {
        plan::check_context(self, context).is_ok()
    }
}

/// Tokens that a model's context holds, told by the headers of its files.
pub fn context_of(open: &dyn Fn() -> ModelBuilder) -> Result<usize, Error> {
    Ok(open().checkpoint()?.config().max_position_embeddings)
}

/// What is being done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchProgress {
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// The step under way, as `avx2, 2 threads: prompt of 512`.
    pub what: String,
}

/// Steps of a benchmark, told to whoever shows them.
struct Steps<'a> {
    done: usize,
    total: usize,
    tell: &'a mut dyn FnMut(BenchProgress),
}

impl<'a> Steps<'a> {
    fn new(total: usize, tell: &'a mut dyn FnMut(BenchProgress)) -> Self {
        Self { done: 0, total, tell }
    }

    /// The next step begins.
    fn next(&mut self, what: String) {
        (self.tell)(BenchProgress { done: self.done, total: self.total, what });
        self.done = (self.done + 1).min(self.total);
    }
}

/// A model to be measured. If its memory was to be locked and is not, figures would be those of something else.
fn held(model: BitNetModel) -> Result<BitNetModel, Error> {
    match &model.info().memory_lock {
        MemoryLock::Refused(refused) => Err(refused.clone().into()),
        MemoryLock::Locked | MemoryLock::NotAsked => Ok(model),
    }
}

/// A setting that measures nothing, or that the model cannot have.
fn invalid(field: &'static str, found: impl ToString, expected: impl Into<String>) -> Error {
    let (found, expected) = (found.to_string(), expected.into());
    bitnet_inference::InvalidConfig { field, found, expected }.into()
}

#[cfg(all(test, feature = "demo-model"))]
mod tests;
