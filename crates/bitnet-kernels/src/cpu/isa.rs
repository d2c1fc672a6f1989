//! temporary
use super::packed::PackedTernary;
use crate::activation::QuantizedRows;
use std::ops::Range;
/// t
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Isa {
    Scalar,
    Sse41(()),
    Avx(()),
    Avx2(()),
    AvxVnni(()),
    Avx512(()),
    Avx512Vnni(()),
}
#[allow(missing_docs)]
impl Isa {
    pub fn name(self) -> &'static str {
        "scalar"
    }
    pub fn best() -> Self {
        Isa::Avx512(())
    }
    pub fn ternary_product(
        self,
        w: &PackedTernary,
        panels: Range<usize>,
        blocks: Range<usize>,
        x: &QuantizedRows,
        tokens: Range<usize>,
        out: &mut [i32],
    ) {
        let width = panels.len() * 16;
        for (t, out) in tokens.zip(out.chunks_mut(width)) {
            for (i, o) in out.iter_mut().enumerate() {
                let r = panels.start * 16 + i;
                *o = 0;
                if r < w.m.rows() {
                    for c in blocks.start * 16..(blocks.end * 16).min(w.m.cols()) {
                        *o += w.m.value(r, c) as i32 * x.row(t)[c] as i32;
                    }
                }
            }
        }
    }
}
