//! The processor as a backend.

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads, stores and entry calls")]
pub mod aarch64;
mod attention;
mod bitlinear;
pub mod floats;
pub mod isa;
pub mod level;
pub mod packed;
pub mod pool;
pub mod probe;
pub(crate) mod product;
pub mod selection;
mod selftest;
pub mod topology;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads, stores and entry calls")]
pub mod x86;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::activation::QuantizedRows;
use crate::backend::{Backend, Gated, Norm, Span};
use crate::dense::DenseMatrix;
use crate::kv::{KvLayer, KvShape};
use crate::scalar::attention::Partials;
use crate::scalar::rope::RopeTable;
use crate::ternary::TernaryMatrix;
pub use bitlinear::CpuTernary;
use bitlinear::Part;
use isa::Isa;
use packed::{PANEL_ROWS, PackedTernary};
use pool::{Stripe, ThreadPool, stripes};

/// Panels that a thread takes at a time at most: with 2560 columns 160 KB, which stay in its cache while tokens go by.
const MAX_PANELS: usize = 16;
/// Tokens whose integer sums a thread holds at a time.
const TOKEN_BLOCK: usize = 48;
/// Rows of the head that a thread takes at a time.
const HEAD_ROWS: usize = 64;

/// Computes on the processor with the threads of one pool.
pub struct CpuBackend {
    isa: Isa,
    pool: ThreadPool,
    workers: Vec<Mutex<WorkerScratch>>,
    packed: AtomicUsize,
}

/// Working memory of one thread.
#[derive(Default)]
struct WorkerScratch {
    sums: Vec<i32>,
    floats: Vec<f32>,
    row: Vec<f32>,
    attention: attention::Scratch,
}

/// Floats `[rows, cols]`.
#[derive(Clone, Debug, Default)]
pub struct Matrix {
    cols: usize,
    data: Vec<f32>,
}

impl Matrix {
    fn resize(&mut self, rows: usize, cols: usize) {
        self.cols = cols;
        self.data.resize(rows * cols, 0.0);
    }

    fn rows(&self) -> usize {
        self.data.len() / self.cols.max(1)
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }
}

/// Working memory of the operations.
#[derive(Default)]
pub struct CpuScratch {
    quantized: QuantizedRows,
    normed: Matrix,
    partials: Vec<Partials>,
}

impl CpuBackend {
    /// Starts `threads` compute threads (the caller is the first of them) that use the instructions of `isa`.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(isa: Isa, threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        tracing::debug!(simd = isa.name(), threads, "SIMD level chosen");
        let workers = (0..threads).map(|_| Mutex::default()).collect();
        Ok(Self { isa, pool: ThreadPool::new(threads)?, workers, packed: AtomicUsize::new(0) })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Compute threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// How many matrices have been rearranged so far: each is, once, while loading.
    pub fn matrices_packed(&self) -> usize {
        self.packed.load(Ordering::Relaxed)
    }

    /// BitLinear on plain floats: `W · q(x)` for each row of `x`, `[tokens, cols]`, as `[tokens, rows]`.
    pub fn linear(&self, w: &CpuTernary, x: &[f32]) -> Vec<f32> {
        let x = Matrix { cols: w.packed.cols(), data: x.to_vec() };
        let mut y = Matrix::default();
        y.resize(x.rows(), w.packed.rows());
        self.project_add(&mut CpuScratch::default(), &x, None, w, &mut y);
        y.data
    }

