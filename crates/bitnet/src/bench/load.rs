//! Measures how a model gets into memory: all of it, and the rearranging of ternary weights alone.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use bitnet_kernels::cpu::packed::{PackedTernary, Packing};
use bitnet_model::config::ArchConfig;
use bitnet_model::format::Checkpoint;
use serde::Serialize;

use super::bytes::linears;
use super::drive;
use super::machine::Machine;
use super::report::Rate;
use super::source::Build;
use super::{BenchProgress, Steps, invalid};
use crate::builder::ModelBuilder;
use crate::config::ModelConfig;
use crate::error::Error;

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
    /// Each number of threads.
    pub lines: Vec<LoadLine>,
}

/// Loading with a number of threads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadLine {
    /// Threads.
    pub threads: usize,
    /// Seconds until the model answers, the first time: parts of the file may have come from the disk.
    pub first_seconds: f64,
    /// Seconds of each time after that; of the first if there was no other.
    pub seconds: Rate,
    /// Bytes of the files per second.
    pub bytes_per_second: f64,
    /// Seconds of the first token after a prompt of one: what lies untouched in the file is read then.
    pub first_token_seconds: f64,
    /// Bytes of packed weights per second of decoding the file's encoding and rearranging, all threads together.
    pub repack_bytes_per_second: f64,
    /// Seconds that all threads together spent on decoding.
    pub decode_seconds: f64,
    /// Seconds that all threads together spent on rearranging.
    pub pack_seconds: f64,
    /// Memory of the process with the model in it, after the first token.
    pub resident_bytes: Option<u64>,
    /// The part of it that belongs to no file.
    pub anonymous_bytes: Option<u64>,
    /// The most that it had while loading.
    pub peak_bytes: Option<u64>,
}

/// Loads the model `iterations` times with each number of threads.
pub fn run(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
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
    let mut steps = Steps::new(threads.len() * (iterations + 1), progress);
    let checkpoint = open().checkpoint()?;
    let config = checkpoint.config();
    let packing = model.packing.unwrap_or_default();
    let layer: usize =
        linears(config).iter().map(|&(rows, cols)| packing.matrix_bytes(rows, cols)).sum();
    let packed_bytes = layer as u64 * config.num_hidden_layers as u64;
    let file_bytes = checkpoint.size_bytes();
    let (mut lines, mut name) = (Vec::new(), String::new());
    for &threads in threads {
        let (mut seconds, mut memory, mut first_token) = (Vec::new(), Memory::default(), 0.0);
        for iteration in 1..=iterations {
            steps.next(format!("{threads} threads: loading, {iteration} of {iterations}"));
            forget_peak();
            let begin = Instant::now();
            let model = open().with_config(ModelConfig { threads, ..model.clone() }).load()?;
            seconds.push(begin.elapsed().as_secs_f64());
            let peak = Memory::now().peak;
            let timed = drive::generate(model.engine(), vec![vec![0]], 1)?;
            first_token = timed[0].prompt_seconds().unwrap_or_default();
            memory = Memory { peak, ..Memory::now() };
            name.clone_from(&model.info().name);
        }
        steps.next(format!("{threads} threads: rearranging weights"));
        let repack = repack(&checkpoint, packing, threads)?;
        let first_seconds = seconds[0];
        if seconds.len() > 1 {
            seconds.remove(0);
        }
        let seconds = Rate::new(seconds).expect("loaded at least once");
        lines.push(LoadLine {
            threads,
            first_seconds,
            bytes_per_second: file_bytes as f64 / seconds.median,
            seconds,
            first_token_seconds: first_token,
            repack_bytes_per_second: packed_bytes as f64 / repack.seconds,
            decode_seconds: repack.decode,
            pack_seconds: repack.pack,
            resident_bytes: memory.resident,
            anonymous_bytes: memory.anonymous,
            peak_bytes: memory.peak,
        });
    }
    let (build, machine) = (Build::current(), Machine::detect());
    Ok(LoadReport { build, machine, model: name, file_bytes, packed_bytes, lines })
}

/// Time of rearranging all ternary weights.
struct Repack {
    seconds: f64,
    decode: f64,
    pack: f64,
}

/// Decodes and packs every ternary matrix with `threads` threads, and keeps none.
fn repack(checkpoint: &Checkpoint, packing: Packing, threads: usize) -> Result<Repack, Error> {
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
    Ok(Repack { seconds: whole, decode: seconds(decode), pack: seconds(pack) })
}

/// Memory of this process, as far as the system tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Memory {
    resident: Option<u64>,
    anonymous: Option<u64>,
    peak: Option<u64>,
}

impl Memory {
    fn now() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line =
                status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
        };
        Self { resident: field("VmRSS"), anonymous: field("RssAnon"), peak: field("VmHWM") }
    }
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

    #[test]
    fn loading_has_a_line_for_each_number_of_threads() {
        let report =
            run(&BitNetModel::demo, &ModelConfig::default(), &[1, 2], 2, &mut |_| ()).unwrap();
        let threads: Vec<_> = report.lines.iter().map(|line| line.threads).collect();
        assert_eq!(threads, [1, 2]);
        for line in &report.lines {
            assert_eq!(line.seconds.samples.len(), 1);
            assert!(line.repack_bytes_per_second > 0.0 && line.first_token_seconds > 0.0);
        }
        assert!(report.packed_bytes > 0 && report.file_bytes > 0);
    }

    #[test]
    fn loading_zero_times_or_with_no_thread_is_refused() {
        for (threads, iterations) in [(&[1][..], 0), (&[], 1), (&[0], 1)] {
            let config = ModelConfig::default();
            let found = run(&BitNetModel::demo, &config, threads, iterations, &mut |_| ());
            assert!(matches!(found, Err(Error::Config(_))));
        }
    }

    #[test]
    fn memory_is_what_the_system_says() {
        let status = "Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nRssAnon:\t  100 kB\n";
        let expected =
            Memory { resident: Some(200 << 10), anonymous: Some(100 << 10), peak: Some(300 << 10) };
        assert_eq!(Memory::parse(status), expected);
        assert_eq!(Memory::parse("VmRSS: x"), Memory::default());
    }
}
