//! Measures the integer product of one shape: weights that come from memory or stay in a cache, one token or many, on any
//! number of threads.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bitnet_kernels::activation::QuantizedRows;
use bitnet_kernels::cpu::ablation;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::packed::{PackedTernary, Packing};
use bitnet_kernels::cpu::pool::ThreadPool;
use bitnet_kernels::ternary::TernaryMatrix;
use serde::Serialize;

use super::line::{Figure, Limit};
use super::machine::Machine;
use super::probes::{Around, Prober, Probes};
use super::product::{Shared, activations, panels_at_once, weights};
use super::source::Build;
use super::{BenchProgress, Steps, invalid};
use crate::error::Error;

/// A sample lasts this long, in as many products as fit.
const SAMPLE: Duration = Duration::from_millis(if cfg!(test) { 2 } else { 50 });
/// Before each sample, since probes have used the caches meanwhile.
const WARM_UP: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 10 });
/// The naive reference is measured once only where a product takes longer than this.
const PATIENCE: Duration = Duration::from_millis(300);
/// What to measure: every combination of these.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelConfig {
    /// Rows and columns.
    pub shapes: Vec<(usize, usize)>,
    /// Tokens at once.
    pub batches: Vec<usize>,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// SIMD levels by name; empty: the best.
    pub simd_levels: Vec<String>,
    /// How weights lie in memory; empty: as the engine packs them.
    pub packings: Vec<Packing>,
    /// Measurements of each.
    pub iterations: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelReport {
    /// Which program ran.
    #[serde(flatten)]
    pub build: Build,
    /// Where it ran.
    pub machine: Machine,
    /// Every combination, those of a shape and a batch after the naive reference.
    pub lines: Vec<KernelLine>,
    /// Levels that this machine does not have, with the reason.
    pub not_available: Vec<(String, String)>,
}

impl KernelReport {
    /// Whether all kernels gave the reference's integers.
    pub fn is_right(&self) -> bool {
        self.lines.iter().all(|line| line.correct)
    }
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Copies of the matrix in turn, more than the caches hold.
    Memory,
    /// The same matrix again and again, if half of the last cache holds it.
    Cache,
}

/// One combination.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelLine {
    /// The level, or `naive`.
    pub kernel: String,
    /// How weights lie in memory.
    pub packing: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Tokens at once.
    pub batch: usize,
    /// Threads.
    pub threads: usize,
    /// Whether there are fewer processors than threads.
    pub oversubscribed: bool,
    /// Where the weights come from.
    pub place: Place,
    /// Milliseconds of a product.
    pub milliseconds: Figure,
    /// Multiplications and additions per second, each counted, in units of 10⁹.
    pub gops: f64,
    /// Bytes of the weights per second.
    pub bytes_per_second: f64,
    /// What the machine gave right before and after; none for the reference.
    pub probes: Option<KernelProbes>,
    /// How many times as fast as the reference.
    pub speed_up: f64,
    /// Speed per thread beside that of the fewest threads measured; none for those.
    pub efficiency: Option<f64>,
    /// Rows and tokens of the kernel's tile; none for the reference.
    pub tile: Option<(usize, usize)>,
    /// Panels of sixteen rows that a thread takes at a time.
    pub panels_at_once: Option<usize>,
    /// Whether the integers are those of the reference.
    pub correct: bool,
}

/// The probes of a combination. Each sample is held against those on both sides of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelProbes {
    /// Those on both sides of each sample.
    pub around: Vec<Around>,
    /// Bytes per second read from memory at best: the median over all samples.
    pub read_bandwidth: f64,
    /// Products per second in registers, likewise.
    pub peak_macs: f64,
    /// Share of the bandwidth that was reached; weights from a cache may exceed it.
    pub of_bandwidth: Figure,
    /// Share of the peak that was reached.
    pub of_peak: Figure,
    /// What limits this at best; a cache is not counted as a limit.
    pub limited_by: Limit,
}

/// Reads `4096x4096`.
pub fn parse_shape(text: &str) -> Result<(usize, usize), String> {
    let expected = || format!("`{text}` is no shape; expected ROWSxCOLS, as 4096x4096");
    let (rows, cols) = text.split_once(['x', 'X', '×']).ok_or_else(expected)?;
    let size = |text: &str| text.trim().parse::<usize>().map_err(|_| expected());
    let (rows, cols) = (size(rows)?, size(cols)?);
    check_shape(rows, cols).map_err(|_| {
        format!(
            "`{text}` cannot be measured; rows and columns go from 1 to {MOST}, weights to 2^30"
        )
    })?;
    Ok((rows, cols))
}

