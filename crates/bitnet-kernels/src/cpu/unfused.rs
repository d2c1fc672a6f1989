//! A layer's operations as passes over whole matrices, one after the other, as the definition writes them: norm, quantization,
//! product, rotation, storage, function, sum. The engine does not run these: they stand beside it in `benchmark --ablation`, to
//! show what it brings that a thread does all of this with its share of a product at once. Results are the same bits.

use super::bitlinear::{Part, blocks, runs};
use super::isa::Isa;
use super::pool::{cells, chunks, items, stripes};
use super::{CpuBackend, CpuTernary, Matrix, WorkerScratch};
use crate::activation::QuantizedRows;
use crate::backend::{Gated, Norm, Projection};
use crate::kv::{GROUP, KvLayer, KvPartMut, PAGE};

/// What passes hand on to each other.
#[derive(Default)]
pub(super) struct Scratch {
    normed: Matrix,
    quantized: QuantizedRows,
    /// Results of products.
    results: [Matrix; 2],
}

impl Scratch {
    /// Bytes in use, with those kept for later.
    pub fn heap_bytes(&self) -> usize {
        let results: usize = self.results.iter().map(Matrix::heap_bytes).sum();
        self.normed.heap_bytes() + self.quantized.heap_bytes() + results
    }
}

/// See [`Backend::project`](crate::backend::Backend::project).
pub(super) fn project(
    backend: &CpuBackend,
    workers: &mut [WorkerScratch],
    scratch: &mut Scratch,
    (x, norm): (&Matrix, &Norm<Vec<f32>>),
    projection: &Projection<'_, CpuBackend>,
    q: &mut Matrix,
    kv: &mut KvLayer,
) {
    let Scratch { normed, quantized, results: [keys, values] } = scratch;
    quantize(backend, x, Some(norm), normed, quantized);
    product(backend, workers, quantized, projection.q, q);
    product(backend, workers, quantized, projection.k, keys);
    product(backend, workers, quantized, projection.v, values);
    for turned in [q, &mut *keys] {
        backend.pool.for_each(chunks(&mut turned.data, turned.cols), |token, row| {
            let (cos, sin) = projection.rope.row(token);
            backend.isa.rotate(cos, sin, row);
        });
    }
    let shape = kv.shape();
    let dim = shape.head_dim;
    let heads = stripes(kv.groups_mut(), shape.group_bytes(), shape.share_bytes());
    backend.pool.for_each(heads, |head, mut share| {
        for (token, &slot) in projection.slots.iter().enumerate() {
            let bytes = share.row(slot as usize / (GROUP * PAGE));
            let [key, value] =
                [&*keys, &*values].map(|matrix| &matrix.row(token)[head * dim..][..dim]);
            backend.isa.store_kv(&mut KvPartMut::new(shape, bytes), slot as usize, key, value);
        }
    });
}

/// See [`Backend::project_add`](crate::backend::Backend::project_add).
pub(super) fn project_add(
    backend: &CpuBackend,
    workers: &mut [WorkerScratch],
    scratch: &mut Scratch,
    (x, norm): (&Matrix, Option<&Norm<Vec<f32>>>),
    w: &CpuTernary,
    y: &mut Matrix,
) {
    let Scratch { normed, quantized, results: [result, _] } = scratch;
    quantize(backend, x, norm, normed, quantized);
    product(backend, workers, quantized, w, result);
    let width = result.cols;
    backend.pool.for_each(chunks(&mut y.data, width), |token, y| {
        backend.isa.add(result.row(token), y);
    });
}

/// See [`Backend::gated`](crate::backend::Backend::gated).
pub(super) fn gated(
    backend: &CpuBackend,
    workers: &mut [WorkerScratch],
    scratch: &mut Scratch,
    (x, norm): (&Matrix, &Norm<Vec<f32>>),
    weights: &Gated<'_, CpuBackend>,
    out: &mut Matrix,
) {
    let Scratch { normed, quantized, results: [up, _] } = scratch;
    quantize(backend, x, Some(norm), normed, quantized);
    product(backend, workers, quantized, weights.gate, out);
    product(backend, workers, quantized, weights.up, up);
    let width = out.cols;
    backend.pool.for_each(chunks(&mut out.data, width), |token, gate| {
        backend.isa.gate(weights.activation, up.row(token), gate);
    });
}

/// The int8 rows of `x`, after the norm if there is one: a pass for each.
fn quantize(
    backend: &CpuBackend,
    x: &Matrix,
    norm: Option<&Norm<Vec<f32>>>,
    normed: &mut Matrix,
    quantized: &mut QuantizedRows,
) {
    let (isa, pool): (Isa, _) = (backend.isa, &backend.pool);
    let x = match norm {
        Some(norm) => {
            normed.resize(x.rows(), x.cols);
            pool.for_each(chunks(&mut normed.data, x.cols), |token, row| {
                isa.rms_norm(x.row(token), &norm.weight, norm.eps, row);
            });
            normed
        }
        None => x,
    };
    quantized.resize(x.rows(), x.cols);
    let (values, stride, scales, sums) = quantized.as_mut_parts();
    pool.for_each((chunks(values, stride), (items(scales), items(sums))), |token, row| {
        let (q, (scale, sum)) = row;
        (*scale, *sum) = isa.quantize(x.row(token), q);
    });
}

/// `W · x` with its scales.
fn product(
    backend: &CpuBackend,
    workers: &mut [WorkerScratch],
    x: &QuantizedRows,
    w: &CpuTernary,
    y: &mut Matrix,
) {
    let width = w.packed.rows();
    y.resize(x.rows(), width);
    let runs: Vec<_> = runs(x.rows(), x.cols()).collect();
    let parts = cells(&mut y.data, width, &runs, backend.stripe_width(width));
    backend.pool.for_each_with(workers, parts, |worker, _, mut stripe| {
        let products = &mut worker.products[0];
        for tokens in blocks(stripe.rows()) {
            let part = Part { w, rows: stripe.columns(), x, tokens: tokens.clone() };
            part.compute(backend.isa, products);
            for token in tokens {
                part.write(backend.isa, products, token, stripe.row(token));
            }
        }
    });
}
