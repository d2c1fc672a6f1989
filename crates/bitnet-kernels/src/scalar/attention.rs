//! Causal attention of some tokens of one sequence with the queries that share a key-value head.

use super::elementwise::exp;
use super::{LANES, add_lanes};
use crate::kv::{BLOCK, KvLayer, PAGE};

const _: () = assert!(BLOCK == LANES, "a vector of scores is a block of positions");

/// Queries that go through a block of keys together: as many independent sums as hide an addition's latency.
const TOGETHER: usize = 4;

/// Some consecutive tokens of a sequence, where its keys and values lie, and how many of them the tokens see.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The sequence's pages in order.
    pub pages: &'a [u32],
    /// Positions that the first token sees, its own included; each following token sees one more.
    pub len: usize,
    /// Number of tokens.
    pub tokens: usize,
}

/// Attends with the queries of some tokens that belong to key-value head `head`.
///
/// `q`, `out`: `[tokens, queries per head, head_dim]`; `scratch`: working memory. The scores are scaled by `head_dim^-½`;
/// each sum runs in an order that depends on `head_dim` and the positions that its token sees alone.
#[inline(always)]
pub fn attend(
    kv: &KvLayer,
    head: usize,
    context: Context<'_>,
    q: &[f32],
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let dim = kv.shape().head_dim;
    let queries = q.len() / dim;
    let len = |query: usize| context.len + query / (queries / context.tokens);
    let stride = len(queries - 1).next_multiple_of(BLOCK);
    scratch.resize(queries * stride + BLOCK * dim, 0.0);
    let (scores, block) = scratch.split_at_mut(queries * stride);
    let page = |start: usize| context.pages[start / PAGE] as usize;

    for start in (0..stride).step_by(BLOCK) {
        kv.keys(page(start), head, start % PAGE).read(block);
        score_all(q, block, stride, &mut scores[start..]);
    }
    let scale = 1.0 / (dim as f32).sqrt();
    for (query, scores) in scores.chunks_exact_mut(stride).enumerate() {
        softmax(&mut scores[..len(query).next_multiple_of(BLOCK)], len(query), scale);
    }
    out.fill(0.0);
    for start in (0..stride).step_by(BLOCK) {
        kv.values(page(start), head, start % PAGE).read(block);
        for (query, out) in out.chunks_exact_mut(dim).enumerate() {
            let seen = len(query).saturating_sub(start).min(BLOCK);
            add_weighted(&scores[query * stride + start..][..seen], block, out);
        }
    }
}

/// The products of all queries with a block of keys, `[head_dim, BLOCK]`; a query's scores are `stride` after the last one's.
#[inline(always)]
fn score_all(q: &[f32], keys: &[f32], stride: usize, scores: &mut [f32]) {
    let dim = keys.len() / BLOCK;
    let whole = q.chunks_exact(TOGETHER * dim);
    let (rest, done) = (whole.remainder(), q.len() / (TOGETHER * dim) * TOGETHER);
    for (i, q) in whole.enumerate() {
        score::<TOGETHER>(q, keys, stride, &mut scores[i * TOGETHER * stride..]);
    }
    for (i, q) in rest.chunks_exact(dim).enumerate() {
        score::<1>(q, keys, stride, &mut scores[(done + i) * stride..]);
    }
}

#[inline(always)]
fn score<const Q: usize>(q: &[f32], keys: &[f32], stride: usize, scores: &mut [f32]) {
    let keys = keys.as_chunks::<BLOCK>().0;
    let q: [&[f32]; Q] = std::array::from_fn(|n| &q[n * keys.len()..][..keys.len()]);
    let mut sums = [[0.0; BLOCK]; Q];
    for (i, key) in keys.iter().enumerate() {
        for n in 0..Q {
            for lane in 0..BLOCK {
                sums[n][lane] += q[n][i] * key[lane];
            }
        }
    }
    for (n, sums) in sums.iter().enumerate() {
        scores[n * stride..][..BLOCK].copy_from_slice(sums);
    }
}

