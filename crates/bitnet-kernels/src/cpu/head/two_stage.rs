//! The two-stage head: upper bounds of all logits from two bits a weight, then exact logits of the rows that may matter.
//!
//! What it gives are the logits of the int8 head, or fewer of them. Bounds hold with a probability only
//! ([`crate::scalar::screen`]), so one answer in `AUDIT_EVERY` is held against all logits, and after a miss all logits are
//! computed always. They are as well when all are wanted, when a search would take too long, and for most tokens where that was
//! so of most others (`back_off`).

mod back_off;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::packed::{GROUP_COLS, Int8Head};
use super::product::Int8Product;
use super::rows::Int8Rows;
use super::screen::{Screen, ScreenPart};
use super::search::{Search, State};
use super::split::SplitRows;
use crate::activation::QuantizedRows;
use crate::cpu::isa::Isa;
use crate::cpu::packed::PANEL_ROWS;
use crate::cpu::pool::{Stripe, ThreadPool, chunks, items, stripes};
use crate::cpu::{self, CpuBackend};
use crate::dense::DenseMatrix;
use crate::head::{HeadRecord, InvalidHead};
use crate::logits::{LogitRow, Logits, Wanted};
use crate::memory::{Lines, heap_bytes};
use crate::scalar::int8::MAX_COLS;
use crate::scalar::screen::{Rotation, TokenBounds, Turning};
use back_off::BackOff;

/// Answers until the next that is held against all logits; the first one is.
const AUDIT_EVERY: u64 = 1000;

/// Panels that a thread packs at a time: 4096 rows, whose stored bytes can then be given back.
const PANELS_AT_ONCE: usize = 256;

/// Panels that are put together at a time where all logits are computed: 320 KB at 2560 columns.
const GATHERED_PANELS: usize = 8;

/// Rows that a thread screens at a time, at most: 330 KB of 2560 columns.
const SCREENED_ROWS: usize = 512;

/// An output head in two forms: two bits a weight to search, int8 for what is found.
#[derive(Debug)]
pub struct TwoStageHead {
    rows: Int8Rows,
    screen: Screen,
    record: Arc<HeadRecord>,
    back_off: Mutex<BackOff>,
}

