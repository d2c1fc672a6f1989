//! What each step from the plainest code to the fastest brings: for the product of one shape, and for a whole model where the
//! engine has a switch for the step.
//!
//! Steps that the engine does not take (a table, vectors along rows) are kernels of `bitnet_kernels::cpu::ablation`, which
//! exist for this comparison and for tests.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bitnet_kernels::activation::QuantizedRows;
use bitnet_kernels::cpu::ablation::{self, Step};
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::level::SimdLevel;
use bitnet_kernels::cpu::packed::{PackedTernary, Packing};
use bitnet_kernels::cpu::pool::ThreadPool;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::ternary::TernaryMatrix;
use serde::Serialize;

use super::kernel::parse_shape;
use super::line::Figure;
use super::machine::Machine;
use super::measure::run_cases;
use super::product::{Shared, activations, weights};
use super::report::{BenchReport, Work};
use super::setup::{Forms, Setup};
use super::source::Build;
use super::{BenchConfig, BenchProgress, Steps, invalid};
use crate::builder::ModelBuilder;
use crate::config::ModelConfig;
use crate::error::Error;

/// A sample lasts this long, in as many products as fit.
const SAMPLE: Duration = Duration::from_millis(20);

/// What to compare.
#[derive(Clone, Debug, PartialEq)]
pub struct AblationConfig {
    /// Rows and columns of the product.
    pub shape: (usize, usize),
    /// Tokens at once, a comparison for each.
    pub batches: Vec<usize>,
    /// Threads of the last step.
    pub threads: usize,
    /// Measurements of each.
    pub iterations: usize,
    /// What to measure of the whole model, whose levels and threads are those of the steps. None: the product alone.
    pub model: Option<BenchConfig>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AblationReport {
    /// Which program ran.
    #[serde(flatten)]
    pub build: Build,
    /// Where it ran.
    pub machine: Machine,
    /// Rows and columns.
    pub shape: (usize, usize),
    /// The product, step by step, for each number of tokens.
    pub product: Vec<ProductStep>,
    /// The model, step by step.
    pub model: Vec<ModelStep>,
    /// All that was measured of the model.
    pub report: Option<BenchReport>,
}

/// A step of the product.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProductStep {
    /// Tokens at once.
    pub batch: usize,
    /// The step.
    pub name: String,
    /// How it computes.
    pub what: String,
    /// Threads.
    pub threads: usize,
    /// Milliseconds of a product, weights coming from memory.
    pub milliseconds: Figure,
    /// How many times as fast as the step before.
    pub gain: f64,
    /// How many times as fast as the first step.
    pub total: f64,
    /// Whether the integers are those of the first step.
    pub correct: bool,
}

/// A step of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelStep {
    /// The step.
    pub name: String,
    /// The level that ran.
    pub simd_level: String,
    /// Threads.
    pub threads: usize,
    /// How weights, keys and values lay in memory.
    pub forms: Forms,
    /// Prompt tokens per second.
    pub prompt: Option<f64>,
    /// How many times the step before.
    pub prompt_gain: Option<f64>,
    /// Generated tokens per second.
    pub generation: Option<f64>,
    /// How many times the step before.
    pub generation_gain: Option<f64>,
}

impl AblationReport {
    /// Whether all steps computed the same.
    pub fn is_right(&self) -> bool {
        self.product.iter().all(|step| step.correct)
            && self.report.as_ref().is_none_or(BenchReport::is_right)
    }
}

/// The tiers of this machine that mark a step: plain vectors, and vectors with a dot product of bytes.
struct Tiers {
    plain: Option<Isa>,
    dot: Option<Isa>,
}

impl Tiers {
    fn detect() -> Self {
        let has_dot = |isa: &&Isa| {
            use SimdLevel::{Avx512Vnni, AvxVnni, NeonDotprod};
            matches!(isa.level(), AvxVnni | Avx512Vnni | NeonDotprod)
        };
        let vectors =
            || Isa::available().iter().rev().filter(|isa| isa.level() != SimdLevel::Scalar);
        Self {
            plain: vectors().find(|isa| !has_dot(isa)).copied(),
            dot: vectors().find(has_dot).copied(),
        }
    }

