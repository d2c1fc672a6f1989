//! The compute threads: named, started once, parked when idle.
//!
//! Work is a slice of items; each is handed, exclusively, to one thread. That and [`stripes`], which cuts a matrix into
//! columns that several threads may write at once, are the only ways in, so the code that computes stays safe.
#![expect(
    unsafe_code,
    reason = "items of one slice, and stripes of one matrix, go to different threads"
)]

use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Turns of the waiting loop before a thread sleeps: some 20 to 50 µs, longer than the gap between two operations of a step.
const SPINS: u32 = 2_000;

/// A fixed number of compute threads, the caller among them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: one caller at a time.
    caller: Mutex<()>,
}

/// A job: called once on every thread with the thread's number.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// Counts jobs; a change tells workers that `job` holds a new one.
    epoch: AtomicUsize,
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// Workers that have not finished the current job.
    pending: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the thread that holds `caller`, while `pending` is 0, which is when no worker reads it;
// the pointee is `Sync`. Everything else is atomics and locks.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer may move between threads because the pointee is `Sync`.
unsafe impl Send for Shared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // nothing here is left half-changed by a panic
}

impl ThreadPool {
    /// Starts `threads - 1` workers, named `bitnet-w01` and up; the thread that calls [`ThreadPool::for_each`] is the first.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            pending: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
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

    /// Calls `work(thread, item)` once for every item, on any thread, and returns when all are done.
    ///
    /// # Panics
    /// If `work` does.
    pub fn for_each<T: Send>(&self, items: &mut [T], work: impl Fn(usize, &mut T) + Sync) {
        if self.workers.is_empty() || items.len() <= 1 {
            items.iter_mut().for_each(|item| work(0, item));
            return;
        }
        let (next, all) =
            (AtomicUsize::new(0), Items { first: items.as_mut_ptr(), _items: PhantomData });
        let count = items.len();
        self.run(&|thread| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return;
                }
                // SAFETY: `index` is in bounds, and the counter gives each index to one thread only, so this is the sole
                // reference to the item; `items` is borrowed exclusively until `run` returns, when all threads are done.
                work(thread, unsafe { all.get(index) });
            }
        });
    }

    fn run(&self, job: &Job<'_>) {
        let _one_at_a_time = lock(&self.caller);
        let shared = &*self.shared;
        // SAFETY: this only erases the lifetime. Workers use the job between the change of `epoch` and their decrement
        // of `pending`, and `finish` below waits for all of these even if `job` panics here.
        let erased = unsafe {
            std::mem::transmute::<*const Job<'_>, *const Job<'static>>(std::ptr::from_ref(job))
        };
        // SAFETY: `pending` is 0 (the last `run` waited for it), so no worker reads `job`; `caller` excludes other writers.
        unsafe { *shared.job.get() = Some(erased) };
        shared.pending.store(self.workers.len(), Ordering::Relaxed);
        {
            let sleepers = lock(&shared.sleepers); // a worker checks `epoch` under this lock before it sleeps
            shared.epoch.fetch_add(1, Ordering::Release);
            if *sleepers > 0 {
                shared.wake.notify_all();
            }
        }
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
        self.shared.stop.store(true, Ordering::Relaxed);
        {
            let _sleepers = lock(&self.shared.sleepers);
            self.shared.epoch.fetch_add(1, Ordering::Release);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // workers catch panics of their jobs
        }
    }
}

/// Waits for all workers when it goes out of scope, also while the caller unwinds.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut turns = 0;
        while self.0.pending.load(Ordering::Acquire) > 0 {
            turns += 1;
            if turns < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait(seen);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: `epoch` changed (acquired in `wait`), so `run` has written `job` and will not write or drop it before
            // this worker decrements `pending`.
            let job = unsafe { &*(*self.job.get()).expect("an epoch brings a job") };
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(index))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.pending.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits until the epoch is another than `seen`, spinning first.
    fn wait(&self, seen: usize) -> usize {
        for _ in 0..SPINS {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        let mut sleepers = lock(&self.sleepers);
        loop {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            *sleepers += 1;
            sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
            *sleepers -= 1;
        }
    }
}

