//! The choice of a packing while a model is loaded: asked for, or by a short timing.
//!
//! Generating reads all weights once for each token. Five trits a byte are fewer bytes and more work, so which packing is
//! faster is a question of how many threads share how much bandwidth, and that is what the timing answers: products of
//! one token, with the threads that will compute, over as many bytes as the model has.

use std::fmt;
use std::time::{Duration, Instant};

use super::isa::Isa;
use super::packed::{PANEL_ROWS, PackedTernary, Packing};
use super::pool::{ThreadPool, items};
use super::topology::Topology;
use crate::activation::QuantizedRows;
use crate::memory::Arena;
use crate::ternary::WeightScale;

/// Panels and blocks of the matrices that are timed: 160 KB, as a thread takes at a time from a layer of 2560 columns.
const PANELS: usize = 16;
const BLOCKS: usize = 160;
const BYTES: usize = PANELS * BLOCKS * 64;

/// Matrices for each thread in a turn: 5 MB, 0.17 ms at 30 GB/s, long beside the start of a job.
const MATRICES_EACH: usize = 32;

/// Time for all turns.
const TIME: Duration = Duration::from_millis(25);

/// Two bits a weight up to so many bytes are not timed: they stay in the last cache of most processors, where what takes
/// fewer instructions wins.
const SMALL: u64 = 8 << 20;

/// What fills a byte of a matrix that is timed: a sum of digits in either packing, and not zero, so that the memory is
/// really there.
const FILL: u8 = 0x55;

/// How much faster five trits a byte must be to be taken: two bits never cost more where computing is the limit.
const CLEARLY_FASTER: f64 = 1.03;

/// How a packing is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackingChoice {
    /// This one.
    Fixed(Packing),
    /// This one, which was found to be the fastest before.
    Remembered(Packing),
    /// The faster one for a model with so many ternary weights.
    Fastest {
        /// All that one token is multiplied with.
        weights: u64,
    },
}

/// The packing of a backend and why it has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChosenPacking {
    /// What is used, but for matrices with scales for groups of columns that it does not suit.
    pub packing: Packing,
    /// Why.
    pub reason: PackingReason,
}

/// Why a packing is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PackingReason {
    /// Nothing else was asked for.
    Fixed,
    /// It was faster at an earlier start.
    Remembered,
    /// The model is small enough to stay in cache, so bytes matter less than instructions.
    Small,
    /// It was faster, in weights per second.
    Timed {
        /// The speed of [`Packing::TwoBits`].
        two_bits: f64,
        /// The speed of [`Packing::FiveTrits`].
        five_trits: f64,
    },
}

impl fmt::Display for ChosenPacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.packing)?;
        match self.reason {
            PackingReason::Fixed => Ok(()),
            PackingReason::Remembered => f.write_str(" (timed at an earlier start)"),
            PackingReason::Small => f.write_str(" (stays in cache)"),
            PackingReason::Timed { two_bits, five_trits } => {
                let [two, five] = [two_bits, five_trits].map(|speed| speed / 1e9);
                write!(f, " (timed: 2bit {two:.0}, 1.6bit {five:.0} billion weights/s)")
            }
        }
    }
}

impl Default for ChosenPacking {
    fn default() -> Self {
        Self::fixed(Packing::default())
    }
}

impl ChosenPacking {
    /// The packing of a matrix with such scales.
    pub(super) fn for_scale(&self, scale: &WeightScale) -> Packing {
        if self.packing.suits(scale) { self.packing } else { Packing::TwoBits }
    }

    /// The one asked for.
    pub(super) fn fixed(packing: Packing) -> Self {
        Self { packing, reason: PackingReason::Fixed }
    }

    /// Times both if need be.
    pub(super) fn choose(choice: PackingChoice, isa: Isa, pool: &ThreadPool) -> Self {
        match choice {
            PackingChoice::Fixed(packing) => Self::fixed(packing),
            PackingChoice::Remembered(packing) => {
                Self { packing, reason: PackingReason::Remembered }
            }
            PackingChoice::Fastest { weights } if weights / 4 <= SMALL => {
                Self { packing: Packing::TwoBits, reason: PackingReason::Small }
            }
            PackingChoice::Fastest { weights } => {
                let [two_bits, five_trits] = time(isa, pool, weights);
                let reason = PackingReason::Timed { two_bits, five_trits };
                Self { packing: faster(two_bits, five_trits), reason }
            }
        }
    }
}

fn faster(two_bits: f64, five_trits: f64) -> Packing {
    if five_trits > CLEARLY_FASTER * two_bits { Packing::FiveTrits } else { Packing::TwoBits }
}

