//! Model files.

pub mod metadata;
/// temporary
pub struct Checkpoint;
/// temporary
pub struct OpenOptions;
#[allow(missing_docs, unused)]
impl Checkpoint {
    pub fn open(
        path: &std::path::Path,
        options: &OpenOptions,
    ) -> Result<Self, crate::error::LoadError> {
        todo!()
    }
    pub fn config(&self) -> &crate::config::ArchConfig {
        todo!()
    }
    pub fn ternary(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<bitnet_kernels::ternary::TernaryMatrix, crate::error::LoadError> {
        todo!()
    }
    pub fn dense(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<bitnet_kernels::dense::DenseMatrix, crate::error::LoadError> {
        todo!()
    }
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, crate::error::LoadError> {
        todo!()
    }
    pub fn release(&self, name: &str) {
        todo!()
    }
}
