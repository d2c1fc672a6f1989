//! Screening of an output head: its rows in two bits a weight, and how far a product of these can be from the true one.
//!
//! Rows `w` and inputs `x` are turned by the same rotation, which leaves `w·x` as it is and makes the elements of any row
//! nearly normally distributed, outliers and all. Each element then becomes one of four evenly spaced levels `c`. With
//! `β = |w|² / w·c`, the estimate `β·(c·x)` has an error `(w - β·c)·x`, where `w - β·c` is orthogonal to `w` and points in a
//! direction that the rotation has made random: the error's standard deviation is `|w - β·c|·|x| / √n`, and it is as good as
//! normally distributed. So a bound is a matter of probability; at [`SIGMAS`] standard deviations a row exceeds it once in
//! 10⁹ times. The estimator is that of RaBitQ (Gao and Long 2024, arXiv:2405.12497), with two bits in place of one.

use crate::cpu::packed::{BLOCK_COLS, Block, PANEL_ROWS, block_of};
use crate::memory::heap_bytes;

/// How many standard deviations above its estimate a product is expected at most.
pub const SIGMAS: f32 = 6.0;

/// The largest activation: three times 84 is less than twice 127, so the kernels of ternary weights, codes 0 to 2, hold
/// codes 0 to 3 as well.
pub const MAX_ACTIVATION: f32 = 84.0;

/// Distance of the levels in standard deviations of a row: the best for four levels and normally distributed elements
/// (Max 1960).
const STEP: f32 = 0.9957;

/// The least error that a row is taken to have, of its norm: 0.365 is usual. It covers what rounding inputs to
/// [`MAX_ACTIVATION`] adds, and leaves sums in f32 room for error, see [`SLACK`].
const LEAST_ERROR: f32 = 0.1;

/// What bounds are multiplied by for the rounding of float operations: a sum can be `√n / 6 / LEAST_ERROR` times its bound,
/// less than 700 for any head, and is right to some 10⁻⁶.
const SLACK: f32 = 1.01;

/// Added to every bound, for products so small that floats lose them.
const TINY: f32 = 1e-35;

/// Transforms of a rotation; an even number.
const ROUNDS: usize = 4;

/// Adding this to a float below 2^22 in magnitude leaves the nearest integer, ties to even.
const ROUND: f32 = 1.5 * (1 << 23) as f32;

/// A rotation of `n` dimensions: twice a change of signs and a Hadamard transform of each of some blocks; in between, the
/// elements of all blocks are dealt out to all.
///
/// Once would do for most, but of a row and an input with few elements besides zeros it makes vectors of few values, whose
/// errors are not random.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    block: usize,
    /// For each transform: 1 or -1, divided by a power of two so that all together leave lengths as they are.
    signs: [Vec<f32>; ROUNDS],
}

impl Rotation {
    /// The rotation for vectors of `cols` elements, padded with zeros to [`Self::len`].
    pub fn new(cols: usize) -> Self {
        let n = cols.next_multiple_of(64);
        let block = 1 << n.trailing_zeros().min(16);
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut sign = |size: f32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if state >> 63 == 0 { size } else { -size }
        };
        // Each transform makes vectors longer by the root of `block`.
        let sizes = [1.0, 1.0, 1.0 / block as f32, 1.0 / block as f32];
        let signs = sizes.map(|size| (0..n).map(|_| sign(size)).collect());
        Self { block, signs }
    }

    /// Dimensions: columns rounded up to whole blocks of the kernels.
    #[expect(clippy::len_without_is_empty, reason = "no rotation is empty")]
    pub fn len(&self) -> usize {
        self.signs[0].len()
    }

    /// Turns `L` vectors, `[n][L]`. `spare` is as long.
    #[inline(always)]
    fn turn<const L: usize>(&self, values: &mut [[f32; L]], spare: &mut [[f32; L]]) {
        let blocks = self.len() / self.block;
        for (round, signs) in self.signs.iter().enumerate() {
            if round > 0 && blocks > 1 {
                for (b, values) in values.chunks(self.block).enumerate() {
                    for (value, spare) in values.iter().zip(spare[b..].iter_mut().step_by(blocks)) {
                        *spare = *value;
                    }
                }
                values.copy_from_slice(spare);
            }
            transform(values, signs, self.block);
        }
    }
}

