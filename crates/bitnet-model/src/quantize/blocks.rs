//! Floats written in the encodings that embeddings and heads are stored in; the inverse of `dense::dequantize`.
//!
//! Scales come from the largest magnitude, without a search for better ones: simple, and within half a step of every value.
//! Source of the layouts: ggml's `ggml-common.h`.

use bitnet_kernels::dense::DenseType;
use half::{bf16, f16};

/// Bytes of `values` in an encoding. None for an encoding that is read but not written here, and for values that do not
/// make whole blocks. Values have to be finite.
pub fn encode(dtype: DenseType, values: &[f32]) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(dtype.row_bytes(values.len())?);
    match dtype {
        DenseType::F32 => values.iter().for_each(|x| data.extend(x.to_le_bytes())),
        DenseType::F16 => values.iter().for_each(|&x| data.extend(f16::from_f32(x).to_le_bytes())),
        DenseType::BF16 => {
            values.iter().for_each(|&x| data.extend(bf16::from_f32(x).to_le_bytes()))
        }
        DenseType::Q8_0 => values.as_chunks().0.iter().for_each(|block| q8_0(block, &mut data)),
        DenseType::Q6K => values.as_chunks().0.iter().for_each(|block| q6_k(block, &mut data)),
        _ => return None,
    }
    Some(data)
}

/// 32 int8 with an f16 scale.
fn q8_0(block: &[f32; 32], data: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let inverse = inverse(scale.to_f32());
    data.extend(scale.to_le_bytes());
    data.extend(block.map(|x| (x * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
}

/// 256 six-bit values in 16 groups; each group has an int8 scale, in units of the block's f16 scale.
fn q6_k(block: &[f32; 256], data: &mut Vec<u8>) {
    let groups = block.as_chunks::<16>().0;
    let steps: [f32; 16] = std::array::from_fn(|group| step(&groups[group]));
    let largest = steps.iter().fold(0.0_f32, |largest, step| largest.max(step.abs()));
    let unit = f16::from_f32(largest / 127.0);
    let per_unit = inverse(unit.to_f32());
    let scales = steps.map(|step| (step * per_unit).round().clamp(-127.0, 127.0) as i8);
    let mut codes = [0_u8; 256];
    for ((codes, values), &scale) in
        codes.as_chunks_mut::<16>().0.iter_mut().zip(groups).zip(&scales)
    {
        let inverse = inverse(unit.to_f32() * f32::from(scale));
        *codes = values.map(|x| ((x * inverse).round().clamp(-32.0, 31.0) + 32.0) as u8);
    }
    let halves = codes.as_chunks::<128>().0;
    for half in halves {
        data.extend((0..64).map(|l| half[l] & 15 | half[l + 64] << 4));
    }
    for half in halves {
        data.extend(
            (0..32).map(|l| (0..4).fold(0, |byte, j| byte | half[l + 32 * j] >> 4 << (2 * j))),
        );
    }
    data.extend(scales.map(|scale| scale as u8));
    data.extend(unit.to_le_bytes());
}

/// The step that puts the value of largest magnitude on -32, of which there are 64 from -32 to 31.
fn step(group: &[f32; 16]) -> f32 {
    let larger = |a: f32, b: f32| if b.abs() > a.abs() { b } else { a };
    group.iter().copied().fold(0.0, larger) / -32.0
}

/// 0 for 0, so that a block of zeros stays one.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

#[cfg(test)]
mod tests {
    use bitnet_kernels::dense::dequantize;

    use super::*;

    /// Values between -1 and 1 that repeat nothing soon, those of a group of 16 all below one power of two.
    fn values() -> Vec<f32> {
        let value = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        (0..1024).map(|i| value(i) * 2_f32.powi(-((i / 16 % 3) as i32))).collect()
    }

    /// The largest error, relative to the largest magnitude among the `group` values that share a scale.
    fn error(dtype: DenseType, group: usize, values: &[f32]) -> f32 {
        let mut back = vec![0.0; values.len()];
        dequantize(dtype, &encode(dtype, values).unwrap(), &mut back);
        let groups = values.chunks(group).zip(back.chunks(group));
        let relative = |(values, back): (&[f32], &[f32])| {
            let largest = values.iter().fold(1e-9_f32, |largest, x| largest.max(x.abs()));
            values.iter().zip(back).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / largest
        };
        groups.map(relative).fold(0.0, f32::max)
    }

    #[track_caller]
    fn check(dtype: DenseType, group: usize, bound: f32) {
        for scale in [1.0, -1.0, 100.0] {
            let values: Vec<f32> = values().iter().map(|x| x * scale).collect();
            let error = error(dtype, group, &values);
            assert!(error <= bound, "{dtype:?} · {scale}: {error}");
        }
        assert_eq!(error(dtype, group, &vec![0.0; 1024]), 0.0);
    }

    #[test]
    fn floats_come_back_as_near_as_their_bits_allow() {
        check(DenseType::F32, 1, 0.0);
        check(DenseType::F16, 16, 2_f32.powi(-11));
        check(DenseType::BF16, 16, 2_f32.powi(-8));
    }

    #[test]
    fn blocks_come_back_within_half_a_step() {
        // Half of one of 127 steps, and what rounding the scale to f16 adds at the far end.
        check(DenseType::Q8_0, 32, 0.5 / 127.0 + 2_f32.powi(-11));
        // One step at the positive end, which has 31 of them only; the scale's own 127 steps count where a group is small:
        // a quarter of the largest group's scale has 32 steps, so it is off by up to 1/64.
        check(DenseType::Q6K, 16, 1.0 / 32.0 + 1.0 / 64.0);
    }

    #[test]
    fn q6_k_is_exact_on_its_own_values() {
        let mut values: Vec<f32> =
            (0..256).map(|i| ((i * 37 + i / 16) % 64 - 32) as f32 * 0.5).collect();
        values.as_chunks_mut::<16>().0.iter_mut().for_each(|group| group[3] = -16.0);
        assert!(error(DenseType::Q6K, 16, &values) < 1e-3); // the unit's rounding to f16 is left
    }

    #[test]
    fn what_is_not_written_or_not_whole_is_none() {
        assert_eq!(encode(DenseType::Q4K, &[0.0; 256]), None);
        assert_eq!(encode(DenseType::Q8_0, &[0.0; 31]), None);
    }
}
