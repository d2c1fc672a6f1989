//! The one neutral form of ternary weights, between every on-disk encoding and every kernel layout.
//!
//! A weight is a two-bit code, 0, 1 or 2 for -1, 0 or +1. Sixteen consecutive codes of a row share a `u32`:
//! the code of column `16·b + 4·j + q` lies in bits `8·q + 2·j`. So each word is already one row's share of a
//! kernel block (`cpu::packed`), and loading a byte-per-code word `w_j` costs `w_0 | w_1 << 2 | w_2 << 4 | w_3 << 6`.

/// Codes per word.
pub const CODES_PER_WORD: usize = 16;

/// A word of sixteen zero weights, which is also what pads a row.
pub const ZERO_WORD: u32 = 0x5555_5555;

/// A word of sixteen codes from sixteen bytes of one code each (0, 1 or 2, in column order).
pub fn word_from_codes(codes: &[u8; CODES_PER_WORD]) -> u32 {
    let quad = |j: usize| {
        u32::from_le_bytes([codes[4 * j], codes[4 * j + 1], codes[4 * j + 2], codes[4 * j + 3]])
    };
    quad(0) | quad(1) << 2 | quad(2) << 4 | quad(3) << 6
}

/// The codes of a word in column order; the inverse of [`word_from_codes`].
pub fn codes_from_word(word: u32) -> [u8; CODES_PER_WORD] {
    std::array::from_fn(|k| (word >> shift_of(k) & 3) as u8)
}

/// Whether some code of the word is 3, which no ternary weight has.
pub fn has_invalid_code(word: u32) -> bool {
    word & word >> 1 & ZERO_WORD != 0
}

fn shift_of(column: usize) -> u32 {
    let within = column % CODES_PER_WORD;
    (8 * (within % 4) + 2 * (within / 4)) as u32
}

/// What the integer product of a row is multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightScale {
    /// One factor for the whole matrix, as BitNet b1.58 is trained.
    Tensor(f32),
    /// One factor per row (`rows` of them).
    Rows(Vec<f32>),
    /// One factor per `size` consecutive columns of a row, `rows × ceil(cols / size)` of them, row-major.
    /// `size` is a multiple of [`CODES_PER_WORD`].
    Groups {
        /// Columns that share a factor.
        size: usize,
        /// The factors.
        scales: Vec<f32>,
    },
}

/// What is wrong with the parts handed to [`TernaryMatrix::new`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidTernary {
    /// A code that stands for no ternary weight.
    #[error("row {row}, column {col} holds code 3, but ternary weights have codes 0, 1 and 2 only")]
    Code {
        /// Row of the first such code.
        row: usize,
        /// Its column.
        col: usize,
    },
    /// A scale that cannot be multiplied with.
    #[error("scale {index} is {found}, but a scale is a finite number")]
    Scale {
        /// Position among the scales.
        index: usize,
        /// Its value.
        found: f32,
    },
    /// Parts whose lengths do not fit the shape.
    #[error("{what} has {found} elements, but a [{rows}, {cols}] matrix needs {expected}")]
    Length {
        /// Which part.
        what: &'static str,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Elements found.
        found: usize,
        /// Elements needed.
        expected: usize,
    },
}

/// Ternary weights `[rows, cols]` of a linear layer, `rows` outputs by `cols` inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct TernaryMatrix {
    rows: usize,
    cols: usize,
    words: Vec<u32>,
    scale: WeightScale,
}

impl TernaryMatrix {
    /// Checks codes, scales and lengths. `words` holds `rows × words_per_row(cols)`; bits past `cols` are overwritten with zero weights.
    pub fn new(
        rows: usize,
        cols: usize,
        words: Vec<u32>,
        scale: WeightScale,
    ) -> Result<Self, InvalidTernary> {
        let mut matrix = Self { rows, cols, words, scale };
        matrix.check_lengths()?;
        matrix.clear_padding();
        matrix.check_codes()?;
        matrix.check_scales()?;
        Ok(matrix)
    }

    /// From one weight -1, 0 or +1 per element, row-major.
    ///
    /// # Panics
    /// If a value is none of these or the lengths disagree.
    pub fn from_values(rows: usize, cols: usize, values: &[i8], scale: WeightScale) -> Self {
        assert_eq!(values.len(), rows * cols);
        let mut words = Vec::with_capacity(rows * words_per_row(cols));
        for row in values.chunks(cols.max(1)) {
            for group in row.chunks(CODES_PER_WORD) {
                let mut codes = [1; CODES_PER_WORD];
                for (code, &value) in codes.iter_mut().zip(group) {
                    assert!((-1..=1).contains(&value), "{value} is not ternary");
                    *code = (value + 1) as u8;
                }
                words.push(word_from_codes(&codes));
            }
        }
        Self::new(rows, cols, words, scale).expect("values were checked")
    }

    fn check_lengths(&self) -> Result<(), InvalidTernary> {
        let Self { rows, cols, .. } = *self;
        let check = |what, found, expected| {
            if found == expected {
                Ok(())
            } else {
                Err(InvalidTernary::Length { what, rows, cols, found, expected })
            }
        };
        check("the code array", self.words.len(), rows * words_per_row(cols))?;
        match &self.scale {
            WeightScale::Tensor(_) => Ok(()),
            WeightScale::Rows(scales) => check("the row scale array", scales.len(), rows),
            WeightScale::Groups { size, scales } => {
                check("a scale group's columns beyond whole words", size % CODES_PER_WORD, 0)?;
                check("the group scale array", scales.len(), rows * cols.div_ceil(*size))
            }
        }
    }

