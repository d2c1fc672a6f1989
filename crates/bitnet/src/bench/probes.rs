//! Probes of the machine around measurements.

use std::sync::Arc;
use std::time::Duration;

use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::plan::ThreadPlan;
use bitnet_kernels::cpu::pool::{PoolOptions, ThreadPool};
use bitnet_kernels::cpu::probe::{self, Pages, ReadProbe, Walk};
use serde::Serialize;

use super::line::middle;
use super::machine::Machine;
use crate::error::Error;

/// Time for reading memory, before a measurement and after it: some ten turns through a buffer of 256 MB.
const READ_TIME: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });
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

/// What the machine gave with the threads and the level of a case at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Probe {
    /// Bytes per second read from large pages.
    pub read: ProbeSummary,
    /// Products of int8 numbers per second.
    pub macs: ProbeSummary,
}

impl Probe {
    #[cfg(test)]
    pub(super) fn of(read: f64, macs: f64) -> Self {
        let [read, macs] = [read, macs].map(|turn| ProbeSummary::new(&[turn]));
        Self { read, macs }
    }
}

/// The probes on both sides of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Around {
    /// Right before it.
    pub before: Probe,
    /// Right after it.
    pub after: Probe,
}

impl Around {
    /// Bytes per second that are read at best: the mean of both sides, each of which is its fastest turn.
    pub fn read(&self) -> f64 {
        (self.before.read.best + self.after.read.best) / 2.0
    }

    /// Products per second that are formed at best, likewise.
    pub fn macs(&self) -> f64 {
        (self.before.macs.best + self.after.macs.best) / 2.0
    }
}

/// What the machine gave at best with the threads and the level of a case, when the case began.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseProbes {
    /// Bytes per second read from large pages.
    pub read_huge_pages: ProbeSummary,
    /// The loop that read fastest there, which the probes around measurements use.
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

/// Memory for the probes of a benchmark. Clones share it.
#[derive(Clone)]
pub(super) struct Probes {
    huge: Arc<ReadProbe>,
    small: Arc<ReadProbe>,
    processors: usize,
}

impl Probes {
    /// Takes memory of each kind.
    pub fn new(machine: &Machine) -> Result<Self, Error> {
        let bytes = machine.probe_bytes();
        let probe = |pages| {
            let refused = |source| Error::Threads { threads: 1, source };
            ReadProbe::new(bytes, pages).map(Arc::new).map_err(refused)
        };
        Ok(Self {
            huge: probe(Pages::Huge)?,
            small: probe(Pages::Small)?,
            processors: machine.processors,
        })
    }

    /// Probes for a case: with its level, and with its threads where these run. A number of threads above that of the
    /// processors is as good as that one: what a machine can do does not grow with threads that take turns.
    pub fn with(&self, isa: Isa, plan: &ThreadPlan) -> Prober<'_> {
        let threads = plan.threads().min(self.processors);
        let options = PoolOptions { wait: plan.wait, places: plan.placement.places.clone() };
        Prober { probes: self, isa, threads, options, walk: None }
    }

    /// The same with threads that may run anywhere.
    pub fn anywhere(&self, isa: Isa, threads: usize) -> Prober<'_> {
        let (threads, options) = (threads.min(self.processors), PoolOptions::default());
        Prober { probes: self, isa, threads, options, walk: None }
    }
}

/// The probes of a case.
pub(super) struct Prober<'a> {
    probes: &'a Probes,
    isa: Isa,
    threads: usize,
    options: PoolOptions,
    /// The fastest way of reading, once it is known.
    walk: Option<Walk>,
}

impl Prober<'_> {
    /// Everything, once.
    pub fn all(&mut self) -> Result<CaseProbes, Error> {
        let (probes, isa) = (self.probes, self.isa);
        let (found, walk) = self.on_threads(|pool| {
            let huge = probes.huge.measure(pool, Walk::ALL, READ_TIME);
            let small = probes.small.measure(pool, Walk::ALL, READ_TIME);
            let (median, shortest, _) =
                middle(&probe::barrier(pool, SPIN_TIME)).unwrap_or_default();
            let found = CaseProbes {
                read_huge_pages: ProbeSummary::new(&huge.rates),
                read_walk: huge.walk.name(),
                read_small_pages: ProbeSummary::new(&small.rates),
                int8_macs: ProbeSummary::new(&probe::multiply_adds(isa, pool, SPIN_TIME)),
                f32_macs: ProbeSummary::new(&probe::float_multiply_adds(isa, pool, SPIN_TIME)),
                bf16_macs: probe::bf16_multiply_adds(pool, SPIN_TIME)
                    .map(|turns| ProbeSummary::new(&turns)),
                barrier_seconds: ProbeSummary { best: shortest, median },
            };
            (found, huge.walk)
        })?;
        self.walk = Some(walk);
        Ok(found)
    }

    /// One side of a bracket.
    pub fn take(&mut self) -> Result<Probe, Error> {
        let (probes, isa) = (self.probes, self.isa);
        let (probe, walk) = self.on_threads(|pool| {
            let ways = self.walk.as_ref().map_or(Walk::ALL, std::slice::from_ref);
            let reads = probes.huge.measure(pool, ways, READ_TIME);
            let macs = probe::multiply_adds(isa, pool, SPIN_TIME);
            let [read, macs] = [&reads.rates, &macs].map(|turns| ProbeSummary::new(turns));
            (Probe { read, macs }, reads.walk)
        })?;
        self.walk = Some(walk);
        Ok(probe)
    }

    /// Probes on a thread of their own, which is bound to the place of the first one; the caller stays free.
    fn on_threads<T: Send>(&self, probe: impl FnOnce(&ThreadPool) -> T + Send) -> Result<T, Error> {
        let work = || {
            let pool = ThreadPool::with_options(self.threads, self.options.clone())?;
            pool.attach()?;
            Ok(probe(&pool))
        };
        let refused = |source| Error::Threads { threads: self.threads, source };
        std::thread::scope(|scope| {
            let prober = std::thread::Builder::new().name("bitnet-probe".into());
            let prober = prober.spawn_scoped(scope, work)?;
            prober.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .map_err(refused)
    }
}
