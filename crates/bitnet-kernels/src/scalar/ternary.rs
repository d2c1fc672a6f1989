//! The integer product of ternary weights and int8 activations: its definition, and a portable kernel.

use crate::cpu::packed::{Block, PANEL_ROWS, Packing, TRIT_WORTH};
use crate::cpu::product::{Out, Tile, TileKernel};
use crate::ternary::codes_from_word;

/// `Σ w·q` of one row of weights ([`crate::ternary::TernaryMatrix::row`]) and one row of activations.
///
/// This is the definition that all kernels are held against: slow, obvious, never optimized.
///
/// # Panics
/// If there are more activations than weights.
pub fn dot(words: &[u32], q: &[i8]) -> i32 {
    assert!(q.len() <= words.len() * 16);
    let weight = |k: usize| i32::from(codes_from_word(words[k / 16])[k % 16]) - 1;
    q.iter().enumerate().map(|(k, &q)| weight(k) * i32::from(q)).sum()
}

/// The kernel for machines of which nothing is known: no intrinsics, but loops that compilers turn into vectors.
///
/// On x86-64's oldest instructions it is four times as fast as decoding by a table of all bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

/// Sixteen-bit sums of four activations of a panel's rows: lane `4·r + q`, as the bytes of a block.
type Lanes = [i16; 64];

/// A code is at most 2 and an activation at most 127 in size, so 128 products reach 32512 and fit in a lane: 32 blocks of
/// four products, or 25 of five.
const PRODUCTS_PER_FLUSH: usize = 128;

impl TileKernel for Portable {
    const PANELS: usize = 1;
    const TOKENS: usize = 4;

    fn run(self, tile: &Tile<'_>, out: Out<'_>) {
        match tile.packing {
            Packing::TwoBits => products(tile, out, add_two_bits),
            Packing::FiveTrits => products(tile, out, add_five_trits),
        }
    }

    fn spin(self, rounds: usize) -> usize {
        let mut lanes = [1_i16; 64];
        let q = std::hint::black_box(3);
        for _ in 0..rounds {
            lanes.iter_mut().for_each(|lane| *lane = lane.wrapping_mul(q).wrapping_add(q));
        }
        std::hint::black_box(lanes);
        rounds * lanes.len()
    }
}

/// The products of a tile, where `add` adds those of a block.
#[inline(always)]
fn products<const QUADS: usize>(
    tile: &Tile<'_>,
    mut out: Out<'_>,
    add: impl Fn(&mut Lanes, &Block, &[[i8; 4]; QUADS]),
) {
    let blocks_per_flush = PRODUCTS_PER_FLUSH / QUADS;
    for (t, offset) in tile.sums.iter().enumerate() {
        let (mut sums, q) = ([0; PANEL_ROWS], tile.x.blocks::<QUADS>(t));
        for (blocks, q) in tile.panels[0].chunks(blocks_per_flush).zip(q.chunks(blocks_per_flush)) {
            let mut lanes = [0; 64];
            for (block, q) in blocks.iter().zip(q) {
                add(&mut lanes, block, q);
            }
            for (sum, lanes) in sums.iter_mut().zip(lanes.as_chunks::<4>().0) {
                *sum += lanes.iter().map(|&lane| i32::from(lane)).sum::<i32>();
            }
        }
        *out.lanes(t, 0) = sums.map(|sum| sum - offset);
    }
}

#[inline(always)]
fn add_two_bits(lanes: &mut Lanes, block: &Block, q: &[[i8; 4]; 4]) {
    for (j, &q) in q.iter().enumerate() {
        add_products(lanes, &block.0, q, |byte| byte >> (2 * j) & 3);
    }
}

#[inline(always)]
fn add_five_trits(lanes: &mut Lanes, block: &Block, q: &[[i8; 4]; 5]) {
    let mut rest = block.0;
    for (&worth, &q) in TRIT_WORTH.iter().zip(q).rev() {
        let mut digits = [0; 64];
        for (digit, x) in digits.iter_mut().zip(&mut rest) {
            *digit = u8::from(*x >= worth) + u8::from(*x >= 2 * worth);
            // A difference below 0 wraps to more than its minuend, so the lesser is the remainder.
            *x = (*x).min(x.wrapping_sub(2 * worth));
            *x = (*x).min(x.wrapping_sub(worth));
        }
        add_products(lanes, &digits, q, |digit| digit);
    }
}

/// Adds the products of one group of four columns, whose codes `code` takes from the bytes.
#[inline(always)]
fn add_products(lanes: &mut Lanes, bytes: &[u8; 64], q: [i8; 4], code: impl Fn(u8) -> u8) {
    let [q0, q1, q2, q3] = q;
    let q = [q0, q1, q2, q3, q0, q1, q2, q3].map(i16::from);
    for (lanes, bytes) in lanes.as_chunks_mut::<8>().0.iter_mut().zip(bytes.as_chunks::<8>().0) {
        for ((lane, byte), q) in lanes.iter_mut().zip(bytes).zip(q) {
            *lane = lane.wrapping_add(i16::from(code(*byte)).wrapping_mul(q));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ternary::{ZERO_WORD, word_from_codes};

    #[test]
    fn the_definition_on_paper() {
        let mut codes = [1; 16];
        (codes[0], codes[5], codes[15]) = (2, 0, 2);
        let q: [i8; 16] = std::array::from_fn(|k| k as i8 + 1);
        assert_eq!(dot(&[ZERO_WORD, word_from_codes(&codes)], &[[9; 16], q].concat()), 1 - 6 + 16);
    }
}