/// Most rows or columns.
const MOST: usize = 500_000;

fn check_shape(rows: usize, cols: usize) -> Result<(), Error> {
    let fits = (1..=MOST).contains(&rows) && (1..=MOST).contains(&cols) && rows * cols <= 1 << 30;
    match fits {
        true => Ok(()),
        false => Err(invalid(
            "shapes",
            format!("{rows}x{cols}"),
            format!("from 1x1 to {MOST} rows and columns and 2^30 weights"),
        )),
    }
}

/// Measures every combination.
pub fn run(
    config: &KernelConfig,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<KernelReport, Error> {
    check(config)?;
    let machine = Machine::detect();
    let (isas, not_available) = levels(&config.simd_levels);
    let packings = match config.packings.is_empty() {
        true => Packing::ALL.to_vec(),
        false => config.packings.clone(),
    };
    let kernels = isas.len() * config.threads.len() * packings.len();
    let cases = config.shapes.len() * config.batches.len();
    let mut steps = Steps::new(cases * (1 + kernels), progress);
    let probes = Probes::new(&machine)?;
    let mut lines = Vec::new();
    for &(rows, cols) in &config.shapes {
        let neutral = weights(rows, cols);
        let (mut cases, mut naives) = (Vec::new(), Vec::new());
        for &batch in &config.batches {
            let x = activations(batch, cols);
            steps.next(format!("{rows}x{cols}, {batch} tokens: naive reference"));
            let (naive, expected) = naive(&neutral, &x, config.iterations);
            naives.push(naive);
            cases.push((x, expected));
        }
        let mut found: Vec<Vec<KernelLine>> = naives.into_iter().map(|naive| vec![naive]).collect();
        for &packing in &packings {
            let bytes = packing.matrix_bytes(rows, cols) as u64;
            let copies = (machine.probe_bytes() as u64 / bytes).clamp(1, 4096);
            let packed = vec![PackedTernary::pack_as(packing, &neutral); copies as usize];
            for ((x, expected), lines) in cases.iter().zip(&mut found) {
                let (batch, slowest) = (x.rows(), lines[0].milliseconds.median);
                for (&isa, &threads) in
                    isas.iter().flat_map(|isa| config.threads.iter().map(move |n| (isa, n)))
                {
                    let what = format!("{packing}, {isa}, {threads} threads");
                    steps.next(format!("{rows}x{cols}, {batch} tokens: {what}"));
                    let case = Kernel { isa, threads, packed: &packed, x, expected };
                    lines.extend(case.measure(config.iterations, slowest, &machine, &probes)?);
                }
            }
        }
        lines.extend(found.into_iter().flatten());
    }
    compare_threads(&mut lines);
    let build = Build::current();
    Ok(KernelReport { build, machine, lines, not_available })
}

fn check(config: &KernelConfig) -> Result<(), Error> {
    for &(rows, cols) in &config.shapes {
        check_shape(rows, cols)?;
    }
    let positive = [
        ("iterations", config.iterations),
        ("shapes", config.shapes.len()),
        ("batches", config.batches.iter().copied().min().unwrap_or(0)),
        ("threads", config.threads.iter().copied().min().unwrap_or(0)),
    ];
    match positive.into_iter().find(|&(_, value)| value == 0) {
        Some((field, _)) => Err(invalid(field, 0, "at least 1")),
        None => match config.batches.iter().copied().max().filter(|&batch| batch > 1 << 16) {
            Some(batch) => Err(invalid("batches", batch, "at most 65536")),
            None => Ok(()),
        },
    }
}

/// Levels by name, and those that are not here with the reason.
pub(super) fn levels(names: &[String]) -> (Vec<Isa>, Vec<(String, String)>) {
    if names.is_empty() {
        return (vec![Isa::best()], Vec::new());
    }
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        match Isa::parse(name) {
            Ok(isa) => found.push(isa),
            Err(error) => missing.push((name.clone(), error.to_string())),
        }
    }
    (found, missing)
}

