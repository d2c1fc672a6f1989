//! A backend that can be told to fail, to wait, and what it has seen.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bitnet_kernels::backend::{Backend, Gated, Norm, Projection, Span};
use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::dense::DenseMatrix;
use bitnet_kernels::head::{HeadType, InvalidHead};
use bitnet_kernels::kv::KvShape;
use bitnet_kernels::logits::{Logits, Wanted};
use bitnet_kernels::profile::Profile;
use bitnet_kernels::stored::{Stored, StoredParts};
use bitnet_kernels::ternary::TernaryMatrix;

/// The CPU with strings attached.
pub struct Faulty {
    cpu: CpuBackend,
    /// The next step panics.
    pub panic: AtomicBool,
    /// Logits are no numbers.
    pub nan: AtomicBool,
    /// Steps wait while somebody holds this.
    pub gate: Mutex<()>,
    /// Tokens of prompts that were said to come.
    pub foreseen: Mutex<Vec<u32>>,
    /// Tokens of each step so far.
    pub steps: Mutex<Vec<usize>>,
}

impl Faulty {
    pub fn new() -> Self {
        let (panic, nan) = (AtomicBool::new(false), AtomicBool::new(false));
        let cpu = CpuBackend::new(Isa::best(), 1).unwrap();
        Self {
            cpu,
            panic,
            nan,
            gate: Mutex::new(()),
            foreseen: Mutex::default(),
            steps: Mutex::default(),
        }
    }
}

impl Backend for Faulty {
    type Ternary = <CpuBackend as Backend>::Ternary;
    type Dense = <CpuBackend as Backend>::Dense;
    type Head = <CpuBackend as Backend>::Head;
    type Vector = <CpuBackend as Backend>::Vector;
    type Activations = <CpuBackend as Backend>::Activations;
    type KvLayer = <CpuBackend as Backend>::KvLayer;
    type Scratch = <CpuBackend as Backend>::Scratch;

    fn profile(&self) -> &Arc<Profile> {
        self.cpu.profile()
    }

    fn upload_ternary(&self, weights: TernaryMatrix) -> Self::Ternary {
        self.cpu.upload_ternary(weights)
    }

    fn ternary_bytes(&self, w: &Self::Ternary) -> usize {
        self.cpu.ternary_bytes(w)
    }

    fn upload_dense(&self, weights: DenseMatrix) -> Self::Dense {
        self.cpu.upload_dense(weights)
    }

    fn upload_head(
        &self,
        weights: DenseMatrix,
        form: HeadType,
        taken: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<Self::Head, InvalidHead> {
        self.cpu.upload_head(weights, form, taken)
    }

    fn layout(&self, head: HeadType) -> String {
        self.cpu.layout(head)
    }

    fn store_ternary<'a>(&self, w: &'a Self::Ternary) -> StoredParts<'a> {
        self.cpu.store_ternary(w)
    }

    fn restore_ternary(&self, rows: usize, cols: usize, stored: &Stored) -> Option<Self::Ternary> {
        self.cpu.restore_ternary(rows, cols, stored)
    }

    fn store_head<'a>(&self, head: &'a Self::Head) -> Vec<StoredParts<'a>> {
        self.cpu.store_head(head)
    }

    fn restore_head(&self, rows: usize, cols: usize, stored: &[Stored]) -> Option<Self::Head> {
        self.cpu.restore_head(rows, cols, stored)
    }

    fn upload_vector(&self, weights: Vec<f32>) -> Self::Vector {
        self.cpu.upload_vector(weights)
    }

    fn activations(&self) -> Self::Activations {
        self.cpu.activations()
    }

    fn kv_layer(&self, shape: KvShape) -> Self::KvLayer {
        self.cpu.kv_layer(shape)
    }

    fn scratch(&self) -> Self::Scratch {
        self.cpu.scratch()
    }

    fn ternary_memory<'a>(&self, w: &'a Self::Ternary) -> &'a [u8] {
        self.cpu.ternary_memory(w)
    }

    fn dense_memory<'a>(&self, table: &'a Self::Dense) -> &'a [u8] {
        self.cpu.dense_memory(table)
    }

    fn head_memory<'a>(&self, head: &'a Self::Head) -> Vec<&'a [u8]> {
        self.cpu.head_memory(head)
    }

    fn kv_memory<'a>(&self, kv: &'a Self::KvLayer) -> &'a [u8] {
        self.cpu.kv_memory(kv)
    }

    fn give_back(&self, kv: &mut Self::KvLayer, pages: Range<usize>) {
        self.cpu.give_back(kv, pages);
    }

    fn activation_bytes(&self, x: &Self::Activations) -> usize {
        self.cpu.activation_bytes(x)
    }

    fn scratch_bytes(&self, scratch: &Self::Scratch) -> usize {
        self.cpu.scratch_bytes(scratch)
    }

    fn download(&self, x: &Self::Activations) -> Vec<f32> {
        self.cpu.download(x)
    }

    fn foresee(&self, table: &Self::Dense, ids: &[u32]) {
        self.foreseen.lock().unwrap().extend(ids);
        self.cpu.foresee(table, ids);
    }

    fn embed(&self, table: &Self::Dense, ids: &[u32], out: &mut Self::Activations) {
        self.steps.lock().unwrap().push(ids.len());
        drop(self.gate.lock().unwrap());
        assert!(!self.panic.swap(false, Ordering::Relaxed), "asked to panic by a test");
        self.cpu.embed(table, ids, out);
    }

    fn project(
        &self,
        scratch: &mut Self::Scratch,
        x: &Self::Activations,
        norm: &Norm<Self::Vector>,
        Projection { q: wq, k, v, rope, slots }: Projection<'_, Self>,
        q: &mut Self::Activations,
        kv: &mut Self::KvLayer,
    ) {
        let projection = Projection { q: wq, k, v, rope, slots };
        self.cpu.project(scratch, x, norm, projection, q, kv);
    }

    fn project_add(
        &self,
        scratch: &mut Self::Scratch,
        x: &Self::Activations,
        norm: Option<&Norm<Self::Vector>>,
        w: &Self::Ternary,
        y: &mut Self::Activations,
    ) {
        self.cpu.project_add(scratch, x, norm, w, y);
    }

    fn gated(
        &self,
        scratch: &mut Self::Scratch,
        x: &Self::Activations,
        norm: &Norm<Self::Vector>,
        weights: Gated<'_, Self>,
        out: &mut Self::Activations,
    ) {
        let Gated { gate, up, activation } = weights;
        self.cpu.gated(scratch, x, norm, Gated { gate, up, activation }, out);
    }

    fn attention(
        &self,
        scratch: &mut Self::Scratch,
        q: &Self::Activations,
        kv: &Self::KvLayer,
        spans: &[Span],
        out: &mut Self::Activations,
    ) {
        self.cpu.attention(scratch, q, kv, spans, out);
    }

    fn logits(
        &self,
        scratch: &mut Self::Scratch,
        x: &Self::Activations,
        rows: &[(usize, Wanted)],
        norm: &Norm<Self::Vector>,
        head: &Self::Head,
        out: &mut Logits,
    ) {
        self.cpu.logits(scratch, x, rows, norm, head, out);
        if self.nan.load(Ordering::Relaxed) {
            let whole = out.whole().len();
            *out = Logits::from_whole(vec![f32::NAN; whole], head.rows());
        }
    }
}
