//! What was measured of a model, as tables.

use bitnet::bench::{
    BenchReport, Build, Case, Choice, Limit, Line, Machine, Measurement, Outcome, Setup,
};

use super::sheet::{
    Cell, Document, Sheet, giga, hidden, mega, none, number, or_none, percent, plain, share, times,
    word,
};
use crate::report::{bytes, plural};

pub fn document(report: &BenchReport) -> Document {
    let mut notes = wrong_or_missing(report);
    notes.extend(legend(report));
    notes.extend(advice(report));
    Document {
        facts: facts(report),
        sheets: vec![lines(report), bytes_by_part(report), probes(report)],
        notes,
    }
}

/// The machine in a line.
pub fn machine(machine: &Machine) -> String {
    let cpu = machine.cpu.as_deref().unwrap_or("an unknown processor");
    let (processors, cores) =
        (plural(machine.processors, "processor"), plural(machine.cores, "core"));
    let within = machine.virtual_machine.as_ref().map(|kind| format!(", virtual ({kind})"));
    let cache = bytes(machine.last_level_cache);
    let within = within.unwrap_or_default();
    format!("{cpu}, {processors}, {cores}, last-level cache {cache}{within}")
}

/// The program in a line.
pub fn build(build: &Build) -> String {
    let commit = build.commit.as_ref().and_then(|commit| commit.get(..12));
    let commit = commit.map_or_else(String::new, |commit| format!(", commit {commit}"));
    let debug = if build.debug { ", debug build" } else { "" };
    format!("{}{commit}{debug}", build.version)
}

fn facts(report: &BenchReport) -> Vec<(&'static str, String)> {
    let (model, settings) = (&report.model, &report.settings);
    let hash = model.sha256.as_ref().and_then(|hash| hash.get(..12)).unwrap_or("unknown");
    vec![
        ("machine", machine(&report.machine)),
        ("bitnet", build(&report.build)),
        (
            "model",
            format!(
                "{} ({}, {}, SHA-256 {hash}…)",
                model.name,
                model.encodings.join(", "),
                bytes(model.bytes)
            ),
        ),
        (
            "measured",
            format!("medians of {}, after {} not counted", settings.iterations, settings.warmup),
        ),
    ]
}

fn lines(report: &BenchReport) -> Sheet {
    let mut sheet = Sheet::new([
        word("simd_level", "level"),
        number("threads", "threads"),
        hidden("oversubscribed"),
        hidden("outcome"),
        word("packing", "weights"),
        word("head", "head"),
        word("kv_dtype", "KV"),
        word("work", "work"),
        number("tokens_per_second", "tokens/s"),
        number("spread", "spread"),
        hidden("min"),
        hidden("max"),
        number("speed_up", "speed-up"),
        number("efficiency", "efficiency"),
        number("bytes_per_token", "MB/token"),
        hidden("ternary_bytes_per_step"),
        hidden("head_bytes_per_step"),
        hidden("other_bytes_per_step"),
        hidden("kv_bytes_per_step"),
        hidden("context"),
        hidden("tokens_per_step"),
        hidden("ternary_products_per_token"),
        hidden("head_products_per_token"),
        hidden("attention_products_per_token"),
        number("bytes_per_second", "GB/s"),
        number("of_bandwidth", "of read"),
        hidden("of_bandwidth_spread"),
        number("macs_per_second", "GMAC/s"),
        number("of_peak", "of peak"),
        hidden("of_peak_spread"),
        number("of_bound", "of bound"),
        hidden("of_bound_spread"),
        hidden("limited_by"),
        hidden("bound_tokens_per_second"),
        hidden("read_bandwidth"),
        hidden("peak_macs_per_second"),
        hidden("other_processes"),
        hidden("stolen"),
        hidden("mhz_mean"),
        hidden("tokens_hash"),
    ]);
    for case in &report.cases {
        match &case.outcome {
            Outcome::Measured(m) => {
                m.lines.iter().for_each(|line| sheet.row(cells(report, case, m, line)));
            }
            Outcome::NotAvailable { .. } => {
                sheet.row(empty(case, "not_available", "not available", sheet.width()));
            }
            Outcome::Wrong { .. } => sheet.row(empty(case, "wrong", "WRONG", sheet.width())),
        }
    }
    sheet
}

