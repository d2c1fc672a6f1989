//! Attention and what it keeps, cut into items for the compute threads.
//!
//! An item is a key-value head of a tile, which is at most [`TILE`] neighbouring tokens of a sequence: keys and values are read
//! once for all of its queries. When there are too few of those for the threads, as for a single token, each chunk of positions
//! is an item of its own. Both ways make the same sums (`scalar/attention.rs`), so the result does not depend on the choice.

use std::ops::Range;

use super::isa::Isa;
use super::pool::{self, Stripe, each, stripes};
#[cfg(target_arch = "x86_64")]
use super::x86::attention as tier;
use super::{CpuBackend, Matrix, WorkerScratch};
use crate::backend::Span;
use crate::kv::{BLOCK, KvLayer, KvPart, KvPartMut, KvParts, KvShape, KvType, PAGE};
use crate::scalar::attention::{CHUNK, Dots, Partials, Quad, Row, TOGETHER, Weights};
use crate::scalar::rope::RopeTable;

/// Tokens whose queries attend together; tiles begin at multiples of it, so that the tokens of a tile see the same chunks.
const TILE: usize = 16;

const _: () = assert!(CHUNK.is_multiple_of(TILE));

/// Floats between two rows of values in a cache line of their own, so that rows a power of two apart do not compete for the same
/// places in the processor's cache.
const ROW_GAP: usize = 16;

/// Tokens whose queries are turned as one item.
const TURNED: usize = 4;

/// Items for each thread below which chunks become items of their own.
const ITEMS: usize = 4;

/// Neighbouring tokens of a sequence.
#[derive(Clone, Copy)]
struct Tile<'a> {
    kv: &'a KvLayer,
    pages: &'a [u32],
    /// The first token's row in the batch.
    row: usize,
    /// The first token's position.
    position: usize,
    tokens: usize,
}

impl<'a> Tile<'a> {
    /// The tiles of a span.
    fn of(kv: &'a KvLayer, span: &'a Span) -> impl DoubleEndedIterator<Item = Self> {
        let (start, end) = (span.start, span.start + span.rows.len());
        (start / TILE..end.div_ceil(TILE)).map(move |index| {
            let positions = start.max(index * TILE)..end.min((index + 1) * TILE);
            let row = span.rows.start + positions.start - start;
            let (position, tokens) = (positions.start, positions.len());
            Self { kv, pages: &span.pages, row, position, tokens }
        })
    }

    /// Positions that the last token sees.
    fn seen(&self) -> usize {
        self.position + self.tokens
    }

    /// Chunks that the tokens see: all of them see the same, though not all of the last.
    fn chunks(&self) -> Range<usize> {
        0..self.seen().div_ceil(CHUNK)
    }

    /// Positions of a chunk that the last token sees, rounded up to whole blocks.
    fn columns(&self, chunk: usize) -> usize {
        (self.seen() - chunk * CHUNK).min(CHUNK).next_multiple_of(BLOCK)
    }

    /// The parts of a chunk's pages, and how many positions the last token sees in each.
    fn parts(&self, head: usize, chunk: usize) -> impl Iterator<Item = (KvPart<'a>, usize)> {
        let (kv, pages, end) = (self.kv, self.pages, self.seen().min((chunk + 1) * CHUNK));
        (chunk * CHUNK..end)
            .step_by(PAGE)
            .map(move |start| (kv.part(pages[start / PAGE] as usize, head), PAGE.min(end - start)))
    }
}

/// Working memory of a thread.
#[derive(Default)]
pub(super) struct Scratch {
    queries: Queries,
    /// Keys or values of a page as floats.
    page: Vec<f32>,
    /// A row for each query.
    scores: Vec<Row>,
    dots: Vec<Dots>,
    weights: Vec<Weights>,
    /// What the sums of each query have to be multiplied with.
    scales: Vec<f32>,
    /// Sums of integer products, `[queries, stored_dim]`.
    sums: Vec<i32>,
    /// What the tile has got so far, and from a chunk.
    all: Partials,
    one: Partials,
}

