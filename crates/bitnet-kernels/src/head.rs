//! How the output head is held in memory and multiplied.

use std::fmt;
use std::str::FromStr;

use crate::cpu::head::packed::GROUP_COLS;
use crate::cpu::packed::PANEL_ROWS;

/// A form of the output head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeadType {
    /// Eight bits a weight with a scale for each row, multiplied in integers with an input of sixteen bits.
    #[default]
    Int8,
    /// As the file has it, multiplied in f32: what other forms are measured against.
    File,
}

impl HeadType {
    /// All forms.
    pub const ALL: [Self; 2] = [Self::Int8, Self::File];

    /// Bytes that a token reads of a head `[rows, cols]` of which the file stores `stored` bytes.
    pub fn bytes(self, rows: usize, cols: usize, stored: u64) -> u64 {
        match self {
            Self::Int8 => {
                let rows = rows.next_multiple_of(PANEL_ROWS) as u64;
                rows * (cols.next_multiple_of(GROUP_COLS) + size_of::<f32>()) as u64
            }
            Self::File => stored,
        }
    }
}

impl fmt::Display for HeadType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::File => "file",
        })
    }
}

/// Not a name of a [`HeadType`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no form of the output head; forms are `int8` and `file`")]
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
            "`f16` is no form of the output head; forms are `int8` and `file`"
        );
    }

    #[test]
    fn an_int8_head_takes_a_byte_for_each_weight_and_a_scale_for_each_row() {
        assert_eq!(HeadType::Int8.bytes(32, 64, 4096), 32 * 64 + 32 * 4);
        assert_eq!(HeadType::Int8.bytes(17, 65, 0), 32 * 80 + 32 * 4);
        assert_eq!(HeadType::File.bytes(32, 64, 4096), 4096);
    }
}