fn threads(case: &Case) -> Cell {
    let mark = if case.oversubscribed { " (!)" } else { "" };
    Cell::new(format!("{}{mark}", case.setup.threads), case.setup.threads)
}

fn empty(case: &Case, outcome: &str, text: &str, width: usize) -> Vec<Cell> {
    let setup = &case.setup;
    let mut cells = vec![
        setup.simd_level.as_str().into(),
        threads(case),
        Cell::new("", case.oversubscribed),
        outcome.into(),
        setup.packing.map_or("auto", |packing| packing.name()).into(),
        setup.head.to_string().into(),
        setup.kv_dtype.name().into(),
        Cell::new(text, ""),
    ];
    cells.resize(width, none());
    cells
}

fn cells(report: &BenchReport, case: &Case, m: &Measurement, line: &Line) -> Vec<Cell> {
    let (rate, read) = (&line.rate, &line.bytes_per_step);
    let scaling = scaling(report, case, line);
    let limited_by = match line.limited_by {
        Limit::Memory => "memory",
        Limit::Arithmetic => "arithmetic",
    };
    vec![
        m.kernel.into(),
        threads(case),
        Cell::new("", case.oversubscribed),
        "measured".into(),
        m.forms.packing.as_str().into(),
        m.forms.head.as_str().into(),
        m.forms.kv_dtype.as_str().into(),
        line.work.to_string().into(),
        plain(rate.median),
        Cell::new(format!("{:.1} %", 100.0 * rate.spread), rate.spread),
        plain(rate.min),
        plain(rate.max),
        or_none(scaling, |(up, _)| times(up)),
        or_none(scaling, |(_, efficiency)| percent(efficiency)),
        mega(line.bytes_per_token),
        Cell::new("", read.ternary),
        Cell::new("", read.head),
        Cell::new("", read.other),
        Cell::new("", read.kv),
        Cell::new("", read.context),
        Cell::new("", line.tokens_per_step),
        Cell::new("", line.products_per_token.ternary),
        Cell::new("", line.products_per_token.head),
        Cell::new("", line.products_per_token.attention),
        giga(line.bytes_per_second),
        share(&line.of_bandwidth),
        Cell::new("", line.of_bandwidth.spread),
        giga(line.macs_per_second),
        share(&line.of_peak),
        Cell::new("", line.of_peak.spread),
        share(&line.of_bound),
        Cell::new("", line.of_bound.spread),
        limited_by.into(),
        plain(line.bound),
        giga(line.read_bandwidth),
        giga(line.peak_macs),
        or_none(line.conditions.other_processes, plain),
        or_none(line.conditions.stolen, plain),
        or_none(line.conditions.mhz, |mhz| plain(mhz.mean)),
        line.tokens_hash.as_str().into(),
    ]
}

/// Against the fewest threads with the same of everything else: how many times as fast, and what share of the added threads
/// that is.
fn scaling(report: &BenchReport, case: &Case, line: &Line) -> Option<(f64, f64)> {
    let threads = case.setup.threads;
    let same = |other: &&Case| {
        Setup { threads, ..other.setup.clone() } == case.setup && other.measurement().is_some()
    };
    let fewest = report.cases.iter().filter(same).min_by_key(|other| other.setup.threads)?;
    if fewest.setup.threads == threads {
        return None;
    }
    let base = fewest.measurement()?.line(|work| work == line.work)?;
    let up = line.rate.median / base.rate.median;
    Some((up, up * fewest.setup.threads as f64 / threads as f64))
}

/// What steps read, and how many products tokens take: the same for all levels and threads, but for what a two-stage head
/// needs, and rows that are the same are there once.
fn bytes_by_part(report: &BenchReport) -> Sheet {
    let mut sheet = Sheet::new([
        word("packing", "bytes of a step: weights"),
        word("head", "head"),
        word("kv_dtype", "KV"),
        word("work", "work"),
        number("tokens_per_step", "tokens"),
        number("ternary", "ternary MB"),
        number("head", "head MB"),
        number("kv", "KV MB"),
        number("other", "other MB"),
        number("total", "all MB"),
        number("products", "M products/token"),
        number("ternary_products", "ternary"),
        number("head_products", "head"),
        number("attention_products", "attention"),
    ]);
    let mut seen: Vec<Vec<Cell>> = Vec::new();
    for m in report.cases.iter().filter_map(Case::measurement) {
        for line in &m.lines {
            let (read, products) = (&line.bytes_per_step, &line.products_per_token);
            let megabytes = |count: u64| mega(count as f64);
            let row = vec![
                m.forms.packing.as_str().into(),
                m.forms.head.as_str().into(),
                m.forms.kv_dtype.as_str().into(),
                line.work.to_string().into(),
                Cell::new(format!("{:.0}", line.tokens_per_step), line.tokens_per_step),
                megabytes(read.ternary),
                megabytes(read.head),
                megabytes(read.kv),
                megabytes(read.other),
                megabytes(read.total()),
                mega(products.total()),
                mega(products.ternary),
                mega(products.head),
                mega(products.attention),
            ];
            if !seen.contains(&row) {
                seen.push(row);
            }
        }
    }
    seen.into_iter().for_each(|row| sheet.row(row));
    sheet
}

