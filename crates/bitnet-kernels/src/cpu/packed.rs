//! temporary
#[allow(missing_docs)]
pub struct PackedTernary {
    pub m: crate::ternary::TernaryMatrix,
}
#[allow(missing_docs)]
impl PackedTernary {
    pub fn pack(m: &crate::ternary::TernaryMatrix) -> Self {
        Self { m: m.clone() }
    }
    pub fn rows(&self) -> usize {
        self.m.rows()
    }
    pub fn cols(&self) -> usize {
        self.m.cols()
    }
    pub fn blocks_per_panel(&self) -> usize {
        self.m.cols().div_ceil(16)
    }
}
