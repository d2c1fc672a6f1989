//! The input of a BitLinear: normed and quantized, once for all threads or by each for itself.

use super::isa::Isa;
use super::pool::{ThreadPool, chunks, items};
use super::{Matrix, WorkerScratch};
use crate::activation::QuantizedRows;
use crate::backend::Norm;
use crate::memory::heap_bytes;
use crate::profile::Phase;

/// Up to so many tokens, every thread quantizes them for itself: half a microsecond each with 2560 elements, and to wait for
/// the others and to take over what they wrote would cost as much. So a step of few tokens has five barriers per layer.
const OWN_TOKENS: usize = 8;

/// What a thread quantized for itself.
#[derive(Default)]
pub(super) struct OwnInput {
    /// The serial number of the input.
    serial: u64,
    quantized: QuantizedRows,
    normed: Vec<f32>,
}

/// What was quantized for all threads.
#[derive(Default)]
pub(super) struct SharedInput {
    /// Counts inputs.
    serial: u64,
    quantized: QuantizedRows,
}

impl OwnInput {
    /// Bytes in use, with those kept for later.
    pub fn heap_bytes(&self) -> usize {
        self.quantized.heap_bytes() + heap_bytes(&self.normed)
    }
}

impl SharedInput {
    /// Bytes in use, with those kept for later.
    pub fn heap_bytes(&self) -> usize {
        self.quantized.heap_bytes()
    }
}

/// The rows of one operation's input.
pub(super) struct Input<'a> {
    isa: Isa,
    x: &'a Matrix,
    norm: Option<&'a Norm<Vec<f32>>>,
    serial: u64,
    /// None if every thread quantizes for itself.
    shared: Option<&'a QuantizedRows>,
}

impl SharedInput {
    /// Takes the rows of `x`, to be normed first if there is a norm; quantizes them now if they are many.
    pub fn prepare<'a>(
        &'a mut self,
        isa: Isa,
        pool: &ThreadPool,
        workers: &mut [WorkerScratch],
        x: &'a Matrix,
        norm: Option<&'a Norm<Vec<f32>>>,
    ) -> Input<'a> {
        self.serial += 1;
        let serial = self.serial;
        if x.rows() <= OWN_TOKENS {
            return Input { isa, x, norm, serial, shared: None };
        }
        let _phase = pool.profile().phase(Phase::Quantize);
        self.quantized.resize(x.rows(), x.cols);
        let (values, stride, scales, sums) = self.quantized.as_mut_parts();
        let rows = (chunks(values, stride), (items(scales), items(sums)));
        pool.for_each_with(workers, rows, |worker, row, (q, (scale, sum))| {
            let normed = &mut worker.input.normed;
            normed.resize(x.cols, 0.0);
            (*scale, *sum) = quantize(isa, x.row(row), norm, normed, q);
        });
        Input { isa, x, norm, serial, shared: Some(&self.quantized) }
    }
}

impl Input<'_> {
    /// Rows.
    pub fn tokens(&self) -> usize {
        self.x.rows()
    }

    /// The int8 rows, for a thread that keeps its own in `own`.
    pub fn rows<'a>(&'a self, own: &'a mut OwnInput) -> &'a QuantizedRows {
        if let Some(shared) = self.shared {
            return shared;
        }
        if own.serial != self.serial {
            own.serial = self.serial;
            own.fill(self);
        }
        &own.quantized
    }
}

impl OwnInput {
    fn fill(&mut self, input: &Input<'_>) {
        let Input { isa, x, norm, .. } = *input;
        self.quantized.resize(x.rows(), x.cols);
        self.normed.resize(x.cols, 0.0);
        for (row, (q, scale, sum)) in self.quantized.rows_mut().enumerate() {
            (*scale, *sum) = quantize(isa, x.row(row), norm, &mut self.normed, q);
        }
    }
}

/// The int8 form of a row, with its scale and its sum; `normed` is working memory.
fn quantize(
    isa: Isa,
    x: &[f32],
    norm: Option<&Norm<Vec<f32>>>,
    normed: &mut [f32],
    q: &mut [i8],
) -> (f32, i32) {
    match norm {
        Some(norm) => {
            isa.rms_norm(x, &norm.weight, norm.eps, normed);
            isa.quantize(normed, q)
        }
        None => isa.quantize(x, q),
    }
}
