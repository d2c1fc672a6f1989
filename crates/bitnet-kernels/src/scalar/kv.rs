//! Keys and values on their way into the cache and out of it.

use super::norm::{MIN_ABSMAX, ROUND, absmax, to_int8};
use crate::dense::half_to_f32;
use crate::kv::{BLOCK, KvLayer, KvPart, KvPartMut, KvShape, KvType, PAGE};

/// What is added to an int8 key, so that it is the unsigned operand of `vpdpbusd`: 128, in the arithmetic of bytes.
pub const KEY_BIAS: u8 = 0x80;

/// A binary float of at most 16 bits.
struct Narrow {
    /// Bits of the mantissa.
    mantissa: u32,
    /// What is added to the exponent.
    bias: u32,
    /// The greatest number that is stored.
    max: f32,
}

const F16: Narrow = Narrow { mantissa: 10, bias: 15, max: 65504.0 };
const E4M3: Narrow = Narrow { mantissa: 3, bias: 7, max: 448.0 };

impl Narrow {
    /// The nearest number, ties to even, as bits without the sign; what is greater than all becomes the greatest, NaN too.
    #[inline(always)]
    fn magnitude(&self, x: f32) -> u32 {
        let x = if x.abs() < self.max { x.abs() } else { self.max };
        let smallest_normal = f32::from_bits((128 - self.bias) << 23);
        let units = f32::from_bits((126 + self.bias + self.mantissa) << 23);
        let subnormal = (x * units + ROUND).to_bits() - ROUND.to_bits();
        let dropped = 23 - self.mantissa;
        let half = (1 << (dropped - 1)) - 1 + (x.to_bits() >> dropped & 1);
        let rounded = (x.to_bits() + half) >> dropped;
        let normal = rounded.wrapping_sub((127 - self.bias) << self.mantissa);
        if x < smallest_normal { subnormal } else { normal }
    }
}

#[inline(always)]
fn to_f16(x: f32) -> [u8; 2] {
    ((x.to_bits() >> 16 & 0x8000) as u16 | F16.magnitude(x) as u16).to_le_bytes()
}

#[inline(always)]
fn to_bf16(x: f32) -> [u8; 2] {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    (if x.is_nan() { 0x7fc0 } else { rounded }).to_le_bytes()
}

#[inline(always)]
fn to_e4m3(x: f32) -> [u8; 1] {
    [(x.to_bits() >> 24 & 0x80) as u8 | E4M3.magnitude(x) as u8]
}

#[inline(always)]
fn from_e4m3(code: u8) -> f32 {
    // Shifted into place, the exponent is 120 too small; multiplying by 2^120 mends that and normalizes subnormals as well.
    let magnitude = f32::from_bits(u32::from(code & 0x7f) << 20) * f32::from_bits(247 << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(code & 0x80) << 24)
}

/// Writes the key and the value of one position, `[head_dim]` each, to slot `slot` in a head's share of its group of pages.
///
/// The types with scales divide by them first: `absmax / 127` for int8, `absmax / 448` for fp8_e4m3, with 1e-5 as the least
/// absmax, so that the greatest element is the greatest number that can be stored.
#[inline(always)]
pub fn store_kv(part: &mut KvPartMut<'_>, slot: usize, k: &[f32], v: &[f32]) {
    let shape = part.shape();
    let (dim, place) = (shape.head_dim, slot % PAGE);
    assert_eq!((k.len(), v.len()), (dim, dim));
    let to = part.place(slot);
    let (keys, values) = (to.keys, to.values);
    let (key, value) = (place / BLOCK * BLOCK * dim + place % BLOCK, place * dim);
    let max = if shape.dtype == KvType::Int8 { 127.0 } else { E4M3.max };
    let inverse = [k, v].map(|x| max / absmax(x).max(MIN_ABSMAX));
    match shape.dtype {
        KvType::F32 => {
            put(keys, key, BLOCK, k, f32::to_le_bytes);
            put(values, value, 1, v, f32::to_le_bytes);
        }
        KvType::F16 => {
            put(keys, key, BLOCK, k, to_f16);
            put(values, value, 1, v, to_f16);
        }
        KvType::Bf16 => {
            put(keys, key, BLOCK, k, to_bf16);
            put(values, value, 1, v, to_bf16);
        }
        KvType::Fp8E4m3 => {
            put(keys, key, BLOCK, k, |x| to_e4m3(x * inverse[0]));
            put(values, value, 1, v, |x| to_e4m3(x * inverse[1]));
        }
        KvType::Int8 => {
            let first = place / BLOCK * BLOCK * shape.stored_dim() / 4 + place % BLOCK;
            let quads = keys.as_chunks_mut::<4>().0[first..].iter_mut().step_by(BLOCK);
            for (quad, k) in quads.zip(k.chunks(4)) {
                let codes = quad.iter_mut().zip(k);
                codes.for_each(|(code, x)| *code = to_int8(x * inverse[0]) as u8 ^ KEY_BIAS);
            }
            for (block, v) in v.chunks(BLOCK).enumerate() {
                let first = block * BLOCK * PAGE + 4 * BLOCK * (place / 4) + place % 4;
                put(values, first, 4, v, |x| [to_int8(x * inverse[1]) as u8]);
            }
        }
    }
    for (scale, inverse) in to.scales.into_iter().flatten().zip(inverse) {
        *scale = (1.0 / inverse).to_le_bytes();
    }
}

