//! The processor as a backend.

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads, stores and entry calls")]
pub mod aarch64;
pub mod ablation;
pub mod affinity;
mod attention;
mod bitlinear;
pub mod floats;
pub mod head;
mod input;
pub mod isa;
pub mod kernels;
pub mod level;
pub mod packed;
pub mod packing;
pub mod placement;
pub mod plan;
pub mod pool;
pub mod probe;
pub(crate) mod product;
mod projection;
pub mod selection;
mod selftest;
mod stored;
mod team;
pub mod topology;
mod unfused;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads, stores and entry calls")]
pub mod x86;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::backend::{Backend, Gated, Norm, Projection, Span};
use crate::dense::DenseMatrix;
use crate::head::{HeadRecord, HeadType, InvalidHead};
use crate::kv::{KvLayer, KvShape};
use crate::logits::{Logits, Wanted};
use crate::memory::{Arena, heap_bytes, will_need};
use crate::profile::Profile;
use crate::stored::{Stored, StoredParts};
use crate::ternary::TernaryMatrix;
pub use bitlinear::CpuTernary;
use bitlinear::{Part, Products, blocks, runs};
pub use head::CpuHead;
use head::split::SplitRows;
use input::{OwnInput, SharedInput};
use isa::Isa;
use packed::{PANEL_ROWS, PackedTernary};
use packing::{ChosenPacking, PackingChoice};
use plan::ThreadPlan;
use pool::{PoolOptions, ThreadPool, cells, chunks};
use team::Team;

/// Panels that a thread takes at a time at most: with 2560 columns 160 KB, which stay in its cache while tokens go by.
const MAX_PANELS: usize = 16;

/// Computes on the processor with the threads of one pool.
pub struct CpuBackend {
    isa: Isa,
    pool: ThreadPool,
    team: Team,
    packing: ChosenPacking,
    fused: bool,
    /// Where packed weights lie.
    arena: Arena,
    packed: AtomicUsize,
}

/// Working memory of one thread.
#[derive(Default)]
struct WorkerScratch {
    /// Of one matrix, or of gate and up.
    products: [Products; 2],
    floats: Vec<f32>,
    row: Vec<f32>,
    attention: attention::Scratch,
    input: OwnInput,
    two_stage: head::two_stage::WorkerScratch,
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

    /// Bytes in use, with those kept for later.
    fn heap_bytes(&self) -> usize {
        heap_bytes(&self.data)
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }
}

/// Puts the runs of a step's tokens in place of what is in `tokens`.
fn fill_runs(tokens: &mut Vec<Range<usize>>, x: &Matrix) {
    tokens.clear();
    tokens.extend(runs(x.rows(), x.cols));
}

/// Working memory of the operations.
#[derive(Default)]
pub struct CpuScratch {
    input: SharedInput,
    /// Tokens that are multiplied together.
    runs: Vec<Range<usize>>,
    normed: Matrix,
    attention: attention::Plan,
    split: SplitRows,
    two_stage: head::two_stage::Scratch,
    unfused: unfused::Scratch,
    workers: Vec<WorkerScratch>,
}

impl WorkerScratch {
    /// Bytes in use, with those kept for later.
    fn heap_bytes(&self) -> usize {
        let products: usize = self.products.iter().map(Products::heap_bytes).sum();
        let rows = heap_bytes(&self.floats) + heap_bytes(&self.row) + self.input.heap_bytes();
        products + rows + self.attention.heap_bytes() + self.two_stage.heap_bytes()
    }
}

impl CpuBackend {
    /// Starts `threads` compute threads (the caller is the first of them) that use the instructions of `isa`.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(isa: Isa, threads: usize) -> std::io::Result<Self> {
        Ok(Self::with_pool(isa, ThreadPool::new(threads)?))
    }

    /// Starts the threads of `plan`, which use the instructions of `isa`.
    ///
    /// # Errors
    /// If the system refuses a thread, or to put one in its place.
    pub fn with_plan(isa: Isa, plan: &ThreadPlan) -> std::io::Result<Self> {
        let options = PoolOptions { wait: plan.wait, places: plan.placement.places.clone() };
        let pool = ThreadPool::with_options(plan.threads(), options)?;
        let team = Team::new(plan.decode, plan.batch, plan.tune);
        Ok(Self { team, ..Self::with_pool(isa, pool) })
    }

    /// Computes with the threads of `pool`, however many these are, and the instructions of `isa`.
    pub fn with_pool(isa: Isa, pool: ThreadPool) -> Self {
        let threads = pool.threads();
        tracing::debug!(simd = isa.name(), threads, "SIMD level chosen");
        let team = Team::new(threads, threads, false);
        let (packing, arena) = (ChosenPacking::default(), Arena::default());
        Self { isa, pool, team, packing, fused: true, arena, packed: AtomicUsize::new(0) }
    }

    /// Packs weights as `choice` says, and not in two bits each.
    pub fn with_packing(mut self, choice: PackingChoice) -> Self {
        self.packing = ChosenPacking::choose(choice, self.isa, &self.pool);
        tracing::info!(packing = %self.packing, "chose the packing of ternary weights");
        self
    }

    /// Computes what lies between products in passes of their own and not with them, which is slower, and what comparisons are for.
    pub fn unfused(mut self) -> Self {
        self.fused = false;
        self
    }

    /// How weights are packed, and why so.
    pub fn packing(&self) -> &ChosenPacking {
        &self.packing
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
        self.project_add(&mut self.scratch(), &x, None, w, &mut y);
        y.data
    }

    /// Columns of an output that a thread takes at a time: a few items for each thread, at most [`MAX_PANELS`] panels.
    fn stripe_width(&self, rows: usize) -> usize {
        let panels = rows.div_ceil(PANEL_ROWS);
        panels.div_ceil(4 * self.threads()).clamp(1, MAX_PANELS) * PANEL_ROWS
    }
}

