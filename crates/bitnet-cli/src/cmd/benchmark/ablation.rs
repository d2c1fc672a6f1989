//! What each step brought, as tables.

use bitnet::bench::ablation::AblationReport;

use super::model::{build, machine};
use super::sheet::{Cell, Document, Sheet, number, or_none, plain, times, word};

pub fn document(report: &AblationReport) -> Document {
    let (rows, cols) = report.shape;
    let mut facts = vec![
        ("machine", machine(&report.machine)),
        ("bitnet", build(&report.build)),
        ("product", format!("{rows} × {cols} ternary weights that come from memory")),
    ];
    let mut sheets = vec![product(report)];
    if let Some(bench) = &report.report {
        let (prompt, tokens) = (bench.settings.prompt_tokens, bench.settings.generated_tokens);
        let model = format!("{}, prompt of {prompt}, generation of {tokens}", bench.model.name);
        facts.push(("model", model));
        sheets.push(self::model(report));
    }
    let mut notes = vec!["gain: over the step before; total: over the first step".to_owned()];
    if report.report.is_some() {
        let fusion = "until the step `fusion`, norms, quantization, rotation, activation and sums of a layer are passes of their own";
        notes.push(fusion.to_owned());
    }
    Document { facts, sheets, notes }
}

fn product(report: &AblationReport) -> Sheet {
    let mut sheet = Sheet::new([
        number("batch", "batch"),
        word("step", "step"),
        number("threads", "threads"),
        number("milliseconds", "ms"),
        number("spread", "spread"),
        number("gain", "gain"),
        number("total", "total"),
        word("correct", "integers"),
        word("what", "how"),
    ]);
    for step in &report.product {
        let spread = step.milliseconds.spread;
        sheet.row([
            step.batch.into(),
            step.name.as_str().into(),
            step.threads.into(),
            plain(step.milliseconds.median),
            Cell::new(format!("{:.1} %", 100.0 * spread), spread),
            times(step.gain),
            times(step.total),
            if step.correct { "right" } else { "WRONG" }.into(),
            step.what.as_str().into(),
        ]);
    }
    sheet
}

fn model(report: &AblationReport) -> Sheet {
    let mut sheet = Sheet::new([
        word("step", "step"),
        word("simd_level", "level"),
        number("threads", "threads"),
        word("packing", "weights"),
        word("head", "head"),
        number("prompt", "prompt tokens/s"),
        number("prompt_gain", "gain"),
        number("generation", "generated tokens/s"),
        number("generation_gain", "gain"),
    ]);
    for step in &report.model {
        sheet.row([
            step.name.as_str().into(),
            step.simd_level.as_str().into(),
            step.threads.into(),
            step.forms.packing.as_str().into(),
            step.forms.head.as_str().into(),
            or_none(step.prompt, plain),
            or_none(step.prompt_gain, times),
            or_none(step.generation, plain),
            or_none(step.generation_gain, times),
        ]);
    }
    sheet
}
