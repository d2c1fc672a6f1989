//! How many threads take part in a step.
//!
//! A prompt is bound by arithmetic and takes all threads. A step of few tokens is bound by memory, which some of the cores
//! saturate; more only add waiting. How many is found on the first real steps: no probe knows the model, and results do not
//! depend on it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Steps of so many tokens and fewer read each weight for little arithmetic, and are bound by memory.
pub const FEW_TOKENS: usize = 8;
/// Pools of so many threads and fewer are not tried with less: what memory gives to one core of such machines is at most a
/// half of what it gives to all, so there is little to find.
const SMALL_POOL: usize = 4;
/// Steps in a row with the same number of threads; the first wakes threads and is not counted.
const STEPS: usize = 2;
/// Times that each number is tried, in turn, so that a context that grows or a passing disturbance meets all alike.
const ROUNDS: usize = 5;
/// Fewer threads are chosen if they take at most so many times as long as the best number.
const SLACK: f64 = 1.03;

/// The number of threads for each kind of step.
pub struct Team {
    many: usize,
    few: Few,
}

enum Few {
    Fixed(usize),
    Tuned(Mutex<Tuner>),
}

impl Team {
    /// `few` threads for steps of up to [`FEW_TOKENS`] tokens, `many` for others. `tune` finds the number for few tokens,
    /// with `few` as the most.
    pub fn new(few: usize, many: usize, tune: bool) -> Self {
        let few = match tune && few > SMALL_POOL {
            true => Few::Tuned(Mutex::new(Tuner::new(few))),
            false => Few::Fixed(few),
        };
        Self { many, few }
    }

    /// Threads for a step of `tokens` tokens.
    pub fn threads(&self, tokens: usize) -> usize {
        match &self.few {
            _ if tokens > FEW_TOKENS => self.many,
            Few::Fixed(few) => *few,
            Few::Tuned(tuner) => {
                tuner.lock().unwrap_or_else(PoisonError::into_inner).threads(tokens)
            }
        }
    }

    /// Tells how long a step took.
    pub fn finished(&self, tokens: usize, threads: usize, time: Duration) {
        if let (Few::Tuned(tuner), true) = (&self.few, tokens <= FEW_TOKENS) {
            tuner.lock().unwrap_or_else(PoisonError::into_inner).finished(tokens, threads, time);
        }
    }
}

/// The numbers of threads that are tried for `most`: none, if there is nothing to find.
pub fn candidates(most: usize) -> Vec<usize> {
    if most <= SMALL_POOL {
        return Vec::new();
    }
    let mut counts = [most, most * 3 / 4, most / 2, most * 3 / 8, most / 4].to_vec();
    counts.dedup();
    counts
}

/// Tries numbers of threads in turn and chooses.
struct Tuner {
    candidates: Vec<usize>,
    /// Seconds of the steps that count, for each candidate.
    times: Vec<Vec<f64>>,
    /// Tokens of the steps that are compared.
    tokens: Option<usize>,
    /// Steps compared so far.
    steps: usize,
    chosen: Option<usize>,
}

impl Tuner {
    fn new(most: usize) -> Self {
        let candidates = candidates(most);
        let times = vec![Vec::new(); candidates.len()];
        Self { candidates, times, tokens: None, steps: 0, chosen: None }
    }

    fn turn(&self) -> usize {
        self.steps / STEPS % self.candidates.len()
    }

    fn threads(&self, tokens: usize) -> usize {
        match self.chosen {
            Some(threads) => threads,
            None if self.tokens.is_none_or(|compared| compared == tokens) => {
                self.candidates[self.turn()]
            }
            None => self.candidates[0],
        }
    }

    fn finished(&mut self, tokens: usize, threads: usize, time: Duration) {
        let turn = self.turn();
        let compared = *self.tokens.get_or_insert(tokens) == tokens;
        // Engines that share a backend may have changed the turn meanwhile.
        if self.chosen.is_some() || !compared || threads != self.candidates[turn] {
            return;
        }
        if self.steps % STEPS == STEPS - 1 {
            self.times[turn].push(time.as_secs_f64());
        }
        self.steps += 1;
        if self.steps == STEPS * ROUNDS * self.candidates.len() {
            self.choose();
        }
    }

    fn choose(&mut self) {
        let medians: Vec<f64> = self.times.iter_mut().map(|times| median(times)).collect();
        let best = medians.iter().copied().fold(f64::INFINITY, f64::min);
        let good = self.candidates.iter().zip(&medians).filter(|(_, time)| **time <= SLACK * best);
        let threads = good.map(|(threads, _)| *threads).min().unwrap_or(self.candidates[0]);
        tracing::debug!(threads, tried = ?self.candidates, seconds = ?medians, "threads for decoding chosen");
        self.chosen = Some(threads);
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of threads that is kept for `most` on a machine where a step takes `time(threads)` microseconds.
    fn chosen(most: usize, time: impl Fn(usize) -> u64) -> usize {
        let team = Team::new(most, most, true);
        for step in 0..STEPS * ROUNDS * candidates(most).len() {
            let threads = team.threads(1);
            // The context grows, and every seventh step something else runs.
            let noise = step as u64 + if step % 7 == 0 { 5000 } else { 0 };
            team.finished(1, threads, Duration::from_micros(time(threads) + noise));
        }
        team.threads(1)
    }

    #[test]
    fn fewest_threads_that_saturate_memory_are_kept() {
        // Memory is saturated by four threads, and each more costs a little at barriers.
        assert_eq!(chosen(16, |threads| 40_000 / threads.min(4) as u64 + 10 * threads as u64), 4);
        assert_eq!(chosen(16, |threads| 160_000 / threads as u64), 16);
        assert_eq!(chosen(8, |threads| 40_000 / threads.min(6) as u64), 6);
    }

    #[test]
    fn a_small_pool_is_always_used_whole() {
        assert_eq!(chosen(4, |threads| 1000 * threads as u64), 4);
        assert!(candidates(4).is_empty());
        assert_eq!(candidates(5), [5, 3, 2, 1]);
        assert_eq!(candidates(64), [64, 48, 32, 24, 16]);
    }

    #[test]
    fn a_fixed_number_is_never_tuned() {
        let team = Team::new(16, 12, false);
        for _ in 0..1000 {
            assert_eq!((team.threads(FEW_TOKENS), team.threads(FEW_TOKENS + 1)), (16, 12));
            team.finished(1, 16, Duration::from_millis(1));
        }
    }

    #[test]
    fn steps_of_other_sizes_are_not_compared() {
        let team = Team::new(8, 8, true);
        let first = team.threads(1);
        team.finished(1, first, Duration::from_millis(1));
        for _ in 0..1000 {
            assert_eq!(team.threads(5), 8);
            team.finished(5, 8, Duration::from_micros(1));
        }
        assert_eq!(team.threads(1), 8, "still the first candidate's turn");
        team.finished(1, 8, Duration::from_millis(1));
        assert_eq!(team.threads(1), 6);
    }
}
