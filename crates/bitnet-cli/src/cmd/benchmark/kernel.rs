//! What was measured of one product, as a table.

use bitnet::bench::kernel::{KernelLine, KernelReport, Place};

use super::model::{build, machine};
use super::sheet::{
    Cell, Document, Sheet, giga, hidden, none, number, or_none, percent, plain, share, times, word,
};

pub fn document(report: &KernelReport) -> Document {
    let mut sheet = Sheet::new([
        number("rows", "rows"),
        number("cols", "cols"),
        number("batch", "batch"),
        word("kernel", "kernel"),
        word("packing", "weights"),
        number("threads", "threads"),
        hidden("oversubscribed"),
        word("place", "from"),
        number("milliseconds", "ms"),
        number("spread", "spread"),
        number("gops", "GOPS"),
        number("speed_up", "speed-up"),
        number("efficiency", "efficiency"),
        number("bytes_per_second", "GB/s"),
        number("of_bandwidth", "of read"),
        number("of_peak", "of peak"),
        word("tile", "tile"),
        number("panels_at_once", "panels"),
        hidden("read_bandwidth"),
        hidden("peak_macs_per_second"),
        word("correct", "integers"),
    ]);
    report.lines.iter().for_each(|line| sheet.row(cells(line)));
    let facts = vec![("machine", machine(&report.machine)), ("bitnet", build(&report.build))];
    let mut notes: Vec<_> = report.not_available.iter().map(|(_, reason)| reason.clone()).collect();
    notes.push("GOPS: multiplications and additions, each counted; speed-up: over the naive row; efficiency: per thread, beside the fewest threads".into());
    notes.push("of read, of peak: each sample's share of what probes right before and after it read from memory, or multiplied in registers; the median of these ratios, and their range".into());
    notes.push("tile: rows × tokens that a kernel holds in registers; panels: of 16 rows, that a thread takes at a time".into());
    Document { facts, sheets: vec![sheet], notes }
}

fn cells(line: &KernelLine) -> Vec<Cell> {
    let mark = if line.oversubscribed { " (!)" } else { "" };
    let probes = line.probes.as_ref();
    let from_memory = probes.filter(|_| line.place == Place::Memory);
    vec![
        line.rows.into(),
        line.cols.into(),
        line.batch.into(),
        line.kernel.as_str().into(),
        line.packing.as_str().into(),
        Cell::new(format!("{}{mark}", line.threads), line.threads),
        Cell::new("", line.oversubscribed),
        match line.place {
            Place::Memory => "memory",
            Place::Cache => "cache",
        }
        .into(),
        plain(line.milliseconds.median),
        Cell::new(format!("{:.1} %", 100.0 * line.milliseconds.spread), line.milliseconds.spread),
        plain(line.gops),
        times(line.speed_up),
        or_none(line.efficiency, percent),
        giga(line.bytes_per_second),
        or_none(from_memory, |probes| share(&probes.of_bandwidth)),
        or_none(probes, |probes| share(&probes.of_peak)),
        or_none(line.tile, |(rows, tokens)| format!("{rows}×{tokens}").into()),
        line.panels_at_once.map_or_else(none, Cell::from),
        or_none(probes, |probes| giga(probes.read_bandwidth)),
        or_none(probes, |probes| giga(probes.peak_macs)),
        if line.correct { "right" } else { "WRONG" }.into(),
    ]
}
