//! Where the time of steps goes, as tables with a bar for each phase.

use bitnet::bench::phases::{PhaseShare, PhasesReport, StepPhases};

use super::model::{build, machine};
use super::sheet::{Cell, Document, Sheet, hidden, number, plain, word};

/// Characters of a bar that stands for all of the time.
const BAR: f64 = 40.0;

pub fn document(report: &PhasesReport) -> Document {
    let mut sheet = Sheet::new([
        word("step", "step"),
        word("phase", "phase"),
        number("milliseconds", "ms"),
        number("share", "share"),
        number("barriers", "barriers"),
        word("busy", "threads busy"),
        word("bar", ""),
        hidden("tokens"),
        hidden("steps"),
    ]);
    for step in &report.steps {
        let total = step.phases.iter().map(|phase| phase.share).sum();
        let all = PhaseShare {
            phase: "all",
            milliseconds: step.milliseconds,
            share: total,
            barriers: step.barriers(),
            busy: vec![step.busy()],
        };
        sheet.row(row(step, &all, &step.what));
        let phases = step.phases.iter().filter(|phase| phase.milliseconds > 0.0);
        phases.for_each(|phase| sheet.row(row(step, phase, "")));
    }
    let facts = vec![
        ("machine", machine(&report.machine)),
        ("bitnet", build(&report.build)),
        ("model", report.model.clone()),
        ("threads", report.threads.to_string()),
    ];
    let notes = vec![
        "ms, barriers: of one step; threads busy: of the phase's time, thread by thread (all: on average); the rest they wait"
            .to_owned(),
    ];
    Document { facts, sheets: vec![sheet], notes }
}

fn row(step: &StepPhases, phase: &PhaseShare, shown: &str) -> [Cell; 9] {
    let busy: Vec<_> = phase.busy.iter().map(|busy| format!("{:.0}", 100.0 * busy)).collect();
    let busy = match phase.busy.iter().any(|&busy| busy > 0.0) {
        true => Cell::new(busy.join(" ") + " %", busy.join(" ")),
        false => Cell::new("", ""),
    };
    let bar = "#".repeat((BAR * phase.share).round() as usize);
    [
        Cell::new(shown, &step.what),
        phase.phase.into(),
        plain(phase.milliseconds),
        Cell::new(format!("{:.1} %", 100.0 * phase.share), phase.share),
        plain(phase.barriers),
        busy,
        Cell::new(&*bar, ""),
        step.tokens.into(),
        step.steps.into(),
    ]
}
