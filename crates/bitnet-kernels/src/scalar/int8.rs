//! The product with an output head of int8: how weights and inputs become integers, what is computed from them, and a
//! portable kernel.
//!
//! A row of weights is `w ≈ scale · q`, `q` from -127 to 127. An input is `x ≈ scale · (255 · high + low)`, both halves from
//! -127 to 127: base 255 keeps each half symmetric, so that no kernel meets a -128, whose sign cannot be turned. The sums
//! `Σ q·high` and `Σ q·low` are exact, so what is rounded is only the input (to 1/32512 of its largest element), the
//! weights, and four operations at the end, in a fixed order.

use crate::cpu::head::product::{Int8Kernel, Int8Tile, Sums};

/// The widest head: `127 · 127 · cols` must fit 32 bits.
pub const MAX_COLS: usize = (i32::MAX / (127 * 127)) as usize;

/// The largest value of an input, `255 · 127 + 127`.
const MAX_INPUT: f32 = 32512.0;

/// What `high` counts for.
const BASE: f32 = 255.0;

/// Smallest absmax that a row is scaled by, so that its inverse is finite; smaller values become zero.
const MIN_ABSMAX: f32 = 1e-30;

/// Adding this to a float below 2^22 in magnitude leaves the nearest integer, ties to even.
const ROUND: f32 = 1.5 * (1 << 23) as f32;

/// Quantizes a row of weights: `q = round_half_even(w · 127 / max|w|)`. Returns the scale `max|w| / 127`, or nothing if an
/// element is not finite.
///
/// `q` may be longer than `w`; the rest is padding and is left alone.
#[inline(always)]
pub fn quantize_row(w: &[f32], q: &mut [i8]) -> Option<f32> {
    let absmax = absmax(w)?.max(MIN_ABSMAX);
    let inverse = 127.0 / absmax;
    for (q, &w) in q[..w.len()].iter_mut().zip(w) {
        *q = (w * inverse + ROUND).to_bits() as i8;
    }
    Some(absmax / 127.0)
}

/// A token's input in halves: its scale, and the sum of each half.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Split {
    /// `max|x| / 32512`, or NaN if an element is not finite, so that the products are no numbers either.
    pub scale: f32,
    /// `[Σ high, Σ low]`.
    pub sums: [i32; 2],
}

/// Splits an input: `255 · high + low = round_half_even(x · 32512 / max|x|)`.
///
/// `high` and `low` may be longer than `x`; the rest is padding and is left alone.
#[inline(always)]
pub fn split(x: &[f32], high: &mut [i8], low: &mut [i8]) -> Split {
    let Some(absmax) = absmax(x) else {
        high[..x.len()].fill(0);
        low[..x.len()].fill(0);
        return Split { scale: f32::NAN, sums: [0; 2] };
    };
    let absmax = absmax.max(MIN_ABSMAX);
    let inverse = MAX_INPUT / absmax;
    let mut sums = [0; 2];
    for ((high, low), &x) in high[..x.len()].iter_mut().zip(&mut low[..x.len()]).zip(x) {
        let whole = (x * inverse + ROUND) - ROUND;
        // An integer divided by 255 is never near a half, so this is the nearest multiple.
        let upper = (whole * (1.0 / BASE) + ROUND) - ROUND;
        *high = (upper + ROUND).to_bits() as i8;
        *low = (whole - BASE * upper + ROUND).to_bits() as i8;
        sums[0] += i32::from(*high);
        sums[1] += i32::from(*low);
    }
    Split { scale: absmax / MAX_INPUT, sums }
}

/// The largest magnitude, if all are finite.
#[inline(always)]
fn absmax(values: &[f32]) -> Option<f32> {
    // The bits of floats without their sign are ordered as their values are, with infinity and NaN above all others.
    let bits = values.iter().fold(0, |max, value| max.max(value.to_bits() & 0x7fff_ffff));
    Some(f32::from_bits(bits)).filter(|absmax| absmax.is_finite())
}

/// `Σ q·x`, exactly: the definition that all kernels are held against.
pub fn dot(q: &[i8], x: &[i8]) -> i32 {
    q.iter().zip(x).map(|(&q, &x)| i32::from(q) * i32::from(x)).sum()
}

/// A logit from the sums of both halves: `(255 · high + low) · w_scale · x_scale`, in this order.
#[inline(always)]
pub fn combine([high, low]: [i32; 2], w_scale: f32, x_scale: f32) -> f32 {
    (BASE * high as f32 + low as f32) * w_scale * x_scale
}