    fn with_worker<R>(&self, thread: usize, work: impl FnOnce(&mut WorkerScratch) -> R) -> R {
        work(&mut self.workers[thread].lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Fills `scratch.quantized` with the int8 form of `x`, normed first if there is a norm.
    fn quantize(&self, scratch: &mut CpuScratch, x: &Matrix, norm: Option<&Norm<Vec<f32>>>) {
        let CpuScratch { quantized, normed, .. } = scratch;
        quantized.resize(x.rows(), x.cols);
        normed.resize(x.rows(), x.cols);
        let normed_rows = normed.data.chunks_mut(x.cols.max(1));
        let mut rows: Vec<_> =
            x.data.chunks(x.cols.max(1)).zip(normed_rows).zip(quantized.rows_mut()).collect();
        self.pool.for_each(&mut rows, |_, ((x, normed), (q, scale, sum))| {
            (**scale, **sum) = match norm {
                Some(norm) => {
                    self.isa.rms_norm(x, &norm.weight, norm.eps, normed);
                    self.isa.quantize(normed, q)
                }
                None => self.isa.quantize(x, q),
            };
        });
    }

    /// Columns of an output that a thread takes at a time: a few items for each thread, at most [`MAX_PANELS`] panels.
    fn stripe_width(&self, rows: usize) -> usize {
        let panels = rows.div_ceil(PANEL_ROWS);
        panels.div_ceil(4 * self.threads()).clamp(1, MAX_PANELS) * PANEL_ROWS
    }

    /// `emit(t, y)` for each token: the products of its int8 row with the rows `rows` of `w`, scaled.
    fn product(
        &self,
        thread: usize,
        w: &CpuTernary,
        rows: Range<usize>,
        x: &QuantizedRows,
        mut emit: impl FnMut(usize, &[f32]),
    ) {
        self.with_worker(thread, |s| {
            for start in (0..x.rows()).step_by(TOKEN_BLOCK) {
                let tokens = start..x.rows().min(start + TOKEN_BLOCK);
                let part = Part { w, rows: rows.clone(), x, tokens: tokens.clone() };
                part.compute(self.isa, &mut s.sums, &mut s.floats);
                for (token, y) in tokens.zip(s.floats.chunks(part.width())) {
                    emit(token, &y[..rows.len()]);
                }
            }
        });
    }
}

impl Backend for CpuBackend {
    type Ternary = CpuTernary;
    type Dense = DenseMatrix;
    type Vector = Vec<f32>;
    type Activations = Matrix;
    type KvLayer = KvLayer;
    type Scratch = CpuScratch;

    fn upload_ternary(&self, weights: TernaryMatrix) -> CpuTernary {
        self.packed.fetch_add(1, Ordering::Relaxed);
        CpuTernary { packed: PackedTernary::pack(&weights), scale: weights.scale().clone() }
    }

    fn upload_dense(&self, weights: DenseMatrix) -> DenseMatrix {
        weights
    }

    fn upload_vector(&self, weights: Vec<f32>) -> Vec<f32> {
        weights
    }

    fn activations(&self) -> Matrix {
        Matrix::default()
    }

    fn kv_layer(&self, shape: KvShape) -> KvLayer {
        KvLayer::new(shape)
    }

    fn scratch(&self) -> CpuScratch {
        CpuScratch::default()
    }

    fn download(&self, x: &Matrix) -> Vec<f32> {
        x.data.clone()
    }

    fn embed(&self, table: &DenseMatrix, ids: &[u32], out: &mut Matrix) {
        out.resize(ids.len(), table.cols());
        let mut rows: Vec<_> = ids.iter().zip(out.data.chunks_mut(table.cols())).collect();
        self.pool.for_each(&mut rows, |_, (id, out)| table.dequantize_row(**id as usize, out));
    }

    fn project(
        &self,
        scratch: &mut CpuScratch,
        x: &Matrix,
        norm: &Norm<Vec<f32>>,
        parts: &mut [(&CpuTernary, &mut Matrix)],
    ) {
        self.quantize(scratch, x, Some(norm));
        let quantized = &scratch.quantized;
        let mut items: Vec<(&CpuTernary, Stripe<'_>)> = Vec::new();
        let total = parts.iter().map(|(w, _)| w.packed.rows()).sum();
        for (w, out) in parts {
            out.resize(x.rows(), w.packed.rows());
            items.extend(
                stripes(&mut out.data, w.packed.rows(), self.stripe_width(total))
                    .map(|stripe| (*w, stripe)),
            );
        }
        self.pool.for_each(&mut items, |thread, (w, stripe)| {
            self.product(thread, w, stripe.columns(), quantized, |token, y| {
                stripe.row(token).copy_from_slice(y);
            });
        });
    }

    fn project_add(
        &self,
        scratch: &mut CpuScratch,
        x: &Matrix,
        norm: Option<&Norm<Vec<f32>>>,
        w: &CpuTernary,
        y: &mut Matrix,
    ) {
        self.quantize(scratch, x, norm);
        let quantized = &scratch.quantized;
        let mut items: Vec<_> =
            stripes(&mut y.data, w.packed.rows(), self.stripe_width(w.packed.rows())).collect();
        self.pool.for_each(&mut items, |thread, stripe| {
            self.product(thread, w, stripe.columns(), quantized, |token, y| {
                self.isa.add(y, stripe.row(token));
            });
        });
    }

    fn gated(
        &self,
        scratch: &mut CpuScratch,
        x: &Matrix,
        norm: &Norm<Vec<f32>>,
        weights: Gated<'_, Self>,
        out: &mut Matrix,
    ) {
        self.quantize(scratch, x, Some(norm));
        let quantized = &scratch.quantized;
        let width = weights.gate.packed.rows();
        out.resize(x.rows(), width);
        let mut items: Vec<_> = stripes(&mut out.data, width, self.stripe_width(width)).collect();
        self.pool.for_each(&mut items, |thread, stripe| {
            self.product(thread, weights.gate, stripe.columns(), quantized, |token, gate| {
                stripe.row(token).copy_from_slice(gate);
            });
            self.product(thread, weights.up, stripe.columns(), quantized, |token, up| {
                self.isa.gate(weights.activation, up, stripe.row(token));
            });
        });
    }

    fn rotate_and_store(
        &self,
        rope: &RopeTable,
        slots: &[u32],
        q: &mut Matrix,
        k: &mut Matrix,
        v: &Matrix,
        kv: &mut KvLayer,
    ) {
        attention::rotate_and_store(self, rope, slots, q, k, v, kv);
    }

    fn attention(
        &self,
        scratch: &mut CpuScratch,
        q: &Matrix,
        kv: &KvLayer,
        spans: &[Span],
        out: &mut Matrix,
    ) {
        attention::attention(self, &mut scratch.partials, q, kv, spans, out);
    }

    fn logits(
        &self,
        scratch: &mut CpuScratch,
        x: &Matrix,
        rows: &[usize],
        norm: &Norm<Vec<f32>>,
        head: &DenseMatrix,
        out: &mut Vec<f32>,
    ) {
        let normed = &mut scratch.normed;
        normed.resize(rows.len(), x.cols);
        for (&row, y) in rows.iter().zip(normed.data.chunks_mut(x.cols)) {
            self.isa.rms_norm(x.row(row), &norm.weight, norm.eps, y);
        }
        let normed = &*normed;
        out.clear();
        out.resize(rows.len() * head.rows(), 0.0);
        if rows.is_empty() {
            return;
        }
        let mut items: Vec<_> = stripes(out, head.rows(), HEAD_ROWS).collect();
        self.pool.for_each(&mut items, |thread, stripe| {
            self.with_worker(thread, |s| {
                let columns = stripe.columns();
                s.floats.resize(rows.len() * columns.len(), 0.0);
                self.isa.logits(head, columns.clone(), &normed.data, &mut s.row, &mut s.floats);
                for (token, y) in s.floats.chunks(columns.len()).enumerate() {
                    stripe.row(token).copy_from_slice(y);
                }
            });
        });
    }
}

#[cfg(test)]
mod tests;