/// Writes the keys and values of one position, `[kv_heads · head_dim]` each, to slot `slot`; for tools and tests.
pub fn store_row(layer: &mut KvLayer, slot: usize, k: &[f32], v: &[f32]) {
    let dim = layer.shape().head_dim;
    for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
        store_kv(&mut layer.part_mut(slot, head), slot, k, v);
    }
}

/// Encodes `x` to the elements `first`, `first + step`, … of `half`.
#[inline(always)]
fn put<const N: usize>(
    half: &mut [u8],
    first: usize,
    step: usize,
    x: &[f32],
    encode: impl Fn(f32) -> [u8; N],
) {
    let elements = &mut half.as_chunks_mut::<N>().0[first..];
    let mut places = elements.iter_mut().step_by(step);
    let (whole, rest) = x.as_chunks::<BLOCK>();
    for x in whole {
        let codes = x.map(&encode); // first all at once, as vectors, then one by one to where they belong
        codes.into_iter().zip(&mut places).for_each(|(code, place)| *place = code);
    }
    rest.iter().zip(places).for_each(|(&x, place)| *place = encode(x));
}

/// Reads the keys of the first `blocks` blocks as floats, `[blocks, head_dim, BLOCK]`, not multiplied with their scales.
///
/// # Panics
/// If they are int8, which attention takes as they are.
#[inline(always)]
pub fn read_keys(part: KvPart<'_>, blocks: usize, out: &mut [f32]) {
    let KvShape { head_dim, dtype, .. } = part.shape();
    decode(dtype, part.keys(), &mut out[..blocks * head_dim * BLOCK]);
}

/// Reads the values of the first `positions` positions as floats, `[positions, head_dim]` with rows `stride` apart, not
/// multiplied with their scales.
///
/// # Panics
/// If they are int8, which attention takes as they are.
#[inline(always)]
pub fn read_values(part: KvPart<'_>, positions: usize, stride: usize, out: &mut [f32]) {
    let KvShape { head_dim, dtype, .. } = part.shape();
    let rows = part.values().chunks_exact(head_dim * dtype.bytes());
    for (out, row) in out.chunks_exact_mut(stride).zip(rows).take(positions) {
        decode(dtype, row, &mut out[..head_dim]);
    }
}

/// Fills `out` with the first of some elements, not yet scaled.
#[inline(always)]
fn decode(dtype: KvType, half: &[u8], out: &mut [f32]) {
    match dtype {
        KvType::F32 => get(half, out, f32::from_le_bytes),
        KvType::F16 => get(half, out, |x| half_to_f32(u16::from_le_bytes(x))),
        KvType::Bf16 => get(half, out, |x| f32::from_bits(u32::from(u16::from_le_bytes(x)) << 16)),
        KvType::Fp8E4m3 => get(half, out, |[x]| from_e4m3(x)),
        KvType::Int8 => unreachable!("attention takes int8 keys and values as they are"),
    }
}

