//! The parts of causal attention, for some queries that share a key-value head.
//!
//! The positions of a sequence are cut into chunks of [`CHUNK`], wherever its tokens come from. A query's result in a chunk is
//! a [`Partials`] entry: the greatest score, the sum of the weights `e^(score - greatest)`, and the sum of the weighted
//! values. A query folds its chunks in their order. So what a query gets depends on its sequence alone, and chunks may be
//! computed by different threads.
//!
//! Floats: scores and weighted values are sums of products in the order of the elements, or of the positions, each with one
//! accumulator. `vdpbf16ps`, which multiplies bf16 twice as fast, rounds in its own way, which no other instruction repeats,
//! and `vfmadd` is not everywhere either; so keys and values of all float types are multiplied as f32.
//!
//! int8: queries and weights are rounded to [`QUERY_MAX`] and [`WEIGHT_MAX`], some 16 bits, by a factor for each query and one
//! for each query and chunk; the rest is integers and exact. Eight bits would not do for the weights: a token that takes most
//! of the attention, as the first of a text often does, would round those of all others in its chunk to 0.

use super::elementwise::exp;
use super::norm::{ROUND, absmax};
use super::{LANES, add_lanes};
use crate::kv::{BLOCK, PAGE};
use crate::memory::heap_bytes;

const _: () = assert!(BLOCK == LANES, "a vector of scores is a block of positions");

/// Positions in a chunk.
pub const CHUNK: usize = 256;

const _: () = assert!(CHUNK.is_multiple_of(PAGE), "a page lies in one chunk");

/// Queries that go through keys and values together; their number is rounded up to a multiple of this.
pub const TOGETHER: usize = 4;

/// A float for each position of a chunk: scores, weights or scales.
pub type Row = [f32; CHUNK];

/// An integer score for each position of a chunk.
pub type Dots = [i32; CHUNK];

/// The two operands for four neighbouring 16-bit numbers that meet four bytes.
pub type Quad = [[u8; 4]; 2];

/// The two operands for 16-bit weights of the positions of a chunk, four neighbours in four bytes of each.
pub type Weights = [[u8; CHUNK]; 2];

/// The greatest magnitude of an integer query: its upper byte, once the lower one is rounded off, is at most 127.
///
/// With longer heads it is less, so that a score fits 32 bits.
pub const QUERY_MAX: i32 = 127 * 256;

/// The greatest integer weight: both bytes, taken as unsigned or as signed ones, have room, and so has a chunk's sum of
/// products with int8, in 32 bits.
pub const WEIGHT_MAX: i32 = 127 * 256;

const _: () = assert!(WEIGHT_MAX as i64 * 128 * (CHUNK as i64) < i32::MAX as i64);

/// How the two operands of a [`Quad`] hold four 16-bit numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The upper bytes and the lower ones, for instructions that multiply bytes: `Σ n·b = 256 · Σ upper·b + Σ lower·b`.
    Bytes,
    /// Numbers 0 and 2, and 1 and 3, for instructions that multiply pairs of 16 bits.
    Pairs,
}

/// Queries as float kernels read them.
#[inline(always)]
pub fn pack_queries(q: &[f32], dim: usize, out: &mut [[f32; TOGETHER]]) {
    let scale = 1.0 / (dim as f32).sqrt();
    out.fill([0.0; TOGETHER]);
    for (query, q) in q.chunks_exact(dim).enumerate() {
        let out = &mut out[query / TOGETHER * dim..][..dim];
        out.iter_mut().zip(q).for_each(|(out, x)| out[query % TOGETHER] = x * scale);
    }
}