/// The scales of a chunk's keys and values; 0 for positions that nobody sees.
struct Scales {
    keys: Row,
    values: Row,
}

impl Default for Scales {
    fn default() -> Self {
        Self { keys: [0.0; CHUNK], values: [0.0; CHUNK] }
    }
}

impl Scales {
    /// Takes those of a page's first positions, if its type has them.
    fn load(&mut self, part: KvPart<'_>, index: usize, positions: usize) {
        for (scales, stored) in [&mut self.keys, &mut self.values].into_iter().zip(part.scales()) {
            let scales = scales[index * PAGE..][..positions].iter_mut().zip(stored);
            scales.for_each(|(scale, &bytes)| *scale = f32::from_le_bytes(bytes));
        }
    }
}

/// The queries of a tile that share a key-value head, `[tokens, queries per head]`, as the loops read them.
#[derive(Default)]
struct Queries {
    count: usize,
    rows: Vec<f32>,
    floats: Vec<[f32; TOGETHER]>,
    quads: Vec<[Quad; TOGETHER]>,
    /// What integer products have to be multiplied with, and what subtracted from them first.
    scales: Vec<(f32, i32)>,
}

impl Queries {
    fn load(&mut self, isa: Isa, q: &Matrix, tile: &Tile<'_>, columns: Range<usize>) {
        let shape = tile.kv.shape();
        self.rows.clear();
        for token in 0..tile.tokens {
            self.rows.extend_from_slice(&q.row(tile.row + token)[columns.clone()]);
        }
        self.count = self.rows.len() / shape.head_dim;
        let groups = self.count.div_ceil(TOGETHER);
        if shape.dtype != KvType::Int8 {
            self.floats.resize(groups * shape.head_dim, [0.0; TOGETHER]);
            isa.pack_queries(&self.rows, shape.head_dim, &mut self.floats);
            return;
        }
        let quads = shape.stored_dim() / 4;
        self.quads.clear();
        self.quads.resize(groups * quads, [Quad::default(); TOGETHER]);
        self.scales.clear();
        for (query, row) in self.rows.chunks_exact(shape.head_dim).enumerate() {
            let group = &mut self.quads[query / TOGETHER * quads..][..quads];
            self.scales.push(isa.quantize_query(row, tier::form(isa), query % TOGETHER, group));
        }
    }

    /// Their number with those that fill the last group.
    fn padded(&self) -> usize {
        self.count.next_multiple_of(TOGETHER)
    }
}

impl Scratch {
    /// What the loaded queries get from one chunk, to `self.one`; `more` says that the next chunk comes after it.
    fn attend_chunk(&mut self, isa: Isa, tile: &Tile<'_>, head: usize, chunk: usize, more: bool) {
        let (queries, shape) = (self.queries.padded(), tile.kv.shape());
        self.one.clear(queries, shape.head_dim);
        self.scores.resize(queries, [0.0; CHUNK]);
        match shape.dtype {
            KvType::Int8 => self.attend_int8(isa, tile, head, chunk, more),
            _ => self.attend_floats(isa, tile, head, chunk),
        }
    }

    /// For each query its number and how many positions of a chunk it sees.
    fn seen(&self, tile: &Tile<'_>, chunk: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (count, each) = (self.queries.count, self.queries.count / tile.tokens);
        let first = tile.position + 1 - chunk * CHUNK;
        (0..count).map(move |query| (query, CHUNK.min(first + query / each)))
    }

