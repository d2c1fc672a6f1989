//! ggml's blocks of quantized floats, decoded.
//!
//! Plain loops over fixed-size arrays, so that they become SIMD code wherever they are inlined. Source of the layouts: ggml's `ggml-common.h`.

/// IEEE binary16 to binary32 in integer arithmetic alone, which vectorizes on every machine.
#[inline(always)]
pub fn half(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = bits & 0x7fff;
    // Shifted into place, the exponent is 112 too small; multiplying by 2^112 mends that and normalizes subnormals as well.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special =
        if magnitude >= 0x7c00 { 0x7f80_0000 | magnitude << 13 } else { scaled.to_bits() };
    f32::from_bits(special | (bits & 0x8000) << 16)
}

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    half(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[inline(always)]
pub fn f32(data: &[u8], out: &mut [f32]) {
    for (y, x) in out.iter_mut().zip(data.as_chunks::<4>().0) {
        *y = f32::from_le_bytes(*x);
    }
}

#[inline(always)]
pub fn f16(data: &[u8], out: &mut [f32]) {
    for (y, x) in out.iter_mut().zip(data.as_chunks::<2>().0) {
        *y = half(u16::from_le_bytes(*x));
    }
}

#[inline(always)]
pub fn bf16(data: &[u8], out: &mut [f32]) {
    for (y, x) in out.iter_mut().zip(data.as_chunks::<2>().0) {
        *y = f32::from_bits(u32::from(u16::from_le_bytes(*x)) << 16);
    }
}

#[inline(always)]
pub fn q8_0(data: &[u8], out: &mut [f32]) {
    for (block, y) in data.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = half_at(block, 0);
        for (y, q) in y.as_chunks_mut::<16>().0.iter_mut().zip(block[2..].as_chunks::<16>().0) {
            for l in 0..16 {
                y[l] = d * f32::from(q[l] as i8);
            }
        }
    }
}

#[inline(always)]
pub fn q4_0(data: &[u8], out: &mut [f32]) {
    for (block, y) in data.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = half_at(block, 0);
        for (j, &q) in block[2..].iter().enumerate() {
            y[j] = d * f32::from((q & 15) as i8 - 8);
            y[j + 16] = d * f32::from((q >> 4) as i8 - 8);
        }
    }
}

#[inline(always)]
pub fn q5_0(data: &[u8], out: &mut [f32]) {
    for (block, y) in data.as_chunks::<22>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let d = half_at(block, 0);
        let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
        for (j, &q) in block[6..].iter().enumerate() {
            let (low, up) = ((high >> j & 1) << 4, (high >> (j + 16) & 1) << 4);
            y[j] = d * f32::from((q & 15 | low as u8) as i8 - 16);
            y[j + 16] = d * f32::from((q >> 4 | up as u8) as i8 - 16);
        }
    }
}

/// Group `j`'s six-bit scale and minimum, out of the twelve bytes that Q4_K and Q5_K keep them in.
#[inline(always)]
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

#[inline(always)]
pub fn q4_k(data: &[u8], out: &mut [f32]) {
    for (block, y) in data.as_chunks::<144>().0.iter().zip(out.as_chunks_mut::<256>().0) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let (scales, quants) = (&block[4..16], &block[16..144]);
        for (j, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_and_min(scales, j);
            let (scale, min) = (d * scale, dmin * min);
            let nibbles = &quants[j / 2 * 32..][..32];
            for (y, &q) in y.iter_mut().zip(nibbles) {
                *y = scale * f32::from(q >> (4 * (j % 2)) & 15) - min;
            }
        }
    }
}

#[inline(always)]
pub fn q5_k(data: &[u8], out: &mut [f32]) {
    for (block, y) in data.as_chunks::<176>().0.iter().zip(out.as_chunks_mut::<256>().0) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let (scales, high, quants) = (&block[4..16], &block[16..48], &block[48..176]);
        for (j, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = scale_and_min(scales, j);
            let (scale, min) = (d * scale, dmin * min);
            let nibbles = &quants[j / 2 * 32..][..32];
            for ((y, &q), &h) in y.iter_mut().zip(nibbles).zip(high) {
                *y = scale * f32::from(q >> (4 * (j % 2)) & 15 | (h >> j & 1) << 4) - min;
            }
        }
    }
}