/// One query as integer kernels read it, to place `place` of its group, `[stored_dim / 4]`. Returns what a product has to be
/// multiplied with beside the key's scale, and what has to be subtracted from it before because keys are stored with 128 added.
#[inline(always)]
pub fn quantize_query(
    q: &[f32],
    form: Form,
    place: usize,
    out: &mut [[Quad; TOGETHER]],
) -> (f32, i32) {
    let limit = (i32::MAX / 127 / q.len() as i32).min(QUERY_MAX) as f32;
    let inverse = limit / absmax(q).max(super::norm::MIN_ABSMAX);
    let mut sum = 0_i32;
    for (q, out) in q.chunks(LANES).zip(out.chunks_mut(LANES / 4)) {
        let mut numbers = [0; LANES];
        for (number, x) in numbers.iter_mut().zip(q) {
            *number = round(bounded(x * inverse, limit));
        }
        sum = numbers.iter().fold(sum, |sum, number| sum.wrapping_add(*number));
        // The lower byte is signed here, so the upper one is what is nearest.
        let (upper, lower) = (numbers.map(|n| ((n + 128) >> 8) as u8), numbers.map(|n| n as u8));
        for (i, out) in out.iter_mut().enumerate() {
            out[place] = match form {
                Form::Bytes => [upper.as_chunks().0[i], lower.as_chunks().0[i]],
                Form::Pairs => pairs(numbers.as_chunks().0[i]),
            };
        }
    }
    (1.0 / (inverse * (q.len() as f32).sqrt()), sum.wrapping_mul(128))
}

/// `x` within ± `limit`, which NaN becomes.
#[inline(always)]
fn bounded(x: f32, limit: f32) -> f32 {
    let x = if x > -limit { x } else { -limit };
    if x < limit { x } else { limit }
}

/// The nearest integer to a number of at most 22 bits, ties to even.
#[inline(always)]
fn round(x: f32) -> i32 {
    (x + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

#[inline(always)]
fn pairs([a, b, c, d]: [i32; 4]) -> Quad {
    let pair = |low: i32, high: i32| (low as u32 & 0xffff | (high as u32) << 16).to_le_bytes();
    [pair(a, c), pair(b, d)]
}

/// The products of packed queries, `[groups, dim]`, with keys, `[blocks, dim, BLOCK]`, to `scores` from column `column` on.
#[inline(always)]
pub fn score(q: &[[f32; TOGETHER]], keys: &[f32], column: usize, scores: &mut [Row]) {
    let (scores, _) = scores.as_chunks_mut::<TOGETHER>();
    let dim = q.len() / scores.len();
    for (q, scores) in q.chunks_exact(dim).zip(scores) {
        for (block, keys) in keys.chunks_exact(dim * BLOCK).enumerate() {
            let mut sums = [[0.0; BLOCK]; TOGETHER];
            for (q, key) in q.iter().zip(keys.as_chunks::<BLOCK>().0) {
                for n in 0..TOGETHER {
                    for lane in 0..BLOCK {
                        sums[n][lane] += q[n] * key[lane];
                    }
                }
            }
            for (scores, sums) in scores.iter_mut().zip(sums) {
                scores[column + block * BLOCK..][..BLOCK].copy_from_slice(&sums);
            }
        }
    }
}

/// The same of integers: `q` is `[groups, dim / 4]`, `keys` are blocks of `[dim / 4, BLOCK, 4]` with 128 added.
#[inline(always)]
pub fn score_int8(q: &[[Quad; TOGETHER]], keys: &[u8], column: usize, dots: &mut [Dots]) {
    let (dots, _) = dots.as_chunks_mut::<TOGETHER>();
    let quads = q.len() / dots.len();
    for (q, dots) in q.chunks_exact(quads).zip(dots) {
        for (block, keys) in keys.chunks_exact(quads * 4 * BLOCK).enumerate() {
            let mut sums = [[0_i32; BLOCK]; TOGETHER];
            for (q, key) in q.iter().zip(keys.as_chunks::<{ 4 * BLOCK }>().0) {
                for n in 0..TOGETHER {
                    let q = from_pairs(q[n]);
                    for lane in 0..BLOCK {
                        for (i, q) in q.iter().enumerate() {
                            let product = q * i32::from(key[4 * lane + i]);
                            sums[n][lane] = sums[n][lane].wrapping_add(product);
                        }
                    }
                }
            }
            for (dots, sums) in dots.iter_mut().zip(sums) {
                dots[column + block * BLOCK..][..BLOCK].copy_from_slice(&sums);
            }
        }
    }
}

#[inline(always)]
fn from_pairs(quad: Quad) -> [i32; 4] {
    let number = |a, b| i32::from(i16::from_le_bytes([a, b]));
    let [[a, b, c, d], [e, f, g, h]] = quad;
    [number(a, b), number(e, f), number(c, d), number(g, h)]
}

/// Turns a query's scores of the first `seen` positions into weights `e^(score - greatest)`, and those of the other positions
/// in the row, which is whole blocks, into 0. Returns the greatest score and the sum of the weights.
#[inline(always)]
pub fn softmax(row: &mut [f32], seen: usize) -> (f32, f32) {
    row[seen..].fill(f32::NEG_INFINITY);
    let mut max = [f32::NEG_INFINITY; LANES];
    for chunk in row.as_chunks::<LANES>().0 {
        for (max, &x) in max.iter_mut().zip(chunk) {
            *max = if x > *max { x } else { *max };
        }
    }
    let max = greatest(max);
    let mut lanes = [0.0; LANES];
    for chunk in row.as_chunks_mut::<LANES>().0 {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - max);
            *lane += *x;
        }
    }
    (max, add_lanes(lanes))
}