fn probes(report: &BenchReport) -> Sheet {
    let mut sheet = Sheet::new([
        word("simd_level", "probe"),
        number("threads", "threads"),
        word("packing", "weights"),
        word("head", "head"),
        word("kv_dtype", "KV"),
        number("read_huge_pages", "read GB/s"),
        number("read_small_pages", "4 KiB pages"),
        number("int8_macs", "int8 GMAC/s"),
        number("f32_macs", "f32 GMAC/s"),
        number("bf16_macs", "bf16 GMAC/s"),
        number("barrier_seconds", "barrier µs"),
        number("load_seconds", "load s"),
        word("read_walk", "read fastest with"),
    ]);
    for case in &report.cases {
        let Some(m) = case.measurement() else { continue };
        let p = &m.probes;
        sheet.row([
            m.kernel.into(),
            threads(case),
            m.forms.packing.as_str().into(),
            m.forms.head.as_str().into(),
            m.forms.kv_dtype.as_str().into(),
            giga(p.read_huge_pages.best),
            giga(p.read_small_pages.best),
            giga(p.int8_macs.best),
            giga(p.f32_macs.best),
            or_none(p.bf16_macs, |macs| giga(macs.best)),
            Cell::new(format!("{:.2}", 1e6 * p.barrier_seconds.median), p.barrier_seconds.median),
            plain(m.load_seconds),
            p.read_walk.into(),
        ]);
    }
    sheet
}

fn wrong_or_missing(report: &BenchReport) -> Vec<String> {
    let mut notes = Vec::new();
    for case in &report.cases {
        match &case.outcome {
            Outcome::Measured(_) => {}
            Outcome::NotAvailable { reason } => notes.push(reason.clone()),
            Outcome::Wrong { what, found, expected } => notes.push(format!(
                "WRONG: {} with {}: {what} are {} {}, and should be {} {}",
                case.setup.simd_level,
                plural(case.setup.threads, "thread"),
                found.tokens_hash,
                found.logits_hash,
                expected.tokens_hash,
                expected.logits_hash
            )),
        }
    }
    notes.dedup();
    notes
}

fn legend(report: &BenchReport) -> Vec<String> {
    if !report.cases.iter().any(|case| case.measurement().is_some()) {
        return Vec::new();
    }
    [
        "each measurement is held against probes right before and after it, with the same threads; shares are the medians of these ratios, with their range",
        "of read: bytes per second, of what a plain read of large memory gives; of peak: ternary products per second, of what registers give",
        "of bound: tokens/s, of the less of read / bytes and peak / all integer products; an int8 head counts two products a weight and int8 KV two a number, as the other factor has sixteen bits, a two-stage head one a weight and two for rows computed, which are counted; what is computed in floats is in no bound",
    ]
    .map(str::to_owned)
    .into()
}

fn advice(report: &BenchReport) -> Vec<String> {
    let line = |name: &str, choice: &Option<Choice>| {
        let choice = choice.as_ref()?;
        let together = match choice.sequences {
            1 => String::new(),
            count => format!(", {count} sequences together"),
        };
        let (level, threads) = (&choice.simd_level, choice.threads);
        let rate = plain(choice.tokens_per_second).text();
        Some(format!("best for {name}: -t {threads} ({level}{together}), {rate} tokens/s"))
    };
    let advice = &report.advice;
    [
        line("prompts", &advice.prompt),
        line("generation", &advice.generation),
        line("many sequences", &advice.batch),
    ]
    .into_iter()
    .flatten()
    .collect()
}
