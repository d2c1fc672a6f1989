//! A benchmark's results for people.

use bitnet::bench::{Agreement, BenchReport, Case, Measurement, Outcome, Rate};

use super::measurements;
use crate::report::{Align, Table, bytes};

pub const HEADINGS: [&str; 11] = [
    "level",
    "threads",
    "prompt",
    "±",
    "generate",
    "±",
    "speed-up",
    "efficiency",
    "GB/s",
    "of memory",
    "of peak",
];

pub fn render(report: &BenchReport) -> String {
    let mut out = format!("{}\n\n", facts(report).render(""));
    let mut table = Table::new(&[
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
    ]);
    table.row(HEADINGS);
    report.cases.iter().for_each(|case| table.row(cells(report, case)));
    out += &table.render("");
    out += "\nprompt and generate: tokens per second, median and half the distance between slowest and fastest\n";
    out += "of memory: bytes per token × generated tokens per second, as a share of the best read bandwidth\n";
    out += "of peak: ternary products of the prompt per second, as a share of the multiply-add peak\n\n";
    out += &probes(report).render("");
    if let Some(best) = best(report) {
        out += &format!("\nfastest generation: {best}\n");
    }
    out
}

fn facts(report: &BenchReport) -> Table {
    let (machine, model, settings) = (&report.machine, &report.model, &report.settings);
    let mut table = Table::facts();
    let cpu = machine.cpu.as_deref().unwrap_or("an unknown processor");
    table.row([
        "machine",
        &format!("{cpu}, {} processors, {} cores", machine.processors, machine.cores),
    ]);
    let encodings = model.encodings.join(", ");
    table.row(["model", &format!("{} ({encodings}, {})", model.name, bytes(model.bytes))]);
    table.row([
        "measured",
        &format!(
            "prompt of {}, generation of {}; {} times after {} not counted",
            settings.prompt_tokens, settings.generated_tokens, settings.iterations, settings.warmup
        ),
    ]);
    if let Some((_, m)) = measurements(report).next() {
        let read = &m.bytes_per_token;
        table.row([
            "bytes per token",
            &format!(
                "{}: ternary {}, head {}, other {}, KV {} at {:.1} earlier tokens",
                bytes(read.total()),
                bytes(read.ternary),
                bytes(read.head),
                bytes(read.other),
                bytes(read.kv),
                read.context
            ),
        ]);
    }
    table
}

/// The cells of one case's row, as in [`HEADINGS`].
pub fn cells(report: &BenchReport, case: &Case) -> Vec<String> {
    let threads = case.threads.to_string() + if case.oversubscribed { " (!)" } else { "" };
    let m = match &case.outcome {
        Outcome::NotAvailable { reason } => {
            let short = reason.split_once(" is ").map_or(&**reason, |(_, short)| short);
            return vec![case.simd_level.clone(), threads, short.to_owned()];
        }
        Outcome::Measured(m) if m.agreement == Agreement::Different => {
            return vec![
                m.kernel.to_owned(),
                threads,
                "WRONG: other tokens or logits than the first case".into(),
            ];
        }
        Outcome::Measured(m) => m,
    };
    let speed_up = speed_up(report, case, m);
    let dash = || "-".to_owned();
    vec![
        m.kernel.to_owned(),
        threads,
        m.prompt.as_ref().map_or_else(dash, median),
        m.prompt.as_ref().map_or_else(String::new, spread),
        m.generation.as_ref().map_or_else(dash, median),
        m.generation.as_ref().map_or_else(String::new, spread),
        speed_up.map_or_else(dash, |(up, _)| format!("{up:.2}×")),
        speed_up.map_or_else(dash, |(_, efficiency)| percent(efficiency)),
        m.bytes_per_second.map_or_else(dash, |rate| format!("{:.1}", rate / 1e9)),
        m.bandwidth_share().map_or_else(dash, percent),
        m.peak_share().map_or_else(dash, percent),
    ]
}

fn probes(report: &BenchReport) -> Table {
    let mut table =
        Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right, Align::Left]);
    table.row(["probe", "threads", "read GB/s", "peak GMAC/s", "tokens and logits"]);
    for (case, m) in measurements(report) {
        table.row([
            m.kernel.to_owned(),
            case.threads.to_string(),
            format!("{:.1}", m.read_bandwidth.best / 1e9),
            format!("{:.0}", m.peak_macs_per_second.best / 1e9),
            format!("{} {}", m.tokens_hash, m.logits_hash),
        ]);
    }
    table
}

fn median(rate: &Rate) -> String {
    if rate.median >= 100.0 { format!("{:.0}", rate.median) } else { format!("{:.2}", rate.median) }
}

fn spread(rate: &Rate) -> String {
    percent(rate.spread() / 2.0)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// The measure that counts for scaling: generation, or the prompt where nothing is generated.
fn speed(m: &Measurement) -> Option<f64> {
    m.generation.as_ref().or(m.prompt.as_ref()).map(|rate| rate.median)
}

/// Against the fewest threads of the same level: how many times as fast, and what share of the added threads that is.
fn speed_up(report: &BenchReport, case: &Case, m: &Measurement) -> Option<(f64, f64)> {
    let (fewest, base) = measurements(report)
        .filter(|(other, _)| other.simd_level == case.simd_level)
        .min_by_key(|(other, _)| other.threads)?;
    if fewest.threads == case.threads {
        return None;
    }
    let up = speed(m)? / speed(base)?;
    Some((up, up * fewest.threads as f64 / case.threads as f64))
}

fn best(report: &BenchReport) -> Option<String> {
    let right = measurements(report).filter(|(_, m)| m.agreement != Agreement::Different);
    let (case, m) = right
        .max_by(|(_, a), (_, b)| speed(a).unwrap_or(0.0).total_cmp(&speed(b).unwrap_or(0.0)))?;
    let rate = m.generation.as_ref()?;
    Some(format!("{} with -t {}, {} tokens/s", m.kernel, case.threads, median(rate)))
}