/// `out += Σ weight · value` over as many values of the block, `[BLOCK, head_dim]`, as there are weights.
#[inline(always)]
fn add_weighted(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let dim = out.len();
    let (wide, rest) = out.as_chunks_mut::<{ 4 * LANES }>();
    let (narrow, rest) = (4 * LANES * wide.len(), rest);
    for (i, out) in wide.iter_mut().enumerate() {
        add_weighted_columns(weights, values, dim, 4 * LANES * i, out);
    }
    let (vectors, rest) = rest.as_chunks_mut::<LANES>();
    let last = narrow + LANES * vectors.len();
    for (i, out) in vectors.iter_mut().enumerate() {
        add_weighted_columns(weights, values, dim, narrow + LANES * i, out);
    }
    for (i, out) in rest.iter_mut().enumerate() {
        add_weighted_columns(weights, values, dim, last + i, std::array::from_mut(out));
    }
}

#[inline(always)]
fn add_weighted_columns<const N: usize>(
    weights: &[f32],
    values: &[f32],
    dim: usize,
    column: usize,
    out: &mut [f32; N],
) {
    let mut sums = *out;
    for (weight, values) in weights.iter().zip(values.chunks_exact(dim)) {
        let values: &[f32; N] = values[column..].first_chunk().expect("columns lie within the row");
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += weight * value;
        }
    }
    *out = sums;
}

/// Turns the first `len` scores, times `scale`, into weights that add up to 1; the others, if any, become 0.
#[inline(always)]
fn softmax(scores: &mut [f32], len: usize, scale: f32) {
    scores[len..].fill(f32::NEG_INFINITY);
    let mut max = [f32::NEG_INFINITY; LANES];
    for chunk in scores.as_chunks_mut::<LANES>().0 {
        for (max, x) in max.iter_mut().zip(chunk) {
            *x *= scale;
            *max = if *x > *max { *x } else { *max };
        }
    }
    let max = max.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    let mut lanes = [0.0; LANES];
    for chunk in scores.as_chunks_mut::<LANES>().0 {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - max);
            *lane += *x;
        }
    }
    let factor = 1.0 / add_lanes(lanes);
    scores.iter_mut().for_each(|x| *x *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{KvShape, KvType};

    /// Attention by definition, in f64.
    fn exact(q: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f64> {
        let score = |k: &Vec<f32>| {
            q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>()
                / (q.len() as f64).sqrt()
        };
        let weights: Vec<f64> = keys.iter().map(|k| score(k).exp()).collect();
        let total: f64 = weights.iter().sum();
        (0..q.len())
            .map(|i| values.iter().zip(&weights).map(|(v, w)| f64::from(v[i]) * w / total).sum())
            .collect()
    }

    #[test]
    fn agrees_with_the_definition_over_scattered_pages() {
        let dim = 20;
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        for (len, tokens) in [(1, 1), (1, 3), (2, 1), (PAGE - 1, 5), (PAGE, 1), (2 * PAGE + 3, 2)] {
            let mut kv =
                KvLayer::new(KvShape { pages: 4, kv_heads: 2, head_dim: dim, dtype: KvType::F32 });
            let table = [3, 0, 2];
            let (mut keys, mut values) = (vec![], vec![]);
            for position in 0..len + tokens - 1 {
                let k: Vec<f32> = (0..2 * dim).map(|_| random()).collect();
                let v: Vec<f32> = (0..2 * dim).map(|_| random()).collect();
                kv.store(table[position / PAGE] as usize * PAGE + position % PAGE, &k, &v);
                keys.push(k[dim..].to_vec());
                values.push(v[dim..].to_vec());
            }
            let q: Vec<f32> = (0..tokens * 3 * dim).map(|_| 3.0 * random()).collect();
            let mut out = vec![0.0; q.len()];
            let context = Context { pages: &table, len, tokens };
            attend(&kv, 1, context, &q, &mut Vec::new(), &mut out);
            for (query, (q, out)) in q.chunks(dim).zip(out.chunks(dim)).enumerate() {
                let seen = len + query / 3;
                for (out, exact) in out.iter().zip(exact(q, &keys[..seen], &values[..seen])) {
                    assert!(
                        (f64::from(*out) - exact).abs() < 1e-5,
                        "query {query} after {len} positions: {out} against {exact}"
                    );
                }
            }
        }
    }
}