/// The greatest of some numbers, found in pairs: one after the other would each wait for the last.
#[inline(always)]
fn greatest(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
        }
        width /= 2;
    }
    lanes[0]
}

/// Turns a query's first products with int8 keys into scores; `query` is what [`quantize_query`] returned.
#[inline(always)]
pub fn scale_dots(dots: &Dots, query: (f32, i32), scales: &Row, row: &mut [f32]) {
    let (factor, bias) = query;
    for ((x, &dot), scale) in row.iter_mut().zip(dots).zip(scales) {
        *x = dot.wrapping_sub(bias) as f32 * (scale * factor);
    }
}

/// Multiplies a query's first weights with the scales of the values and rounds them to integers as kernels read them. Returns what a sum of products has to be multiplied with.
#[inline(always)]
pub fn quantize_weights(row: &mut [f32], scales: &Row, form: Form, out: &mut Weights) -> f32 {
    let mut max = [0.0; LANES];
    for (x, scales) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(scales.as_chunks::<LANES>().0)
    {
        for ((max, x), scale) in max.iter_mut().zip(x).zip(scales) {
            *x *= scale;
            *max = if *x > *max { *x } else { *max };
        }
    }
    let max = greatest(max).max(1e-30);
    let factor = WEIGHT_MAX as f32 / max;
    let [first, second] = out;
    match form {
        Form::Bytes => {
            for ((x, upper), lower) in row.iter().zip(first).zip(second) {
                let number = round(bounded(x * factor, WEIGHT_MAX as f32));
                (*upper, *lower) = ((number >> 8) as u8, number as u8);
            }
        }
        Form::Pairs => {
            let quads = first.as_chunks_mut::<4>().0.iter_mut().zip(second.as_chunks_mut::<4>().0);
            for (x, (first, second)) in row.as_chunks::<4>().0.iter().zip(quads) {
                let numbers = x.map(|x| round(bounded(x * factor, WEIGHT_MAX as f32)));
                [*first, *second] = pairs(numbers);
            }
        }
    }
    max / WEIGHT_MAX as f32
}

/// `out += Σ weight · value` over the values, `[positions, dim]` with rows `stride` apart, with the weights from `column` on;
/// `out` is `[weights.len(), dim]`.
#[inline(always)]
pub fn weigh(weights: &[Row], column: usize, values: &[f32], stride: usize, out: &mut [f32]) {
    let dim = out.len() / weights.len();
    for (weights, out) in weights.iter().zip(out.chunks_exact_mut(dim)) {
        let (weights, mut first) = (&weights[column..], 0);
        let (wide, rest) = out.as_chunks_mut::<{ 4 * LANES }>();
        for out in wide {
            weigh_columns(weights, values, stride, first, out);
            first += out.len();
        }
        let (vectors, rest) = rest.as_chunks_mut::<LANES>();
        for out in vectors {
            weigh_columns(weights, values, stride, first, out);
            first += out.len();
        }
        for out in rest {
            weigh_columns(weights, values, stride, first, std::array::from_mut(out));
            first += 1;
        }
    }
}

