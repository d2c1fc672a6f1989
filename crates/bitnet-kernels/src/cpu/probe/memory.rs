//! How fast threads read main memory at best.
//!
//! No single loop is the fastest on every machine, and none of them is slow on purpose: so each turn tries all of them.
//! On a virtual Zen 4 with large pages, one plain stream of wide loads gave most (31 GB/s with one thread; software
//! prefetch made it 25); with pages of 4 KiB, where the hardware stops fetching ahead at each page, four streams with
//! one prefetch per page 64 KB ahead did (28 GB/s against 17 of the plain stream). Zen 5 gains from a prefetch for each line.

use std::hint::black_box;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use super::super::isa::Isa;
use super::super::pool::{ThreadPool, items};
#[cfg(target_arch = "x86_64")]
use super::super::x86::probe as native;

/// Bytes that a thread reads before it takes the next ones: two large pages, which sequential streams go through.
const BYTES_AT_ONCE: usize = 4 << 20;

/// How much memory the system manages at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Large pages (2 MiB on x86-64) if the system gives them when asked: each covers so much that address translation costs
    /// next to nothing.
    Huge,
    /// The smallest ones (4 KiB on x86-64), as a mapped file has them.
    Small,
}

/// A way of reading a piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// One stream; fetching ahead is left to the hardware.
    Plain,
    /// Four streams, a quarter of the piece each; fetching ahead is left to the hardware.
    Four,
    /// Four streams, with one prefetch for each page of 4 KB, 64 KB ahead.
    FourPages,
    /// One stream, with a prefetch for each line, 4 KB ahead.
    Lines,
}

impl Walk {
    /// All that differ on this architecture.
    pub const ALL: &[Self] = match cfg!(target_arch = "x86_64") {
        true => &[Self::Plain, Self::Four, Self::FourPages, Self::Lines],
        false => &[Self::Plain],
    };

    /// A few words for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "one stream",
            Self::Four => "four streams",
            Self::FourPages => "four streams, a prefetch per page",
            Self::Lines => "one stream, a prefetch per line",
        }
    }
}

/// What a probe of memory found.
#[derive(Clone, Debug, PartialEq)]
pub struct Reads {
    /// The way of reading that was the fastest.
    pub walk: Walk,
    /// Bytes per second of its turns.
    pub rates: Vec<f64>,
}

/// Reads all words and does next to nothing else, with the widest vectors of this machine and four streams.
pub fn read(words: &[u64]) {
    walk(widest(), Walk::FourPages, words.as_chunks::<8>().0);
}

/// The tier with the widest vectors.
fn widest() -> Isa {
    let widest = Isa::available().iter().max_by_key(|isa| isa.level().vector_bits());
    *widest.expect("the scalar tier is always there")
}

/// Reads all lines.
fn walk<L: Line>(isa: Isa, walk: Walk, lines: &[L]) {
    // Without `black_box` the compiler sees the same loop over the same memory and runs it once.
    let lines = black_box(lines);
    #[cfg(target_arch = "x86_64")]
    if native::read(isa, walk, lines) {
        return;
    }
    let _ = (isa, walk);
    portable(lines);
}

/// 64 bytes, each of them initialized.
pub(crate) trait Line: Copy + Sync {
    /// As numbers.
    fn words(self) -> [u64; 8];
}

impl Line for [u8; 64] {
    fn words(self) -> [u64; 8] {
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(self.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words
    }
}

impl Line for [u64; 8] {
    fn words(self) -> [u64; 8] {
        self
    }
}

/// Reads with the vectors that every processor of the architecture has.
#[inline(never)]
fn portable<L: Line>(lines: &[L]) {
    let mut sums = [[0; 8]; 2];
    for pair in lines.as_chunks::<2>().0 {
        for (sums, line) in sums.iter_mut().zip(pair) {
            for (sum, word) in sums.iter_mut().zip(line.words()) {
                *sum ^= word;
            }
        }
    }
    black_box(sums);
}

/// A buffer that is read again and again, by as many threads as asked for.
pub struct ReadProbe {
    memory: MmapMut,
    isa: Isa,
}

impl ReadProbe {
    /// Takes memory for `bytes` and writes to all of it, with all threads that the system offers. To measure main memory, it
    /// has to be far larger than the last cache.
    ///
    /// # Errors
    /// If the system refuses the memory or a thread.
    pub fn new(bytes: usize, pages: Pages) -> std::io::Result<Self> {
        let mut memory = MmapMut::map_anon(bytes.max(64))?;
        #[cfg(target_os = "linux")]
        {
            let advice = match pages {
                Pages::Huge => memmap2::Advice::HugePage,
                Pages::Small => memmap2::Advice::NoHugePage,
            };
            if let Err(error) = memory.advise(advice) {
                tracing::debug!(%error, ?pages, "the system does not take advice on pages");
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = pages;
        let pool = ThreadPool::new(std::thread::available_parallelism().map_or(1, usize::from))?;
        let mut pieces: Vec<_> = memory.chunks_mut(BYTES_AT_ONCE).collect();
        pool.for_each(items(&mut pieces), |_, piece| piece.fill(1));
        Ok(Self { memory, isa: widest() })
    }

    /// Bytes per second of each turn of the threads of `pool` through the buffer, for as long as `time` says and at least three
    /// turns of each of `ways`; those of the way with the best median.
    ///
    /// # Panics
    /// If there are no ways.
    pub fn measure(&self, pool: &ThreadPool, ways: &[Walk], time: Duration) -> Reads {
        let pieces = self.memory.chunks(BYTES_AT_ONCE).map(|piece| piece.as_chunks::<64>().0);
        let mut pieces: Vec<&[[u8; 64]]> = pieces.collect();
        let mut turn = |way| {
            let begin = Instant::now();
            pool.for_each(items(&mut pieces), |_, lines| walk(self.isa, way, lines));
            self.memory.len() as f64 / begin.elapsed().as_secs_f64()
        };
        turn(ways[0]); // wakes the threads
        let mut rates = vec![Vec::new(); ways.len()];
        let begin = Instant::now();
        while rates[0].len() < 3 || begin.elapsed() < time {
            ways.iter().zip(&mut rates).for_each(|(&way, rates)| rates.push(turn(way)));
        }
        let best = (0..ways.len()).max_by(|&a, &b| median(&rates[a]).total_cmp(&median(&rates[b])));
        let best = best.expect("there is at least one way");
        Reads { walk: ways[best], rates: rates.swap_remove(best) }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_in_cache_is_read_no_faster_than_a_processor_can() {
        for pages in [Pages::Huge, Pages::Small] {
            let probe = ReadProbe::new(64 << 10, pages).unwrap();
            let pool = ThreadPool::new(1).unwrap();
            let reads = probe.measure(&pool, Walk::ALL, Duration::from_millis(5));
            let best = reads.rates.into_iter().fold(0.0, f64::max);
            // 64 bytes twice a cycle at 6 GHz is more than any processor does; a loop that was optimized away shows more.
            assert!(best > 1e8 && best < 768e9, "{best:e} bytes/s");
        }
    }

    #[test]
    fn every_way_of_reading_takes_pieces_of_any_length() {
        let words: Vec<u64> = (0..2048).collect();
        for &isa in Isa::available() {
            for &way in Walk::ALL {
                for lines in [0, 1, 3, 63, 64, 65, 200, 256] {
                    walk(isa, way, &words.as_chunks::<8>().0[..lines]);
                }
            }
        }
        read(&words);
    }
}
