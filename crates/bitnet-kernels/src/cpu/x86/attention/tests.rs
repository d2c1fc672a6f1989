//! The loops over int8 at their limits, and those of AVX-VNNI where only AVX-512 has its instruction.

use super::*;
use crate::cpu::x86::Avx512Vnni;
use crate::kv::{BLOCK, PAGE};
use crate::scalar::attention::{CHUNK, QUERY_MAX, WEIGHT_MAX};

/// The loops of AVX-VNNI on the AVX-512 encoding of the same instruction.
mod evex {
    use std::arch::x86_64::_mm256_dpbusd_epi32;

    use super::super::v256::*;

    bytes!("avx2,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
    int8_loops!("avx2,avx512f,avx512vl,avx512vnni", 1);
}

/// Numbers of at most `max` in magnitude: the greatest, the least, both by turns, or any.
fn numbers(kind: usize, count: usize, max: i32) -> Vec<i32> {
    let any = |i: usize| ((i as u32).wrapping_mul(0x9E37_79B1) >> 7) as i32 % (2 * max + 1) - max;
    (0..count)
        .map(|i| match kind {
            0 => max,
            1 => -max,
            2 => [max, -max][i % 2],
            3 => [0, 1, -1, max, 1 - max][i % 5],
            _ => any(i),
        })
        .collect()
}

/// Something that runs the loops: a tier, or the stand-in for AVX-VNNI.
#[derive(Clone, Copy)]
enum Loops {
    Of(Isa),
    Evex,
}

fn all_loops() -> Vec<Loops> {
    let tiers = Isa::available().iter().map(|&isa| Loops::Of(isa));
    tiers.chain(Avx512Vnni::detect().map(|_| Loops::Evex)).collect()
}

impl Loops {
    fn form(self) -> Form {
        match self {
            Self::Of(isa) => form(isa),
            Self::Evex => Form::Bytes,
        }
    }
}

#[test]
fn products_with_int8_keys_are_exact() {
    for (dim, queries, blocks) in [(16, 1, 1), (128, 5, 4), (112, 4, 3), (512, 2, 1)] {
        for (kind, key_kind) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (3, 4), (4, 4)] {
            let limit = (i32::MAX / 127 / dim as i32).min(QUERY_MAX);
            let q = numbers(kind, queries * dim, limit);
            let k = numbers(key_kind, blocks * BLOCK * dim, 127);
            let mut keys = vec![0; k.len()];
            for (at, &k) in k.iter().enumerate() {
                let (position, i) = (at / dim, at % dim);
                let row = position / BLOCK * (dim / 4) + i / 4;
                keys[4 * (row * BLOCK + position % BLOCK) + i % 4] = (k + 128) as u8;
            }
            for loops in all_loops() {
                let groups = queries.div_ceil(TOGETHER);
                let mut quads = vec![[Quad::default(); TOGETHER]; groups * dim / 4];
                let mut dots = vec![[0; CHUNK]; groups * TOGETHER];
                let mut biases = Vec::new();
                for (n, q) in q.chunks(dim).enumerate() {
                    // The greatest is what numbers are scaled to, so these stay what they are.
                    let mut q: Vec<f32> = q.iter().map(|&x| x as f32).collect();
                    q[dim - 1] = limit as f32;
                    let group = &mut quads[n / TOGETHER * dim / 4..][..dim / 4];
                    let form = loops.form();
                    biases.push(portable::quantize_query(&q, form, n % TOGETHER, group).1);
                }
                match loops {
                    Loops::Of(isa) => score_int8(isa, &quads, &keys, &keys, 16, &mut dots),
                    // SAFETY: this CPU has AVX-512 VL and VNNI.
                    Loops::Evex => unsafe { evex::score_int8(&quads, &keys, &keys, 16, &mut dots) },
                }
                for (n, q) in q.chunks(dim).enumerate() {
                    for (position, k) in k.chunks(dim).enumerate() {
                        let rest: i32 = q.iter().zip(k).take(dim - 1).map(|(q, k)| q * k).sum();
                        let found = dots[n][16 + position].wrapping_sub(biases[n]);
                        assert_eq!(found, rest + limit * k[dim - 1]);
                    }
                }
            }
        }
    }
}

#[test]
fn sums_of_weighted_int8_values_are_exact() {
    for (dim, queries, positions) in [(16, 1, 16), (128, 5, CHUNK), (112, 4, 80), (48, 8, 256)] {
        for (kind, value_kind) in [(0, 0), (0, 1), (3, 2), (4, 4)] {
            let weights: Vec<i32> =
                numbers(kind, queries * positions, WEIGHT_MAX).iter().map(|x| x.abs()).collect();
            let v = numbers(value_kind, positions * dim, 127);
            let mut pages = vec![vec![0_u8; PAGE * dim]; positions.div_ceil(PAGE)];
            for (at, &v) in v.iter().enumerate() {
                let (position, i) = (at / dim, at % dim);
                let row = i / BLOCK * (PAGE / 4) + position % PAGE / 4;
                pages[position / PAGE][4 * (row * BLOCK + i % BLOCK) + position % 4] = v as u8;
            }
            let pages: Vec<&[u8]> = pages.iter().map(|page| &page[..]).collect();
            for loops in all_loops() {
                let rows = queries.next_multiple_of(TOGETHER);
                let mut packed = vec![[[0; CHUNK]; 2]; rows];
                for (packed, weights) in packed.iter_mut().zip(weights.chunks(positions)) {
                    let mut row: Vec<f32> = weights.iter().map(|&x| x as f32).collect();
                    row[0] = WEIGHT_MAX as f32;
                    portable::quantize_weights(&mut row, &[1.0; CHUNK], loops.form(), packed);
                }
                let mut out = vec![0; rows * dim];
                match loops {
                    Loops::Of(isa) => weigh_int8(isa, &packed, &pages, &pages, positions, &mut out),
                    // SAFETY: this CPU has AVX-512 VL and VNNI.
                    Loops::Evex => unsafe {
                        evex::weigh_int8(&packed, &pages, &pages, positions, &mut out);
                    },
                }
                for (n, weights) in weights.chunks(positions).enumerate() {
                    for i in 0..dim {
                        let rest: i32 =
                            (1..positions).map(|at| weights[at] * v[at * dim + i]).sum();
                        assert_eq!(out[n * dim + i], rest + WEIGHT_MAX * v[i]);
                    }
                }
            }
        }
    }
}
