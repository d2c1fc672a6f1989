//! What makes figures worth less.

use bitnet::bench::{BenchReport, Case, Conditions};

/// Measurements that differ by more than this are not the same speed.
const SPREAD: f64 = 0.05;
/// A share of the processors' time that is more than the system's own housekeeping.
const BUSY: f64 = 0.05;
/// A share of the processors' time that the hypervisor gives to others without anybody noticing.
const STOLEN: f64 = 0.02;

/// In sentences, for stderr.
pub fn warnings(report: &BenchReport) -> Vec<String> {
    let processors = report.machine.processors as f64;
    let mut counts: Vec<_> = report
        .cases
        .iter()
        .filter(|case| case.oversubscribed)
        .map(|case| case.setup.threads)
        .collect();
    counts.sort_unstable();
    counts.dedup();
    let oversubscribed = |count: usize| {
        format!("{count} threads are more than the {processors} processors: {processors} are used")
    };
    let mut warnings: Vec<_> = counts.into_iter().map(oversubscribed).collect();

    let lines: Vec<_> =
        report.cases.iter().filter_map(Case::measurement).flat_map(|m| &m.lines).collect();
    let wide: Vec<_> = lines.iter().filter(|line| line.rate.spread > SPREAD).collect();
    let widest = wide.iter().map(|line| line.rate.spread).fold(0.0, f64::max);
    if !wide.is_empty() {
        warnings.push(format!(
            "{} of {} measurements differ by more than {:.0} % between runs, by up to {:.0} %: the machine was not quiet, or its clock changed",
            wide.len(),
            lines.len(),
            100.0 * SPREAD,
            100.0 * widest
        ));
    }
    let most = |value: fn(&Conditions) -> Option<f64>| {
        lines.iter().filter_map(|line| value(&line.conditions)).fold(0.0, f64::max)
    };
    let others = most(|conditions| conditions.other_processes);
    if others > BUSY * processors {
        warnings.push(format!(
            "other processes used up to {others:.1} of {processors} processors meanwhile: they slow it down"
        ));
    }
    let stolen = most(|conditions| conditions.stolen);
    if stolen > STOLEN * processors {
        let share = 100.0 * stolen / processors;
        warnings.push(format!(
            "the hypervisor took up to {share:.0} % of the processors' time for others: such measurements say little"
        ));
    }
    let throttled: u64 = lines.iter().filter_map(|line| line.conditions.throttled).sum();
    if throttled > 0 {
        warnings.push(format!("processors slowed down {throttled} times because of heat"));
    }
    warnings
}
