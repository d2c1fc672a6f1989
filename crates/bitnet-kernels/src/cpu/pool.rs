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

mod gate;
mod split;

/// What the gate is made of; a test puts other things in their place.
mod sync {
    pub use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
    pub use std::sync::{Condvar, Mutex};
    pub use std::thread::park;
}

use std::cell::UnsafeCell;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::affinity;
use crate::profile::Profile;
use gate::{Gate, MAX_THREADS, Padded, Patience};
pub use split::{
    Cells, Chunks, Either, Interleave, Items, Ranges, Reversed, Split, Stripe, Stripes, cells,
    chunks, items, ranges, stripes,
};

/// Turns of the first waiting loop, a few microseconds: longer than the gap between two operations of a step.
const SPINS: u32 = 200;
/// How long a thread then lets others run between looks before it parks: longer than the gap between two steps.
const YIELD_TIME: Duration = Duration::from_micros(200);
/// The same as [`YIELD_TIME`] for threads that are to stay awake between the tokens of a slow client as well.
const ACTIVE_TIME: Duration = Duration::from_millis(50);

/// A fixed number of compute threads, the caller among them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    places: Vec<Vec<usize>>,
    profile: Arc<Profile>,
    /// Threads that take part in the jobs to come.
    team: AtomicUsize,
    /// Held while a job runs: one caller at a time.
    caller: Mutex<()>,
}

/// How the threads of a pool wait, and where they run.
#[derive(Clone, Debug, Default)]
pub struct PoolOptions {
    /// What a thread without work does.
    pub wait: WaitPolicy,
    /// The processors of each thread, from the caller on; where there are none, or no entry, the system chooses.
    pub places: Vec<Vec<usize>>,
}

/// What a compute thread without work does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitPolicy {
    /// Looks for work for 0.2 ms, which covers the gaps within an answer, then sleeps.
    #[default]
    Balanced,
    /// Looks for work for 50 ms, letting others run in between.
    Active,
    /// Sleeps at once.
    Passive,
    /// Looks for work for so many microseconds.
    Micros(u32),
}

impl WaitPolicy {
    fn patience(self) -> Patience {
        let yields = match self {
            Self::Balanced => YIELD_TIME,
            Self::Active => ACTIVE_TIME,
            Self::Passive => Duration::ZERO,
            Self::Micros(micros) => Duration::from_micros(micros.into()),
        };
        Patience { spins: if yields.is_zero() { 0 } else { SPINS }, yields }
    }
}

impl FromStr for WaitPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "balanced" => Self::Balanced,
            "active" => Self::Active,
            "passive" => Self::Passive,
            _ => Self::Micros(
                text.parse().map_err(|_| "expected balanced, active, passive or microseconds")?,
            ),
        })
    }
}

/// A job: called once at most on every thread, with the thread's number.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    gate: Gate,
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// The next part of each thread's run.
    cursors: Box<[Padded<AtomicUsize>]>,
    panicked: AtomicBool,
}