    fn attend_floats(&mut self, isa: Isa, tile: &Tile<'_>, head: usize, chunk: usize) {
        let KvShape { head_dim: dim, dtype, .. } = tile.kv.shape();
        let stride = dim + ROW_GAP;
        self.page.resize(PAGE * stride, 0.0);
        let mut scales = Scales::default();
        for (index, (part, positions)) in tile.parts(head, chunk).enumerate() {
            let blocks = positions.div_ceil(BLOCK);
            let keys = &mut self.page[..blocks * BLOCK * dim];
            tier::announce(part.values());
            tier::read_keys(isa, part, blocks, keys);
            tier::score(isa, &self.queries.floats, keys, index * PAGE, &mut self.scores);
            scales.load(part, index, positions);
        }
        let columns = tile.columns(chunk);
        for (query, seen) in self.seen(tile, chunk) {
            let row = &mut self.scores[query][..columns];
            if dtype.has_scales() {
                isa.multiply(row, &scales.keys);
            }
            (self.one.max[query], self.one.sum[query]) = isa.softmax(row, seen);
            if dtype.has_scales() {
                isa.multiply(row, &scales.values);
            }
        }
        let mut next = tile.parts(head, chunk + 1);
        for (index, (part, positions)) in tile.parts(head, chunk).enumerate() {
            if let Some((next, _)) = next.next() {
                tier::announce(next.keys());
            }
            let values = &mut self.page[..positions * stride];
            tier::read_values(isa, part, positions, stride, values);
            let out = &mut self.one.vectors;
            tier::weigh(isa, &self.scores, index * PAGE, values, stride, out);
        }
    }

    fn attend_int8(&mut self, isa: Isa, tile: &Tile<'_>, head: usize, chunk: usize, more: bool) {
        let (shape, queries) = (tile.kv.shape(), self.queries.padded());
        let (dim, stored) = (shape.head_dim, shape.stored_dim());
        self.dots.resize(queries, [0; CHUNK]);
        self.weights.resize(queries, [[0; CHUNK]; 2]);
        self.scales.resize(queries, 0.0);
        self.sums.resize(queries * stored, 0);
        let mut scales = Scales::default();
        let mut values = [&[][..]; CHUNK / PAGE];
        // While one thing is multiplied, the next is fetched: a token alone has too little work for each byte to wait for it.
        let mut ahead = [&[][..]; CHUNK / PAGE];
        for (index, (part, positions)) in tile.parts(head, chunk).enumerate() {
            let keys = &part.keys()[..positions.next_multiple_of(BLOCK) * stored];
            let (quads, dots) = (&self.queries.quads, &mut self.dots);
            tier::score_int8(isa, quads, keys, part.values(), index * PAGE, dots);
            scales.load(part, index, positions);
            (values[index], ahead[index]) = (part.values(), part.values());
        }
        if more {
            for (ahead, (part, _)) in ahead.iter_mut().zip(tile.parts(head, chunk + 1)) {
                *ahead = part.keys();
                tier::announce(part.keys());
                tier::announce(part.values());
            }
        }
        let columns = tile.columns(chunk);
        for (query, seen) in self.seen(tile, chunk) {
            let (row, weights) = (&mut self.scores[query][..columns], &mut self.weights[query]);
            isa.scale_dots(&self.dots[query], self.queries.scales[query], &scales.keys, row);
            (self.one.max[query], self.one.sum[query]) = isa.softmax(row, seen);
            self.scales[query] =
                isa.quantize_weights(row, &scales.values, tier::form(isa), weights);
        }
        let pages = columns.div_ceil(PAGE);
        let (values, ahead) = (&values[..pages], &ahead[..pages]);
        tier::weigh_int8(isa, &self.weights, values, ahead, columns, &mut self.sums);
        let vectors = self.one.vectors.chunks_exact_mut(dim).zip(self.sums.chunks_exact(stored));
        for ((vector, sums), &scale) in vectors.zip(&self.scales) {
            isa.scale_sums(sums, scale, vector);
        }
    }

    /// All that the loaded queries get, to `self.all`.
    fn attend(&mut self, isa: Isa, tile: &Tile<'_>, head: usize) {
        for chunk in tile.chunks() {
            self.attend_chunk(isa, tile, head, chunk, true);
            if chunk == 0 {
                std::mem::swap(&mut self.all, &mut self.one);
            } else {
                isa.fold(&mut self.all, &self.one);
            }
        }
    }
}

