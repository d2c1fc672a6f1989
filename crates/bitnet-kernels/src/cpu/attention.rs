//! Attention and what it keeps, cut into items for the compute threads.
//!
//! An item is a key-value head of a tile, which is at most [`TILE`] neighbouring tokens of a sequence: keys and values are read
//! once for all of its queries. When there are too few of those for the threads, as for a single token, each chunk of positions
//! is an item of its own. Both ways make the same sums (`scalar/attention.rs`), so the result does not depend on the choice.

use std::ops::Range;

use super::isa::Isa;
use super::pool::{Reversed, Stripe, cells, ranges};
#[cfg(target_arch = "x86_64")]
use super::x86::attention as tier;
use super::{CpuBackend, Matrix, WorkerScratch};
use crate::backend::Span;
use crate::kv::{BLOCK, KvLayer, KvPart, KvShape, KvType, PAGE};
use crate::memory::heap_bytes;
use crate::scalar::attention::{CHUNK, Dots, Partials, Quad, Row, TOGETHER, Weights};
#[cfg(not(target_arch = "x86_64"))]
use portable as tier;

#[cfg(not(target_arch = "x86_64"))]
mod portable;

pub(super) use tier::{form, reads_stored, vector_bits};

/// Tokens whose queries attend together; tiles begin at multiples of it, so that the tokens of a tile see the same chunks.
const TILE: usize = 16;

const _: () = assert!(CHUNK.is_multiple_of(TILE));

/// Floats between two rows of values in a cache line of their own, so that rows a power of two apart do not compete for the same
/// places in the processor's cache.
const ROW_GAP: usize = 16;

/// Queries for which it does not pay to turn keys and values into floats before they are multiplied.
const STORED_QUERIES: usize = 2 * TOGETHER;

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
    fn parts(
        &self,
        head: usize,
        chunk: usize,
    ) -> impl Iterator<Item = (KvPart<'a>, usize)> + use<'a> {
        let (kv, pages, end) = (self.kv, self.pages, self.seen().min((chunk + 1) * CHUNK));
        (chunk * CHUNK..end)
            .step_by(PAGE)
            .map(move |start| (kv.part(pages[start / PAGE] as usize, head), PAGE.min(end - start)))
    }
}

/// A chunk of what a tile's queries of one head see.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    tile: Tile<'a>,
    head: usize,
    number: usize,
}

impl<'a> Chunk<'a> {
    /// The parts of its pages, and how many positions the last token sees in each.
    fn parts(&self) -> impl Iterator<Item = (KvPart<'a>, usize)> + use<'a> {
        self.tile.parts(self.head, self.number)
    }
}

/// Working memory of a thread.
#[derive(Default)]
pub(super) struct Scratch {
    queries: Queries,
    /// Keys or values of a page as floats.
    page: Page,
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

impl Scratch {
    /// Bytes in use, with those kept for later.
    pub fn heap_bytes(&self) -> usize {
        let Queries { count: _, rows, floats, quads, scales } = &self.queries;
        let queries =
            heap_bytes(rows) + heap_bytes(floats) + heap_bytes(quads) + heap_bytes(scales);
        let rows = heap_bytes(&self.scores) + heap_bytes(&self.dots) + heap_bytes(&self.weights);
        let sums = heap_bytes(&self.page.0) + heap_bytes(&self.scales) + heap_bytes(&self.sums);
        queries + rows + sums + self.all.heap_bytes() + self.one.heap_bytes()
    }
}

/// Floats from the beginning of a line of the processor's cache on, so that no vector lies across two.
#[derive(Default)]
struct Page(Vec<f32>);

impl Page {
    /// The first `count`, with what was last in them.
    fn floats(&mut self, count: usize) -> &mut [f32] {
        const LINE: usize = 64;
        const ROOM: usize = LINE / size_of::<f32>();
        if self.0.len() < count + ROOM {
            self.0.resize(count + ROOM, 0.0);
        }
        // If an alignment cannot be had, it works without.
        let start = Some(self.0.as_ptr().align_offset(LINE)).filter(|&start| start <= ROOM);
        &mut self.0[start.unwrap_or(0)..][..count]
    }
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
    /// What the loaded queries get from one chunk, to `self.one`; `next` is the chunk that comes after it.
    fn attend_chunk(&mut self, isa: Isa, chunk: Chunk<'_>, next: Option<Chunk<'_>>) {
        let (queries, shape) = (self.queries.padded(), chunk.tile.kv.shape());
        self.one.clear(queries, shape.head_dim);
        self.scores.resize(queries, [0.0; CHUNK]);
        match shape.dtype {
            KvType::Int8 => self.attend_int8(isa, chunk, next),
            _ => self.attend_floats(isa, chunk, next),
        }
    }