/// One logit, from one row of weights and one input: the definition of the whole head.
///
/// # Panics
/// If a weight is not finite; a loader refuses such a model before.
pub fn logit(w: &[f32], x: &[f32]) -> f32 {
    let mut quantized = [vec![0; w.len()], vec![0; w.len()], vec![0; w.len()]];
    let [q, high, low] = &mut quantized;
    let scale = quantize_row(w, q).expect("all weights are finite");
    let split = split(x, high, low);
    combine([dot(q, high), dot(q, low)], scale, split.scale)
}

/// The kernel for machines of which nothing is known: no intrinsics, but loops that compilers turn into vectors.
impl Int8Kernel for super::ternary::Portable {
    const PANELS: usize = 1;
    const TOKENS: usize = 2;

    fn int8_products(self, tile: &Int8Tile<'_>, out: &mut [Sums]) {
        for (x, out) in tile.x.iter().zip(out) {
            let mut lanes = [0_i32; 64];
            for (group, x) in tile.panels[0].iter().zip(*x) {
                for (blocks, x) in group.as_chunks::<2>().0.iter().zip(x.as_chunks::<2>().0) {
                    add_products(&mut lanes, blocks, x);
                }
            }
            for (sum, lanes) in out.iter_mut().zip(lanes.as_chunks::<4>().0) {
                *sum = lanes.iter().sum();
            }
        }
    }
}

/// Two products of bytes reach 2 · 127 · 127 = 32258, which 16 bits hold.
#[inline(always)]
fn add_products(lanes: &mut [i32; 64], [first, second]: &[[u8; 64]; 2], x: &[[i8; 4]; 2]) {
    let [a, b] = x.map(|[x0, x1, x2, x3]| [x0, x1, x2, x3, x0, x1, x2, x3].map(i16::from));
    let (first, second) = (first.as_chunks::<8>().0, second.as_chunks::<8>().0);
    for ((lanes, first), second) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(first).zip(second) {
        for i in 0..8 {
            let pair = i16::from(first[i] as i8) * a[i] + i16::from(second[i] as i8) * b[i];
            lanes[i] += i32::from(pair);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_reach_127_and_ties_go_to_the_even_neighbour() {
        let mut q = [9; 7];
        assert_eq!(quantize_row(&[-127.0, 0.5, 1.5, -2.5, 126.6, 0.0], &mut q), Some(1.0));
        assert_eq!(q, [-127, 0, 2, -2, 127, 0, 9]);
    }

    #[test]
    fn a_row_of_zeros_or_of_next_to_nothing_is_zero() {
        for tiny in [0.0, f32::MIN_POSITIVE, 1e-40] {
            let mut q = [9; 2];
            assert!(quantize_row(&[tiny, -tiny], &mut q).is_some());
            assert_eq!(q, [0, 0]);
            assert_eq!(split(&[tiny; 2], &mut [9; 2], &mut [9; 2]).sums, [0; 2]);
        }
    }

    #[test]
    fn the_largest_floats_are_quantized_as_any_other() {
        let mut q = [0; 3];
        assert!(quantize_row(&[f32::MAX, -f32::MAX, f32::MAX / 2.0], &mut q).is_some());
        assert_eq!(q, [127, -127, 64]);
    }

    #[test]
    fn a_weight_that_is_no_number_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(quantize_row(&[1.0, bad], &mut [0; 2]), None);
        }
    }

    #[test]
    fn an_input_that_is_no_number_gives_none() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let Split { scale, sums } = split(&[1.0, bad], &mut [9; 2], &mut [9; 2]);
            assert!(combine(sums, 1.0, scale).is_nan());
        }
    }

    #[test]
    fn halves_put_together_are_the_input_of_sixteen_bits() {
        let values: Vec<f32> = (-32512..=32512).map(|value| value as f32).collect();
        let (mut high, mut low) = (vec![0; values.len()], vec![0; values.len()]);
        let Split { scale, sums } = split(&values, &mut high, &mut low);
        assert_eq!((scale, sums), (1.0, [0, 0]));
        assert!(high.iter().chain(&low).all(|&half| half != i8::MIN));
        let together = |i: usize| 255.0 * f32::from(high[i]) + f32::from(low[i]);
        assert!((0..values.len()).all(|i| together(i) == values[i]));
        assert_eq!([high[0], low[0]], [-127, -127]);
    }
}