/// Multiplies by signs and transforms each block.
#[inline(always)]
fn transform<const L: usize>(values: &mut [[f32; L]], signs: &[f32], block: usize) {
    for (value, sign) in values.iter_mut().zip(signs) {
        for value in value {
            *value *= sign;
        }
    }
    for block in values.chunks_mut(block) {
        // Two steps at a time, which halves loads and stores.
        let mut half = 1;
        while 4 * half <= block.len() {
            for four in block.chunks_mut(4 * half) {
                let (first, last) = four.split_at_mut(2 * half);
                let ((a, b), (c, d)) = (first.split_at_mut(half), last.split_at_mut(half));
                for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                    for i in 0..L {
                        let (ab, a_b) = (a[i] + b[i], a[i] - b[i]);
                        let (cd, c_d) = (c[i] + d[i], c[i] - d[i]);
                        (a[i], b[i], c[i], d[i]) = (ab + cd, a_b + c_d, ab - cd, a_b - c_d);
                    }
                }
            }
            half *= 4;
        }
        if half < block.len() {
            let (upper, lower) = block.split_at_mut(half);
            for (a, b) in upper.iter_mut().zip(lower) {
                for i in 0..L {
                    (a[i], b[i]) = (a[i] + b[i], a[i] - b[i]);
                }
            }
        }
    }
}

/// Working memory for turning vectors.
#[derive(Default)]
pub struct Turning {
    panel: [Vec<[f32; PANEL_ROWS]>; 2],
    token: [Vec<[f32; 1]>; 2],
}

impl Turning {
    /// Bytes in use, with those kept for later.
    pub(crate) fn heap_bytes(&self) -> usize {
        let panels: usize = self.panel.iter().map(heap_bytes).sum();
        panels + self.token.iter().map(heap_bytes).sum::<usize>()
    }
}

/// What is needed beside its levels to bound the product of each row of a panel, in units of the row's elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PanelBounds {
    /// The estimate for one unit of `2·c·x`.
    pub estimate: [f32; PANEL_ROWS],
    /// What the product may be more than the estimate, for an input of length 1.
    pub margin: [f32; PANEL_ROWS],
    /// Length of the row.
    pub length: [f32; PANEL_ROWS],
}

/// Turns a panel's int8 rows, `stride` apart and as long as the rotation's columns before padding, into levels.
#[inline(always)]
pub fn screen_panel(
    rotation: &Rotation,
    rows: &[i8],
    stride: usize,
    turning: &mut Turning,
    blocks: &mut [Block],
) -> PanelBounds {
    let n = rotation.len();
    assert_eq!(blocks.len() * BLOCK_COLS, n);
    let [values, spare] = &mut turning.panel;
    values.clear();
    values.resize(n, [0.0; PANEL_ROWS]);
    spare.resize(n, [0.0; PANEL_ROWS]);
    for (r, row) in rows.chunks(stride).enumerate() {
        for (value, q) in values.iter_mut().zip(row) {
            value[r] = f32::from(*q);
        }
    }
    rotation.turn(values, spare);
    let mut squares = [0.0; PANEL_ROWS];
    for values in &*values {
        for r in 0..PANEL_ROWS {
            squares[r] += values[r] * values[r];
        }
    }
    let (products, level_squares) =
        levels(values, squares.map(|x| STEP * (x / n as f32).sqrt()), blocks);
    let mut bounds = PanelBounds::default();
    for r in 0..PANEL_ROWS {
        if products[r] > 0.0 {
            let factor = squares[r] / products[r];
            let error = factor * factor * level_squares[r] - squares[r];
            let error = error.max(LEAST_ERROR * LEAST_ERROR * squares[r]);
            bounds.estimate[r] = 0.5 * factor;
            bounds.margin[r] = SIGMAS * (error / n as f32).sqrt();
            bounds.length[r] = squares[r].sqrt();
        }
    }
    bounds
}

/// Writes codes 0 to 3 for levels -1.5 to 1.5. Returns `w·c` and `c·c` of each row.
#[inline(always)]
fn levels(
    values: &[[f32; PANEL_ROWS]],
    step: [f32; PANEL_ROWS],
    blocks: &mut [Block],
) -> ([f32; PANEL_ROWS], [f32; PANEL_ROWS]) {
    let (mut products, mut squares) = ([0.0; PANEL_ROWS], [0.0; PANEL_ROWS]);
    for (block, values) in blocks.iter_mut().zip(values.as_chunks::<BLOCK_COLS>().0) {
        let mut codes = [[0_u32; PANEL_ROWS]; BLOCK_COLS];
        for (codes, values) in codes.iter_mut().zip(values) {
            *codes = codes_of(values, &step);
            add_level(codes, values, &mut products, &mut squares);
        }
        *block = block_of(quads(&codes));
    }
    (products, squares)
}