impl Backend for CpuBackend {
    type Ternary = CpuTernary;
    type Dense = DenseMatrix;
    type Head = CpuHead;
    type Vector = Vec<f32>;
    type Activations = Matrix;
    type KvLayer = KvLayer;
    type Scratch = CpuScratch;

    fn attach(&self) -> std::io::Result<()> {
        self.pool.attach()
    }

    fn profile(&self) -> &Arc<Profile> {
        self.pool.profile()
    }

    fn step<R>(&self, tokens: usize, compute: impl FnOnce() -> R) -> R {
        let threads = self.team.threads(tokens);
        self.pool.set_team(threads);
        let begin = Instant::now();
        let result = compute();
        self.team.finished(tokens, threads, begin.elapsed());
        result
    }

    fn upload_ternary(&self, weights: TernaryMatrix) -> CpuTernary {
        self.packed.fetch_add(1, Ordering::Relaxed);
        let packing = self.packing.for_scale(weights.scale());
        let packed = PackedTernary::pack_in(&self.arena, packing, &weights);
        CpuTernary { packed, scale: weights.scale().clone() }
    }

    fn ternary_bytes(&self, w: &CpuTernary) -> usize {
        w.packed.bytes()
    }

    fn upload_dense(&self, weights: DenseMatrix) -> DenseMatrix {
        weights
    }

