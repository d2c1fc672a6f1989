//! What the thread pool costs: one operation without work, and operations with work by more threads than processors.
//!
//! `cargo run --release -p bitnet-kernels --example pool_bench`

use std::hint::black_box;
use std::time::Instant;

use bitnet_kernels::cpu::pool::{PoolOptions, ThreadPool, WaitPolicy};

/// Operations of a decoding step of a model with 30 layers, five for each.
const OPERATIONS: usize = 150;
/// Parts of an operation for each thread.
const PARTS: usize = 4;

fn main() {
    println!("wait       threads  empty operation, median and worst of ten steps");
    for wait in [WaitPolicy::Balanced, WaitPolicy::Active, WaitPolicy::Passive] {
        for threads in [1, 2, 4, 8] {
            let pool = pool(threads, wait);
            let mut steps: Vec<f64> = (0..10).map(|_| step(&pool, threads, 0)).collect();
            steps.sort_by(f64::total_cmp);
            let micros = |step: f64| step / OPERATIONS as f64 * 1e6;
            println!(
                "{:10} {threads:7}  {:8.2} us {:8.2} us",
                format!("{wait:?}").to_lowercase(),
                micros(steps[5]),
                micros(steps[9])
            );
        }
    }
    println!("threads  time of {OPERATIONS} operations with work, against 2 threads");
    let pools = [1, 2, 3, 4, 8].map(|threads| (threads, pool(threads, WaitPolicy::Balanced)));
    let mut times = pools.each_ref().map(|_| Vec::new());
    for _ in 0..15 {
        for ((threads, pool), times) in pools.iter().zip(&mut times) {
            times.push(step(pool, *threads, 400_000)); // rounds in all, some 150 us
        }
    }
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    for ((threads, _), median) in pools.iter().zip(medians) {
        println!("{threads:7}  {:7.2} ms  {:.2}", median * 1e3, median / medians[1]);
    }
}

fn pool(threads: usize, wait: WaitPolicy) -> ThreadPool {
    ThreadPool::with_options(threads, PoolOptions { wait, ..PoolOptions::default() })
        .expect("the system gives threads")
}

/// Seconds of one step, each of whose operations is `rounds` of work.
fn step(pool: &ThreadPool, threads: usize, rounds: usize) -> f64 {
    let parts = PARTS * threads;
    let begin = Instant::now();
    for _ in 0..OPERATIONS {
        pool.for_each(0..parts, |_, part| {
            let mut x = part as u64;
            for _ in 0..rounds / parts {
                x = black_box(x.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(7));
            }
        });
    }
    begin.elapsed().as_secs_f64()
}