    /// For each query its number and how many positions of a chunk it sees.
    fn seen(&self, tile: &Tile<'_>, chunk: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (count, each) = (self.queries.count, self.queries.count / tile.tokens);
        let first = tile.position + 1 - chunk * CHUNK;
        (0..count).map(move |query| (query, CHUNK.min(first + query / each)))
    }

    fn attend_floats(&mut self, isa: Isa, chunk: Chunk<'_>, next: Option<Chunk<'_>>) {
        let Chunk { tile, number, .. } = chunk;
        let KvShape { head_dim: dim, dtype, .. } = tile.kv.shape();
        let (stride, row) = (dim + ROW_GAP, dim * dtype.bytes());
        let mut scales = Scales::default();
        // While one thing is turned into floats, the next is fetched.
        let stored = self.queries.padded() <= STORED_QUERIES && tier::reads_stored(isa, dtype);
        for (index, (part, positions)) in chunk.parts().enumerate() {
            let (blocks, column) = (positions.div_ceil(BLOCK), index * PAGE);
            let (queries, scores, ahead) =
                (&self.queries.floats, &mut self.scores, &part.values()[..positions * row]);
            if stored {
                let keys = &part.keys()[..blocks * BLOCK * row];
                tier::score_stored(isa, dtype, queries, keys, ahead, column, scores);
                continue;
            }
            let keys = self.page.floats(blocks * BLOCK * dim);
            tier::read_keys(isa, part, blocks, ahead, keys);
            tier::score(isa, queries, keys, column, scores);
            scales.load(part, index, positions);
        }
        let columns = tile.columns(number);
        for (query, seen) in self.seen(&tile, number) {
            let row = &mut self.scores[query][..columns];
            if dtype.has_scales() {
                isa.multiply(row, &scales.keys);
            }
            (self.one.max[query], self.one.sum[query]) = isa.softmax(row, seen);
            if dtype.has_scales() {
                isa.multiply(row, &scales.values);
            }
        }
        let mut next = next.into_iter().flat_map(|next| next.parts());
        for (index, (part, positions)) in chunk.parts().enumerate() {
            let ahead = next.next().map_or(&[][..], |(part, positions)| {
                &part.keys()[..positions.next_multiple_of(BLOCK) * row]
            });
            let (weights, column, out) = (&self.scores, index * PAGE, &mut self.one.vectors);
            if stored {
                let values = &part.values()[..positions * row];
                let ahead = if ahead.is_empty() { values } else { ahead };
                tier::weigh_stored(isa, dtype, weights, column, values, ahead, out);
                continue;
            }
            let values = self.page.floats(positions * stride);
            tier::read_values(isa, part, positions, stride, ahead, values);
            tier::weigh(isa, weights, column, values, stride, out);
        }
    }

