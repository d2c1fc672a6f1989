//! The integer product of ternary weights and int8 activations: its definition, and a portable kernel.

use crate::cpu::packed::{Block, PANEL_ROWS};
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

/// The weights in a byte of four codes, lowest bits first; `None` for a byte with code 3, which no packed matrix has.
pub const fn weights_of_byte(byte: u8) -> Option<[i8; 4]> {
    let mut weights = [0; 4];
    let mut j = 0;
    while j < 4 {
        let code = byte >> (2 * j) & 3;
        if code == 3 {
            return None;
        }
        weights[j] = code as i8 - 1;
        j += 1;
    }
    Some(weights)
}

/// [`weights_of_byte`] of all bytes.
static WEIGHTS: [[i8; 4]; 256] = {
    let mut table = [[0; 4]; 256];
    let mut byte = 0;
    while byte < 256 {
        if let Some(weights) = weights_of_byte(byte as u8) {
            table[byte] = weights;
        }
        byte += 1;
    }
    table
};

/// The kernel for machines of which nothing is known: no intrinsics, decoding by table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

impl TileKernel for Portable {
    const PANELS: usize = 1;
    const TOKENS: usize = 8;

    fn run(self, tile: &Tile<'_>, mut out: Out<'_>) {
        let mut sums = [[0; PANEL_ROWS]; Self::TOKENS];
        let sums = &mut sums[..tile.sums.len()];
        for (b, block) in tile.panels[0].iter().enumerate() {
            let weights = decode(block);
            for (t, sums) in sums.iter_mut().enumerate() {
                add_products(sums, &weights, &tile.x.blocks(t)[b]);
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            *out.lanes(t, 0) = *sums;
        }
    }
}

/// A block's weights by row; within a row, column `4·j + q` is at `4·q + j`, as the table gives them.
fn decode(block: &Block) -> [[i8; 16]; PANEL_ROWS] {
    let mut weights = [[0; 16]; PANEL_ROWS];
    for (weights, bytes) in weights.iter_mut().zip(block.0.as_chunks::<4>().0) {
        for (four, &byte) in weights.as_chunks_mut::<4>().0.iter_mut().zip(bytes) {
            *four = WEIGHTS[usize::from(byte)];
        }
    }
    weights
}

fn add_products(sums: &mut [i32; PANEL_ROWS], weights: &[[i8; 16]; PANEL_ROWS], q: &[[i8; 4]; 4]) {
    let mut arranged = [0i16; 16];
    for (k, arranged) in arranged.iter_mut().enumerate() {
        *arranged = q[k % 4][k / 4].into();
    }
    for (sum, weights) in sums.iter_mut().zip(weights) {
        // Eight products of at most 127 fit i16 by far; this shape becomes `pmaddwd` and its like.
        *sum += weights
            .iter()
            .zip(&arranged)
            .map(|(&w, &q)| i32::from(i16::from(w)) * i32::from(q))
            .sum::<i32>();
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

    #[test]
    fn the_table_holds_what_a_loop_decodes() {
        for byte in 0..=255 {
            let codes: [u8; 4] = std::array::from_fn(|j| byte >> (2 * j) & 3);
            if codes.contains(&3) {
                assert_eq!(weights_of_byte(byte), None, "{byte:#04x}");
            } else {
                assert_eq!(
                    WEIGHTS[usize::from(byte)],
                    codes.map(|code| code as i8 - 1),
                    "{byte:#04x}"
                );
            }
        }
    }
}
