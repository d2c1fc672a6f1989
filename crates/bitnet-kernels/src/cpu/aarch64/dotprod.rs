//! NEON with `sdot`, which adds four products of bytes to a 32-bit lane: Cortex-A55 and A76, Neoverse N1, Apple M1 and later.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{LANES, NeonDotprod, QUARTERS, Strips, five_trits, load_activations, splat, store};
use crate::cpu::packed::Packing;
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

impl TileKernel for NeonDotprod {
    const PANELS: usize = 1;
    const TOKENS: usize = 4; // times four quarters of a panel: 16 of 32 registers

    fn run(self, tile: &Tile<'_>, out: Out<'_>) {
        // SAFETY: the token exists, so this CPU has `sdot`.
        unsafe { run(tile, out) }
    }

    fn spin(self, rounds: usize) -> usize {
        // SAFETY: as above.
        unsafe { spin(rounds) }
    }
}

#[target_feature(enable = "neon,dotprod")]
fn run(tile: &Tile<'_>, mut out: Out<'_>) {
    let (strips, x, sums) = (Strips::of(tile, 0), tile.x, tile.sums);
    match (tile.packing, tile.sums.len()) {
        (Packing::TwoBits, 1) => one(strips, x, sums[0], &mut out),
        (Packing::TwoBits, 2) => many::<2>(strips, x, sums, &mut out),
        (Packing::TwoBits, 3) => many::<3>(strips, x, sums, &mut out),
        (Packing::TwoBits, _) => many::<4>(strips, x, sums, &mut out),
        (Packing::FiveTrits, 1) => many_of_five_trits::<1>(strips, x, sums, &mut out),
        (Packing::FiveTrits, 2) => many_of_five_trits::<2>(strips, x, sums, &mut out),
        (Packing::FiveTrits, 3) => many_of_five_trits::<3>(strips, x, sums, &mut out),
        (Packing::FiveTrits, _) => many_of_five_trits::<4>(strips, x, sums, &mut out),
    }
}