// The three functions that follow are not inlined, since LLVM would then make vectors across columns and not rows.

/// How many of the three limits between levels each value reaches.
#[inline(never)]
fn codes_of(values: &[f32; PANEL_ROWS], step: &[f32; PANEL_ROWS]) -> [u32; PANEL_ROWS] {
    let mut codes = [0; PANEL_ROWS];
    for r in 0..PANEL_ROWS {
        let above = |limit: f32| u32::from(values[r] >= limit);
        codes[r] = above(-step[r]) + above(0.0) + above(step[r]);
    }
    codes
}

#[inline(never)]
fn add_level(
    codes: &[u32; PANEL_ROWS],
    values: &[f32; PANEL_ROWS],
    products: &mut [f32; PANEL_ROWS],
    squares: &mut [f32; PANEL_ROWS],
) {
    for r in 0..PANEL_ROWS {
        let level = codes[r] as i32 as f32 - 1.5;
        products[r] += level * values[r];
        squares[r] += level * level;
    }
}

/// Codes of sixteen columns as each row's share of a block.
#[inline(never)]
fn quads(codes: &[[u32; PANEL_ROWS]; BLOCK_COLS]) -> [u32; PANEL_ROWS] {
    let mut quads = [0; PANEL_ROWS];
    for (k, codes) in codes.iter().enumerate() {
        let shift = 8 * (k % 4) + 2 * (k / 4);
        for r in 0..PANEL_ROWS {
            quads[r] |= codes[r] << shift;
        }
    }
    quads
}

/// What turns integers into bounds for one input, `x_scale · (255 · high + low)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenBounds {
    /// What a unit of the product of integers counts for.
    pub estimate: f32,
    /// Length of the input, and some more for what its rounding changes.
    pub length: f32,
    /// Sum of the integers.
    pub sum: i32,
}

/// Turns an input and rounds it to integers of [`MAX_ACTIVATION`] at most.
#[inline(always)]
pub fn screen_token(
    rotation: &Rotation,
    halves: [&[i8]; 2],
    x_scale: f32,
    turning: &mut Turning,
    out: &mut [i8],
) -> TokenBounds {
    let n = rotation.len();
    let [values, spare] = &mut turning.token;
    values.clear();
    values.resize(n, [0.0]);
    spare.resize(n, [0.0]);
    for ((value, high), low) in values.iter_mut().zip(halves[0]).zip(halves[1]) {
        *value = [255.0 * f32::from(*high) + f32::from(*low)];
    }
    rotation.turn(values, spare);
    let absmax = values.iter().fold(1e-6_f32, |max, [x]| max.max(x.abs()));
    let (step, inverse) = (absmax / MAX_ACTIVATION, MAX_ACTIVATION / absmax);
    let (mut squares, mut errors, mut sum) = (0.0, 0.0, 0);
    for ([x], q) in values.iter().zip(&mut out[..n]) {
        *q = (x * inverse + ROUND).to_bits() as i8;
        let error = x - step * f32::from(*q);
        (squares, errors, sum) = (squares + x * x, errors + error * error, sum + i32::from(*q));
    }
    // A row is at most `1 / LEAST_ERROR` times as long as its error, and both errors are independent.
    let squares = squares + errors / (LEAST_ERROR * LEAST_ERROR);
    TokenBounds { estimate: step * x_scale, length: SLACK * squares.sqrt() * x_scale, sum }
}

/// The upper bounds of some rows' products with one input, and the greatest of each panel.
///
/// `sums`: `Σ (code - 1)·x` in integers, of whole panels; `rows`: estimates and margins of the rows, with their scales.
#[inline(always)]
pub fn upper_bounds(
    sums: &[i32],
    [estimates, margins]: [&[f32]; 2],
    token: &TokenBounds,
    bounds: &mut [f32],
    greatest: &mut [f32],
) {
    let rows = sums.iter().zip(estimates).zip(margins);
    for (bound, ((sum, estimate), margin)) in bounds.iter_mut().zip(rows) {
        let twice = (2 * sum - token.sum) as f32; // Σ 2·(code - 1.5)·x
        *bound = twice * estimate * token.estimate + margin * token.length + TINY;
    }
    for (greatest, bounds) in greatest.iter_mut().zip(bounds.chunks(PANEL_ROWS)) {
        *greatest = bounds.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    }
}
