//! What this machine can do at best: the yardsticks that benchmarks hold the kernels against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::isa::Isa;
use super::pool::{ThreadPool, items};

/// Words that a thread reads before it takes the next ones: 4 MiB, which one sequential stream goes through.
const WORDS_AT_ONCE: usize = 512 << 10;

/// Reads all words and does next to nothing else.
#[inline(never)]
pub fn read(words: &[u64]) {
    let mut sums = [0_u64; 16];
    // Without `black_box` the compiler sees the same loop over the same memory and runs it once.
    for words in black_box(words).as_chunks::<16>().0 {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum ^= word;
        }
    }
    black_box(sums);
}

/// A buffer that is read again and again, by as many threads as asked for.
pub struct ReadProbe {
    words: Vec<u64>,
}

impl ReadProbe {
    /// Takes memory for `bytes` and writes to all of it. To measure main memory, it has to be far larger than the last cache.
    pub fn new(bytes: usize) -> Self {
        Self { words: vec![1; bytes / size_of::<u64>()] }
    }

    /// Bytes per second of each pass over the buffer, for as long as `time` says and at least three passes.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn measure(&self, threads: usize, time: Duration) -> std::io::Result<Vec<f64>> {
        let pool = ThreadPool::new(threads)?;
        let mut pieces: Vec<&[u64]> = self.words.chunks(WORDS_AT_ONCE).collect();
        let mut pass = || {
            let begin = Instant::now();
            pool.for_each(items(&mut pieces), |_, words| read(words));
            size_of_val(&*self.words) as f64 / begin.elapsed().as_secs_f64()
        };
        pass(); // wakes the threads
        let (begin, mut rates) = (Instant::now(), Vec::new());
        while rates.len() < 3 || begin.elapsed() < time {
            rates.push(pass());
        }
        Ok(rates)
    }
}

/// Products of int8 numbers per second that `threads` threads form and add in registers, with the instructions of `isa`, in
/// each of some turns.
///
/// # Errors
/// If the system refuses a thread.
pub fn multiply_adds(isa: Isa, threads: usize, time: Duration) -> std::io::Result<Vec<f64>> {
    let pool = ThreadPool::new(threads)?;
    let mut counts = vec![0; threads];
    let mut turn = |rounds: usize| {
        let begin = Instant::now();
        pool.for_each(items(&mut counts), |_, count| *count = isa.spin(rounds));
        counts.iter().sum::<usize>() as f64 / begin.elapsed().as_secs_f64()
    };
    // A turn of a millisecond: long beside the wake-up of threads, short beside what interrupts them.
    let per_second = turn(1000) / isa.spin(1) as f64;
    let rounds = (per_second / threads as f64 / 1000.0) as usize + 1;
    let (begin, mut rates) = (Instant::now(), Vec::new());
    while rates.len() < 3 || begin.elapsed() < time {
        rates.push(turn(rounds));
    }
    Ok(rates)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fastest turn: others may have been interrupted.
    fn best(rates: std::io::Result<Vec<f64>>) -> f64 {
        rates.unwrap().into_iter().fold(0.0, f64::max)
    }

    #[test]
    fn a_buffer_in_cache_is_read_no_faster_than_a_processor_can() {
        let best = best(ReadProbe::new(64 << 10).measure(1, Duration::from_millis(5)));
        // 64 bytes twice a cycle at 6 GHz is more than any processor does; a loop that was optimized away shows more.
        assert!(best > 1e8 && best < 768e9, "{best:e} bytes/s");
    }

    #[test]
    fn every_tier_multiplies_and_adds() {
        for &isa in Isa::available() {
            let best = best(multiply_adds(isa, 1, Duration::from_millis(2)));
            // 512 products twice a cycle at 6 GHz; a loop that was optimized away shows more.
            assert!(best > 1e7 && best < 6e12, "{isa}: {best:e} products/s");
        }
    }
}