    fn upload_head(
        &self,
        weights: DenseMatrix,
        form: HeadType,
        taken: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<CpuHead, InvalidHead> {
        self.make_head(weights, form, taken)
    }

    fn head_record(&self, head: &CpuHead) -> Option<Arc<HeadRecord>> {
        head.record().cloned()
    }

    fn layout(&self, head: HeadType) -> String {
        stored::layout(self.packing.packing, head)
    }

    fn store_ternary<'a>(&self, w: &'a CpuTernary) -> StoredParts<'a> {
        stored::store_ternary(w)
    }

    fn restore_ternary(&self, rows: usize, cols: usize, stored: &Stored) -> Option<CpuTernary> {
        stored::restore_ternary(rows, cols, stored)
    }

    fn store_head<'a>(&self, head: &'a CpuHead) -> Vec<StoredParts<'a>> {
        stored::store_head(head)
    }

    fn restore_head(&self, rows: usize, cols: usize, stored: &[Stored]) -> Option<CpuHead> {
        stored::restore_head(rows, cols, stored)
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
        let mut scratch = CpuScratch::default();
        scratch.workers.resize_with(self.threads(), WorkerScratch::default);
        scratch
    }

    fn ternary_memory<'a>(&self, w: &'a CpuTernary) -> &'a [u8] {
        w.packed.memory()
    }

    fn dense_memory<'a>(&self, table: &'a DenseMatrix) -> &'a [u8] {
        table.bytes()
    }

    fn head_memory<'a>(&self, head: &'a CpuHead) -> Vec<&'a [u8]> {
        head.memory()
    }

    fn kv_memory<'a>(&self, kv: &'a KvLayer) -> &'a [u8] {
        kv.bytes()
    }

    fn give_back(&self, kv: &mut KvLayer, pages: Range<usize>) {
        kv.give_back(pages);
    }

    fn activation_bytes(&self, x: &Matrix) -> usize {
        x.heap_bytes()
    }

    fn scratch_bytes(&self, scratch: &CpuScratch) -> usize {
        let CpuScratch { input, runs, normed, attention, split, two_stage, unfused, workers } =
            scratch;
        let workers: usize = workers.iter().map(WorkerScratch::heap_bytes).sum();
        let rows = input.heap_bytes() + heap_bytes(runs) + normed.heap_bytes();
        let head = split.heap_bytes() + two_stage.heap_bytes();
        rows + attention.heap_bytes() + head + unfused.heap_bytes() + workers
    }

    fn download(&self, x: &Matrix) -> Vec<f32> {
        x.data.clone()
    }

    fn foresee(&self, table: &DenseMatrix, ids: &[u32]) {
        // The table is large and, as a rule, a mapped file, whose pages the system may have taken back.
        ids.iter().for_each(|&id| will_need(table.row(id as usize)));
    }

    fn embed(&self, table: &DenseMatrix, ids: &[u32], out: &mut Matrix) {
        out.resize(ids.len(), table.cols());
        self.foresee(table, ids);
        self.pool.for_each(chunks(&mut out.data, table.cols()), |row, out| {
            table.dequantize_row(ids[row] as usize, out);
        });
    }

    fn project(
        &self,
        scratch: &mut CpuScratch,
        x: &Matrix,
        norm: &Norm<Vec<f32>>,
        projection: Projection<'_, Self>,
        q: &mut Matrix,
        kv: &mut KvLayer,
    ) {
        let CpuScratch { input, workers, runs: tokens, unfused, .. } = scratch;
        if !self.fused {
            return unfused::project(self, workers, unfused, (x, norm), &projection, q, kv);
        }
        let input = input.prepare(self.isa, &self.pool, workers, x, Some(norm));
        fill_runs(tokens, x);
        projection::project(self, workers, &input, tokens, &projection, q, kv);
    }

    fn project_add(
        &self,
        scratch: &mut CpuScratch,
        x: &Matrix,
        norm: Option<&Norm<Vec<f32>>>,
        w: &CpuTernary,
        y: &mut Matrix,
    ) {
        let CpuScratch { input, workers, runs: tokens, unfused, .. } = scratch;
        if !self.fused {
            return unfused::project_add(self, workers, unfused, (x, norm), w, y);
        }
        let input = input.prepare(self.isa, &self.pool, workers, x, norm);
        let width = w.packed.rows();
        fill_runs(tokens, x);
        let parts = cells(&mut y.data, width, tokens, self.stripe_width(width));
        self.pool.for_each_with(workers, parts, |worker, _, mut stripe| {
            let WorkerScratch { input: own, products: [products, _], row, .. } = worker;
            let x = input.rows(own);
            row.resize(stripe.columns().len(), 0.0);
            for tokens in blocks(stripe.rows()) {
                let part = Part { w, rows: stripe.columns(), x, tokens: tokens.clone() };
                part.compute(self.isa, products);
                for token in tokens {
                    part.write(self.isa, products, token, row);
                    self.isa.add(row, stripe.row(token));
                }
            }
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
        let CpuScratch { input, workers, runs: tokens, unfused, .. } = scratch;
        if !self.fused {
            return unfused::gated(self, workers, unfused, (x, norm), &weights, out);
        }
        let input = input.prepare(self.isa, &self.pool, workers, x, Some(norm));
        let width = weights.gate.packed.rows();
        out.resize(x.rows(), width);
        fill_runs(tokens, x);
        let parts = cells(&mut out.data, width, tokens, self.stripe_width(width));
        self.pool.for_each_with(workers, parts, |worker, _, mut stripe| {
            let WorkerScratch { input: own, products, row, .. } = worker;
            let x = input.rows(own);
            row.resize(stripe.columns().len(), 0.0);
            for tokens in blocks(stripe.rows()) {
                let part = |w| Part { w, rows: stripe.columns(), x, tokens: tokens.clone() };
                let parts = [weights.gate, weights.up].map(part);
                for (part, products) in parts.iter().zip(&mut *products) {
                    part.compute(self.isa, products);
                }
                for token in tokens {
                    parts[0].write(self.isa, &products[0], token, stripe.row(token));
                    parts[1].write(self.isa, &products[1], token, row);
                    self.isa.gate(weights.activation, row, stripe.row(token));
                }
            }
        });
    }

    fn attention(
        &self,
        scratch: &mut CpuScratch,
        q: &Matrix,
        kv: &KvLayer,
        spans: &[Span],
        out: &mut Matrix,
    ) {
        let CpuScratch { workers, attention, .. } = scratch;
        attention::attention(self, workers, attention, q, kv, spans, out);
    }

    fn logits(
        &self,
        scratch: &mut CpuScratch,
        x: &Matrix,
        rows: &[(usize, Wanted)],
        norm: &Norm<Vec<f32>>,
        head: &CpuHead,
        out: &mut Logits,
    ) {
        self.head_logits(scratch, x, rows, norm, head, out);
    }
}

#[cfg(test)]
mod tests;