    fn best(&self) -> Isa {
        self.dot.or(self.plain).unwrap_or(Isa::Scalar)
    }
}

/// Compares. `open` says which model, `model` how else it runs.
pub fn run(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    config: &AblationConfig,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<AblationReport, Error> {
    check(config)?;
    let (machine, tiers) = (Machine::detect(), Tiers::detect());
    let mut product = Vec::new();
    for &batch in &config.batches {
        product.extend(product_steps(config, batch, &machine, &tiers, progress)?);
    }
    let (mut steps, mut report) = (Vec::new(), None);
    if let Some(bench) = &config.model {
        let (names, setups) = model_setups(&tiers, config.threads, model).into_iter().unzip();
        let found = run_cases(open, model, bench, setups, None, progress)?;
        steps = model_steps(names, &found);
        report = Some(found);
    }
    let build = Build::current();
    Ok(AblationReport { build, machine, shape: config.shape, product, model: steps, report })
}

fn check(config: &AblationConfig) -> Result<(), Error> {
    let (rows, cols) = config.shape;
    parse_shape(&format!("{rows}x{cols}"))
        .map_err(|why| invalid("shape", format!("{rows}x{cols}"), why))?;
    let positive = [
        ("iterations", config.iterations),
        ("threads", config.threads),
        ("batches", config.batches.iter().copied().min().unwrap_or(0)),
    ];
    match positive.into_iter().find(|&(_, value)| value == 0) {
        Some((field, _)) => Err(invalid(field, 0, "at least 1")),
        None => Ok(()),
    }
}

fn product_steps(
    config: &AblationConfig,
    batch: usize,
    machine: &Machine,
    tiers: &Tiers,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<Vec<ProductStep>, Error> {
    let (rows, cols) = config.shape;
    let x = activations(batch, cols);
    let neutral = weights(rows, cols);
    let forms = [Packing::TwoBits, Packing::FiveTrits].map(|p| PackedTernary::pack_as(p, &neutral));
    let copies = (machine.probe_bytes() / forms[1].bytes().max(1)).clamp(1, 4096);
    let (neutral, forms) = (vec![neutral; copies], forms.map(|form| vec![form; copies]));
    let mut steps = Steps::new(7, progress);
    let iterations = config.iterations;
    let mut product = Product { x: &x, iterations, expected: None, steps: Vec::new() };
    let mut step = |name: &str| steps.next(format!("{rows}x{cols}, {batch} tokens: {name}"));

    step("scalar");
    product.plain("scalar", "one weight after the other", Step::Scalar, &neutral);
    step("table");
    product.plain(
        "table",
        "a table of all bytes gives four weights at a time",
        Step::Table,
        &neutral,
    );
    for (name, isa) in [("SIMD", tiers.plain), ("dot product", tiers.dot)] {
        let Some(isa) = isa else { continue };
        step(name);
        product.plain(name, &format!("{isa} vectors along rows"), Step::RowMajor(isa), &neutral);
    }
    let best = tiers.best();
    step("packed layout");
    let panels = format!("{best} on panels of 16 rows, pages fetched ahead");
    product.packed("packed layout", &panels, best, 1, &forms[0])?;
    step("1.6 bit");
    product.packed("1.6 bit", "five weights to a byte", best, 1, &forms[1])?;
    if config.threads > 1 {
        step("pool");
        let [.., two_bits, five_trits] = &product.steps[..] else {
            unreachable!("both forms were just measured")
        };
        let faster = usize::from(five_trits.milliseconds.median < two_bits.milliseconds.median);
        let form = ["2 bits", "1.6 bits"][faster];
        let what = format!("{form} on {} threads", config.threads);
        product.packed("pool", &what, best, config.threads, &forms[faster])?;
    }
    Ok(product.steps)
}

struct Product<'a> {
    x: &'a QuantizedRows,
    iterations: usize,
    /// What the first step gave.
    expected: Option<Vec<i32>>,
    steps: Vec<ProductStep>,
}

impl Product<'_> {
    /// A step that reads rows as they are; left out where this machine has no kernel for it.
    fn plain(&mut self, name: &str, what: &str, step: Step, copies: &[TernaryMatrix]) {
        let product = |w: &TernaryMatrix| ablation::product(step, w, 0..w.rows(), self.x);
        let Some(found) = product(&copies[0]) else { return };
        let milliseconds = sample(self.iterations, copies, |w| _ = black_box(product(w)));
        self.add(name, what, 1, milliseconds, found);
    }

    fn packed(
        &mut self,
        name: &str,
        what: &str,
        isa: Isa,
        threads: usize,
        copies: &[PackedTernary],
    ) -> Result<(), Error> {
        let pool = ThreadPool::new(threads).map_err(|source| Error::Threads { threads, source })?;
        let w = &copies[0];
        let mut product = Shared::new(&pool, isa, w.panels(), self.x.rows());
        product.compute(w, self.x);
        let found = product.products(w.rows(), self.x.rows());
        let milliseconds = sample(self.iterations, copies, |w| product.compute(w, self.x));
        self.add(name, what, threads, milliseconds, found);
        Ok(())
    }

    fn add(&mut self, name: &str, what: &str, threads: usize, time: Figure, found: Vec<i32>) {
        let median =
            |step: Option<&ProductStep>| step.map_or(time.median, |s| s.milliseconds.median);
        self.steps.push(ProductStep {
            batch: self.x.rows(),
            name: name.to_owned(),
            what: what.to_owned(),
            threads,
            gain: median(self.steps.last()) / time.median,
            total: median(self.steps.first()) / time.median,
            correct: self.expected.get_or_insert_with(|| found.clone()) == &found,
            milliseconds: time,
        });
    }
}

