//! Opens the model that the arguments name, and shows how far it has got.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use bitnet::{BitNetModel, CacheUse, MemoryLock, ModelBuilder, SimdLevel};
use bitnet_kernels::cpu::topology::Topology;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{ModelArgs, ModelSource};
use crate::cmd::info::features;
use crate::console::Console;
use crate::failure::Failure;
use crate::report;
use crate::threads::{self, Threads};

/// A model that is ready, and the threads it computes with.
pub struct Loaded {
    pub model: BitNetModel,
    pub threads: Threads,
    /// The processor's name, if it tells.
    pub machine: Option<String>,
}

/// Loads the model.
pub fn load(args: &ModelArgs, console: &Console) -> Result<Loaded> {
    load_with(args, console, |builder| builder)
}

/// Loads the model, with more settings than all subcommands have.
pub fn load_with(
    args: &ModelArgs,
    console: &Console,
    settings: impl FnOnce(ModelBuilder) -> ModelBuilder,
) -> Result<Loaded> {
    args.check()?;
    let topology = Topology::detect();
    let chosen = threads::choose(&args.threads, &threads::environment, &topology)?;
    for warning in chosen.warnings.iter().chain(&chosen.oversubscription) {
        console.warn(warning);
    }
    let mut config = args.config()?;
    chosen.apply(&mut config);
    let threads = chosen.threads;
    let builder = builder(args.model.as_ref(), console)?.with_config(config);
    let model = with_bar(settings(builder), console)?;
    for warning in args.idle(|encoding| model.info().encodings.contains_key(encoding)) {
        console.warn(&warning);
    }
    if let CacheUse::Written { path, bytes } = &model.info().packed_cache {
        let (bytes, path) = (report::bytes(*bytes), path.display());
        console.note(&format!("packed weights are kept for the next start: {bytes} in {path}"));
    }
    if let MemoryLock::Refused(refused) = &model.info().memory_lock {
        console.warn(&format!("{refused}; {}", refused.help()));
    }
    log(&model, &threads);
    Ok(Loaded { model, threads, machine: topology.model_name })
}

fn log(model: &BitNetModel, threads: &Threads) {
    let info = model.info();
    tracing::info!(model = info.name, threads = threads.count, rule = %threads.rule, "model loaded");
    let kernel = match SimdLevel::ALL.into_iter().find(|level| level.name() == info.simd_level) {
        Some(level) if level.vector_bits() > 0 => format!("{}-bit vectors", level.vector_bits()),
        _ => "portable code".to_owned(),
    };
    tracing::debug!(packed_cache = ?info.packed_cache, "where packed weights come from");
    let features = features().join(" ");
    tracing::debug!(level = info.simd_level, kernel, features, "SIMD level in use");
    tracing::debug!(packing = %info.packing, "packing of ternary weights");
}

fn builder(source: Option<&ModelSource>, console: &Console) -> Result<ModelBuilder> {
    match source {
        Some(source) => Ok(BitNetModel::from_pretrained(resolve(source, console)?)),
        None => demo(console),
    }
}

/// The local path of a model, downloaded if need be.
pub fn resolve(source: &ModelSource, console: &Console) -> Result<PathBuf> {
    match source {
        ModelSource::Path(path) => match hub_name(path) {
            Some(name) => Err(Failure::input(format!("{name}: there is no such file or folder"))
                .hint(format!("for a model on the hub write hf:{name}"))
                .into()),
            None => Ok(path.clone()),
        },
        ModelSource::Hub(id) => hub(id, console),
    }
}

/// What is no path here and looks like OWNER/NAME.
fn hub_name(path: &Path) -> Option<&str> {
    let name = path.to_str()?;
    let (owner, model) = name.split_once('/')?;
    let plain = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(known)
    };
    let file = [".gguf", ".safetensors", ".json"].iter().any(|ending| name.ends_with(ending));
    // A folder of that name speaks for a path with a mistake in it.
    let there = Path::new(owner).exists();
    (plain(owner) && plain(model) && !file && !there).then_some(name)
}

#[cfg(feature = "hub")]
use crate::hub::resolve as hub;

#[cfg(not(feature = "hub"))]
fn hub(id: &str, _: &Console) -> Result<PathBuf> {
    Err(Failure::input(format!("{id}: this program was built without downloads"))
        .hint("fetch the model by other means and give its path to -m")
        .into())
}

/// The built-in model.
#[cfg(feature = "demo-model")]
pub fn demo(console: &Console) -> Result<ModelBuilder> {
    console.note(
        "using the built-in demo model, which writes children's stories; -m FILE uses another",
    );
    Ok(BitNetModel::demo())
}

/// There is no built-in model.
#[cfg(not(feature = "demo-model"))]
pub fn demo(_: &Console) -> Result<ModelBuilder> {
    Err(Failure::input("no model given, and this program was built without the demo model")
        .hint("give one with -m FILE or BITNET_MODEL=FILE")
        .into())
}

fn with_bar(builder: ModelBuilder, console: &Console) -> Result<BitNetModel> {
    if !console.has_bars() {
        return Ok(builder.load()?);
    }
    let bar = Arc::new(bar());
    let (shown, furthest) = (Arc::clone(&bar), Furthest::default());
    let loaded = builder
        .with_progress(move |progress| {
            furthest.reach(progress.done, |done| {
                shown.set_length(progress.total as u64);
                shown.set_position(done as u64);
            });
        })
        .load();
    bar.finish_and_clear();
    Ok(loaded?)
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("loading {bar:30} {percent:>3} %")
        .expect("the template is well-formed")
        .progress_chars("##-");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
}

/// Leaves out reports that several threads make in another order than they count.
#[derive(Default)]
struct Furthest(Mutex<usize>);

impl Furthest {
    fn reach(&self, done: usize, show: impl FnOnce(usize)) {
        let mut furthest = self.0.lock().expect("nothing panics that shows progress");
        if done > *furthest {
            *furthest = done;
            show(done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_goes_back() {
        let (furthest, mut shown) = (Furthest::default(), Vec::new());
        for done in [1, 3, 2, 3, 5, 4] {
            furthest.reach(done, |done| shown.push(done));
        }
        assert_eq!(shown, [1, 3, 5]);
    }

    #[test]
    fn what_looks_like_a_name_on_the_hub_is_told_from_paths() {
        for name in ["microsoft/bitnet-b1.58-2B-4T", "a/b"] {
            assert_eq!(hub_name(Path::new(name)), Some(name));
        }
        for path in ["a/b.gguf", "/a/b", "./a", "../a", "a", "a/b/c", "src/b", "a/.b", "a b/c"] {
            assert_eq!(hub_name(Path::new(path)), None, "{path}");
        }
    }
}
