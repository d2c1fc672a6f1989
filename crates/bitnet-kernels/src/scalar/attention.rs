//! Causal attention of one token's queries that share a key-value head.

use half::f16;

use super::elementwise::exp;
use super::{LANES, add_lanes, dot};
use crate::kv::{KvLayer, KvRows, PAGE};

/// Where a sequence's keys and values lie and how many of them a token sees.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The sequence's pages in order.
    pub pages: &'a [u32],
    /// Positions seen, the token's own included.
    pub len: usize,
}

/// Attends with all query heads of key-value head `head`.
///
/// `q`, `out`: `[queries, head_dim]`; `scores`: working memory. The scores are scaled by `head_dim^-½`; each sum runs in
/// an order that depends on the context's length alone.
#[inline(always)]
pub fn attend(
    kv: &KvLayer,
    head: usize,
    context: Context<'_>,
    q: &[f32],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let dim = kv.shape().head_dim;
    let (queries, len) = (q.len() / dim, context.len);
    let stride = len.next_multiple_of(LANES);
    scores.clear();
    scores.resize(queries * stride + dim, f32::NEG_INFINITY);
    let (scores, row) = scores.split_at_mut(queries * stride);
    let scale = 1.0 / (dim as f32).sqrt();

    for (position, keys) in
        pages(context).flat_map(|(start, page, count)| rows(kv.keys(page, head, count), dim, start))
    {
        let key = keys.read(row);
        for (q, scores) in q.chunks_exact(dim).zip(scores.chunks_exact_mut(stride)) {
            scores[position] = dot(q, key) * scale;
        }
    }
    for scores in scores.chunks_exact_mut(stride) {
        softmax(scores);
    }
    out.fill(0.0);
    for (position, values) in pages(context)
        .flat_map(|(start, page, count)| rows(kv.values(page, head, count), dim, start))
    {
        let value = values.read(row);
        for (out, scores) in out.chunks_exact_mut(dim).zip(scores.chunks_exact(stride)) {
            let weight = scores[position];
            for (out, &value) in out.iter_mut().zip(value) {
                *out += weight * value;
            }
        }
    }
}

/// First position, page and number of positions of each page that the context reaches.
#[inline(always)]
fn pages(context: Context<'_>) -> impl Iterator<Item = (usize, usize, usize)> {
    let len = context.len;
    let starts = (0..len).step_by(PAGE);
    starts
        .zip(context.pages)
        .map(move |(start, &page)| (start, page as usize, PAGE.min(len - start)))
}

/// The rows of a page with their positions.
#[inline(always)]
fn rows(rows: KvRows<'_>, dim: usize, start: usize) -> impl Iterator<Item = (usize, KvRow<'_>)> {
    let count = match rows {
        KvRows::F32(data) => data.len(),
        KvRows::F16(data) => data.len(),
    } / dim;
    (0..count).map(move |i| {
        let row = match rows {
            KvRows::F32(data) => KvRow::F32(&data[i * dim..][..dim]),
            KvRows::F16(data) => KvRow::F16(&data[i * dim..][..dim]),
        };
        (start + i, row)
    })
}

enum KvRow<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

impl<'a> KvRow<'a> {
    #[inline(always)]
    fn read<'b: 'a>(self, buffer: &'b mut [f32]) -> &'a [f32] {
        match self {
            Self::F32(row) => row,
            Self::F16(row) => {
                for (y, x) in buffer.iter_mut().zip(row) {
                    *y = crate::dense::half_to_f32(x.to_bits());
                }
                buffer
            }
        }
    }
}

/// Turns scores into weights that add up to 1; entries of -∞ get weight 0.
#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let max = scores.iter().fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
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
        for len in [1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 3] {
            let mut kv =
                KvLayer::new(KvShape { pages: 4, kv_heads: 2, head_dim: dim, dtype: KvType::F32 });
            let table = [3, 0, 2];
            let (mut keys, mut values) = (vec![], vec![]);
            for position in 0..len {
                let k: Vec<f32> = (0..2 * dim).map(|_| random()).collect();
                let v: Vec<f32> = (0..2 * dim).map(|_| random()).collect();
                kv.store(table[position / PAGE] as usize * PAGE + position % PAGE, &k, &v);
                keys.push(k[dim..].to_vec());
                values.push(v[dim..].to_vec());
            }
            let q: Vec<f32> = (0..3 * dim).map(|_| 3.0 * random()).collect();
            let mut out = vec![0.0; 3 * dim];
            attend(&kv, 1, Context { pages: &table, len }, &q, &mut Vec::new(), &mut out);
            for (q, out) in q.chunks(dim).zip(out.chunks(dim)) {
                for (out, exact) in out.iter().zip(exact(q, &keys, &values)) {
                    assert!(
                        (f64::from(*out) - exact).abs() < 1e-5,
                        "{len} positions: {out} against {exact}"
                    );
                }
            }
        }
    }
}
