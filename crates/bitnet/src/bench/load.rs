//! Measures how a model gets into memory in each of the ways there are, and the rearranging of ternary weights alone.

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use bitnet_kernels::cpu::packed::{PackedTernary, Packing};
use bitnet_model::config::ArchConfig;
use bitnet_model::decoder::PackedCache;
use bitnet_model::format::Checkpoint;
use serde::Serialize;

use super::bytes::{linears, packed_bytes};
use super::drive;
use super::line::Figure;
use super::machine::Machine;
use super::source::Build;
use super::{BenchProgress, Steps, invalid};
use crate::builder::ModelBuilder;
use crate::config::{LoadingStrategy, ModelConfig};
use crate::error::Error;
use crate::process::ProcessMemory;

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadReport {
    /// Which program ran.
    #[serde(flatten)]
    pub build: Build,
    /// Where it ran.
    pub machine: Machine,
    /// The model's name.
    pub model: String,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// Bytes of its ternary weights in memory.
    pub packed_bytes: u64,
    /// Each way with each number of threads.
    pub lines: Vec<LoadLine>,
}

/// A way of loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadWay {
    /// Weights are packed.
    Pack,
    /// Weights are packed and written to a cache, as at the first load with one.
    PackAndKeep,
    /// Packed weights are mapped from a cache.
    Map,
    /// As `Map`, with at most eight layers in memory.
    Lazy,
    /// Packed weights are read from a cache, and all else is brought in.
    Preload,
}

impl LoadWay {
    /// All of them, in an order in which each finds what it needs.
    pub const ALL: [Self; 5] =
        [Self::Pack, Self::PackAndKeep, Self::Map, Self::Lazy, Self::Preload];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::PackAndKeep => "pack and keep",
            Self::Map => "map from cache",
            Self::Lazy => "lazy, 8 layers",
            Self::Preload => "preload from cache",
        }
    }

    fn config(self, model: &ModelConfig, folder: Option<&Path>) -> ModelConfig {
        let cache = |folder| PackedCache { min_bytes: 0, ..PackedCache::new(folder) };
        let packed_cache = folder.filter(|_| self != Self::Pack).map(cache);
        let loading_strategy = match self {
            Self::Lazy => LoadingStrategy::Lazy,
            Self::Preload => LoadingStrategy::Preload,
            _ => LoadingStrategy::MemoryMap,
        };
        let max_layers_in_memory = 8;
        ModelConfig { packed_cache, loading_strategy, max_layers_in_memory, ..model.clone() }
    }
}

/// Loading in one way with a number of threads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadLine {
    /// The way.
    pub way: LoadWay,
    /// Threads.
    pub threads: usize,
    /// Seconds until the model answers, the first time: parts of the file may have come from the disk.
    pub first_seconds: f64,
    /// Seconds of each time after that; of the first if there was no other.
    pub seconds: Figure,
    /// Bytes of the model's files per second.
    pub bytes_per_second: f64,
    /// Seconds of the first token after a prompt of one: what lies untouched in the file is read then.
    pub first_token_seconds: f64,
    /// Tokens per second after it.
    pub tokens_per_second: Option<f64>,
    /// Rearranging alone, for [`LoadWay::Pack`].
    pub repack: Option<Repack>,
    /// Memory of the process with the model in it, after the first token.
    pub resident_bytes: Option<u64>,
    /// The part of it that belongs to no file.
    pub anonymous_bytes: Option<u64>,
    /// The most that it had while loading.
    pub peak_bytes: Option<u64>,
}

/// Time of rearranging all ternary weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Repack {
    /// Bytes of packed weights per second of decoding the file's encoding and rearranging, all threads together.
    pub bytes_per_second: f64,
    /// Seconds that all threads together spent on decoding.
    pub decode_seconds: f64,
    /// Seconds that all threads together spent on rearranging.
    pub pack_seconds: f64,
}

/// Tokens that are generated after a load.
const TOKENS: usize = 33;