#[inline(always)]
fn weigh_columns<const N: usize>(
    weights: &[f32],
    values: &[f32],
    stride: usize,
    column: usize,
    out: &mut [f32; N],
) {
    let mut sums = *out;
    for (weight, values) in weights.iter().zip(values.chunks_exact(stride)) {
        let values: &[f32; N] = values[column..].first_chunk().expect("columns lie within the row");
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += weight * value;
        }
    }
    *out = sums;
}

/// `out = Σ weight · value` of integers over the first `positions` positions of some pages of values, blocks of
/// `[PAGE / 4, BLOCK, 4]` each; `out` is `[weights.len(), dim]`.
#[inline(always)]
pub fn weigh_int8(weights: &[Weights], pages: &[&[u8]], positions: usize, out: &mut [i32]) {
    let dim = out.len() / weights.len();
    for (weights, out) in weights.iter().zip(out.chunks_exact_mut(dim)) {
        for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let quads = weights[0].as_chunks::<4>().0.iter().zip(weights[1].as_chunks::<4>().0);
            let blocks = pages.iter().map(|page| &page[block * BLOCK * PAGE..][..BLOCK * PAGE]);
            let values = blocks.flat_map(|block| block.as_chunks::<{ 4 * BLOCK }>().0);
            out.fill(0);
            for ((&first, &second), values) in quads.zip(values).take(positions.div_ceil(4)) {
                let weights = from_pairs([first, second]);
                for (out, value) in out.iter_mut().zip(values.as_chunks::<4>().0) {
                    for (weight, &value) in weights.iter().zip(value) {
                        *out += weight * i32::from(value as i8);
                    }
                }
            }
        }
    }
}

/// `y = sum · scale`.
#[inline(always)]
pub fn scale_sums(sums: &[i32], scale: f32, y: &mut [f32]) {
    for (y, &sum) in y.iter_mut().zip(sums) {
        *y = sum as f32 * scale;
    }
}

/// What some queries got from a chunk, or from all chunks up to one.
#[derive(Clone, Debug, Default)]
pub struct Partials {
    /// The greatest score of each query.
    pub max: Vec<f32>,
    /// The sum of each query's weights.
    pub sum: Vec<f32>,
    /// The sums of weighted values, `[queries, head_dim]`.
    pub vectors: Vec<f32>,
}

impl Partials {
    /// Bytes in use, with those kept for later.
    pub(crate) fn heap_bytes(&self) -> usize {
        [&self.max, &self.sum, &self.vectors].map(heap_bytes).iter().sum()
    }

    /// Makes room for some queries with `head_dim` elements each; the sums begin with 0.
    pub fn clear(&mut self, queries: usize, dim: usize) {
        for (numbers, len) in
            [(&mut self.max, queries), (&mut self.sum, queries), (&mut self.vectors, queries * dim)]
        {
            numbers.clear();
            numbers.resize(len, 0.0);
        }
    }
}

/// Adds what the first `into.sum.len()` queries got from the next chunk to what they got from those before.
#[inline(always)]
pub fn fold(into: &mut Partials, next: &Partials) {
    let dim = into.vectors.len() / into.sum.len();
    let vectors = into.vectors.chunks_exact_mut(dim).zip(next.vectors.chunks_exact(dim));
    for (query, (sums, added)) in vectors.enumerate() {
        let (old, new) = (into.max[query], next.max[query]);
        let max = if new > old { new } else { old };
        let (old, new) = (exp(old - max), exp(new - max));
        into.max[query] = max;
        into.sum[query] = into.sum[query] * old + next.sum[query] * new;
        for (sum, added) in sums.iter_mut().zip(added) {
            *sum = *sum * old + *added * new;
        }
    }
}

/// The result of one query once all its chunks are folded.
#[inline(always)]
pub fn finish(partials: &Partials, query: usize, out: &mut [f32]) {
    let factor = 1.0 / partials.sum[query];
    let vector = &partials.vectors[query * out.len()..][..out.len()];
    out.iter_mut().zip(vector).for_each(|(out, x)| *out = x * factor);
}