/// Bytes to time a model with so many weights on: all, or what the last caches cannot keep until it is read again.
fn timed_bytes(weights: u64, caches: u64) -> usize {
    let enough = (2 * caches).clamp(64 << 20, 512 << 20);
    (weights / 4).min(enough) as usize
}

/// Bytes of all last-level caches.
fn last_caches() -> u64 {
    let caches = Topology::detect().caches;
    let last = caches.iter().map(|cache| cache.level).max();
    caches.iter().filter(|cache| Some(cache.level) == last).map(|cache| cache.bytes).sum()
}

/// Weights per second of a one-token product in either packing.
///
/// The packings take turns on the same memory, each going on where the other stopped, so what a turn reads was last read
/// one round through all of it ago.
fn time(isa: Isa, pool: &ThreadPool, weights: u64) -> [f64; 2] {
    let count = timed_bytes(weights, last_caches()).div_ceil(BYTES).max(1);
    let arena = Arena::default();
    let mut matrices: Vec<Option<PackedTernary>> = vec![None; count];
    pool.for_each(items(&mut matrices), |_, matrix| {
        *matrix = Some(PackedTernary::filled(&arena, FILL, PANELS, BLOCKS));
    });
    let x = Packing::ALL.map(|packing| {
        let mut x = QuantizedRows::default();
        x.resize(1, BLOCKS * packing.block_cols());
        x
    });
    let turn = |matrices: &mut [Option<PackedTernary>], packing: Packing, x| {
        let begin = Instant::now();
        pool.for_each(items(matrices), |_, matrix| {
            let w = matrix.as_mut().expect("all were filled");
            w.read_as(packing);
            let mut out = [0; PANELS * PANEL_ROWS];
            isa.ternary_product(w, 0..PANELS, 0..BLOCKS, x, 0..1, &mut out);
            std::hint::black_box(out);
        });
        let weights = matrices.len() * BYTES * packing.weights_per_byte();
        weights as f64 / begin.elapsed().as_secs_f64()
    };
    let at_once = (MATRICES_EACH * pool.threads()).min(count);
    let (begin, mut speeds) = (Instant::now(), [Vec::new(), Vec::new()]);
    let mut first = 0;
    while speeds[1].len() < 3 || begin.elapsed() < TIME {
        for i in 0..2 {
            if first + at_once > count {
                first = 0;
            }
            let speed = turn(&mut matrices[first..first + at_once], Packing::ALL[i], &x[i]);
            speeds[i].push(speed);
            first += at_once;
        }
    }
    // The upper quartile: most turns that fall behind were interrupted.
    speeds.map(|mut speeds| {
        speeds.sort_by(f64::total_cmp);
        speeds[speeds.len() * 3 / 4]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_trits_must_be_clearly_faster() {
        assert_eq!(faster(100.0, 102.0), Packing::TwoBits);
        assert_eq!(faster(100.0, 104.0), Packing::FiveTrits);
        assert_eq!(faster(100.0, 70.0), Packing::TwoBits);
    }

    #[test]
    fn the_timing_covers_the_model_or_outgrows_the_caches() {
        assert_eq!(timed_bytes(40 << 20, 32 << 20), 10 << 20);
        assert_eq!(timed_bytes(2 << 30, 32 << 20), 64 << 20);
        assert_eq!(timed_bytes(20 << 30, 200 << 20), 400 << 20);
        assert_eq!(timed_bytes(20 << 30, 4 << 30), 512 << 20);
    }

    #[test]
    fn a_timing_gives_its_figures_and_the_faster_packing() {
        let pool = ThreadPool::new(2).unwrap();
        let choice = PackingChoice::Fastest { weights: 36 << 20 };
        let chosen = ChosenPacking::choose(choice, Isa::best(), &pool);
        let PackingReason::Timed { two_bits, five_trits } = chosen.reason else {
            panic!("{chosen}: not timed")
        };
        assert!(two_bits > 1e6 && five_trits > 1e6, "{chosen}");
        assert_eq!(chosen.packing, faster(two_bits, five_trits));
    }

    #[test]
    fn a_small_model_is_not_timed() {
        let pool = ThreadPool::new(1).unwrap();
        let chosen =
            ChosenPacking::choose(PackingChoice::Fastest { weights: 1000 }, Isa::Scalar, &pool);
        assert_eq!(chosen.to_string(), "2bit (stays in cache)");
    }

    #[test]
    fn what_was_asked_for_is_not_timed() {
        let pool = ThreadPool::new(1).unwrap();
        let choice = PackingChoice::Fixed(Packing::FiveTrits);
        let chosen = ChosenPacking::choose(choice, Isa::Scalar, &pool);
        assert_eq!(chosen, ChosenPacking::fixed(Packing::FiveTrits));
    }
}