/// Milliseconds of a product in each of some samples, on the copies in turn.
fn sample<W>(iterations: usize, copies: &[W], mut product: impl FnMut(&W)) -> Figure {
    let mut turn = 0;
    let mut one = || {
        let (begin, mut products) = (Instant::now(), 0);
        while products == 0 || begin.elapsed() < SAMPLE {
            product(&copies[turn % copies.len()]);
            (turn, products) = (turn + 1, products + 1);
        }
        begin.elapsed().as_secs_f64() * 1e3 / f64::from(products)
    };
    Figure::new((0..iterations).map(|_| one()).collect()).expect("there is at least one sample")
}

/// The steps for which the engine has a switch, each added to those before it, by name.
fn model_setups(tiers: &Tiers, threads: usize, model: &ModelConfig) -> Vec<(String, Setup)> {
    let mut setup = Setup {
        simd_level: Isa::Scalar.name().to_owned(),
        threads: 1,
        packing: Some(Packing::TwoBits),
        head: HeadType::File,
        fused: false,
        ..Setup::of(model)
    };
    let mut steps = vec![("scalar".to_owned(), setup.clone())];
    let mut step = |name: &str, change: &dyn Fn(&mut Setup)| {
        change(&mut setup);
        steps.push((name.to_owned(), setup.clone()));
    };
    for (name, isa) in [("SIMD", tiers.plain), ("dot product", tiers.dot)] {
        if let Some(isa) = isa {
            step(name, &|setup| isa.name().clone_into(&mut setup.simd_level));
        }
    }
    step("1.6 bit", &|setup| setup.packing = Some(Packing::FiveTrits));
    if model.head != HeadType::File {
        step(&format!("{} head", model.head), &|setup| setup.head = model.head);
    }
    step("fusion", &|setup| setup.fused = true);
    if threads > 1 {
        step("pool", &|setup| setup.threads = threads);
    }
    steps
}

