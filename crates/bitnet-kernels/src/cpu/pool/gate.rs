//! Who may work on a job: the caller opens it, workers enter and leave, the caller closes it and waits for those inside.
//!
//! Nothing here is locked while jobs follow each other; a thread that finds nothing to do for long sleeps. Atomics and
//! sleeping come from `super::sync`, so that a test runs this file in every order that the memory model allows.

use std::time::{Duration, Instant};

use super::sync::{AtomicBool, AtomicU64, Condvar, Mutex, Ordering, fence, park};

/// How long a waiting thread looks before it sleeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Turns of the first loop, which keeps the processor.
    pub spins: u32,
    /// After that it lets others run between looks, for this long.
    pub yields: Duration,
}

/// Alone on its cache lines (two, because processors fetch them in pairs).
#[repr(align(128))]
pub(super) struct Padded<T>(pub T);

/// The way into a job.
pub(super) struct Gate {
    /// The number of the job ([`EPOCH`]), whether it may be entered ([`OPEN`]), by which workers ([`LIMIT`]), and how many
    /// are in it ([`INSIDE`]).
    state: Padded<AtomicU64>,
    /// A bit for each worker that sleeps or is about to.
    asleep: Box<[AtomicU64]>,
    stop: AtomicBool,
    /// The caller sleeps, or is about to, until the last worker leaves.
    caller_sleeps: AtomicBool,
    lock: Mutex<()>,
    wake_caller: Condvar,
    patience: Patience,
}

/// The workers in the job.
const INSIDE: u64 = LIMIT - 1;
/// The lowest bit of the number below which workers may enter.
const LIMIT: u64 = 1 << 16;
/// Set while workers may enter.
const OPEN: u64 = 1 << 31;
/// The lowest bit of the job's number.
const EPOCH: u64 = 1 << 32;
/// Workers are numbered below this.
pub(super) const MAX_THREADS: usize = (OPEN / LIMIT) as usize;

/// Whether `worker` may enter, having done the job `done`.
fn may_enter(state: u64, worker: usize, done: u64) -> bool {
    state & OPEN != 0 && state / EPOCH != done && ((worker as u64) < state % OPEN / LIMIT)
}

impl Gate {
    /// For workers with numbers from 1 to `threads - 1`, less than [`MAX_THREADS`]; the caller is 0.
    pub fn new(threads: usize, patience: Patience) -> Self {
        Self {
            state: Padded(AtomicU64::new(0)),
            asleep: (0..threads.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            stop: AtomicBool::new(false),
            caller_sleeps: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake_caller: Condvar::new(),
            patience,
        }
    }

    /// Lets workers below `limit` into the next job and calls `wake` with each of them that sleeps. For one caller at a time,
    /// whose last job is closed.
    pub fn open(&self, limit: usize, wake: impl Fn(usize)) {
        let state = self.state.0.load(Ordering::Relaxed);
        let epoch = (state & !(EPOCH - 1)).wrapping_add(EPOCH);
        self.state.0.store(epoch | OPEN | (limit as u64 * LIMIT), Ordering::Release);
        // A worker says that it sleeps before it looks at the state for the last time, and here it is the other way around:
        // with a fence on both sides one of the two sees the other.
        fence(Ordering::SeqCst);
        self.wake(limit, wake);
    }

    /// Sends all workers home; `wake` as in [`Self::open`].
    pub fn stop(&self, wake: impl Fn(usize)) {
        self.stop.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.wake(MAX_THREADS, wake);
    }

    fn wake(&self, limit: usize, wake: impl Fn(usize)) {
        for (index, word) in self.asleep.iter().enumerate() {
            let below = match limit.saturating_sub(64 * index) {
                0 => break,
                count @ 1..64 => (1 << count) - 1,
                _ => u64::MAX,
            };
            let mut sleepers = word.load(Ordering::Relaxed) & below;
            if sleepers == 0 {
                continue;
            }
            // Each is woken once; one that comes too late for the job says again that it sleeps.
            word.fetch_and(!sleepers, Ordering::Relaxed);
            while sleepers != 0 {
                wake(64 * index + sleepers.trailing_zeros() as usize);
                sleepers &= sleepers - 1;
            }
        }
    }

    /// Keeps workers from entering and waits until those inside have left.
    pub fn close(&self) {
        let none_inside = |state: u64| state & INSIDE == 0;
        let state = self.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let all_left = || none_inside(self.state.0.load(Ordering::Acquire));
        if none_inside(state) || self.wait_until(all_left) {
            return;
        }
        let mut lock = self.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.caller_sleeps.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst); // pairs with the one in `leave`
        while !all_left() {
            lock = self.wake_caller.wait(lock).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        self.caller_sleeps.store(false, Ordering::Relaxed);
    }

    /// Waits for a job other than `done`, enters it and makes it `done`. False if the workers are to go home.
    pub fn enter(&self, worker: usize, done: &mut u64) -> bool {
        loop {
            if !self.wait_until(|| self.is_news(worker, *done)) {
                self.sleep(worker, *done);
            }
            if self.stop.load(Ordering::Acquire) {
                return false;
            }
            let state = self.state.0.load(Ordering::Relaxed);
            if may_enter(state, worker, *done) {
                let entered = self.state.0.compare_exchange(
                    state,
                    state + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if entered.is_ok() {
                    *done = state / EPOCH;
                    return true;
                }
            }
        }
    }

    /// Ends what [`Self::enter`] began.
    pub fn leave(&self) {
        let state = self.state.0.fetch_sub(1, Ordering::AcqRel) - 1;
        if state & (OPEN | INSIDE) == 0 {
            fence(Ordering::SeqCst);
            if self.caller_sleeps.load(Ordering::Relaxed) {
                // The caller holds the lock from its last look until it sleeps.
                drop(self.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
                self.wake_caller.notify_one();
            }
        }
    }

    fn is_news(&self, worker: usize, done: u64) -> bool {
        may_enter(self.state.0.load(Ordering::Acquire), worker, done)
            || self.stop.load(Ordering::Acquire)
    }

    /// Sleeps until there is news.
    fn sleep(&self, worker: usize, done: u64) {
        let (word, bit) = (&self.asleep[worker / 64], 1 << (worker % 64));
        loop {
            word.fetch_or(bit, Ordering::Relaxed);
            fence(Ordering::SeqCst); // pairs with those in `open` and `stop`
            if self.is_news(worker, done) {
                break;
            }
            park();
        }
        word.fetch_and(!bit, Ordering::Relaxed);
    }

    /// Looks until `done` or out of patience; returns whether it was done.
    fn wait_until(&self, done: impl Fn() -> bool) -> bool {
        for _ in 0..self.patience.spins {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if self.patience.yields > Duration::ZERO {
            let begin = Instant::now();
            while begin.elapsed() < self.patience.yields {
                if done() {
                    return true;
                }
                // If there are more threads than processors, this lets the ones work that the others wait for.
                std::thread::yield_now();
            }
        }
        done()
    }

    /// Whether this worker says that it sleeps.
    #[cfg(test)]
    pub fn sleeps(&self, worker: usize) -> bool {
        self.asleep[worker / 64].load(Ordering::Relaxed) & (1 << (worker % 64)) != 0
    }
}