#[inline(always)]
pub fn q6_k(data: &[u8], out: &mut [f32]) {
    for (block, y) in data.as_chunks::<210>().0.iter().zip(out.as_chunks_mut::<256>().0) {
        let d = half_at(block, 208);
        for half in 0..2 {
            let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
            let scales = &block[192 + 8 * half..][..8];
            for quarter in 0..4 {
                for sixteen in 0..2 {
                    // One scale for sixteen elements, so that the loop over them becomes vectors.
                    let scale = d * f32::from(scales[2 * quarter + sixteen] as i8);
                    let low = &low[32 * (quarter % 2) + 16 * sixteen..][..16];
                    let high = &high[16 * sixteen..][..16];
                    let y = &mut y[128 * half + 32 * quarter + 16 * sixteen..][..16];
                    for l in 0..16 {
                        let nibble = low[l] >> (4 * (quarter / 2)) & 15;
                        let q = (nibble | (high[l] >> (2 * quarter) & 3) << 4) as i8 - 32;
                        y[l] = scale * f32::from(q);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::dense::{DenseType, dequantize};

    /// Decodes one block of bytes `(7·i² + 37·i + 11) mod 251` with f16 `scales` at their places, and compares some elements
    /// and two sums, which are exact, with what gguf-py's `dequantize` makes of the same bytes.
    #[track_caller]
    fn check(
        dtype: DenseType,
        scales: &[(usize, f32)],
        elements: &[(usize, f32)],
        sum: f64,
        sum_by_index: f64,
    ) {
        let (len, bytes) = dtype.block();
        let mut data: Vec<u8> =
            (0..bytes).map(|i| ((7 * i * i + 37 * i + 11) % 251) as u8).collect();
        for &(at, scale) in scales {
            data[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        }
        let mut out = vec![f32::NAN; 2 * len]; // two blocks, so that the step from one to the next is seen
        dequantize(dtype, &data.repeat(2), &mut out);
        assert_eq!(out[..len], out[len..]);
        for &(at, value) in elements {
            assert_eq!(out[at], value, "element {at}");
        }
        let values = || out[..len].iter().map(|&y| f64::from(y));
        assert_eq!(values().sum::<f64>(), sum);
        assert_eq!(values().zip(1..).map(|(y, i)| y * f64::from(i)).sum::<f64>(), sum_by_index);
    }

    #[test]
    fn q8_0_is_ggmls() {
        check(DenseType::Q8_0, &[(0, 0.125)], &[(0, 14.125), (31, 8.75)], -30.75, -474.0);
    }

    #[test]
    fn q4_0_is_ggmls() {
        check(DenseType::Q4_0, &[(0, 0.125)], &[(0, -0.875), (16, -0.125)], -2.875, -43.75);
    }

    #[test]
    fn q5_0_is_ggmls() {
        check(DenseType::Q5_0, &[(0, 0.125)], &[(15, 1.75), (31, -1.25)], -2.75, -66.375);
    }

    #[test]
    fn q4_k_is_ggmls() {
        let elements = [(0, 19.875), (100, 5.25), (165, 0.5), (255, 15.25)];
        check(DenseType::Q4K, &[(0, 0.125), (2, 0.0625)], &elements, 7051.5, 836_565.125);
    }

    #[test]
    fn q5_k_is_ggmls() {
        let elements = [(0, 34.875), (70, 119.9375), (128, -0.8125), (255, 78.25)];
        check(DenseType::Q5K, &[(0, 0.125), (2, 0.0625)], &elements, 14703.0, 1_841_450.125);
    }

    #[test]
    fn q6_k_is_ggmls() {
        let elements = [(0, 147.125), (33, -78.75), (200, -28.125), (255, -132.75)];
        check(DenseType::Q6K, &[(208, 0.125)], &elements, -3280.125, -372_010.5);
    }

    #[test]
    fn plain_floats_are_themselves() {
        let mut out = [0.0; 2];
        dequantize(DenseType::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0x40, 0xc0], &mut out);
        assert_eq!(out, [1.0, -3.0]);
        dequantize(DenseType::F16, &[0, 0x3c, 0x01, 0x80], &mut out);
        assert_eq!(out, [1.0, -(2.0_f32.powi(-24))]);
        dequantize(DenseType::BF16, &[0x80, 0x3f, 0x40, 0xc0], &mut out);
        assert_eq!(out, [1.0, -3.0]);
    }

    #[test]
    fn every_half_becomes_what_the_half_crate_says() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (super::half(bits), half::f16::from_bits(bits).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                "{bits:#x}"
            );
        }
    }
}