/// The definition, one weight after the other, and what it gives.
fn naive(w: &TernaryMatrix, x: &QuantizedRows, iterations: usize) -> (KernelLine, Vec<i32>) {
    let mut times = Vec::new();
    let mut products = Vec::new();
    while times.len() < iterations {
        let begin = Instant::now();
        let found = ablation::product(ablation::Step::Scalar, black_box(w), 0..w.rows(), x);
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        products = found.expect("the definition is for all machines");
        if begin.elapsed() > PATIENCE {
            break;
        }
    }
    let milliseconds = Figure::new(times).expect("measured at least once");
    let line = KernelLine {
        kernel: "naive".into(),
        packing: Packing::TwoBits.name().into(),
        gops: gops(w.rows(), w.cols(), x.rows(), milliseconds.median),
        bytes_per_second: 0.25e3 * (w.rows() * w.cols()) as f64 / milliseconds.median,
        rows: w.rows(),
        cols: w.cols(),
        batch: x.rows(),
        threads: 1,
        oversubscribed: false,
        place: Place::Memory,
        milliseconds,
        probes: None,
        speed_up: 1.0,
        efficiency: None,
        tile: None,
        panels_at_once: None,
        correct: true,
    };
    (line, products)
}

fn gops(rows: usize, cols: usize, batch: usize, milliseconds: f64) -> f64 {
    2.0 * (rows * cols * batch) as f64 / milliseconds / 1e6
}

struct Kernel<'a> {
    isa: Isa,
    threads: usize,
    packed: &'a [PackedTernary],
    x: &'a QuantizedRows,
    expected: &'a [i32],
}

impl Kernel<'_> {
    fn measure(
        &self,
        iterations: usize,
        naive: f64,
        machine: &Machine,
        probes: &Probes,
    ) -> Result<Vec<KernelLine>, Error> {
        let refused = |source| Error::Threads { threads: self.threads, source };
        let pool = ThreadPool::new(self.threads).map_err(refused)?;
        let w = &self.packed[0];
        let mut product = Shared::new(&pool, self.isa, w.panels(), self.x.rows());
        product.compute(w, self.x);
        let correct = product.products(w.rows(), self.x.rows()) == self.expected;
        let fits = 2 * w.bytes() as u64 <= machine.last_level_cache;
        let places = [(Place::Memory, true), (Place::Cache, fits)];
        let mut prober = probes.anywhere(self.isa, self.threads);
        let mut lines = Vec::new();
        for place in places.into_iter().filter_map(|(place, wanted)| wanted.then_some(place)) {
            let samples = self.samples(&mut product, place, iterations, &mut prober)?;
            let oversubscribed = self.threads > machine.processors;
            let line = self.line(place, samples, naive).expect("there is at least one sample");
            lines.push(KernelLine { oversubscribed, correct, ..line });
        }
        Ok(lines)
    }

    /// Milliseconds of a product in each of some samples, and the probes around each.
    fn samples(
        &self,
        product: &mut Shared<'_>,
        place: Place,
        iterations: usize,
        prober: &mut Prober<'_>,
    ) -> Result<Vec<(f64, Around)>, Error> {
        let mut turn = 0;
        let mut run = |time| {
            let (begin, mut products) = (Instant::now(), 0);
            while products == 0 || begin.elapsed() < time {
                let w = match place {
                    Place::Memory => &self.packed[turn % self.packed.len()],
                    Place::Cache => &self.packed[0],
                };
                product.compute(w, self.x);
                (turn, products) = (turn + 1, products + 1);
            }
            begin.elapsed().as_secs_f64() * 1e3 / f64::from(products)
        };
        let (mut samples, mut before) = (Vec::new(), prober.take()?);
        for _ in 0..iterations {
            run(WARM_UP); // wakes the threads, and fills the cache
            let milliseconds = run(SAMPLE);
            let after = prober.take()?;
            samples.push((milliseconds, Around { before, after }));
            before = after;
        }
        Ok(samples)
    }

    fn line(&self, place: Place, samples: Vec<(f64, Around)>, naive: f64) -> Option<KernelLine> {
        let (w, batch) = (&self.packed[0], self.x.rows());
        let (bytes, macs) = (w.bytes() as f64, (w.rows() * w.cols() * batch) as f64);
        let of = |value: &dyn Fn(f64, &Around) -> f64| {
            Figure::new(samples.iter().map(|(ms, around)| value(*ms, around)).collect())
        };
        let milliseconds = of(&|ms, _| ms)?;
        let memory_time = of(&|_, a| bytes / a.read() * a.macs() / macs)?.median;
        let by_memory = place == Place::Memory && memory_time > 1.0;
        Some(KernelLine {
            kernel: self.isa.name().to_owned(),
            packing: w.packing().name().to_owned(),
            rows: w.rows(),
            cols: w.cols(),
            batch,
            threads: self.threads,
            oversubscribed: false,
            place,
            gops: gops(w.rows(), w.cols(), batch, milliseconds.median),
            bytes_per_second: bytes * 1e3 / milliseconds.median,
            probes: Some(KernelProbes {
                read_bandwidth: of(&|_, around| around.read())?.median,
                peak_macs: of(&|_, around| around.macs())?.median,
                of_bandwidth: of(&|ms, around| bytes * 1e3 / ms / around.read())?,
                of_peak: of(&|ms, around| macs * 1e3 / ms / around.macs())?,
                limited_by: if by_memory { Limit::Memory } else { Limit::Arithmetic },
                around: samples.iter().map(|(_, around)| *around).collect(),
            }),
            speed_up: naive / milliseconds.median,
            efficiency: None,
            tile: Some(self.isa.tile()),
            panels_at_once: Some(panels_at_once(w.panels(), self.threads)),
            milliseconds,
            correct: true,
        })
    }
}

