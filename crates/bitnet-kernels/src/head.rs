//! How the output head is held in memory and multiplied.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::head::packed::GROUP_COLS;
use crate::cpu::head::two_stage::TwoStageHead;
use crate::cpu::packed::PANEL_ROWS;

/// A form of the output head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeadType {
    /// Eight bits a weight with a scale for each row, multiplied in integers with an input of sixteen bits.
    #[default]
    Int8,
    /// Int8 as well, and two bits a weight to find the rows that may matter, so that only these are computed. Logits are those
    /// of [`Self::Int8`], some or all.
    TwoStage,
    /// As the file has it, multiplied in f32: what other forms are measured against.
    File,
}

impl HeadType {
    /// All forms.
    pub const ALL: [Self; 3] = [Self::Int8, Self::TwoStage, Self::File];

    /// Bytes of a row that a [`Self::TwoStage`] head computes.
    pub fn row_bytes(cols: usize) -> u64 {
        TwoStageHead::row_bytes(cols) as u64
    }

    /// Bytes that a token reads of a head `[rows, cols]` of which the file stores `stored` bytes; of [`Self::TwoStage`], those
    /// that it reads in any case.
    pub fn bytes(self, rows: usize, cols: usize, stored: u64) -> u64 {
        match self {
            Self::Int8 => {
                let rows = rows.next_multiple_of(PANEL_ROWS) as u64;
                rows * (cols.next_multiple_of(GROUP_COLS) + size_of::<f32>()) as u64
            }
            Self::TwoStage => TwoStageHead::screen_bytes(rows, cols) as u64,
            Self::File => stored,
        }
    }
}

impl fmt::Display for HeadType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::TwoStage => "two-stage",
            Self::File => "file",
        })
    }
}

/// What a [`HeadType::TwoStage`] head has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadCounts {
    /// Tokens of which it found what was wanted without computing all.
    pub found: u64,
    /// Tokens of which too many rows may have mattered, so that all were computed.
    pub given_up: u64,
    /// Those of them for which that was not found out by a search, but is so of most others of which as much is wanted.
    pub left_out: u64,
    /// Rows computed one by one for both.
    pub rows: u64,
    /// Tokens whose logits were held against all logits.
    pub audits: u64,
    /// Those of them that were not right; after the first, all logits are computed always.
    pub misses: u64,
}

impl HeadCounts {
    /// What has happened since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            found: self.found - earlier.found,
            given_up: self.given_up - earlier.given_up,
            left_out: self.left_out - earlier.left_out,
            rows: self.rows - earlier.rows,
            audits: self.audits - earlier.audits,
            misses: self.misses - earlier.misses,
        }
    }
}

/// Where a [`HeadType::TwoStage`] head keeps its [`HeadCounts`], for everybody to read.
#[derive(Debug, Default)]
pub struct HeadRecord {
    pub(crate) found: AtomicU64,
    pub(crate) given_up: AtomicU64,
    pub(crate) left_out: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) audits: AtomicU64,
    pub(crate) misses: AtomicU64,
}

impl HeadRecord {
    /// What has happened so far.
    pub fn counts(&self) -> HeadCounts {
        let Self { found, given_up, left_out, rows, audits, misses } = self;
        let [found, given_up, left_out, rows, audits, misses] =
            [found, given_up, left_out, rows, audits, misses]
                .map(|count| count.load(Ordering::Relaxed));
        HeadCounts { found, given_up, left_out, rows, audits, misses }
    }
}

/// Not a name of a [`HeadType`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no form of the output head; forms are `int8`, `two-stage` and `file`")]
pub struct UnknownHead(String);

impl FromStr for HeadType {
    type Err = UnknownHead;

    fn from_str(name: &str) -> Result<Self, UnknownHead> {
        let found = Self::ALL.into_iter().find(|head| head.to_string() == name);
        found.ok_or_else(|| UnknownHead(name.to_owned()))
    }
}

/// Why a head cannot have the form asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHead {
    /// A weight that is no number.
    #[error("row {row} is not all finite")]
    NotFinite {
        /// The first such row.
        row: usize,
    },
    /// More columns than integer sums have room for.
    #[error("{cols} columns are more than the {} of an int8 head", crate::scalar::int8::MAX_COLS)]
    TooWide {
        /// Columns of the head.
        cols: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_printed() {
        for head in HeadType::ALL {
            assert_eq!(head.to_string().parse(), Ok(head));
        }
        assert_eq!(
            "f16".parse::<HeadType>().unwrap_err().to_string(),
            "`f16` is no form of the output head; forms are `int8`, `two-stage` and `file`"
        );
    }

    #[test]
    fn an_int8_head_takes_a_byte_for_each_weight_and_a_scale_for_each_row() {
        assert_eq!(HeadType::Int8.bytes(32, 64, 4096), 32 * 64 + 32 * 4);
        assert_eq!(HeadType::Int8.bytes(17, 65, 0), 32 * 80 + 32 * 4);
        assert_eq!(HeadType::File.bytes(32, 64, 4096), 4096);
    }
}