impl TwoStageHead {
    /// Quantizes and packs a head with the threads of a pool. `taken` hears of rows whose stored bytes have been read.
    ///
    /// # Errors
    /// If a weight is not finite or the head is wider than 32-bit sums allow.
    pub fn pack(
        weights: &DenseMatrix,
        isa: Isa,
        pool: &ThreadPool,
        taken: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<Self, InvalidHead> {
        let (rows, cols) = (weights.rows(), weights.cols());
        if cols > MAX_COLS {
            return Err(InvalidHead::TooWide { cols });
        }
        let (mut all, mut screen) = (Int8Rows::new(rows, cols), Screen::new(rows, cols));
        let (stride, step) = (all.stride(), PANELS_AT_ONCE * PANEL_ROWS);
        let mut results = vec![Ok(0.0); rows.div_ceil(step)];
        let (values, scales) = all.parts();
        let (rotation, part) = screen.parts();
        let blocks = PANELS_AT_ONCE * Screen::blocks_per_panel(rotation);
        let ints = (chunks(values, step * stride), chunks(scales, step));
        let factors = (chunks(part.estimates, step), chunks(part.margins, step));
        let parts = (ints, ((chunks(part.blocks, blocks), factors), items(&mut results)));
        pool.for_each(parts, |part, ((values, scales), ((blocks, factors), result))| {
            let first = part * step;
            let mut packing = Packing { weights, isa, first, values, scales };
            let (estimates, margins) = factors;
            let screen = ScreenPart { blocks, estimates, margins };
            *result = packing.pack(rotation, screen);
            taken(first..rows.min(first + step));
        });
        let lengths = results.into_iter().collect::<Result<Vec<f32>, _>>()?;
        screen.set_length(lengths.into_iter().fold(0.0, f32::max));
        Ok(Self::new(all, screen))
    }

    fn new(rows: Int8Rows, screen: Screen) -> Self {
        Self { rows, screen, record: Arc::default(), back_off: Mutex::default() }
    }

    /// A head `[rows, cols]` that was packed before, of its rows with their scales and its screen with its factors; none if
    /// these are not those of such a head.
    pub(crate) fn of_parts(
        rows: usize,
        cols: usize,
        [(values, scales), (screen, factors)]: [(Lines, Vec<f32>); 2],
    ) -> Option<Self> {
        (rows > 0 && (1..=MAX_COLS).contains(&cols)).then_some(())?;
        let all = Int8Rows::of_lines(rows, cols, values, scales)?;
        let screen = Screen::of_lines(rows, cols, screen, factors)?;
        Some(Self::new(all, screen))
    }

    /// The bytes of rows and screen, with scales and factors, as [`of_parts`](Self::of_parts) takes them.
    pub(crate) fn stored(&self) -> [(&[u8], Cow<'_, [f32]>); 2] {
        let ((values, scales), (screen, factors)) = (self.rows.stored(), self.screen.stored());
        [(values, scales.into()), (screen, factors.into())]
    }

    /// Rows: the size of the vocabulary.
    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// Bytes that a token reads before any row is computed.
    pub(crate) fn screen_bytes(rows: usize, cols: usize) -> usize {
        Screen::bytes(rows, cols)
    }

    /// Bytes of a row that is computed.
    pub(crate) fn row_bytes(cols: usize) -> usize {
        cols.next_multiple_of(GROUP_COLS) + size_of::<f32>()
    }

    /// Where it counts what happens.
    pub fn record(&self) -> &Arc<HeadRecord> {
        &self.record
    }
}

/// Some rows to be packed, whole panels but for the last.
struct Packing<'a> {
    weights: &'a DenseMatrix,
    isa: Isa,
    first: usize,
    values: &'a mut [u8],
    scales: &'a mut [f32],
}

impl Packing<'_> {
    /// Returns the greatest length of a row.
    fn pack(&mut self, rotation: &Rotation, screen: ScreenPart<'_>) -> Result<f32, InvalidHead> {
        let stride = self.weights.cols().next_multiple_of(GROUP_COLS);
        let (mut floats, mut turning, mut length) = (Vec::new(), Turning::default(), 0.0_f32);
        let mut quantized = vec![0_i8; PANEL_ROWS * stride];
        let per_panel = Screen::blocks_per_panel(rotation);
        let panels = self.values.chunks_mut(PANEL_ROWS * stride);
        let panels = panels.zip(self.scales.chunks_mut(PANEL_ROWS)).enumerate();
        for (panel, (values, scales)) in panels {
            let first = self.first + panel * PANEL_ROWS;
            for ((r, q), scale) in quantized.chunks_mut(stride).enumerate().zip(&mut *scales) {
                let row = first + r;
                let found = self.isa.quantize_head_row(self.weights, row, &mut floats, q);
                *scale = found.ok_or(InvalidHead::NotFinite { row })?;
            }
            for (value, q) in values.iter_mut().zip(&quantized) {
                *value = *q as u8;
            }
            let lanes = panel * PANEL_ROWS..(panel + 1) * PANEL_ROWS;
            let mut part = ScreenPart {
                blocks: &mut screen.blocks[panel * per_panel..][..per_panel],
                estimates: &mut screen.estimates[lanes.clone()],
                margins: &mut screen.margins[lanes],
            };
            let rows = (&quantized[..scales.len() * stride], stride);
            length = length.max(part.fill(self.isa, rotation, rows, scales, &mut turning));
        }
        Ok(length)
    }
}

/// Working memory of one thread.
#[derive(Default)]
pub(in crate::cpu) struct WorkerScratch {
    turning: Turning,
    sums: Vec<i32>,
    gathered: Option<Int8Head>,
}

/// Working memory of searches.
#[derive(Default)]
pub(in crate::cpu) struct Scratch {
    /// Which tokens are searched for.
    tokens: Vec<usize>,
    screened: QuantizedRows,
    token_bounds: Vec<TokenBounds>,
    /// `[tokens, rows]` and `[tokens, panels]`.
    bounds: Vec<f32>,
    greatest: Vec<f32>,
    searches: Vec<Search>,
    batch: ExactBatch,
    /// The tokens of which all logits are computed.
    whole: Vec<usize>,
    rest: SplitRows,
    found: (Vec<u32>, Vec<f32>),
}

/// Rows of some tokens to be computed, in groups of sixteen with the same token.
#[derive(Default)]
struct ExactBatch {
    /// Token of each group.
    tokens: Vec<usize>,
    /// Rows of each group; the last of a token's is filled up with any.
    ids: Vec<[u32; PANEL_ROWS]>,
    /// Where the logits of each search begin.
    starts: Vec<usize>,
    logits: Vec<f32>,
}