    fn attend_int8(&mut self, isa: Isa, chunk: Chunk<'_>, next: Option<Chunk<'_>>) {
        let Chunk { tile, number, .. } = chunk;
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
        for (index, (part, positions)) in chunk.parts().enumerate() {
            let keys = &part.keys()[..positions.next_multiple_of(BLOCK) * stored];
            let (quads, dots) = (&self.queries.quads, &mut self.dots);
            tier::score_int8(isa, quads, keys, part.values(), index * PAGE, dots);
            scales.load(part, index, positions);
            (values[index], ahead[index]) = (part.values(), part.values());
        }
        if let Some(next) = next {
            for (ahead, (part, _)) in ahead.iter_mut().zip(next.parts()) {
                *ahead = part.keys();
                tier::announce(part.keys());
                tier::announce(part.values());
            }
        }
        let columns = tile.columns(number);
        for (query, seen) in self.seen(&tile, number) {
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

    /// All that the loaded queries get, to `self.all`; `next` is the first chunk of the item after this one.
    fn attend(&mut self, isa: Isa, item: Item<'_>, next: Option<Chunk<'_>>) {
        let chunks = item.tile.chunks();
        for chunk in chunks.clone() {
            let next = if chunk + 1 < chunks.end { Some(item.chunk(chunk + 1)) } else { next };
            self.attend_chunk(isa, item.chunk(chunk), next);
            if chunk == 0 {
                std::mem::swap(&mut self.all, &mut self.one);
            } else {
                isa.fold(&mut self.all, &self.one);
            }
        }
    }
}

/// How a step's attention is cut; kept for its memory.
#[derive(Default)]
pub(super) struct Plan {
    tiles: Vec<Place>,
    /// The rows of each tile.
    rows: Vec<Range<usize>>,
    /// What each item gets from each of its chunks, if chunks are items of their own, and which of these are whose.
    partials: Vec<Partials>,
    items: Vec<Range<usize>>,
    /// Some neighbouring chunks of an item each, and which of the partials they make.
    runs: Vec<Run>,
    run_partials: Vec<Range<usize>>,
}

/// Where a tile is.
struct Place {
    span: usize,
    row: usize,
    position: usize,
    tokens: usize,
}

/// Chunks of an item, from `first` on.
struct Run {
    item: usize,
    first: usize,
}

/// A key-value head of a tile.
#[derive(Clone, Copy)]
struct Item<'a> {
    tile: Tile<'a>,
    head: usize,
}

impl<'a> Item<'a> {
    fn chunk(&self, number: usize) -> Chunk<'a> {
        Chunk { tile: self.tile, head: self.head, number }
    }

    /// The columns of its queries.
    fn columns(&self, q: &Matrix) -> Range<usize> {
        let width = q.cols / self.tile.kv.shape().kv_heads;
        self.head * width..(self.head + 1) * width
    }

    fn finish(&self, isa: Isa, partials: &Partials, out: &mut Stripe<'_>) {
        let dim = self.tile.kv.shape().head_dim;
        let each = out.columns().len() / dim;
        for (token, row) in out.rows().enumerate() {
            for (query, out) in out.row(row).chunks_exact_mut(dim).enumerate() {
                isa.finish(partials, token * each + query, out);
            }
        }
    }
}

impl Plan {
    /// Bytes in use, with those kept for later.
    pub fn heap_bytes(&self) -> usize {
        let ranges = [&self.rows, &self.items, &self.run_partials].map(heap_bytes);
        let partials = self.partials.iter().map(Partials::heap_bytes).sum::<usize>();
        let partials = partials + heap_bytes(&self.partials);
        ranges.iter().sum::<usize>() + heap_bytes(&self.tiles) + heap_bytes(&self.runs) + partials
    }

    /// Cuts the spans into tiles.
    fn cut(&mut self, spans: &[Span]) {
        self.tiles.clear();
        self.rows.clear();
        for (index, span) in spans.iter().enumerate() {
            let (start, end) = (span.start, span.start + span.rows.len());
            for tile in start / TILE..end.div_ceil(TILE) {
                let positions = start.max(tile * TILE)..end.min((tile + 1) * TILE);
                let row = span.rows.start + positions.start - start;
                let (position, tokens) = (positions.start, positions.len());
                self.tiles.push(Place { span: index, row, position, tokens });
                self.rows.push(row..row + tokens);
            }
        }
    }

    fn item<'a>(&self, kv: &'a KvLayer, spans: &'a [Span], index: usize) -> Item<'a> {
        let heads = kv.shape().kv_heads;
        let Place { span, row, position, tokens } = self.tiles[index / heads];
        let tile = Tile { kv, pages: &spans[span].pages, row, position, tokens };
        Item { tile, head: index % heads }
    }