// SAFETY: `job` is written only by the thread that holds `caller`, while the gate is closed and no worker inside, which is
// when no worker reads it; the pointee is `Sync`. Everything else is atomics and locks.
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
    pub fn new(threads: usize) -> io::Result<Self> {
        Self::with_options(threads, PoolOptions::default())
    }

    /// The same with options. Workers go to their places before they work; the caller does with [`Self::attach`].
    ///
    /// # Errors
    /// If the system refuses a thread, or to put one in its place.
    pub fn with_options(threads: usize, options: PoolOptions) -> io::Result<Self> {
        let threads = threads.max(1);
        if threads > MAX_THREADS {
            let message = format!("{threads} threads are more than {MAX_THREADS}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let shared = Arc::new(Shared {
            gate: Gate::new(threads, options.wait.patience()),
            job: UnsafeCell::new(None),
            cursors: (0..threads).map(|_| Padded(AtomicUsize::new(0))).collect(),
            panicked: AtomicBool::new(false),
        });
        let (team, caller) = (AtomicUsize::new(threads), Mutex::new(()));
        let profile = Arc::new(Profile::new(threads));
        let (workers, places) = (Vec::new(), options.places);
        let mut pool = Self { shared, workers, places, profile, team, caller };
        let (sender, placed) = mpsc::channel();
        for index in 1..threads {
            let (shared, sender) = (Arc::clone(&pool.shared), sender.clone());
            let place = pool.place(index).to_vec();
            let work = move || {
                let result = affinity::bind(&place);
                let bound = result.is_ok();
                let _ = sender.send(result); // received below
                drop(sender);
                if bound {
                    shared.work(index);
                }
            };
            let name = format!("bitnet-w{index:02}");
            pool.workers.push(std::thread::Builder::new().name(name).spawn(work)?);
        }
        drop(sender);
        placed.into_iter().collect::<io::Result<()>>()?;
        Ok(pool)
    }

    /// Puts the calling thread, which is to hand in the jobs, in the first thread's place.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn attach(&self) -> io::Result<()> {
        affinity::bind(self.place(0))
    }

    fn place(&self, thread: usize) -> &[usize] {
        self.places.get(thread).map_or(&[], Vec::as_slice)
    }

    /// What adds up how long each thread computes.
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// Compute threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Lets the first `threads` threads alone take part in the jobs to come. The others sleep. Callers that share a pool
    /// share this.
    pub fn set_team(&self, threads: usize) {
        self.team.store(threads.clamp(1, self.threads()), Ordering::Relaxed);
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
        assert!(memory.len() >= self.threads(), "every thread has working memory");
        let count = parts.parts();
        let threads = self.team.load(Ordering::Relaxed).min(count);
        if threads <= 1 {
            let begin = self.profile.begin();
            for index in 0..count {
                // SAFETY: each index occurs once, and is in bounds.
                work(&mut memory[0], index, unsafe { parts.part(index) });
            }
            self.profile.computed(0, begin);
            return;
        }
        let _one_at_a_time = lock(&self.caller);
        let start_of = |thread: usize| count * thread / threads;
        let cursors = &self.shared.cursors;
        for (thread, cursor) in cursors[..threads].iter().enumerate() {
            cursor.0.store(start_of(thread), Ordering::Relaxed);
        }
        let memory = items(memory);
        self.profile.barrier();
        self.run(threads, &|thread| {
            // SAFETY: `thread` is less than `threads`, and `run` calls this once for each thread at most.
            let memory = unsafe { memory.part(thread) };
            let begin = self.profile.begin();
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
            self.profile.computed(thread, begin);
        });
    }

    /// Calls `job` here and on every worker below `threads` that comes in time, and returns when all that came have left.
    fn run(&self, threads: usize, job: &Job<'_>) {
        let shared = &*self.shared;
        // SAFETY: this only erases the lifetime. Workers use the job between entering and leaving it; `Finish` keeps others
        // from entering and waits until all have left, even if `job` panics here.
        let erased = unsafe {
            std::mem::transmute::<*const Job<'_>, *const Job<'static>>(std::ptr::from_ref(job))
        };
        // SAFETY: the last job is closed and was left by all, so no worker reads `job`; `caller` excludes other writers.
        unsafe { *shared.job.get() = Some(erased) };
        shared.gate.open(threads, |worker| self.wake(worker));
        let finish = Finish(&shared.gate);
        job(0);
        drop(finish);
        assert!(
            !shared.panicked.swap(false, Ordering::Relaxed),
            "a compute thread panicked; its message is above"
        );
    }

    fn wake(&self, worker: usize) {
        if let Some(worker) = self.workers.get(worker - 1) {
            worker.thread().unpark();
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.gate.stop(|worker| self.wake(worker));
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // workers catch panics of their jobs
        }
    }
}

/// Closes the job and waits until all workers have left it when it goes out of scope, also while the caller unwinds.
struct Finish<'a>(&'a Gate);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self, index: usize) {
        let mut done = 0;
        while self.gate.enter(index, &mut done) {
            // SAFETY: this worker is inside an open job, so the caller keeps the job alive, and `job` unchanged, until the
            // worker has left.
            let job = unsafe { (*self.job.get()).map(|job| &*job) };
            let run = || job.into_iter().for_each(|job| job(index));
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.gate.leave();
        }
    }
}

#[cfg(test)]
mod explored;
#[cfg(test)]
mod tests;
