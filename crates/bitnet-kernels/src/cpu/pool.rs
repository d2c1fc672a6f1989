//! The compute threads: named, started once, parked when idle.
//!
//! A job is data that falls into parts ([`Split`]). Each thread first works through its own run of neighbouring parts, so
//! that its share of a matrix is one stream from memory, then helps the others with theirs. A thread that the system
//! does not run takes no part, and nobody waits for it: only parts that were begun are waited for. That keeps more
//! threads than processors, and several engines in one process, from standing still.
#![expect(
    unsafe_code,
    reason = "parts of one matrix go to different threads, and a job outlives no call"
)]

mod split;

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use split::{
    Chain, Chunks, Either, Items, Split, Stripe, Stripes, chunks, each, items, stripes,
};

/// Turns of the first waiting loop, a few microseconds: longer than the gap between two operations of a step.
const SPINS: u32 = 200;
/// How long a thread then lets others run between looks before it parks: longer than the gap between two steps.
const YIELD_TIME: Duration = Duration::from_micros(200);

/// A fixed number of compute threads, the caller among them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: one caller at a time.
    caller: Mutex<()>,
}

/// A job: called once at most on every thread, with the thread's number.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// Alone on its cache lines (two, because processors fetch them in pairs).
#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    /// The number of the job ([`EPOCH`]), whether it may be begun ([`OPEN`]), and how many workers are in it.
    state: Padded<AtomicU64>,
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// The next part of each thread's run.
    cursors: Box<[Padded<AtomicUsize>]>,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Workers that are parked or about to be.
    parked: AtomicU32,
    /// The caller waits for the last worker to leave.
    caller_parked: AtomicBool,
    park: Mutex<()>,
    wake: Condvar,
    wake_caller: Condvar,
}

/// The lowest bit of the job's number.
const EPOCH: u64 = 1 << 32;
/// Set while workers may begin the job.
const OPEN: u64 = 1 << 31;
/// The workers in the job.
const ACTIVE: u64 = OPEN - 1;

// SAFETY: `job` is written only by the thread that holds `caller`, while the state is not open and no worker is active,
// which is when no worker reads it; the pointee is `Sync`. Everything else is atomics and locks.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer may move between threads because the pointee is `Sync`.
unsafe impl Send for Shared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // nothing here is left half-changed by a panic
}

impl ThreadPool {
    /// Starts `threads - 1` workers, named `bitnet-w01` and up; the thread that hands in a job is the first.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            state: Padded(AtomicU64::new(0)),
            job: UnsafeCell::new(None),
            cursors: (0..threads).map(|_| Padded(AtomicUsize::new(0))).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            parked: AtomicU32::new(0),
            caller_parked: AtomicBool::new(false),
            park: Mutex::new(()),
            wake: Condvar::new(),
            wake_caller: Condvar::new(),
        });
        let mut pool = Self { shared, workers: Vec::new(), caller: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let name = format!("bitnet-w{index:02}");
            pool.workers
                .push(std::thread::Builder::new().name(name).spawn(move || shared.work(index))?);
        }
        Ok(pool)
    }

    /// Compute threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(index, part)` once for every part, on any thread, and returns when all are done.
    ///
    /// # Panics
    /// If `work` does.
    pub fn for_each<S: Split>(&self, parts: S, work: impl Fn(usize, S::Part) + Sync) {
        let mut nothing = vec![(); self.threads()]; // takes no memory
        self.for_each_with(&mut nothing, parts, |(), index, part| work(index, part));
    }

    /// Calls `work(memory, index, part)` once for every part, with the working memory of the thread that it runs on.
    ///
    /// # Panics
    /// If `work` does, or there is not working memory for each thread.
    pub fn for_each_with<M: Send, S: Split>(
        &self,
        memory: &mut [M],
        parts: S,
        work: impl Fn(&mut M, usize, S::Part) + Sync,
    ) {
        let (threads, count) = (self.threads(), parts.parts());
        assert!(memory.len() >= threads, "every thread has working memory");
        if threads == 1 || count <= 1 {
            for index in 0..count {
                // SAFETY: each index occurs once, and is in bounds.
                work(&mut memory[0], index, unsafe { parts.part(index) });
            }
            return;
        }
        let _one_at_a_time = lock(&self.caller);
        let start_of = |thread: usize| count * thread / threads;
        let cursors = &self.shared.cursors;
        for (thread, cursor) in cursors.iter().enumerate() {
            cursor.0.store(start_of(thread), Ordering::Relaxed);
        }
        let memory = items(memory);
        self.run(&|thread| {
            // SAFETY: `thread` is less than `threads`, and `run` calls this once for each thread at most.
            let memory = unsafe { memory.part(thread) };
            for owner in (thread..threads).chain(0..thread) {
                let (cursor, end) = (&cursors[owner].0, start_of(owner + 1));
                while cursor.load(Ordering::Relaxed) < end {
                    let index = cursor.fetch_add(1, Ordering::Relaxed);
                    if index >= end {
                        break;
                    }
                    // SAFETY: `index` is in bounds, and the cursor of its run gives it to one thread, once. `parts` lives
                    // until `run` returns, when all threads have left the job.
                    work(&mut *memory, index, unsafe { parts.part(index) });
                }
            }
        });
    }

    /// Calls `job` here and on every worker that comes in time, and returns when all that came have left.
    fn run(&self, job: &Job<'_>) {
        let shared = &*self.shared;
        // SAFETY: this only erases the lifetime. Workers use the job between entering and leaving it; `Finish` keeps others
        // from entering and waits until all have left, even if `job` panics here.
        let erased = unsafe {
            std::mem::transmute::<*const Job<'_>, *const Job<'static>>(std::ptr::from_ref(job))
        };
        // SAFETY: the last job is closed and was left by all, so no worker reads `job`; `caller` excludes other writers.
        unsafe { *shared.job.get() = Some(erased) };
        shared.open();
        let finish = Finish(shared);
        job(0);
        drop(finish);
        assert!(
            !shared.panicked.swap(false, Ordering::Relaxed),
            "a compute thread panicked; its message is above"
        );
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _park = lock(&self.shared.park);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // workers catch panics of their jobs
        }
    }
}

