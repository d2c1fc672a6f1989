//! Runs the gate in every order of its steps that the memory model allows, with few threads.

mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
    pub use loom::sync::{Condvar, Mutex};
    pub use loom::thread::park;
}

#[path = "gate.rs"]
#[allow(
    clippy::duplicate_mod,
    reason = "once with the atomics of loom, once with those of the system"
)]
#[allow(dead_code, reason = "the pool uses what this does not")]
mod gate;

use std::time::Duration;

use gate::{Gate, Patience};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::JoinHandle;

/// A thread that waits sleeps at once, so that every order is one of few steps.
const NONE: Patience = Patience { spins: 0, yields: Duration::ZERO };

/// What callers and workers of a pool share: a job that the caller alone writes, and parts that one thread each takes.
struct Shared {
    gate: Gate,
    job: UnsafeCell<usize>,
    cursor: AtomicUsize,
    done: AtomicUsize,
}

fn work(shared: &Shared, index: usize) {
    let mut done = 0;
    while shared.gate.enter(index, &mut done) {
        let parts = shared.job.with(|job| {
            // SAFETY: this worker is inside; loom reports it if the caller writes at the same time.
            unsafe { *job }
        });
        take(shared, parts);
        shared.gate.leave();
    }
}

fn take(shared: &Shared, parts: usize) {
    while shared.cursor.fetch_add(1, Ordering::Relaxed) < parts {
        shared.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Hands in `jobs`, each a limit of threads and a number of parts, and ends the workers. A lost wake-up is a deadlock,
/// which loom reports.
fn check(workers: usize, jobs: &'static [(usize, usize)], preemptions: Option<usize>) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.check(move || {
        let shared = Arc::new(Shared {
            gate: Gate::new(workers + 1, NONE),
            job: UnsafeCell::new(0),
            cursor: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        });
        let workers: Vec<JoinHandle<()>> = (1..=workers)
            .map(|index| {
                let shared = Arc::clone(&shared);
                loom::thread::spawn(move || work(&shared, index))
            })
            .collect();
        let wake = |worker: usize| workers[worker - 1].thread().unpark();
        for &(limit, parts) in jobs {
            shared.job.with_mut(|job| {
                // SAFETY: the last job is closed; loom reports it if a worker reads at the same time.
                unsafe { *job = parts }
            });
            shared.cursor.store(0, Ordering::Relaxed);
            shared.done.store(0, Ordering::Relaxed);
            shared.gate.open(limit, wake);
            take(&shared, parts);
            shared.gate.close();
            assert_eq!(shared.done.load(Ordering::Relaxed), parts, "parts begun are done");
        }
        shared.gate.stop(wake);
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

/// Hands in `jobs` jobs that one worker has to do, because the caller does nothing but wait: a lost wake-up, which a caller
/// that works itself would hide, is a deadlock.
fn check_woken(jobs: usize, preemptions: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let gate = Arc::new(Gate::new(2, NONE));
        let came = Arc::new((loom::sync::Mutex::new(0), loom::sync::Condvar::new()));
        let worker = {
            let (gate, came) = (Arc::clone(&gate), Arc::clone(&came));
            loom::thread::spawn(move || {
                let mut done = 0;
                while gate.enter(1, &mut done) {
                    *came.0.lock().unwrap() += 1;
                    came.1.notify_one();
                    gate.leave();
                }
            })
        };
        for job in 1..=jobs {
            gate.open(2, |_| worker.thread().unpark());
            let mut count = came.0.lock().unwrap();
            while *count < job {
                count = came.1.wait(count).unwrap();
            }
            drop(count);
            gate.close();
        }
        gate.stop(|_| worker.thread().unpark());
        worker.join().unwrap();
    });
}

#[test]
fn a_sleeping_worker_is_woken_by_every_job() {
    check_woken(1, 3);
    check_woken(2, 2);
}

#[test]
fn one_worker_never_sleeps_through_the_end() {
    check(1, &[], None);
    check(1, &[(2, 1)], Some(3));
}

#[test]
fn one_worker_and_jobs_in_a_row() {
    check(1, &[(2, 2), (2, 1)], Some(3));
    check(1, &[(2, 1), (1, 1), (2, 1)], Some(2));
}

#[test]
fn two_workers_enter_as_the_limit_says() {
    check(2, &[(3, 1)], Some(2));
    check(2, &[(2, 1), (3, 1)], Some(1));
}