/// The items of a slice, to be given out by index.
struct Items<'a, T> {
    first: *mut T,
    _items: PhantomData<&'a mut [T]>,
}

// SAFETY: each item is used by one thread only (see `for_each`), and `T: Send` allows that.
unsafe impl<T: Send> Sync for Items<'_, T> {}

impl<T> Items<'_, T> {
    /// # Safety
    /// `index` is in bounds, and no other reference to that item exists.
    #[expect(clippy::mut_from_ref, reason = "exclusive by the caller's promise")]
    unsafe fn get(&self, index: usize) -> &mut T {
        // SAFETY: as promised by the caller.
        unsafe { &mut *self.first.add(index) }
    }
}

/// Some columns of a row-major matrix, writable while other threads write other columns.
pub struct Stripe<'a> {
    first: *mut f32,
    width: usize,
    rows: usize,
    columns: Range<usize>,
    _matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a stripe is an exclusive borrow of its columns: `stripes` makes them disjoint.
unsafe impl Send for Stripe<'_> {}

impl Stripe<'_> {
    /// Which columns of the matrix these are.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// This stripe's part of one row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: `stripes` checked that the matrix has `rows × width` elements and that `columns` end at `width` at most, so
        // the range lies within it; no other stripe has these columns, and `&mut self` excludes a second slice from this one.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.first.add(row * self.width + self.columns.start),
                self.columns.len(),
            )
        }
    }
}

/// Cuts a row-major matrix `[rows, width]` into stripes of `columns` columns; the last may be narrower.
///
/// # Panics
/// If `matrix` is not a whole number of rows or `columns` is 0.
pub fn stripes(
    matrix: &mut [f32],
    width: usize,
    columns: usize,
) -> impl Iterator<Item = Stripe<'_>> {
    assert!(width > 0 && matrix.len().is_multiple_of(width));
    let (first, rows) = (matrix.as_mut_ptr(), matrix.len() / width);
    (0..width).step_by(columns).map(move |start| Stripe {
        first,
        width,
        rows,
        columns: start..width.min(start + columns),
        _matrix: PhantomData,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_visited_once_by_any_number_of_threads() {
        for threads in 1..=5 {
            let pool = ThreadPool::new(threads).unwrap();
            for count in [0, 1, 2, 3, 100] {
                let mut items = vec![0; count];
                for _ in 0..50 {
                    pool.for_each(&mut items, |thread, item| {
                        assert!(thread < threads);
                        *item += 1;
                    });
                }
                assert_eq!(items, vec![50; count]);
            }
        }
    }

    #[test]
    fn workers_sleep_and_wake_again() {
        let pool = ThreadPool::new(3).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut items = [0; 64];
            pool.for_each(&mut items, |_, item| *item = 1);
            assert_eq!(items, [1; 64]);
        }
    }

    #[test]
    fn several_callers_take_turns() {
        let pool = ThreadPool::new(2).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut items = [1; 10];
                        pool.for_each(&mut items, |_, item| *item += 1);
                        assert_eq!(items, [2; 10]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = ThreadPool::new(3).unwrap();
        let mut items: Vec<usize> = (0..100).collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.for_each(&mut items, |_, item| assert!(*item != 50, "expected by the test"));
        }));
        assert!(result.is_err());
        pool.for_each(&mut items, |_, item| *item = 7);
        assert_eq!(items, vec![7; 100]);
    }

    #[test]
    fn stripes_cover_a_matrix_without_overlap() {
        let mut matrix = vec![0.0; 3 * 10];
        let pool = ThreadPool::new(2).unwrap();
        let mut all: Vec<_> = stripes(&mut matrix, 10, 4).collect();
        assert_eq!(all.iter().map(Stripe::columns).collect::<Vec<_>>(), [0..4, 4..8, 8..10]);
        pool.for_each(&mut all, |_, stripe| {
            let start = stripe.columns().start;
            for row in 0..3 {
                stripe
                    .row(row)
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, x)| *x += (10 * row + start + i) as f32);
            }
        });
        assert!(matrix.iter().enumerate().all(|(i, &x)| x == i as f32));
    }
}
