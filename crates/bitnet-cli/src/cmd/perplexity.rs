//! `perplexity`: how well a model predicts a text.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use bitnet::{BitNetModel, Perplexity, PerplexityMethod, PerplexityProgress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::args::ModelArgs;
use crate::console::Console;
use crate::load::{self, Loaded};
use crate::report::plural;
use crate::{numbers, text_input};

/// Window if neither the command line nor the model's context says another.
const WINDOW: usize = 512;

/// Measure how well a model predicts a text: e to the mean of -ln p
///
/// Lower is better. Figures compare only between the same method, window, text and vocabulary.
#[derive(clap::Args)]
#[command(after_long_help = METHODS)]
pub struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text; - reads stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens of a window [default: --ctx-size, else 512 or the model's context if that is shorter]
    #[arg(long, alias = "window", value_name = "TOKENS", allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(2..=usize::MAX))]
    ctx: Option<usize>,
    /// What is counted: llama.cpp, bos, bos-second-half, no-bos or documents (see --help)
    #[arg(long, value_name = "NAME", default_value = "llama.cpp", value_parser = method)]
    method: PerplexityMethod,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

const METHODS: &str = "\
Methods, each on windows of --ctx tokens; a last window that is not full is left out:
  llama.cpp        As llama-perplexity: the text starts with BOS if the
                   tokenizer says so, BOS replaces the first token of every
                   window, and the tokens after the window's middle count
  bos              BOS and ctx - 1 tokens of text; all of these count
  bos-second-half  The same windows; the second half counts
  no-bos           ctx tokens of text; all but the first count
  documents        Texts separated by blank lines, each as BOS, text, EOS and
                   cut to ctx tokens; all but BOS count";

fn method(name: &str) -> Result<PerplexityMethod, String> {
    name.parse().map_err(|_| {
        let names = PerplexityMethod::ALL.map(|method| method.to_string()).join(", ");
        format!("expected one of {names}")
    })
}

pub fn run(args: &PerplexityArgs, console: &Console) -> Result<()> {
    let text = text_input::read(&args.file)?;
    let Loaded { model, .. } = load::load(&args.model, console)?;
    let window = window(args, &model);
    let progress = Progress::new(console);
    let found = model.perplexity(text, window, args.method, |now| progress.show(&now))?;
    progress.bar.finish_and_clear();
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", as_json(args, &model, window, &found))?;
    } else {
        writeln!(out, "PPL = {}", with_error(&found))?;
        let tokens = plural(found.scored, "token");
        let windows = plural(found.windows, "window");
        let method = args.method;
        writeln!(out, "{tokens} scored in {windows} of {window}, method {method}")?;
    }
    Ok(out.flush()?)
}

/// The engine refuses a window that does not fit, and says what would.
fn window(args: &PerplexityArgs, model: &BitNetModel) -> usize {
    let context = model.info().context_length;
    let given = args.model.ctx_size.map(|_| context);
    args.ctx.or(given).unwrap_or(WINDOW.min(context))
}

fn with_error(found: &Perplexity) -> String {
    match found.value_std_error() {
        Some(error) => format!("{:.4} ± {error:.4}", found.value()),
        None => format!("{:.4}", found.value()),
    }
}

fn as_json(
    args: &PerplexityArgs,
    model: &BitNetModel,
    window: usize,
    found: &Perplexity,
) -> serde_json::Value {
    let info = model.info();
    json!({
        "perplexity": found.value(), "std_error": found.value_std_error(),
        "mean_nll": found.mean_nll, "mean_nll_std_error": found.std_error,
        "tokens": found.scored, "windows": found.windows, "window": window,
        "method": args.method.to_string(), "file": args.file,
        "model": info.name, "path": info.path, "simd_level": info.simd_level, "threads": info.threads,
    })
}

/// A bar on a terminal, a line for each window elsewhere.
struct Progress<'a> {
    console: &'a Console,
    bar: ProgressBar,
}

impl<'a> Progress<'a> {
    fn new(console: &'a Console) -> Self {
        let style =
            ProgressStyle::with_template("{bar:30} {pos}/{len} windows, PPL {msg}, {eta} left")
                .expect("the template is well-formed")
                .progress_chars("##-");
        let target = match console.has_bars() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        Self { console, bar: ProgressBar::with_draw_target(None, target).with_style(style) }
    }

    fn show(&self, now: &PerplexityProgress) {
        let so_far = with_error(&now.so_far);
        if self.console.has_bars() {
            self.bar.set_length(now.total as u64);
            self.bar.set_message(so_far);
            self.bar.set_position(now.done as u64);
        } else {
            self.console.note(&format!("[{}/{}] {so_far}", now.done, now.total));
        }
    }
}