/// `sum + codes · q`, with the four activations in 32-bit lane `LANE` of `q` for all lanes of `codes`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
pub(super) fn sdot<const LANE: u8>(
    mut sum: int32x4_t,
    codes: uint8x16_t,
    q: int8x16_t,
) -> int32x4_t {
    const { assert!(LANE < 4) };
    // The intrinsic is not stable in the compiler that this crate is written for.
    // SAFETY: the instruction reads and writes the named registers only, and the caller's CPU has it.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {codes:v}.16b, {q:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            codes = in(vreg) codes,
            q = in(vreg) q,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Products of one token. Bit fields are masked and not shifted, with accumulators worth 1, 4 and 16; the highest
/// would be negative as a signed byte, so it is shifted and counts as 1 again.
#[target_feature(enable = "neon,dotprod")]
fn one(strips: Strips<'_, QUARTERS>, x: Tokens<'_>, sum: i32, out: &mut Out<'_>) {
    let mut acc = [[vdupq_n_s32(0); 3]; QUARTERS];
    let tokens = &x.blocks::<4>(0)[..strips.blocks.len()];
    for b in 0..tokens.len() {
        let q = load_activations(&tokens[b]);
        let codes = strips.load(b);
        for v in 0..QUARTERS {
            let [ones, fours, sixteens] = acc[v];
            let ones = sdot::<0>(ones, vandq_u8(codes[v], vdupq_n_u8(0x03)), q);
            let fours = sdot::<1>(fours, vandq_u8(codes[v], vdupq_n_u8(0x0C)), q);
            let sixteens = sdot::<2>(sixteens, vandq_u8(codes[v], vdupq_n_u8(0x30)), q);
            acc[v] = [sdot::<3>(ones, vshrq_n_u8::<6>(codes[v]), q), fours, sixteens];
        }
    }
    for v in 0..QUARTERS {
        let [ones, fours, sixteens] = acc[v];
        let codes = vsraq_n_s32::<4>(vsraq_n_s32::<2>(ones, fours), sixteens);
        let lanes: &mut [i32; LANES] = out.lanes(0, strips.row(v));
        store(lanes, vsubq_s32(codes, vdupq_n_s32(sum)));
    }
}

/// Products of `N` tokens, one accumulator each; the codes are unpacked once for all tokens.
#[target_feature(enable = "neon,dotprod")]
fn many<const N: usize>(
    strips: Strips<'_, QUARTERS>,
    x: Tokens<'_>,
    sums: &[i32],
    out: &mut Out<'_>,
) {
    let blocks = strips.blocks.len();
    let mask = vdupq_n_u8(3);
    let mut acc = [[vdupq_n_s32(0); N]; QUARTERS];
    let mut tokens = [&[][..]; N];
    for t in 0..N {
        tokens[t] = &x.blocks::<4>(t)[..blocks];
    }
    for b in 0..blocks {
        let codes = strips.load(b);
        let mut q = [vdupq_n_s8(0); N];
        for t in 0..N {
            q[t] = load_activations(&tokens[t][b]);
        }
        for v in 0..QUARTERS {
            let first = vandq_u8(codes[v], mask);
            let second = vandq_u8(vshrq_n_u8::<2>(codes[v]), mask);
            let third = vandq_u8(vshrq_n_u8::<4>(codes[v]), mask);
            let fourth = vshrq_n_u8::<6>(codes[v]);
            for t in 0..N {
                let sum = sdot::<1>(sdot::<0>(acc[v][t], first, q[t]), second, q[t]);
                acc[v][t] = sdot::<3>(sdot::<2>(sum, third, q[t]), fourth, q[t]);
            }
        }
    }
    for v in 0..QUARTERS {
        for t in 0..N {
            let lanes: &mut [i32; LANES] = out.lanes(t, strips.row(v));
            store(lanes, vsubq_s32(acc[v][t], vdupq_n_s32(sums[t])));
        }
    }
}

/// As `many`, with weights of five trits a byte.
#[target_feature(enable = "neon,dotprod")]
fn many_of_five_trits<const N: usize>(
    strips: Strips<'_, QUARTERS>,
    x: Tokens<'_>,
    sums: &[i32],
    out: &mut Out<'_>,
) {
    let blocks = strips.blocks.len();
    let mut acc = [[vdupq_n_s32(0); N]; QUARTERS];
    let mut tokens = [&[][..]; N];
    for t in 0..N {
        tokens[t] = &x.blocks::<5>(t)[..blocks];
    }
    for b in 0..blocks {
        let codes = strips.load(b);
        let mut q = [[vdupq_n_s8(0); 2]; N];
        for t in 0..N {
            let (first, last) = tokens[t][b].split_first_chunk().expect("five are more than four");
            q[t] = [load_activations(first), splat(last[0])];
        }
        for v in 0..QUARTERS {
            let digits = five_trits(codes[v]);
            for t in 0..N {
                let [first, last] = q[t];
                let sum = sdot::<1>(sdot::<0>(acc[v][t], digits[0], first), digits[1], first);
                let sum = sdot::<3>(sdot::<2>(sum, digits[2], first), digits[3], first);
                acc[v][t] = sdot::<0>(sum, digits[4], last);
            }
        }
    }
    for v in 0..QUARTERS {
        for t in 0..N {
            let lanes: &mut [i32; LANES] = out.lanes(t, strips.row(v));
            store(lanes, vsubq_s32(acc[v][t], vdupq_n_s32(sums[t])));
        }
    }
}

/// Runs nothing but `sdot`; see `Isa::spin`.
#[target_feature(enable = "neon,dotprod")]
fn spin(rounds: usize) -> usize {
    let mut acc = [vdupq_n_s32(0); 16];
    let q = load_activations(std::hint::black_box(&[[3; 4]; 4]));
    for _ in 0..rounds {
        for i in 0..acc.len() {
            acc[i] = sdot::<0>(acc[i], vreinterpretq_u8_s8(q), q);
        }
    }
    std::hint::black_box(acc);
    rounds * acc.len() * 16
}