fn model_steps(names: Vec<String>, report: &BenchReport) -> Vec<ModelStep> {
    let mut steps: Vec<ModelStep> = Vec::new();
    for (name, case) in names.into_iter().zip(&report.cases) {
        let Some(measurement) = case.measurement() else { continue };
        let speed = |wanted: fn(Work) -> bool| Some(measurement.line(wanted)?.rate.median);
        let prompt = speed(|work| matches!(work, Work::Prompt { .. }));
        let generation = speed(|work| matches!(work, Work::Generation { .. }));
        let gain = |now: Option<f64>, before: Option<f64>| Some(now? / before?);
        let before = steps.last();
        steps.push(ModelStep {
            name,
            simd_level: measurement.kernel.to_owned(),
            threads: case.setup.threads,
            forms: measurement.forms.clone(),
            prompt,
            prompt_gain: gain(prompt, before.and_then(|step| step.prompt)),
            generation,
            generation_gain: gain(generation, before.and_then(|step| step.generation)),
        });
    }
    steps
}

#[cfg(all(test, feature = "demo-model"))]
mod tests {
    use super::*;
    use crate::BitNetModel;

    fn config() -> AblationConfig {
        AblationConfig {
            shape: (64, 300),
            batches: vec![1, 3],
            threads: 2,
            iterations: 2,
            model: None,
        }
    }

    fn compare(config: &AblationConfig) -> Result<AblationReport, Error> {
        run(&BitNetModel::demo, &ModelConfig::default(), config, &mut |_| ())
    }

    #[test]
    fn all_steps_of_a_product_compute_the_same() {
        let report = compare(&config()).unwrap();
        assert!(report.is_right(), "{report:#?}");
        for batch in [1, 3] {
            let steps: Vec<_> = report.product.iter().filter(|s| s.batch == batch).collect();
            assert_eq!((&*steps[0].name, steps[0].gain, steps[0].total), ("scalar", 1.0, 1.0));
            let gains: f64 = steps.iter().map(|step| step.gain).product();
            let last = steps.last().unwrap();
            assert!((gains / last.total - 1.0).abs() < 1e-9);
            assert_eq!((&*last.name, last.threads), ("pool", 2));
        }
    }

    #[test]
    fn a_model_has_the_steps_that_the_engine_has() {
        let model = BenchConfig {
            prompt_tokens: 4,
            generated_tokens: 2,
            iterations: 1,
            warmup: 0,
            ..BenchConfig::default()
        };
        let report = compare(&AblationConfig { batches: vec![1], model: Some(model), ..config() });
        let report = report.unwrap();
        assert!(report.is_right());
        assert_eq!((&*report.model[0].name, report.model[0].prompt_gain), ("scalar", None));
        let forms = |name: &str| {
            let step = report.model.iter().find(|step| step.name == name).unwrap();
            (&*step.forms.packing, &*step.forms.head)
        };
        assert_eq!(forms("scalar"), ("2bit", "Q8_0"));
        assert_eq!(forms("1.6 bit"), ("1.6bit", "Q8_0"));
        assert_eq!(forms("int8 head"), ("1.6bit", "int8"));
        let cases = &report.report.as_ref().unwrap().cases;
        let fused: Vec<_> = cases.iter().map(|case| case.setup.fused).collect();
        assert_eq!(fused.iter().filter(|&&fused| fused).count(), 2, "the last two: {fused:?}");
        assert!(fused.is_sorted());
        let last = report.model.last().unwrap();
        assert_eq!((&*last.name, last.threads), ("pool", 2));
        assert!(last.generation_gain.is_some());
    }

    #[test]
    fn nothing_to_compare_is_refused() {
        for wrong in [
            AblationConfig { iterations: 0, ..config() },
            AblationConfig { batches: vec![], ..config() },
            AblationConfig { threads: 0, ..config() },
            AblationConfig { shape: (0, 1), ..config() },
        ] {
            assert!(matches!(compare(&wrong), Err(Error::Config(_))), "{wrong:?}");
        }
    }
}