impl Scratch {
    /// Bytes in use, with those kept for later, but for what grows with the rows that are found.
    pub fn heap_bytes(&self) -> usize {
        let bounds = heap_bytes(&self.bounds) + heap_bytes(&self.greatest);
        self.screened.heap_bytes()
            + bounds
            + heap_bytes(&self.batch.logits)
            + self.rest.heap_bytes()
    }
}

impl WorkerScratch {
    /// Bytes in use, with those kept for later, but for gathered rows.
    pub fn heap_bytes(&self) -> usize {
        self.turning.heap_bytes() + heap_bytes(&self.sums)
    }
}

impl CpuBackend {
    /// Logits of all tokens of `x`, of each at least what `rows` says is wanted.
    pub(super) fn two_stage_logits(
        &self,
        head: &TwoStageHead,
        x: &SplitRows,
        rows: &[(usize, Wanted)],
        scratch: &mut Scratch,
        workers: &mut [cpu::WorkerScratch],
        out: &mut Logits,
    ) {
        self.turn(head, x, rows, scratch, workers);
        self.screen(head, scratch, workers);
        self.search(head, x, rows, scratch, workers);
        let audited = scratch.finish(head, rows);
        let whole = out.reset(head.rows(), scratch.whole.len());
        if !scratch.whole.is_empty() {
            x.select(&scratch.whole, &mut scratch.rest);
            self.all_logits(head, &scratch.rest, workers, whole);
        }
        scratch.emit(rows.len(), out);
        for token in audited {
            scratch.audit(head, token, &rows[token].1, out.row(token));
        }
    }