/// Loads the model `iterations` times in each way with each number of threads.
///
/// `folder`: where packed weights are kept meanwhile; it is made, and deleted with all that is in it. Without it, or for a model that
/// is in no file, weights are packed each time and that is all.
pub fn run(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    folder: Option<&Path>,
    threads: &[usize],
    iterations: usize,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<LoadReport, Error> {
    if iterations == 0 {
        return Err(invalid("iterations", 0, "at least 1"));
    }
    if threads.is_empty() || threads.contains(&0) {
        return Err(invalid("threads", 0, "at least 1"));
    }
    let checkpoint = open().checkpoint()?;
    let folder = folder.filter(|_| matches!(checkpoint.identity(), Ok(Some(_))));
    let ways = if folder.is_some() { &LoadWay::ALL[..] } else { &[LoadWay::Pack] };
    let mut steps = Steps::new(threads.len() * (ways.len() * iterations + 1), progress);
    let config = checkpoint.config();
    let packing = model.packing.unwrap_or_default();
    let packed_bytes = packed_bytes(config, packing);
    let file_bytes = checkpoint.size_bytes();
    let (mut lines, mut name) = (Vec::new(), String::new());
    let cleaner = folder.map(Cleaner);
    for &threads in threads {
        for &way in ways {
            let loads = (0..iterations).map(|iteration| {
                let (what, number) = (way.name(), iteration + 1);
                steps.next(format!("{threads} threads: {what}, {number} of {iterations}"));
                if let (LoadWay::PackAndKeep, Some(cleaner)) = (way, &cleaner) {
                    cleaner.clean();
                }
                let config = ModelConfig { threads, ..way.config(model, folder) };
                one(open().with_config(config), &mut name)
            });
            let loads = loads.collect::<Result<Vec<_>, _>>()?;
            lines.push(line(way, threads, &loads, file_bytes));
        }
        steps.next(format!("{threads} threads: rearranging weights"));
        // A checkpoint of its own: the pages that are read here would count as memory of later loads.
        let checkpoint = open().checkpoint()?;
        let repacked = repack(&checkpoint, packing, threads, packed_bytes)?;
        let first = lines.len() - ways.len();
        lines[first].repack = Some(repacked);
    }
    let (build, machine) = (Build::current(), Machine::detect());
    Ok(LoadReport { build, machine, model: name, file_bytes, packed_bytes, lines })
}

/// Deletes a folder in the end, whatever happens.
struct Cleaner<'a>(&'a Path);

impl Cleaner<'_> {
    fn clean(&self) {
        if let Err(error) = std::fs::remove_dir_all(self.0) {
            tracing::debug!(folder = %self.0.display(), %error, "packed weights stay there");
        }
    }
}

impl Drop for Cleaner<'_> {
    fn drop(&mut self) {
        self.clean();
    }
}

/// One load and the first tokens.
struct Load {
    seconds: f64,
    first_token: f64,
    rate: Option<f64>,
    memory: ProcessMemory,
}

fn one(builder: ModelBuilder, name: &mut String) -> Result<Load, Error> {
    forget_peak();
    let begin = Instant::now();
    let model = super::held(builder.load()?)?;
    let seconds = begin.elapsed().as_secs_f64();
    let peak = ProcessMemory::now().peak;
    let first = drive::generate(model.engine(), vec![vec![0]], 1)?;
    let memory = ProcessMemory { peak, ..ProcessMemory::now() };
    let more = drive::generate(model.engine(), vec![vec![0]], TOKENS)?;
    name.clone_from(&model.info().name);
    let first_token = first[0].prompt_seconds().unwrap_or_default();
    Ok(Load { seconds, first_token, rate: more[0].rate(), memory })
}

fn line(way: LoadWay, threads: usize, loads: &[Load], file_bytes: u64) -> LoadLine {
    let (first, later) = loads.split_first().expect("loaded at least once");
    let later = if later.is_empty() { std::slice::from_ref(first) } else { later };
    let of = |value: fn(&Load) -> f64| {
        Figure::new(later.iter().map(value).collect()).expect("there is one")
    };
    let rates: Vec<f64> = later.iter().filter_map(|load| load.rate).collect();
    let seconds = of(|load| load.seconds);
    let memory = later.last().expect("there is one").memory;
    LoadLine {
        way,
        threads,
        first_seconds: first.seconds,
        bytes_per_second: file_bytes as f64 / seconds.median,
        seconds,
        first_token_seconds: of(|load| load.first_token).median,
        tokens_per_second: Figure::new(rates).map(|rate| rate.median),
        repack: None,
        resident_bytes: memory.resident,
        anonymous_bytes: memory.anonymous,
        peak_bytes: memory.peak,
    }
}