/// Causal attention of every token in `spans`; see [`crate::backend::Backend::attention`].
pub(super) fn attention(
    backend: &CpuBackend,
    workers: &mut [WorkerScratch],
    partials: &mut Vec<Partials>,
    q: &Matrix,
    kv: &KvLayer,
    spans: &[Span],
    out: &mut Matrix,
) {
    out.resize(q.rows(), q.cols);
    let mut items = items(q, kv, spans, &mut out.data);
    let chunks: usize = items.iter().map(|item| item.tile.chunks().len()).sum();
    let few = items.len() < ITEMS * backend.threads();
    if few && backend.threads() > 1 && chunks > items.len() {
        attend_chunks(backend, workers, partials, chunks, q, &mut items);
        return;
    }
    backend.pool.for_each_with(workers, pool::items(&mut items), |worker, _, item| {
        let s = &mut worker.attention;
        s.queries.load(backend.isa, q, &item.tile, item.out.columns());
        s.attend(backend.isa, &item.tile, item.head);
        item.finish(backend.isa, &s.all);
    });
}

/// A key-value head of a tile.
struct Item<'a> {
    tile: Tile<'a>,
    head: usize,
    /// The columns of its queries in the tile's rows.
    out: Stripe<'a>,
}

impl Item<'_> {
    fn finish(&mut self, isa: Isa, partials: &Partials) {
        let dim = self.tile.kv.shape().head_dim;
        let each = self.out.columns().len() / dim;
        for token in 0..self.tile.tokens {
            for (query, out) in self.out.row(token).chunks_exact_mut(dim).enumerate() {
                isa.finish(partials, token * each + query, out);
            }
        }
    }
}

/// All items, those with the most positions of a span first.
fn items<'a>(
    q: &Matrix,
    kv: &'a KvLayer,
    spans: &'a [Span],
    mut out: &'a mut [f32],
) -> Vec<Item<'a>> {
    let mut items = Vec::new();
    for tile in spans.iter().flat_map(|span| Tile::of(kv, span)) {
        let (rows, rest) = out.split_at_mut(tile.tokens * q.cols);
        out = rest;
        let heads = each(stripes(rows, q.cols, q.cols / kv.shape().kv_heads)).enumerate();
        items.extend(heads.map(|(head, out)| Item { tile, head, out }));
    }
    items.reverse();
    items
}

