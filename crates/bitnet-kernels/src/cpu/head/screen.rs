//! The rows of a head in two bits a weight, and upper bounds of all logits; see [`crate::scalar::screen`].

use std::ops::Range;

use crate::activation::QuantizedRows;
use crate::cpu::isa::Isa;
use crate::cpu::packed::{Block, PANEL_ROWS, PackedTernary, Packing};
use crate::memory::Lines;
use crate::scalar::screen::{Rotation, SIGMAS, TokenBounds, Turning};

/// The greatest estimate and the greatest margin of a row of length 1. Levels `c` are 0.5 or 1.5 in magnitude and have the signs
/// of the elements, so `w·c` is half of `|w|` at least and the factor of an estimate, half of `|w|² / w·c`, no more than `|w|`;
/// `c·c` is at most 2.25 for each element, so the error is below 3 times `|w|·√n`. The rest is for rounding.
const MOST_ESTIMATE: f32 = 1.01;
const MOST_MARGIN: f32 = 3.03 * SIGMAS;

/// All rows of a head, turned and in two bits a weight.
#[derive(Debug, PartialEq)]
pub(crate) struct Screen {
    rotation: Rotation,
    plane: PackedTernary,
    /// Per row, whole panels: what a unit of `2·c·x` counts for, and what the logit may be more for an input of length 1.
    estimates: Vec<f32>,
    margins: Vec<f32>,
    /// The greatest length of a row, scale included.
    length: f32,
}

/// What to fill a [`Screen`] with, for some panels.
pub(super) struct ScreenPart<'a> {
    pub blocks: &'a mut [Block],
    pub estimates: &'a mut [f32],
    pub margins: &'a mut [f32],
}

impl Screen {
    /// The screen of no rows yet.
    pub fn new(rows: usize, cols: usize) -> Self {
        let (rotation, panels) = (Rotation::new(cols), rows.div_ceil(PANEL_ROWS));
        let plane = PackedTernary::of_codes(rows, rotation.len());
        let zeros = || vec![0.0; panels * PANEL_ROWS];
        Self { rotation, plane, estimates: zeros(), margins: zeros(), length: 0.0 }
    }

    /// A screen that was made before, of the bytes of its panels, and of estimates, margins and the greatest length; none if
    /// these are not as many as it has, or are none that rows can have.
    pub fn of_lines(rows: usize, cols: usize, lines: Lines, mut factors: Vec<f32>) -> Option<Self> {
        let (rotation, lanes) = (Rotation::new(cols), rows.div_ceil(PANEL_ROWS) * PANEL_ROWS);
        let plane = PackedTernary::of_panels(Packing::TwoBits, rows, rotation.len(), lines)?;
        (factors.len() == 2 * lanes + 1).then_some(())?;
        let length = factors.pop().filter(|length| length.is_finite())?;
        let margins = factors.split_off(lanes);
        let within = |factors: &[f32], most| factors.iter().all(|x| (0.0..=most).contains(x));
        let fits =
            within(&factors, MOST_ESTIMATE * length) && within(&margins, MOST_MARGIN * length);
        fits.then_some(Self { rotation, plane, estimates: factors, margins, length })
    }

    /// The bytes of all panels, and estimates, margins and the greatest length, as [`of_lines`](Self::of_lines) takes them.
    pub fn stored(&self) -> (&[u8], Vec<f32>) {
        let factors = [&self.estimates[..], &self.margins, &[self.length]].concat();
        (self.plane.panel_bytes(), factors)
    }

    /// Everything, for filling; and the rotation.
    pub fn parts(&mut self) -> (&Rotation, ScreenPart<'_>) {
        let Self { rotation, plane, estimates, margins, .. } = self;
        (rotation, ScreenPart { blocks: plane.blocks_mut(), estimates, margins })
    }

    /// Sets the greatest length of a row.
    pub fn set_length(&mut self, length: f32) {
        self.length = length;
    }

    /// Blocks of a panel of a head with so many columns.
    pub fn blocks_per_panel(rotation: &Rotation) -> usize {
        rotation.len() / Packing::TwoBits.block_cols()
    }

    /// Bytes that a token reads.
    pub fn bytes(rows: usize, cols: usize) -> usize {
        let factors = 2 * size_of::<f32>() * rows.next_multiple_of(PANEL_ROWS);
        Packing::TwoBits.matrix_bytes(rows, cols.next_multiple_of(64)) + factors
    }

    /// What the logit of each row may be more than its estimate, for an input of length 1.
    #[cfg(test)]
    pub fn margins(&self) -> &[f32] {
        &self.margins
    }

    /// The rotation.
    pub fn rotation(&self) -> &Rotation {
        &self.rotation
    }

    /// Whether floats have room for this input's logits and what is computed on the way, with much to spare at both ends.
    pub fn holds(&self, token: &TokenBounds) -> bool {
        let greatest = self.length * token.length;
        (1e-25..1e30).contains(&greatest)
    }

    /// Upper bounds of the logits of all tokens with the rows of some panels: `emit(token, sums, factors)` is to turn integers
    /// into bounds.
    pub fn bounds(
        &self,
        isa: Isa,
        panels: Range<usize>,
        x: &QuantizedRows,
        sums: &mut Vec<i32>,
        mut emit: impl FnMut(usize, &[i32], [&[f32]; 2]),
    ) {
        let width = panels.len() * PANEL_ROWS;
        sums.resize(x.rows() * width, 0);
        let blocks = 0..self.plane.blocks_per_panel();
        isa.ternary_product(&self.plane, panels.clone(), blocks, x, 0..x.rows(), sums);
        let rows = panels.start * PANEL_ROWS..panels.end * PANEL_ROWS;
        for (token, sums) in sums.chunks(width).enumerate() {
            emit(token, sums, [&self.estimates[rows.clone()], &self.margins[rows.clone()]]);
        }
    }
}

impl ScreenPart<'_> {
    /// Fills one panel from its int8 rows, `stride` apart. Returns the greatest length of a row.
    pub fn fill(
        &mut self,
        isa: Isa,
        rotation: &Rotation,
        (rows, stride): (&[i8], usize),
        scales: &[f32],
        turning: &mut Turning,
    ) -> f32 {
        let bounds = isa.screen_panel(rotation, rows, stride, turning, self.blocks);
        let mut length = 0.0_f32;
        for (r, scale) in scales.iter().enumerate() {
            self.estimates[r] = bounds.estimate[r] * scale;
            self.margins[r] = bounds.margin[r] * scale;
            length = length.max(bounds.length[r] * scale);
        }
        length
    }
}