    /// Turns the tokens that are searched for: those of which some logits are wanted, for which a search pays, and that floats
    /// have room for.
    fn turn(
        &self,
        head: &TwoStageHead,
        x: &SplitRows,
        rows: &[(usize, Wanted)],
        scratch: &mut Scratch,
        workers: &mut [cpu::WorkerScratch],
    ) {
        let Scratch { tokens, screened, token_bounds, .. } = scratch;
        let trusted = head.record.misses.load(Ordering::Relaxed) == 0;
        let some = rows.iter().enumerate().filter(|(_, (_, some))| trusted && *some != Wanted::All);
        tokens.clear();
        tokens.extend(some.map(|(token, _)| token));
        let asked = tokens.len();
        let mut back_off = head.back_off.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|&token| back_off.pays(&rows[token].1));
        drop(back_off);
        let left_out = (asked - tokens.len()) as u64;
        head.record.given_up.fetch_add(left_out, Ordering::Relaxed);
        head.record.left_out.fetch_add(left_out, Ordering::Relaxed);
        let rotation = head.screen.rotation();
        screened.resize(tokens.len(), rotation.len());
        token_bounds.resize(tokens.len(), TokenBounds::default());
        let (values, stride, _, sums) = screened.as_mut_parts();
        let parts = (chunks(values, stride), items(token_bounds));
        self.pool.for_each_with(workers, parts, |worker, i, (q, bounds)| {
            let halves = x.halves(tokens[i]).map(|half| half.as_flattened().as_flattened());
            let scale = x.split(tokens[i]).scale;
            *bounds =
                self.isa.screen_token(rotation, halves, scale, &mut worker.two_stage.turning, q);
        });
        let mut kept = 0;
        for i in 0..tokens.len() {
            if head.screen.holds(&token_bounds[i]) {
                values.copy_within(i * stride..(i + 1) * stride, kept * stride);
                (tokens[kept], token_bounds[kept]) = (tokens[i], token_bounds[i]);
                sums[kept] = token_bounds[i].sum;
                kept += 1;
            }
        }
        tokens.truncate(kept);
        token_bounds.truncate(kept);
        screened.resize(kept, rotation.len());
    }

    /// Upper bounds of all rows for the tokens that are searched for.
    fn screen(
        &self,
        head: &TwoStageHead,
        scratch: &mut Scratch,
        workers: &mut [cpu::WorkerScratch],
    ) {
        let Scratch { tokens, screened, token_bounds, bounds, greatest, .. } = scratch;
        if tokens.is_empty() {
            return;
        }
        let (rows, panels) = (head.rows(), head.rows().div_ceil(PANEL_ROWS));
        bounds.resize(tokens.len() * rows, 0.0);
        greatest.resize(tokens.len() * panels, 0.0);
        let width = panels.div_ceil(4 * self.threads()).clamp(1, SCREENED_ROWS / PANEL_ROWS);
        let parts = (stripes(bounds, rows, width * PANEL_ROWS), stripes(greatest, panels, width));
        self.pool.for_each_with(workers, parts, |worker, _, (mut bounds, mut greatest)| {
            let (isa, panels) = (self.isa, greatest.columns());
            head.screen.bounds(
                isa,
                panels,
                screened,
                &mut worker.two_stage.sums,
                |token, sums, factors| {
                    let by = &token_bounds[token];
                    isa.upper_bounds(sums, factors, by, bounds.row(token), greatest.row(token));
                },
            );
        });
    }

    /// Computes rows until every search is over.
    fn search(
        &self,
        head: &TwoStageHead,
        x: &SplitRows,
        rows: &[(usize, Wanted)],
        scratch: &mut Scratch,
        workers: &mut [cpu::WorkerScratch],
    ) {
        let Scratch { tokens, searches, bounds, greatest, batch, .. } = scratch;
        if tokens.is_empty() {
            return;
        }
        searches.resize_with(tokens.len().max(searches.len()), Search::default);
        let searches = &mut searches[..tokens.len()];
        let (width, panels) = (head.rows(), head.rows().div_ceil(PANEL_ROWS));
        let of = |i: usize| (&bounds[i * width..][..width], &greatest[i * panels..][..panels]);
        self.pool.for_each(items(searches), |i, search| {
            let Wanted::Some { always, others } = &rows[tokens[i]].1 else {
                unreachable!("only tokens of which some logits are wanted are searched for")
            };
            let (bounds, greatest) = of(i);
            search.begin(always, *others, bounds, greatest);
        });
        while searches.iter().any(|search| search.state() == State::Pending) {
            batch.fill(searches, tokens);
            self.exact_logits(head, x, batch, workers);
            let batch = &*batch;
            self.pool.for_each(items(searches), |i, search| {
                if search.state() == State::Pending {
                    let (bounds, greatest) = of(i);
                    search.advance(batch.of(i, search.pending().len()), bounds, greatest);
                }
            });
        }
    }

    /// The logits of some rows of some tokens.
    fn exact_logits(
        &self,
        head: &TwoStageHead,
        x: &SplitRows,
        batch: &mut ExactBatch,
        workers: &mut [cpu::WorkerScratch],
    ) {
        let ExactBatch { tokens, ids, logits, .. } = batch;
        logits.resize(ids.len() * PANEL_ROWS, 0.0);
        let parts = chunks(logits, PANEL_ROWS);
        self.pool.for_each_with(workers, parts, |worker, group, logits| {
            let gathered = gathered(&mut worker.two_stage.gathered, head);
            let next = *ids.get(group + 1).unwrap_or(&ids[group]);
            head.rows.gather(&ids[group..=group], next, gathered);
            let tokens = tokens[group]..tokens[group] + 1;
            let product = Int8Product { head: gathered, x, tokens };
            self.isa.int8_logits(&product, &mut only_stripe(logits, PANEL_ROWS));
        });
    }

    /// All logits of all tokens.
    fn all_logits(
        &self,
        head: &TwoStageHead,
        x: &SplitRows,
        workers: &mut [cpu::WorkerScratch],
        out: &mut [f32],
    ) {
        let parts = stripes(out, head.rows(), GATHERED_PANELS * PANEL_ROWS);
        self.pool.for_each_with(workers, parts, |worker, _, mut stripe| {
            let columns = stripe.columns();
            let gathered = gathered(&mut worker.two_stage.gathered, head);
            let last = head.rows() - 1;
            let ids = |panel: usize| {
                std::array::from_fn(|r| (columns.start + panel * PANEL_ROWS + r).min(last) as u32)
            };
            let panels: [_; GATHERED_PANELS] = std::array::from_fn(ids);
            let panels = &panels[..columns.len().div_ceil(PANEL_ROWS)];
            head.rows.gather(panels, ids(GATHERED_PANELS), gathered);
            worker.floats.resize(x.rows() * columns.len(), 0.0);
            let product = Int8Product { head: gathered, x, tokens: 0..x.rows() };
            self.isa.int8_logits(&product, &mut only_stripe(&mut worker.floats, columns.len()));
            for (token, logits) in worker.floats.chunks(columns.len()).enumerate() {
                stripe.row(token).copy_from_slice(logits);
            }
        });
    }
}