/// Fills in how the speed grows with the number of threads.
fn compare_threads(lines: &mut [KernelLine]) {
    let like = |a: &KernelLine, b: &KernelLine| {
        let key = |l: &KernelLine| {
            (l.kernel.clone(), l.packing.clone(), l.rows, l.cols, l.batch, l.place)
        };
        key(a) == key(b)
    };
    for index in 0..lines.len() {
        let line = &lines[index];
        let fewest = lines.iter().filter(|other| like(line, other)).min_by_key(|l| l.threads);
        let fewest = fewest.expect("a line is like itself");
        if fewest.threads < line.threads {
            let speed_up = fewest.milliseconds.median / line.milliseconds.median;
            let efficiency = speed_up * fewest.threads as f64 / line.threads as f64;
            lines[index].efficiency = Some(efficiency);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_two_sizes_within_reason() {
        assert_eq!(parse_shape("4096x2560"), Ok((4096, 2560)));
        for bad in ["4096", "x", "4x", "0x5", "-1x5", "4x5x6", "99999999x1", "500000x500000", ""] {
            assert!(parse_shape(bad).is_err(), "{bad}");
        }
    }

    fn config() -> KernelConfig {
        KernelConfig {
            shapes: vec![(40, 100), (64, 256)],
            batches: vec![1, 3],
            threads: vec![1, 2],
            simd_levels: Isa::available().iter().map(|isa| isa.name().to_owned()).collect(),
            packings: Packing::ALL.to_vec(),
            iterations: 2,
        }
    }

    #[test]
    fn all_levels_give_the_references_integers() {
        let report = run(&config(), &mut |_| ()).unwrap();
        assert!(report.is_right(), "{report:#?}");
        let naive = report.lines.iter().filter(|line| line.kernel == "naive");
        assert_eq!(naive.count(), 4);
        assert_eq!(report.lines.len(), 4 * (1 + 2 * 2 * 2 * Isa::available().len()));
        for line in &report.lines {
            assert_eq!(line.efficiency.is_some(), line.threads == 2, "{line:?}");
        }
    }

    #[test]
    fn a_wrong_integer_is_seen() {
        let (w, x) = (weights(32, 64), activations(1, 64));
        let (_, mut expected) = naive(&w, &x, 1);
        expected[5] += 1;
        let packed = [PackedTernary::pack_as(Packing::TwoBits, &w)];
        let isa = Isa::best();
        let case = Kernel { isa, threads: 1, packed: &packed, x: &x, expected: &expected };
        let machine = Machine::detect();
        let probes = Probes::new(&machine).unwrap();
        let lines = case.measure(1, 1.0, &machine, &probes).unwrap();
        assert!(lines.iter().all(|line| !line.correct));
    }

    #[test]
    fn nothing_to_measure_is_refused() {
        for wrong in [
            KernelConfig { iterations: 0, ..config() },
            KernelConfig { batches: vec![0], ..config() },
            KernelConfig { batches: vec![1 << 20], ..config() },
            KernelConfig { threads: vec![], ..config() },
            KernelConfig { shapes: vec![], ..config() },
            KernelConfig { shapes: vec![(0, 4)], ..config() },
        ] {
            assert!(run(&wrong, &mut |_| ()).is_err(), "{wrong:?}");
        }
    }
}
