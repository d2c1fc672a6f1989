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
        for (y, &q) in y.iter_mut().zip(&block[2..]) {
            *y = d * f32::from(q as i8);
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
                for l in 0..32 {
                    let nibble = low[32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
                    let q = (nibble | (high[l] >> (2 * quarter) & 3) << 4) as i8 - 32;
                    let scale = d * f32::from(scales[2 * quarter + l / 16] as i8);
                    y[128 * half + 32 * quarter + l] = scale * f32::from(q);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
