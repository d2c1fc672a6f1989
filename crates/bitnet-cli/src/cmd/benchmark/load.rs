//! How a model got into memory, as a table.

use bitnet::bench::load::LoadReport;

use super::model::{build, machine};
use super::sheet::{Cell, Document, Sheet, giga, hidden, number, or_none, plain, word};
use crate::report::bytes;

pub fn document(report: &LoadReport) -> Document {
    let mut sheet = Sheet::new([
        number("threads", "threads"),
        word("way", "way"),
        number("first_seconds", "first load s"),
        number("seconds", "load s"),
        hidden("spread"),
        number("bytes_per_second", "file GB/s"),
        number("repack_bytes_per_second", "repack GB/s"),
        number("decode_seconds", "decode s"),
        number("pack_seconds", "pack s"),
        number("first_token_seconds", "first token s"),
        number("tokens_per_second", "tokens/s"),
        number("peak_bytes", "peak memory"),
        number("resident_bytes", "memory after"),
        number("anonymous_bytes", "without files"),
    ]);
    let size = |count: u64| Cell::new(bytes(count), count);
    for line in &report.lines {
        sheet.row([
            line.threads.into(),
            line.way.name().into(),
            plain(line.first_seconds),
            plain(line.seconds.median),
            plain(line.seconds.spread),
            giga(line.bytes_per_second),
            or_none(line.repack.map(|repack| repack.bytes_per_second), giga),
            or_none(line.repack.map(|repack| repack.decode_seconds), plain),
            or_none(line.repack.map(|repack| repack.pack_seconds), plain),
            plain(line.first_token_seconds),
            or_none(line.tokens_per_second, plain),
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
        "pack: weights are rearranged at each load; and keep: and written to a file, from which they are mapped then or read",
        "first load: files may come from the disk; load: the times after that, from the system's cache",
        "repack: packed bytes per second, all threads together; decode, pack: its two parts in seconds of all threads added up",
        "memory after: once the first token is there; what has been read of a mapped file is part of it, and shared",
    ];
    Document { facts, sheets: vec![sheet], notes: notes.map(str::to_owned).into() }
}