/// Decodes and packs every ternary matrix with `threads` threads, and keeps none.
fn repack(
    checkpoint: &Checkpoint,
    packing: Packing,
    threads: usize,
    packed_bytes: u64,
) -> Result<Repack, Error> {
    const NAMES: [&str; 7] = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    let config: &ArchConfig = checkpoint.config();
    let total = config.num_hidden_layers * NAMES.len();
    let (next, decode, pack) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let work = || -> Result<(), Error> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= total {
                return Ok(());
            }
            let (layer, linear) = (index / NAMES.len(), index % NAMES.len());
            let (rows, cols) = linears(config)[linear];
            let begin = Instant::now();
            let name = format!("model.layers.{layer}.{}", NAMES[linear]);
            let matrix = checkpoint.ternary(&name, rows, cols)?;
            let decoded = begin.elapsed();
            std::hint::black_box(PackedTernary::pack_as(packing, &matrix));
            decode.fetch_add(decoded.as_nanos() as u64, Ordering::Relaxed);
            pack.fetch_add((begin.elapsed() - decoded).as_nanos() as u64, Ordering::Relaxed);
        }
    };
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let join = |helper: std::thread::ScopedJoinHandle<'_, _>| {
            helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        helpers.into_iter().map(join).fold(own, Result::and)
    })?;
    let seconds = |nanoseconds: AtomicU64| nanoseconds.into_inner() as f64 * 1e-9;
    let whole = begin.elapsed().as_secs_f64();
    Ok(Repack {
        bytes_per_second: packed_bytes as f64 / whole,
        decode_seconds: seconds(decode),
        pack_seconds: seconds(pack),
    })
}

/// Lets the system count the process's peak anew; where it does not, the peak is that of the whole run.
fn forget_peak() {
    if let Err(error) = std::fs::write("/proc/self/clear_refs", "5") {
        tracing::debug!(%error, "the peak of memory is that of the whole run");
    }
}

#[cfg(all(test, feature = "demo-model"))]
mod tests {
    use super::*;
    use crate::BitNetModel;

    const FILE: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/demo-model/gguf/demo-tq1_0.gguf");

    fn run_with(
        open: &dyn Fn() -> ModelBuilder,
        folder: Option<&Path>,
        threads: &[usize],
        iterations: usize,
    ) -> Result<LoadReport, Error> {
        run(open, &ModelConfig::default(), folder, threads, iterations, &mut |_| ())
    }

    #[test]
    fn loading_has_a_line_for_each_way_and_number_of_threads() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("cache");
        let open = || BitNetModel::from_pretrained(FILE);
        let report = run_with(&open, Some(&folder), &[1, 2], 2).unwrap();
        let found: Vec<_> = report.lines.iter().map(|line| (line.threads, line.way)).collect();
        let expected: Vec<_> =
            [1, 2].into_iter().flat_map(|threads| LoadWay::ALL.map(|way| (threads, way))).collect();
        assert_eq!(found, expected);
        for line in &report.lines {
            assert_eq!(line.seconds.samples.len(), 1);
            assert!(line.first_token_seconds > 0.0 && line.tokens_per_second > Some(0.0));
            assert_eq!(line.repack.is_some(), line.way == LoadWay::Pack);
        }
        assert!(report.packed_bytes > 0 && report.file_bytes > 0);
        assert!(!folder.exists(), "nothing is left");
    }

    #[test]
    fn a_model_in_no_file_is_only_packed() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("cache");
        let report = run_with(&BitNetModel::demo, Some(&folder), &[1], 1).unwrap();
        assert_eq!(report.lines.len(), 1);
        assert_eq!(report.lines[0].way, LoadWay::Pack);
    }

    #[test]
    fn loading_zero_times_or_with_no_thread_is_refused() {
        for (threads, iterations) in [(&[1][..], 0), (&[], 1), (&[0], 1)] {
            let found = run_with(&BitNetModel::demo, None, threads, iterations);
            assert!(matches!(found, Err(Error::Config(_))));
        }
    }
}
