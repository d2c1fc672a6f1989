//! What this machine can do at best: the yardsticks that benchmarks hold the kernels against.

pub(super) mod memory;

use std::time::{Duration, Instant};

use super::isa::Isa;
use super::pool::{ThreadPool, items};
#[cfg(target_arch = "x86_64")]
use super::x86::probe as native;
pub use memory::{Pages, ReadProbe, Reads, Walk, read};

/// How long one turn of an arithmetic probe lasts: long beside the wake-up of threads, short beside what interrupts them.
const TURN_SECONDS: f64 = 1e-3;

/// Products of int8 numbers per second that the threads of `pool` form and add in registers, with the instructions of `isa`,
/// in each of some turns.
pub fn multiply_adds(isa: Isa, pool: &ThreadPool, time: Duration) -> Vec<f64> {
    turns(pool, time, |rounds| isa.spin(rounds))
}

/// Products of f32 numbers per second that the threads of `pool` form and add in registers, with the vectors of `isa`, in each
/// of some turns. Multiplication and addition are separate instructions, as in all float code here: a fused one rounds once
/// instead of twice, and results would depend on the machine.
pub fn float_multiply_adds(isa: Isa, pool: &ThreadPool, time: Duration) -> Vec<f64> {
    turns(pool, time, |rounds| spin_floats(isa, rounds))
}

/// Products of bf16 numbers per second that the threads of `pool` form and add in registers, in each of some turns. None where
/// the CPU has no instruction for it.
pub fn bf16_multiply_adds(pool: &ThreadPool, time: Duration) -> Option<Vec<f64>> {
    spin_bf16(1)?;
    Some(turns(pool, time, |rounds| spin_bf16(rounds).unwrap_or(0)))
}

/// Seconds that an operation takes which does nothing on each of the threads of `pool`: waking them and waiting for all. One
/// value for each of some turns, each of which is the mean of many operations.
pub fn barrier(pool: &ThreadPool, time: Duration) -> Vec<f64> {
    /// Operations of a turn: as many as make a token of a large model.
    const OPERATIONS: u32 = 200;
    let mut nothing = vec![(); pool.threads()];
    let mut turn = || {
        let begin = Instant::now();
        (0..OPERATIONS).for_each(|_| pool.for_each(items(&mut nothing), |_, _| ()));
        begin.elapsed().as_secs_f64() / f64::from(OPERATIONS)
    };
    turn(); // starts the threads
    repeat(time, turn)
}

/// Runs `spin` on all threads in turns. It returns how many products it made, about as many for each round.
fn turns(pool: &ThreadPool, time: Duration, spin: impl Fn(usize) -> usize + Sync) -> Vec<f64> {
    let threads = pool.threads();
    let mut counts = vec![0; threads];
    let mut turn = |rounds: usize| {
        let begin = Instant::now();
        pool.for_each(items(&mut counts), |_, count| *count = spin(rounds));
        counts.iter().sum::<usize>() as f64 / begin.elapsed().as_secs_f64()
    };
    let per_second = turn(1000) / spin(1) as f64;
    let rounds = (per_second / threads as f64 * TURN_SECONDS) as usize + 1;
    repeat(time, || turn(rounds))
}

/// Measures for as long as `time` says and at least three times.
fn repeat(time: Duration, mut measure: impl FnMut() -> f64) -> Vec<f64> {
    let (begin, mut values) = (Instant::now(), Vec::new());
    while values.len() < 3 || begin.elapsed() < time {
        values.push(measure());
    }
    values
}

fn spin_floats(isa: Isa, rounds: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Some(products) = native::spin_floats(isa, rounds) {
        return products;
    }
    let _ = isa;
    portable_floats(rounds)
}

#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "x86-64 only"))]
fn spin_bf16(rounds: usize) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    return native::spin_bf16(rounds);
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// The same with the vectors that every processor of the architecture has: four lanes, twelve registers of sums.
fn portable_floats(rounds: usize) -> usize {
    let mut sums = [[1.0_f32; 4]; 12];
    let (factor, term) = std::hint::black_box((0.5, 1.0));
    for _ in 0..rounds {
        for sum in sums.as_flattened_mut() {
            *sum = *sum * factor + term;
        }
    }
    std::hint::black_box(sums);
    rounds * sums.as_flattened().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(2);

    fn one() -> ThreadPool {
        ThreadPool::new(1).unwrap()
    }

    /// The fastest turn: others may have been interrupted.
    fn best(rates: Vec<f64>) -> f64 {
        rates.into_iter().fold(0.0, f64::max)
    }

    #[test]
    fn every_tier_multiplies_and_adds() {
        for &isa in Isa::available() {
            let best = best(multiply_adds(isa, &one(), SHORT));
            // 512 products twice a cycle at 6 GHz; a loop that was optimized away shows more.
            assert!(best > 1e7 && best < 6e12, "{isa}: {best:e} products/s");
        }
    }

    #[test]
    fn every_tier_multiplies_and_adds_floats() {
        for &isa in Isa::available() {
            let best = best(float_multiply_adds(isa, &one(), SHORT));
            // 16 products twice a cycle at 6 GHz.
            assert!(best > 1e7 && best < 2e11, "{isa}: {best:e} products/s");
        }
    }

    #[test]
    fn bf16_is_measured_where_the_cpu_has_it() {
        let rates = bf16_multiply_adds(&one(), SHORT);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(rates.is_some(), is_x86_feature_detected!("avx512bf16"));
        for rate in rates.unwrap_or_default() {
            assert!(rate > 1e7 && rate < 4e11, "{rate:e} products/s");
        }
    }

    #[test]
    fn a_barrier_takes_some_time_and_not_much() {
        let fastest =
            barrier(&ThreadPool::new(2).unwrap(), SHORT).into_iter().fold(f64::INFINITY, f64::min);
        assert!(fastest > 1e-9 && fastest < 0.1, "{fastest:e} s");
    }
}