    fn clear_padding(&mut self) {
        let used = self.cols % CODES_PER_WORD;
        if used == 0 {
            return;
        }
        let keep = (0..used).fold(0, |mask, column| mask | 3 << shift_of(column));
        for row in self.words.chunks_mut(words_per_row(self.cols)) {
            let last = row.last_mut().expect("a row with a partial word has a word");
            *last = *last & keep | ZERO_WORD & !keep;
        }
    }

    fn check_codes(&self) -> Result<(), InvalidTernary> {
        let Some(index) = self.words.iter().position(|&word| has_invalid_code(word)) else {
            return Ok(());
        };
        let per_row = words_per_row(self.cols);
        let within = codes_from_word(self.words[index])
            .iter()
            .position(|&code| code == 3)
            .expect("the word has one");
        Err(InvalidTernary::Code {
            row: index / per_row,
            col: index % per_row * CODES_PER_WORD + within,
        })
    }

    fn check_scales(&self) -> Result<(), InvalidTernary> {
        let scales = match &self.scale {
            WeightScale::Tensor(scale) => std::slice::from_ref(scale),
            WeightScale::Rows(scales) | WeightScale::Groups { scales, .. } => scales,
        };
        match scales.iter().position(|scale| !scale.is_finite()) {
            Some(index) => Err(InvalidTernary::Scale { index, found: scales[index] }),
            None => Ok(()),
        }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// What products are multiplied by.
    pub fn scale(&self) -> &WeightScale {
        &self.scale
    }

    /// The words of one row, padded with zero weights to a whole word.
    pub fn row(&self, row: usize) -> &[u32] {
        let per_row = words_per_row(self.cols);
        &self.words[row * per_row..][..per_row]
    }

    /// The weight -1, 0 or +1 at a place.
    pub fn value(&self, row: usize, col: usize) -> i8 {
        assert!(col < self.cols);
        (self.row(row)[col / CODES_PER_WORD] >> shift_of(col) & 3) as i8 - 1
    }

    /// The same weights with every scale multiplied by `factor`.
    pub fn scaled(mut self, factor: f32) -> Result<Self, InvalidTernary> {
        match &mut self.scale {
            WeightScale::Tensor(scale) => *scale *= factor,
            WeightScale::Rows(scales) | WeightScale::Groups { scales, .. } => {
                scales.iter_mut().for_each(|scale| *scale *= factor);
            }
        }
        self.check_scales()?;
        Ok(self)
    }

    /// The same rows in another order: row `r` of the result is row `source(r)` of `self`.
    pub fn permute_rows(self, source: impl Fn(usize) -> usize) -> Self {
        let words = (0..self.rows).flat_map(|row| self.row(source(row)).iter().copied()).collect();
        let scale = match &self.scale {
            WeightScale::Tensor(scale) => WeightScale::Tensor(*scale),
            WeightScale::Rows(scales) => {
                WeightScale::Rows((0..self.rows).map(|row| scales[source(row)]).collect())
            }
            WeightScale::Groups { size, scales } => {
                let per_row = self.cols.div_ceil(*size);
                let of = |row| scales[source(row) * per_row..][..per_row].iter().copied();
                WeightScale::Groups { size: *size, scales: (0..self.rows).flat_map(of).collect() }
            }
        };
        Self { words, scale, ..self }
    }
}

/// Words that hold a row of `cols` codes.
pub fn words_per_row(cols: usize) -> usize {
    cols.div_ceil(CODES_PER_WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_its_codes_back() {
        let codes: [u8; 16] = std::array::from_fn(|k| (k * 7 % 3) as u8);
        assert_eq!(codes_from_word(word_from_codes(&codes)), codes);
    }

    #[test]
    fn values_survive_at_every_width() {
        for cols in 1..40 {
            let values: Vec<i8> = (0..3 * cols).map(|i| (i * i % 3) as i8 - 1).collect();
            let matrix = TernaryMatrix::from_values(3, cols, &values, WeightScale::Tensor(1.0));
            let back: Vec<i8> = (0..3 * cols).map(|i| matrix.value(i / cols, i % cols)).collect();
            assert_eq!(back, values, "{cols} columns");
        }
    }

    #[test]
    fn code_three_is_refused_with_its_place() {
        let mut words = vec![ZERO_WORD; 6];
        words[4] |= 3 << shift_of(5);
        let error = TernaryMatrix::new(2, 48, words, WeightScale::Tensor(1.0)).unwrap_err();
        assert_eq!(error, InvalidTernary::Code { row: 1, col: 21 });
    }

    #[test]
    fn rubbish_past_the_last_column_is_no_weight() {
        let rubbish = !(0..5).fold(0, |mask, k| mask | 3 << shift_of(k));
        let matrix = TernaryMatrix::new(1, 5, vec![rubbish], WeightScale::Tensor(1.0)).unwrap();
        assert_eq!(
            codes_from_word(matrix.row(0)[0]),
            [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
        );
    }

    #[test]
    fn a_scale_that_is_no_number_is_refused() {
        let error = TernaryMatrix::new(
            2,
            16,
            vec![ZERO_WORD; 2],
            WeightScale::Rows(vec![1.0, f32::INFINITY]),
        )
        .unwrap_err();
        assert_eq!(error, InvalidTernary::Scale { index: 1, found: f32::INFINITY });
    }

    #[test]
    fn permuting_rows_takes_their_scales_along() {
        let matrix = TernaryMatrix::from_values(
            2,
            3,
            &[1, 0, -1, 0, 0, 1],
            WeightScale::Rows(vec![2.0, 3.0]),
        );
        let swapped = matrix.permute_rows(|row| 1 - row);
        assert_eq!(
            swapped,
            TernaryMatrix::from_values(
                2,
                3,
                &[0, 0, 1, 1, 0, -1],
                WeightScale::Rows(vec![3.0, 2.0])
            )
        );
    }
}