/// All columns of a matrix.
fn only_stripe(matrix: &mut [f32], width: usize) -> Stripe<'_> {
    stripes(matrix, width, width).all().next().expect("a matrix with columns has a stripe")
}

/// Panels of a thread's own, for rows of this head.
fn gathered<'a>(own: &'a mut Option<Int8Head>, head: &TwoStageHead) -> &'a mut Int8Head {
    let cols = head.rows.cols();
    if own.as_ref().is_none_or(|own| own.cols() != cols) {
        *own = Some(Int8Head::empty(GATHERED_PANELS * PANEL_ROWS, cols));
    }
    own.as_mut().expect("just made")
}

impl Scratch {
    /// Counts what the searches came to, and lists the tokens of which all logits are to be computed. Returns those that have
    /// been found as well and are to be audited.
    fn finish(&mut self, head: &TwoStageHead, rows: &[(usize, Wanted)]) -> Vec<usize> {
        let (record, mut audited) = (&head.record, Vec::new());
        let mut back_off = head.back_off.lock().unwrap_or_else(PoisonError::into_inner);
        self.whole.clear();
        let mut searched = self.tokens.iter().zip(&self.searches).peekable();
        for (token, (_, wanted)) in rows.iter().enumerate() {
            let Some((_, search)) = searched.next_if(|(searched, _)| **searched == token) else {
                self.whole.push(token);
                continue;
            };
            record.rows.fetch_add(search.computed() as u64, Ordering::Relaxed);
            back_off.learn(wanted, search.state() == State::Found);
            if search.state() == State::GivenUp {
                record.given_up.fetch_add(1, Ordering::Relaxed);
                self.whole.push(token);
            } else if record.found.fetch_add(1, Ordering::Relaxed).is_multiple_of(AUDIT_EVERY) {
                self.whole.push(token);
                audited.push(token);
            }
        }
        audited
    }

    /// Puts the rows together.
    fn emit(&mut self, rows: usize, out: &mut Logits) {
        let (ids, logits) = &mut self.found;
        let mut searched = self.tokens.iter().zip(&self.searches).peekable();
        let mut whole = self.whole.iter().zip(0..).peekable();
        for token in 0..rows {
            let search = searched.next_if(|(searched, _)| **searched == token);
            if let Some((_, place)) = whole.next_if(|(whole, _)| **whole == token) {
                out.push_whole(place);
            } else if let Some((_, search)) = search {
                ids.clear();
                logits.clear();
                ids.extend(search.found().iter().map(|(id, _)| *id));
                logits.extend(search.found().iter().map(|(_, logit)| *logit));
                out.push_some(ids, logits);
            }
        }
    }

    /// Holds what was found for a token against all its logits.
    fn audit(&self, head: &TwoStageHead, token: usize, wanted: &Wanted, all: LogitRow<'_>) {
        let record = &head.record;
        record.audits.fetch_add(1, Ordering::Relaxed);
        let searched = self.tokens.iter().position(|&searched| searched == token);
        let search = &self.searches[searched.expect("only tokens searched for are audited")];
        if !search.agrees(wanted, all.logits()) {
            record.misses.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                "the two-stage head missed a logit that is wanted; all logits are computed from now on"
            );
        }
    }
}

impl ExactBatch {
    /// Takes the rows that are pending.
    fn fill(&mut self, searches: &[Search], tokens: &[usize]) {
        self.tokens.clear();
        self.ids.clear();
        self.starts.clear();
        for (search, &token) in searches.iter().zip(tokens) {
            self.starts.push(self.ids.len() * PANEL_ROWS);
            for pending in search.pending().chunks(PANEL_ROWS) {
                let id = |i: usize| *pending.get(i).unwrap_or(&pending[0]);
                self.ids.push(std::array::from_fn(id));
                self.tokens.push(token);
            }
        }
    }

    /// The logits of a search's `count` rows.
    fn of(&self, search: usize, count: usize) -> &[f32] {
        &self.logits[self.starts[search]..][..count]
    }
}

#[cfg(test)]
mod tests;