    /// Gives each item's chunks their partials, and makes runs of `len` chunks at most.
    fn run(&mut self, heads: usize, len: usize) {
        self.items.clear();
        self.runs.clear();
        self.run_partials.clear();
        let mut first = 0;
        for item in 0..self.tiles.len() * heads {
            let chunks = self.tiles[item / heads].chunks();
            self.items.push(first..first + chunks);
            for start in (0..chunks).step_by(len) {
                self.runs.push(Run { item, first: start });
                self.run_partials.push(first + start..first + chunks.min(start + len));
            }
            first += chunks;
        }
        self.partials.resize_with(first.max(self.partials.len()), Partials::default);
    }
}

impl Place {
    fn chunks(&self) -> usize {
        (self.position + self.tokens).div_ceil(CHUNK)
    }
}

/// Causal attention of every token in `spans`; see [`crate::backend::Backend::attention`].
pub(super) fn attention(
    backend: &CpuBackend,
    workers: &mut [WorkerScratch],
    plan: &mut Plan,
    q: &Matrix,
    kv: &KvLayer,
    spans: &[Span],
    out: &mut Matrix,
) {
    out.resize(q.rows(), q.cols);
    plan.cut(spans);
    let heads = kv.shape().kv_heads;
    let count = plan.tiles.len() * heads;
    let chunks = heads * plan.tiles.iter().map(Place::chunks).sum::<usize>();
    let few = count < ITEMS * backend.threads();
    if few && backend.threads() > 1 && chunks > count {
        // As many as make a few items for each thread: a thread reads memory faster when it goes on where it has been.
        plan.run(heads, chunks.div_ceil(ITEMS * backend.threads()));
        attend_chunks(backend, workers, plan, q, kv, spans, out);
        return;
    }
    // Those with the most positions of a span first.
    let parts = Reversed(cells(&mut out.data, q.cols, &plan.rows, q.cols / heads));
    backend.pool.for_each_with(workers, parts, |worker, index, mut out| {
        let (s, index) = (&mut worker.attention, count - 1 - index);
        let item = plan.item(kv, spans, index);
        let next = index.checked_sub(1).map(|next| plan.item(kv, spans, next).chunk(0));
        s.queries.load(backend.isa, q, &item.tile, item.columns(q));
        s.attend(backend.isa, item, next);
        item.finish(backend.isa, &s.all, &mut out);
    });
}

/// Attends with a few chunks at a time as an item of its own, and then folds them.
fn attend_chunks(
    backend: &CpuBackend,
    workers: &mut [WorkerScratch],
    plan: &mut Plan,
    q: &Matrix,
    kv: &KvLayer,
    spans: &[Span],
    out: &mut Matrix,
) {
    let mut partials = std::mem::take(&mut plan.partials);
    let parts = ranges(&mut partials, &plan.run_partials);
    backend.pool.for_each_with(workers, parts, |worker, index, partials| {
        let (s, run) = (&mut worker.attention, &plan.runs[index]);
        let item = plan.item(kv, spans, run.item);
        s.queries.load(backend.isa, q, &item.tile, item.columns(q));
        let last = run.first + partials.len() - 1;
        for (chunk, partials) in (run.first..).zip(partials) {
            let next = (chunk < last).then(|| item.chunk(chunk + 1));
            s.attend_chunk(backend.isa, item.chunk(chunk), next);
            std::mem::swap(partials, &mut s.one);
        }
    });
    let width = q.cols / kv.shape().kv_heads;
    let parts =
        (ranges(&mut partials, &plan.items), cells(&mut out.data, q.cols, &plan.rows, width));
    backend.pool.for_each(parts, |index, (partials, mut out)| {
        let (all, next) = partials.split_first_mut().expect("a token sees a position at least");
        next.iter().for_each(|next| backend.isa.fold(all, next));
        plan.item(kv, spans, index).finish(backend.isa, all, &mut out);
    });
    plan.partials = partials;
}

#[cfg(test)]
mod tests;