/// Closes the job and waits until all workers have left it when it goes out of scope, also while the caller unwinds.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        let mut state = shared.state.0.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        let left = |state: u64| state & ACTIVE == 0;
        if left(state) || wait_until(|| left(shared.state.0.load(Ordering::Acquire))) {
            return;
        }
        let mut park = lock(&shared.park);
        shared.caller_parked.store(true, Ordering::SeqCst);
        loop {
            state = shared.state.0.load(Ordering::SeqCst);
            if left(state) {
                break;
            }
            park = shared.wake_caller.wait(park).unwrap_or_else(PoisonError::into_inner);
        }
        shared.caller_parked.store(false, Ordering::SeqCst);
    }
}

/// Spins, then lets other threads run, until `done` or for [`YIELD_TIME`]; returns whether it was done.
fn wait_until(done: impl Fn() -> bool) -> bool {
    for _ in 0..SPINS {
        if done() {
            return true;
        }
        std::hint::spin_loop();
    }
    let begin = Instant::now();
    while begin.elapsed() < YIELD_TIME {
        if done() {
            return true;
        }
        // If there are more threads than processors, this lets the ones work that the others wait for.
        std::thread::yield_now();
    }
    done()
}

impl Shared {
    /// Makes the next job known.
    fn open(&self) {
        let state = self.state.0.load(Ordering::Relaxed);
        // A worker counts itself as parked before it looks at the state for the last time, and here it is the other way
        // around: with sequentially consistent order one of the two sees the other.
        self.state.0.store((state & !(EPOCH - 1)).wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) > 0 {
            let _park = lock(&self.park);
            self.wake.notify_all();
        }
    }

    /// A worker's life.
    fn work(&self, index: usize) {
        let mut done = 0;
        while let Some(epoch) = self.enter(done) {
            done = epoch;
            // SAFETY: this worker is counted in an open job, so the caller keeps the job alive, and `job` unchanged, until
            // the worker has left.
            let job = unsafe { (*self.job.get()).map(|job| &*job) };
            let run = || job.into_iter().for_each(|job| job(index));
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.leave();
        }
    }

    /// Waits for a job other than `done` and enters it. None if the pool is dropped.
    fn enter(&self, done: u64) -> Option<u64> {
        loop {
            if wait_until(|| self.is_news(done)) || self.park(done) {
                let state = self.state.0.load(Ordering::Acquire);
                if self.stop.load(Ordering::Relaxed) {
                    return None;
                }
                if !enterable(state, done) {
                    continue;
                }
                let entered = self.state.0.compare_exchange(
                    state,
                    state + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if entered.is_ok() {
                    return Some(state / EPOCH);
                }
            }
        }
    }

    fn is_news(&self, done: u64) -> bool {
        enterable(self.state.0.load(Ordering::SeqCst), done) || self.stop.load(Ordering::SeqCst)
    }

    /// Sleeps until there is a job to enter, or the pool is dropped.
    fn park(&self, done: u64) -> bool {
        let mut park = lock(&self.park);
        self.parked.fetch_add(1, Ordering::SeqCst);
        while !self.is_news(done) {
            park = self.wake.wait(park).unwrap_or_else(PoisonError::into_inner);
        }
        self.parked.fetch_sub(1, Ordering::SeqCst);
        true
    }

    fn leave(&self) {
        let state = self.state.0.fetch_sub(1, Ordering::SeqCst) - 1;
        let last = state & (OPEN | ACTIVE) == 0;
        if last && self.caller_parked.load(Ordering::SeqCst) {
            let _park = lock(&self.park);
            self.wake_caller.notify_one();
        }
    }
}

/// Whether a job may be begun that is not `done`.
fn enterable(state: u64, done: u64) -> bool {
    state & OPEN != 0 && state / EPOCH != done
}

#[cfg(test)]
mod tests;
