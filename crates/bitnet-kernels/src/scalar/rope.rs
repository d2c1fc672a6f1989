//! Rotary position embedding, halves rotated: element `i` of a head turns with element `i + head_dim / 2`.
//!
//! Source: Su et al. 2021, arXiv:2104.09864, in the arrangement of Hugging Face's Llama.

use crate::memory::heap_bytes;

/// Cosines and sines for the positions of one batch, shared by all layers and heads.
#[derive(Clone, Debug, Default)]
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Bytes in use, with those kept for later.
    pub fn heap_bytes(&self) -> usize {
        heap_bytes(&self.cos) + heap_bytes(&self.sin)
    }

    /// Fills in the angles `position · inv_freq`, one row per position; `inv_freq` has `head_dim / 2` elements, radians per token.
    pub fn fill(&mut self, inv_freq: &[f32], positions: &[u32]) {
        self.half = inv_freq.len();
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for &freq in inv_freq {
                let (sin, cos) = (position as f32 * freq).sin_cos();
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
    }

    /// Cosines and sines of one row, `head_dim / 2` each.
    #[inline(always)]
    pub fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let range = row * self.half..(row + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Turns every head of `x`, `[heads · head_dim]`, by the angles of one position.
#[inline(always)]
pub fn rotate(cos: &[f32], sin: &[f32], x: &mut [f32]) {
    let half = cos.len();
    for head in x.chunks_exact_mut(2 * half) {
        let (low, high) = head.split_at_mut(half);
        for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn_swaps_the_halves() {
        let mut table = RopeTable::default();
        table.fill(&[std::f32::consts::FRAC_PI_2; 2], &[0, 1]);
        let mut x = [1.0, 2.0, 3.0, 4.0];
        let (cos, sin) = table.row(1);
        rotate(cos, sin, &mut x);
        for (x, expected) in x.iter().zip([-3.0, -4.0, 1.0, 2.0]) {
            assert!((x - expected).abs() < 1e-6);
        }
        let (cos, sin) = table.row(0);
        let mut y = [1.0, 2.0, 3.0, 4.0];
        rotate(cos, sin, &mut y);
        assert_eq!(y, [1.0, 2.0, 3.0, 4.0]);
    }
}