#[inline(always)]
fn get<const N: usize>(half: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    assert!(half.len() >= N * out.len());
    for (out, &element) in out.iter_mut().zip(half.as_chunks().0) {
        *out = decode(element);
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// All halves and what lies between two of them.
    fn around_halves() -> impl Iterator<Item = f32> {
        (0..0x7c00_u16).flat_map(|bits| {
            let [low, high] = [bits, bits + 1].map(|x| f16::from_bits(x.min(0x7bff)).to_f32());
            let middle = (low + high) / 2.0;
            [low, middle, middle.next_up(), middle.next_down(), -low, -middle.next_up()]
        })
    }

    #[test]
    fn halves_are_rounded_as_ieee_says() {
        for x in around_halves() {
            assert_eq!(to_f16(x), f16::from_f32(x).to_le_bytes(), "{x:e}");
            assert_eq!(to_bf16(x), bf16::from_f32(x).to_le_bytes(), "{x:e}");
        }
        for x in [1e-9, 65519.0, 65520.0, 1e30, f32::INFINITY] {
            assert_eq!(to_f16(-x), f16::from_f32(-x.min(65504.0)).to_le_bytes(), "{x:e}");
        }
        assert!(bf16::from_le_bytes(to_bf16(f32::NAN)).is_nan());
    }

    #[test]
    fn fp8_keeps_its_own_numbers_and_rounds_others_to_the_nearest() {
        let numbers: Vec<f32> = (0..0x7f).map(from_e4m3).collect();
        assert!(numbers.is_sorted() && numbers[..3] == [0.0, 1.0 / 512.0, 2.0 / 512.0]);
        assert_eq!(numbers[0x7e], 448.0);
        for (code, &x) in (0..).zip(&numbers) {
            assert_eq!((to_e4m3(x), to_e4m3(-x)), ([code], [code | 0x80]));
            assert_eq!(from_e4m3(code | 0x80), -x);
        }
        for (code, pair) in (0_u8..).zip(numbers.windows(2)) {
            let middle = (pair[0] + pair[1]) / 2.0;
            let even = code + (code & 1);
            let found = [middle.next_down(), middle, middle.next_up()].map(to_e4m3);
            assert_eq!(found, [[code], [even], [code + 1]], "{middle}");
        }
        assert_eq!([449.0, f32::INFINITY].map(to_e4m3), [[0x7e]; 2]);
    }

    #[test]
    fn what_is_stored_is_found_at_its_place() {
        let dim = 20;
        let row = |base: f32| (0..dim).map(|i| base + i as f32).collect::<Vec<_>>();
        let (k, v) = (row(108.0), row(-127.0));
        for dtype in KvType::ALL {
            let mut layer = KvLayer::new(KvShape { pages: 1, kv_heads: 1, head_dim: dim, dtype });
            let place = 2 * BLOCK + 5;
            store_kv(&mut layer.part_mut(place, 0), place, &k, &v);
            let part = layer.part(0, 0);
            if dtype == KvType::Int8 {
                let quads = part.keys().as_chunks::<4>().0;
                let key: Vec<u8> =
                    (0..dim).map(|i| quads[2 * 8 * BLOCK + i / 4 * BLOCK + 5][i % 4]).collect();
                assert_eq!(key, (108..128).map(|x| x + 128).collect::<Vec<u8>>());
                let value: Vec<i8> = (0..dim)
                    .map(|i| part.values()[i / 16 * 16 * PAGE + 9 * 64 + i % 16 * 4 + 1] as i8)
                    .collect();
                assert_eq!(value, (-127..-107).collect::<Vec<i8>>());
                assert_eq!(part.scales().map(|scales| scales[place]), [1.0_f32.to_le_bytes(); 2]);
                continue;
            }
            let scales = part
                .scales()
                .map(|scales| scales.get(place).map_or(1.0, |&scale| f32::from_le_bytes(scale)));
            let error = if dtype == KvType::Fp8E4m3 { 1.0 / 16.0 } else { 0.0 };
            let close = |found: &[f32], scale: f32, expected: &[f32]| {
                let mut pairs = found.iter().zip(expected);
                pairs.all(|(x, y)| (x * scale - y).abs() <= error * y.abs())
            };
            let mut keys = vec![0.0; 4 * dim * BLOCK];
            read_keys(part, 4, &mut keys);
            let column: Vec<f32> =
                keys[2 * dim * BLOCK..].iter().skip(5).step_by(BLOCK).take(dim).copied().collect();
            assert!(close(&column, scales[0], &k), "{dtype}: {column:?}");
            assert_eq!(keys.iter().filter(|&&x| x != 0.0).count(), dim);
            let mut values = vec![0.0; (place + 1) * dim];
            read_values(part, place + 1, dim, &mut values);
            assert!(close(&values[place * dim..], scales[1], &v), "{dtype}");
            assert!(values[..place * dim].iter().all(|&x| x == 0.0));
        }
    }
}
