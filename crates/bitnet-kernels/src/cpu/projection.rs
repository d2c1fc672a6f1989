//! Queries, keys and values as one operation: a thread that has multiplied whole heads turns and stores them at once.

use std::ops::Range;

use super::bitlinear::{Part, blocks};
use super::input::Input;
use super::packed::PANEL_ROWS;
use super::pool::{Either, Interleave, Stripe, cells, stripes};
use super::{CpuBackend, Matrix, WorkerScratch};
use crate::backend::Projection;
use crate::kv::{GROUP, KvLayer, KvPartMut, KvShape, PAGE};

/// See [`crate::backend::Backend::project`]; `runs` are the tokens whose queries are computed one after the other.
pub(super) fn project(
    backend: &CpuBackend,
    workers: &mut [WorkerScratch],
    input: &Input<'_>,
    runs: &[Range<usize>],
    projection: &Projection<'_, CpuBackend>,
    q: &mut Matrix,
    kv: &mut KvLayer,
) {
    let shape = kv.shape();
    let [q_rows, kv_rows] = [projection.q, projection.k].map(|w| w.packed.rows());
    q.resize(input.tokens(), q_rows);
    // As few heads as are whole panels too.
    let heads = heads_of_whole_panels(shape.head_dim);
    let unit = heads * shape.head_dim;
    let width = (backend.stripe_width(q_rows + 2 * kv_rows) / unit).max(1) * unit;
    let shares = stripes(kv.groups_mut(), shape.group_bytes(), heads * shape.share_bytes());
    let parts = Interleave(cells(&mut q.data, q_rows, runs, width), shares);
    backend.pool.for_each_with(workers, parts, |worker, _, part| match part {
        Either::First(q) => queries(backend, worker, input, projection, q),
        Either::Second(shares) => {
            keys_and_values(backend, worker, input, projection, shape, shares)
        }
    });
}

/// The least number of heads that end where a panel of rows does.
fn heads_of_whole_panels(head_dim: usize) -> usize {
    (1..=PANEL_ROWS)
        .find(|heads| (heads * head_dim).is_multiple_of(PANEL_ROWS))
        .expect("sixteen heads are whole panels of sixteen rows")
}

fn queries(
    backend: &CpuBackend,
    worker: &mut WorkerScratch,
    input: &Input<'_>,
    projection: &Projection<'_, CpuBackend>,
    mut q: Stripe<'_>,
) {
    let (isa, WorkerScratch { input: own, products: [products, _], .. }) = (backend.isa, worker);
    let x = input.rows(own);
    for tokens in blocks(q.rows()) {
        let part = Part { w: projection.q, rows: q.columns(), x, tokens: tokens.clone() };
        part.compute(isa, products);
        for token in tokens {
            let (cos, sin) = projection.rope.row(token);
            part.write(isa, products, token, q.row(token));
            isa.rotate(cos, sin, q.row(token));
        }
    }
}

/// `shares`: those of some neighbouring heads in all groups of the cache.
fn keys_and_values(
    backend: &CpuBackend,
    worker: &mut WorkerScratch,
    input: &Input<'_>,
    projection: &Projection<'_, CpuBackend>,
    shape: KvShape,
    mut shares: Stripe<'_, u8>,
) {
    let (dim, share) = (shape.head_dim, shape.share_bytes());
    let rows = shares.columns().start / share * dim..shares.columns().end / share * dim;
    let WorkerScratch { input: own, products, row: keys, floats: values, .. } = worker;
    let (isa, x) = (backend.isa, input.rows(own));
    keys.resize(rows.len(), 0.0);
    values.resize(rows.len(), 0.0);
    for tokens in blocks(0..x.rows()) {
        let part = |w| Part { w, rows: rows.clone(), x, tokens: tokens.clone() };
        let parts = [projection.k, projection.v].map(part);
        for (part, products) in parts.iter().zip(&mut *products) {
            part.compute(isa, products);
        }
        for token in tokens {
            let (cos, sin) = projection.rope.row(token);
            parts[0].write(isa, &products[0], token, keys);
            parts[1].write(isa, &products[1], token, values);
            isa.rotate(cos, sin, keys);
            let slot = projection.slots[token] as usize;
            let group = shares.row(slot / (GROUP * PAGE));
            let heads = group.chunks_exact_mut(share).zip(keys.chunks_exact(dim));
            for ((bytes, key), value) in heads.zip(values.chunks_exact(dim)) {
                isa.store_kv(&mut KvPartMut::new(shape, bytes), slot, key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_end_with_panels() {
        assert_eq!([128, 64, 20, 100, 8, 1].map(heads_of_whole_panels), [1, 1, 4, 4, 2, 16]);
    }
}
