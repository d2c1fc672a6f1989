//! `info`: what this machine has, what the engine makes of it, and what is in a model file.

mod cpu;
pub mod model;

pub use cpu::features;

use std::io::{self, Write};

use anyhow::Result;
use bitnet::WaitPolicy;
use bitnet_kernels::cpu::placement::ranges;
use bitnet_kernels::cpu::topology::Topology;
use serde_json::{Map, Value, json};

use crate::args::{ModelSource, ThreadArgs};
use crate::console::Console;
use crate::report::{Table, plural};
use crate::threads::{self, Chosen, IGNORED};

/// Show processors, SIMD levels, threads, and what a model file holds
#[derive(clap::Args)]
pub struct InfoArgs {
    /// Show the processor and its SIMD levels only
    #[arg(long, conflicts_with = "model")]
    cpu: bool,
    /// Show what this model holds as well: a GGUF file, a model directory, or hf:OWNER/NAME
    #[arg(short, long, value_name = "MODEL", value_parser = ModelSource::parser())]
    model: Option<ModelSource>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// A heading with its facts, for people and for programs.
pub struct Section {
    pub title: &'static str,
    pub text: String,
    pub json: (&'static str, Value),
}

pub fn run(args: &InfoArgs, console: &Console) -> Result<()> {
    let topology = Topology::detect();
    let mut sections = vec![cpu::processor(&topology), cpu::levels()];
    if !args.cpu {
        let chosen = threads::choose(&args.threads, &threads::environment, &topology)?;
        sections.push(threads_section(&chosen, &topology));
        sections.push(program());
    }
    if let Some(source) = &args.model {
        sections.extend(model::sections(source, console)?);
    }
    let mut out = io::stdout().lock();
    if args.json {
        let object: Map<_, _> =
            sections.into_iter().map(|s| (s.json.0.to_owned(), s.json.1)).collect();
        writeln!(out, "{}", Value::Object(object))?;
    } else {
        let text: Vec<_> = sections.iter().map(|s| format!("{}\n{}", s.title, s.text)).collect();
        write!(out, "{}", text.join("\n"))?;
    }
    Ok(out.flush()?)
}

fn threads_section(chosen: &Chosen, topology: &Topology) -> Section {
    let Chosen { threads, plan, pin_rule, wait_rule, warnings, .. } = chosen;
    let candidates: Vec<_> = plan.candidates().iter().map(usize::to_string).collect();
    let mut table = Table::facts();
    table.row(["threads", &threads.count.to_string()]);
    table.row(["rule", &threads.rule.to_string()]);
    if !candidates.is_empty() {
        let tried = format!("the first tokens choose among {}", candidates.join(", "));
        table.row(["generating", &tried]);
    }
    table.row(["prompts", &plural(plan.batch, "thread")]);
    table.row(["bound", &format!("{} ({pin_rule})", plan.placement.rule)]);
    let mut first = 0;
    for group in plan.placement.places.chunk_by(|a, b| a == b) {
        let numbers: Vec<_> = (first..first + group.len()).collect();
        table.row(["", &format!("thread {} on CPU {}", ranges(&numbers), ranges(&group[0]))]);
        first += group.len();
    }
    table.row(["waiting", &format!("{} ({wait_rule})", wait(plan.wait))]);
    for warning in warnings {
        table.row(["warning", warning]);
    }
    let ignored: Vec<_> =
        IGNORED.iter().filter_map(|name| Some((*name, threads::environment(name)?))).collect();
    for (name, value) in &ignored {
        let library = if name.starts_with("MKL") { "MKL" } else { "OpenBLAS" };
        table.row(["ignored", &format!("{name}={value}: no {library}")]);
    }
    let json = json!({
        "count": threads.count,
        "rule": threads.rule.to_string(),
        "tried": plan.candidates(),
        "batch": plan.batch,
        "available": topology.available(),
        "placement": {
            "rule": plan.placement.rule, "set_by": pin_rule, "cpus": plan.placement.places,
        },
        "wait": { "policy": wait(plan.wait), "set_by": wait_rule },
        "warnings": warnings,
        "ignored": ignored.iter().map(|(name, _)| name).collect::<Vec<_>>(),
    });
    Section { title: "Threads", text: table.render("  "), json: ("threads", json) }
}

fn wait(policy: WaitPolicy) -> String {
    match policy {
        WaitPolicy::Balanced => "balanced".to_owned(),
        WaitPolicy::Active => "active".to_owned(),
        WaitPolicy::Passive => "passive".to_owned(),
        WaitPolicy::Micros(micros) => format!("{micros} µs"),
    }
}

fn program() -> Section {
    let mut table = Table::facts();
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let demo = if cfg!(feature = "demo-model") { "built in" } else { "not built in" };
    table.row(["version", env!("CARGO_PKG_VERSION")]);
    table.row(["built for", &format!("{os} on {arch}")]);
    table.row(["devices", "cpu"]);
    table.row(["demo model", demo]);
    let json = json!({
        "version": env!("CARGO_PKG_VERSION"), "os": os, "arch": arch, "devices": ["cpu"],
        "demo_model": cfg!(feature = "demo-model"),
    });
    Section { title: "Program", text: table.render("  "), json: ("program", json) }
}
