//! How a model got into memory, as a table.

use bitnet::bench::load::LoadReport;

use super::model::{build, machine};
use super::sheet::{Cell, Document, Sheet, giga, hidden, number, or_none, plain};
use crate::report::bytes;

pub fn document(report: &LoadReport) -> Document {
    let mut sheet = Sheet::new([
        number("threads", "threads"),
        number("first_seconds", "first load s"),
        number("seconds", "load s"),
        hidden("spread"),
        number("bytes_per_second", "file GB/s"),
        number("repack_bytes_per_second", "repack GB/s"),
        number("decode_seconds", "decode s"),
        number("pack_seconds", "pack s"),
        number("first_token_seconds", "first token s"),
        number("peak_bytes", "peak memory"),
        number("resident_bytes", "memory after"),
        number("anonymous_bytes", "without files"),
    ]);
    let size = |count: u64| Cell::new(bytes(count), count);
    for line in &report.lines {
        sheet.row([
            line.threads.into(),
            plain(line.first_seconds),
            plain(line.seconds.median),
            plain(line.seconds.spread),
            giga(line.bytes_per_second),
            giga(line.repack_bytes_per_second),
            plain(line.decode_seconds),
            plain(line.pack_seconds),
            plain(line.first_token_seconds),
            or_none(line.peak_bytes, size),
            or_none(line.resident_bytes, size),
            or_none(line.anonymous_bytes, size),
        ]);
    }
    let facts = vec![
        ("machine", machine(&report.machine)),
        ("bitnet", build(&report.build)),
        ("model", format!("{}, {}", report.model, bytes(report.file_bytes))),
        ("ternary weights", format!("{} in memory", bytes(report.packed_bytes))),
    ];
    let notes = [
        "first load: files may come from the disk; load: the times after that, from the system's cache",
        "repack: packed bytes per second, all threads together; decode, pack: its two parts in seconds of all threads added up",
        "memory after: once the first token is there; what has been read of a mapped file is part of it",
    ];
    Document { facts, sheets: vec![sheet], notes: notes.map(str::to_owned).into() }
}