/// Attends with a few chunks at a time as an item of its own, and then folds them.
fn attend_chunks(
    backend: &CpuBackend,
    workers: &mut [WorkerScratch],
    partials: &mut Vec<Partials>,
    chunks: usize,
    q: &Matrix,
    items: &mut [Item<'_>],
) {
    partials.resize_with(chunks.max(partials.len()), Partials::default);
    // As many as make a few items for each thread: a thread reads memory faster when it goes on where it has been.
    let run = chunks.div_ceil(ITEMS * backend.threads());
    let (mut parts, mut rest) = (Vec::new(), &mut partials[..]);
    for Item { tile, head, out } in &*items {
        let (mine, others) = rest.split_at_mut(tile.chunks().len());
        rest = others;
        let runs = mine.chunks_mut(run).enumerate();
        parts.extend(runs.map(|(i, partials)| (*tile, *head, out.columns(), i * run, partials)));
    }
    backend.pool.for_each_with(workers, pool::items(&mut parts), |worker, _, part| {
        let (tile, head, columns, first, partials) = part;
        let s = &mut worker.attention;
        s.queries.load(backend.isa, q, tile, columns.clone());
        let last = *first + partials.len() - 1;
        for (chunk, partials) in (*first..).zip(&mut **partials) {
            s.attend_chunk(backend.isa, tile, *head, chunk, chunk < last);
            std::mem::swap(partials, &mut s.one);
        }
    });
    let mut rest = &mut partials[..];
    let mut folds = Vec::new();
    for item in items {
        let (mine, others) = rest.split_at_mut(item.tile.chunks().len());
        rest = others;
        folds.push((item, mine));
    }
    backend.pool.for_each(pool::items(&mut folds), |_, (item, partials)| {
        let (all, next) = partials.split_first_mut().expect("a token sees a position at least");
        next.iter().for_each(|next| backend.isa.fold(all, next));
        item.finish(backend.isa, all);
    });
}

/// What there is to do before attention.
enum Before<'a> {
    /// To turn the queries of some tokens.
    Turn { row: usize, queries: &'a mut [f32] },
    /// To turn and store the keys, and to store the values, of one head that belong to one group of pages.
    Store(KvPartMut<'a>),
}

/// See [`crate::backend::Backend::rotate_and_store`]; `k` stays as it is.
pub(super) fn rotate_and_store(
    backend: &CpuBackend,
    rope: &RopeTable,
    slots: &[u32],
    q: &mut Matrix,
    k: &Matrix,
    v: &Matrix,
    kv: &mut KvLayer,
) {
    let (isa, dim) = (backend.isa, kv.shape().head_dim);
    let KvParts { order, parts } = kv.parts_mut(slots);
    let queries = q.data.chunks_mut((TURNED * q.cols).max(1)).enumerate();
    let turn = queries.map(|(i, queries)| Before::Turn { row: i * TURNED, queries });
    let mut items: Vec<_> = turn.chain(parts.into_iter().map(Before::Store)).collect();
    let work = |_: usize, item: &mut Before<'_>| match item {
        Before::Turn { row, queries } => {
            for (row, queries) in (*row..).zip(queries.chunks_mut(q.cols)) {
                let (cos, sin) = rope.row(row);
                isa.rotate(cos, sin, queries);
            }
        }
        Before::Store(part) => {
            let (mut usual, mut long) = ([0.0; 256], Vec::new());
            let key = match usual.get_mut(..dim) {
                Some(key) => key,
                None => {
                    long.resize(dim, 0.0);
                    &mut long[..]
                }
            };
            for &row in &order[part.slots.clone()] {
                let (row, columns) = (row as usize, part.head * dim..(part.head + 1) * dim);
                key.copy_from_slice(&k.row(row)[columns.clone()]);
                let (cos, sin) = rope.row(row);
                isa.rotate(cos, sin, key);
                isa.store_kv(part, slots[row] as usize, key, &v.row(row)[columns]);
            }
        }
    };
    match slots.len() {
        // Not worth waking the others for.
        1 => items.iter_mut().for_each(|item| work(0, item)),
        _ => backend.pool.for_each(pool::items(&mut items), work),
    }
}

/// Where there are no loops for tiers: the portable ones, which use the vectors that the whole build may use.
#[cfg(not(target_arch = "x86_64"))]
mod tier {
    use super::*;
    use crate::scalar::attention::{self as portable, Form};

    pub fn form(_: Isa) -> Form {
        Form::Pairs
    }

    pub fn read_keys(isa: Isa, part: KvPart<'_>, blocks: usize, out: &mut [f32]) {
        isa.read_keys(part, blocks, out);
    }

    pub fn read_values(
        isa: Isa,
        part: KvPart<'_>,
        positions: usize,
        stride: usize,
        out: &mut [f32],
    ) {
        isa.read_values(part, positions, stride, out);
    }

    pub fn announce(_: &[u8]) {} // processors without loops of their own are left to their own prefetching

    pub fn score(_: Isa, q: &[[f32; TOGETHER]], keys: &[f32], column: usize, scores: &mut [Row]) {
        portable::score(q, keys, column, scores);
    }

    pub fn weigh(
        _: Isa,
        weights: &[Row],
        column: usize,
        values: &[f32],
        stride: usize,
        out: &mut [f32],
    ) {
        portable::weigh(weights, column, values, stride, out);
    }

    pub fn score_int8(
        _: Isa,
        q: &[[Quad; TOGETHER]],
        keys: &[u8],
        _: &[u8],
        column: usize,
        dots: &mut [Dots],
    ) {
        portable::score_int8(q, keys, column, dots);
    }

    pub fn weigh_int8(
        _: Isa,
        weights: &[Weights],
        pages: &[&[u8]],
        _: &[&[u8]],
        positions: usize,
        out: &mut [i32],
    ) {
        portable::weigh_int8(weights, pages, positions, out);
    }
}

#[cfg(test)]
mod tests;
