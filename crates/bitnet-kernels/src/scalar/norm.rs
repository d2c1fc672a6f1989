//! RMSNorm and the quantization of a row to int8.

use super::{LANES, dot};

/// Smallest absmax that a row is scaled by; a row of zeros gives zeros. Source: BitNet b1.58, transformers' `BitLinear`.
pub const MIN_ABSMAX: f32 = 1e-5;

/// Adding this to a float below 2^22 in magnitude leaves the nearest integer, ties to even, in the low bits of its representation.
pub(super) const ROUND: f32 = 1.5 * (1 << 23) as f32;

/// `1 / sqrt(mean(x²) + eps)`, `eps` in units of x².
#[inline(always)]
pub fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// Scales a row to unit root mean square, then by `weight`: `y = weight · (x / sqrt(mean(x²) + eps))`.
///
/// `x`, `weight`, `y`: `[hidden_size]`. Source: Zhang and Sennrich 2019, arXiv:1910.07467.
#[inline(always)]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!((x.len(), y.len()), (weight.len(), weight.len()));
    let factor = inverse_rms(x, eps);
    for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
        *y = weight * (x * factor);
    }
}

/// Quantizes a row to int8: `q = round_half_even(x · s)` with `s = 127 / max(|x|, 1e-5)`. Returns `s` and `Σ q`.
///
/// `q` may be longer than `x`; the rest is padding and is left alone. `|q| ≤ 127`, even for input that is not finite.
#[inline(always)]
pub fn quantize(x: &[f32], q: &mut [i8]) -> (f32, i32) {
    let scale = 127.0 / absmax(x).max(MIN_ABSMAX);
    let mut sum = 0;
    for (q, &x) in q[..x.len()].iter_mut().zip(x) {
        *q = to_int8(x * scale);
        sum += i32::from(*q);
    }
    (scale, sum)
}

/// The nearest integer in -127..=127, ties to even.
#[expect(clippy::manual_clamp, reason = "`clamp` lets NaN through")]
#[inline(always)]
pub(super) fn to_int8(x: f32) -> i8 {
    (x.max(-127.0).min(127.0) + ROUND).to_bits() as i8
}

/// The greatest magnitude.
#[inline(always)]
pub(super) fn absmax(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] = if x[i].abs() > lanes[i] { x[i].abs() } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).fold(0.0, |max, x| if x.abs() > max { x.abs() } else { max })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(x: &[f32]) -> (Vec<i8>, f32, i32) {
        let mut q = vec![0; x.len()];
        let (scale, sum) = quantize(x, &mut q);
        (q, scale, sum)
    }

    #[test]
    fn ties_go_to_the_even_neighbour() {
        // With absmax 127 the scale is 1.
        let (q, scale, sum) = quantized(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49]);
        assert_eq!((q, scale, sum), (vec![127, 0, 2, 2, 0, -2, -2, 3], 1.0, 130));
    }

    #[test]
    fn zeros_stay_zero_and_tiny_rows_use_the_floor() {
        assert_eq!(quantized(&[0.0; 5]).0, [0; 5]);
        let (q, scale, _) = quantized(&[1e-6, -1e-6]);
        assert_eq!((q, scale), (vec![13, -13], 127.0 / 1e-5));
    }

    #[test]
    fn input_that_is_not_finite_stays_in_range() {
        let (q, ..) = quantized(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0]);
        assert!(q.iter().all(|&q| q >= -127), "{q:?}");
    }

    #[test]
    fn a_constant_row_has_unit_rms() {
        let mut y = [0.0; 20];
        rms_norm(&[3.0; 20], &[2.0; 20], 0.0, &mut y);
        assert_eq!(y, [2.0; 20]);
    }
}
