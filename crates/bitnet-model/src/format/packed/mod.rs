//! The file in which packed weights are kept between loads.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0–7 | `BITNETPK` |
//! | 8–11 | version, u32 |
//! | 12–15 | length n of the header, u32 |
//! | 16–23 | length of the file, u64 |
//! | 24–31 | [check sum](sum::sum) of the header |
//! | 32–63 | zeros |
//! | 64–63+n | the header, JSON: key, source, sections, check sums |
//! | from 2 MiB on | the sections, each part at a multiple of 4096 |
//!
//! All numbers are little-endian, and positions in the header count from 2 MiB (the next multiple, should the header be
//! longer). The space before is not written, so it takes no disk where files may have holes. It is there so that panels,
//! which are written in large pieces, lie in large pages of the system's cache where it has them (Linux 6.16 on ext4,
//! earlier on XFS): reading a mapping is then as fast as reading memory of one's own.
//!
//! A reader believes nothing: another version, key or length, or a check sum that does not fit, and the file is made anew.
//! There is a sum for every 4 MiB, and all are compared before a weight is used. That costs one read at the speed of memory,
//! which also brings the pages in, and saves waiting for the disk when the file is written: what a crash left half-written
//! does not fit its sums.

mod read;
pub mod sum;
mod write;

use std::{io, ops::Range};

use bitnet_kernels::stored::StoredParts;
use serde::{Deserialize, Serialize};

pub use super::mmap::Mapping;
pub use read::{PackedFile, Place, origin};
pub use write::{UNFINISHED, length, write};

const MAGIC: [u8; 8] = *b"BITNETPK";
const VERSION: u32 = 1;

/// Bytes before the header.
const PREFIX: usize = 64;

/// What parts begin at multiples of: a page, so that one can be given back without its neighbours.
const PAGE: u64 = 4096;

/// What the sections begin at a multiple of: a large page.
const LARGE_PAGE: u64 = 2 << 20;

/// Bytes of one check sum.
const BLOCK: usize = 4 << 20;

/// No header is longer: it has some 200 bytes for each matrix and 20 for each block.
const MAX_HEADER: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// What this was made of and how; readers ask for the very same text.
    key: String,
    /// The model's path, for cleaning up.
    source: String,
    sections: Vec<Section>,
    /// For each [`BLOCK`] of the sections, in hexadecimal, so that the header's length does not depend on them.
    sums: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    name: String,
    form: String,
    panels: Part,
    scales: Part,
}

/// Some bytes, counted from where the sections begin.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    start: u64,
    len: u64,
}

impl Part {
    /// Where this is in `total` bytes, if it is there and begins at a multiple of 64.
    fn range(self, total: usize) -> Option<Range<usize>> {
        let start = usize::try_from(self.start).ok()?;
        let end = start.checked_add(usize::try_from(self.len).ok()?)?;
        (end <= total && start.is_multiple_of(64)).then_some(start..end)
    }
}

/// Where the sections begin behind a header of this length.
fn sections_start(header: usize) -> u64 {
    (PREFIX as u64 + header as u64).next_multiple_of(LARGE_PAGE)
}

/// Why a file of packed weights is not used. None of it is an error for the user: the weights are packed again.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is none, or the system refused it.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is of another version, or of another model, file, or way of packing.
    #[error("{what} is {found}, but {expected} is needed")]
    Other {
        /// Which property.
        what: &'static str,
        /// What the file has.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// It is not as it was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// A matrix to be stored, under its name.
pub type Named<'a> = (String, StoredParts<'a>);

#[cfg(test)]
mod tests;
