//! One ternary product with made-up numbers, shared out to threads as the engine does it.

use std::hint::black_box;
use std::ops::Range;

use bitnet_kernels::activation::QuantizedRows;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::packed::{PANEL_ROWS, PackedTernary};
use bitnet_kernels::cpu::pool::{ThreadPool, items};
use bitnet_kernels::ternary::{TernaryMatrix, WeightScale, words_per_row};

/// Panels that a thread takes at a time at most, as in the engine: with 2560 columns 160 KB, which stay in its cache.
const MAX_PANELS: usize = 16;

/// Weights of all three values in no order, the same in every run.
pub(super) fn weights(rows: usize, cols: usize) -> TernaryMatrix {
    let word = |i: usize| {
        let bits = (i as u32).wrapping_mul(0x9E37_79B1);
        let bits = bits ^ bits >> 15;
        let ones = bits & 0x5555_5555;
        ones | bits.rotate_left(7) & 0xAAAA_AAAA & !(ones << 1)
    };
    let words = (0..rows * words_per_row(cols)).map(word).collect();
    TernaryMatrix::new(rows, cols, words, WeightScale::Tensor(1.0)).expect("no code is 3")
}

/// Activations of all values, the same in every run.
pub(super) fn activations(tokens: usize, cols: usize) -> QuantizedRows {
    let values: Vec<i8> = (0..tokens * cols).map(|i| ((i * 37 % 255) as i16 - 127) as i8).collect();
    QuantizedRows::from_values(tokens, cols, &values, vec![1.0; tokens])
}

/// A product shared out to threads as the engine does it.
pub(super) struct Shared<'a> {
    pool: &'a ThreadPool,
    isa: Isa,
    parts: Vec<(Range<usize>, Vec<i32>)>,
}

impl<'a> Shared<'a> {
    pub fn new(pool: &'a ThreadPool, isa: Isa, panels: usize, tokens: usize) -> Self {
        let step = panels_at_once(panels, pool.threads());
        let part = |start: usize| {
            let panels = start..panels.min(start + step);
            let room = vec![0; panels.len() * PANEL_ROWS * tokens];
            (panels, room)
        };
        Self { pool, isa, parts: (0..panels).step_by(step).map(part).collect() }
    }

    pub fn compute(&mut self, w: &PackedTernary, x: &QuantizedRows) {
        let isa = self.isa;
        self.pool.for_each(items(&mut self.parts), |_, (panels, out)| {
            isa.ternary_product(w, panels.clone(), 0..w.blocks_per_panel(), x, 0..x.rows(), out);
            black_box(out);
        });
    }

    /// The results, `[tokens, rows]`.
    pub fn products(&self, rows: usize, tokens: usize) -> Vec<i32> {
        let mut all = vec![0; rows * tokens];
        for (panels, out) in &self.parts {
            let first = panels.start * PANEL_ROWS;
            let width = (panels.len() * PANEL_ROWS).min(rows - first);
            for (token, out) in out.chunks(panels.len() * PANEL_ROWS).enumerate() {
                all[token * rows + first..][..width].copy_from_slice(&out[..width]);
            }
        }
        all
    }
}

/// Panels that a thread takes at a time.
pub(super) fn panels_at_once(panels: usize, threads: usize) -> usize {
    panels.div_ceil(4 * threads).clamp(1, MAX_PANELS)
}
