//! Probes of the machine around measurements.

use std::time::Duration;

use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::probe::{self, Pages, ReadProbe};
use serde::Serialize;

use super::machine::Machine;
use super::report::middle;
use crate::error::Error;

/// Time for reading memory, before a measurement and after it.
const READ_TIME: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 150 });
/// Time for each probe of arithmetic.
const SPIN_TIME: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 40 });

/// A probe's turns.
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

/// What the machine gave at best with the threads and the level of a case, when the case began.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseProbes {
    /// Bytes per second read from large pages.
    pub read_huge_pages: ProbeSummary,
    /// The loop that read fastest there.
    pub read_walk: &'static str,
    /// Bytes per second read from the smallest pages.
    pub read_small_pages: ProbeSummary,
    /// Products of int8 numbers per second.
    pub int8_macs: ProbeSummary,
    /// Products of f32 numbers per second, added in instructions of their own.
    pub f32_macs: ProbeSummary,
    /// Products of bf16 numbers per second, where the CPU has an instruction for them.
    pub bf16_macs: Option<ProbeSummary>,
    /// Seconds of an operation that does nothing on all threads; `best` is the shortest.
    pub barrier_seconds: ProbeSummary,
}

/// The probes of a benchmark.
pub(super) struct Probes {
    huge: ReadProbe,
    small: ReadProbe,
    processors: usize,
}

/// Turns before a measurement and after it.
#[derive(Clone, Debug, Default)]
pub(super) struct Bracket {
    reads: Vec<f64>,
    macs: Vec<f64>,
}

impl Bracket {
    #[cfg(test)]
    pub fn of(reads: Vec<f64>, macs: Vec<f64>) -> Self {
        Self { reads, macs }
    }

    /// Bytes per second read.
    pub fn read(&self) -> ProbeSummary {
        ProbeSummary::new(&self.reads)
    }

    /// Products of int8 numbers per second.
    pub fn macs(&self) -> ProbeSummary {
        ProbeSummary::new(&self.macs)
    }

    /// Both together.
    pub fn and(&self, other: &Self) -> Self {
        Self {
            reads: [&self.reads[..], &other.reads].concat(),
            macs: [&self.macs[..], &other.macs].concat(),
        }
    }
}

impl Probes {
    /// Takes memory of each kind. A number of threads above that of the processors is as good as that one: the engine starts
    /// no more, and what a machine can do does not grow with threads that take turns.
    pub fn new(machine: &Machine) -> Result<Self, Error> {
        let bytes = machine.probe_bytes();
        let probe = |pages| ReadProbe::new(bytes, pages).map_err(|source| refused(1, source));
        let (huge, small) = (probe(Pages::Huge)?, probe(Pages::Small)?);
        Ok(Self { huge, small, processors: machine.processors })
    }

    /// One side of a bracket.
    pub fn take(&self, isa: Isa, threads: usize) -> Result<Bracket, Error> {
        let threads = threads.min(self.processors);
        let refused = |source| refused(threads, source);
        Ok(Bracket {
            reads: self.huge.measure(threads, READ_TIME).map_err(refused)?.rates,
            macs: probe::multiply_adds(isa, threads, SPIN_TIME).map_err(refused)?,
        })
    }

    /// Everything, once.
    pub fn all(&self, isa: Isa, threads: usize) -> Result<CaseProbes, Error> {
        let threads = threads.min(self.processors);
        let refused = |source| refused(threads, source);
        let huge = self.huge.measure(threads, READ_TIME).map_err(refused)?;
        let small = self.small.measure(threads, READ_TIME).map_err(refused)?;
        let int8 = probe::multiply_adds(isa, threads, SPIN_TIME).map_err(refused)?;
        let f32 = probe::float_multiply_adds(isa, threads, SPIN_TIME).map_err(refused)?;
        let bf16 = probe::bf16_multiply_adds(threads, SPIN_TIME).map_err(refused)?;
        let barrier = probe::barrier(threads, SPIN_TIME).map_err(refused)?;
        let (median, shortest, _) = middle(&barrier).unwrap_or_default();
        Ok(CaseProbes {
            read_huge_pages: ProbeSummary::new(&huge.rates),
            read_walk: huge.walk,
            read_small_pages: ProbeSummary::new(&small.rates),
            int8_macs: ProbeSummary::new(&int8),
            f32_macs: ProbeSummary::new(&f32),
            bf16_macs: bf16.map(|turns| ProbeSummary::new(&turns)),
            barrier_seconds: ProbeSummary { best: shortest, median },
        })
    }
}

fn refused(threads: usize, source: std::io::Error) -> Error {
    Error::Threads { threads, source }
}
