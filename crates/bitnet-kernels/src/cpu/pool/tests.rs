use std::sync::atomic::AtomicUsize;

use super::*;

#[test]
fn every_part_is_visited_once_by_any_number_of_threads() {
    for threads in 1..=5 {
        let pool = ThreadPool::new(threads).unwrap();
        for count in [0, 1, 2, 3, 100] {
            let mut values = vec![0; count];
            for _ in 0..50 {
                pool.for_each((0..count, items(&mut values)), |index, (number, value)| {
                    assert_eq!(index, number);
                    *value += 1;
                });
            }
            assert_eq!(values, vec![50; count]);
        }
    }
}

#[test]
fn each_thread_has_memory_of_its_own() {
    let pool = ThreadPool::new(3).unwrap();
    let mut counts = vec![0; 3];
    pool.for_each_with(&mut counts, 0..300, |count, _, _| *count += 1);
    assert_eq!(counts.iter().sum::<usize>(), 300);
}

#[test]
fn workers_park_and_wake_again() {
    let pool = ThreadPool::new(3).unwrap();
    for _ in 0..3 {
        while !(1..3).all(|worker| pool.shared.gate.sleeps(worker)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut values = [0; 64];
        pool.for_each(items(&mut values), |_, value| *value = 1);
        assert_eq!(values, [1; 64]);
    }
}

#[test]
fn several_callers_take_turns() {
    let pool = ThreadPool::new(2).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let mut values = [1; 10];
                    pool.for_each(items(&mut values), |_, value| *value += 1);
                    assert_eq!(values, [2; 10]);
                }
            });
        }
    });
}

#[test]
fn the_caller_waits_for_a_part_that_takes_long() {
    let pool = ThreadPool::new(2).unwrap();
    for _ in 0..20 {
        let done = AtomicUsize::new(0);
        // Either thread may get the long part; longer than the other one's patience.
        pool.for_each(0..2, |index, _| {
            if index == 1 {
                std::thread::sleep(4 * YIELD_TIME);
            }
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 2);
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = ThreadPool::new(3).unwrap();
    let mut values: Vec<usize> = (0..100).collect();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pool.for_each(items(&mut values), |_, value| assert!(*value != 50, "expected by the test"));
    }));
    assert!(result.is_err());
    pool.for_each(items(&mut values), |_, value| *value = 7);
    assert_eq!(values, vec![7; 100]);
}

#[test]
fn stripes_cover_a_matrix_without_overlap() {
    let mut matrix = vec![0.0; 3 * 10];
    let pool = ThreadPool::new(2).unwrap();
    let expected = [0..4, 4..8, 8..10];
    pool.for_each(stripes(&mut matrix, 10, 4), |index, mut stripe| {
        let expected = &expected[index];
        assert_eq!(stripe.columns(), *expected);
        for row in 0..3 {
            let start = 10 * row + expected.start;
            stripe.row(row).iter_mut().enumerate().for_each(|(i, x)| *x += (start + i) as f32);
        }
    });
    assert!(matrix.iter().enumerate().all(|(i, &x)| x == i as f32));
}

#[test]
fn two_things_are_interleaved_evenly() {
    let pool = ThreadPool::new(2).unwrap();
    let (mut first, mut second) = ([0; 5], [0; 7]);
    let both = Interleave(items(&mut first), chunks(&mut second, 3));
    pool.for_each(both, |index, part| match part {
        Either::First(item) => *item = index,
        Either::Second(chunk) => chunk.fill(index),
    });
    assert_eq!((first, second), ([0, 1, 3, 4, 6], [2, 2, 2, 5, 5, 5, 7]));
    for (a, b) in [(0, 0), (0, 3), (3, 0), (1, 9), (9, 1), (4, 4)] {
        let (mut first, mut second) = (vec![0; a], vec![0; b]);
        pool.for_each(Interleave(items(&mut first), items(&mut second)), |_, part| match part {
            Either::First(x) | Either::Second(x) => *x += 1,
        });
        assert_eq!([first, second].concat(), vec![1; a + b]);
    }
}

#[test]
fn ranges_and_cells_are_what_was_asked_for_and_no_more() {
    let pool = ThreadPool::new(3).unwrap();
    let mut slice = [0; 10];
    pool.for_each(Reversed(ranges(&mut slice, &[0..2, 3..3, 3..7])), |index, part| {
        part.fill(1 + index)
    });
    assert_eq!(slice, [3, 3, 0, 1, 1, 1, 1, 0, 0, 0]);
    let mut matrix = [0.0; 4 * 5];
    pool.for_each(cells(&mut matrix, 5, &[0..1, 2..4], 3), |index, mut cell| {
        assert_eq!(
            (cell.rows(), cell.columns()),
            ([0..1, 2..4][index / 2].clone(), [0..3, 3..5][index % 2].clone())
        );
        cell.rows().for_each(|row| cell.row(row).iter_mut().for_each(|x| *x += 1.0 + index as f32));
    });
    let rows = [[1.0, 1.0, 1.0, 2.0, 2.0], [0.0; 5], [3.0, 3.0, 3.0, 4.0, 4.0]];
    assert_eq!(matrix.as_chunks::<5>().0, [rows[0], rows[1], rows[2], rows[2]]);
}

#[test]
fn ranges_that_overlap_or_leave_the_slice_are_refused() {
    for wrong in [[0..3, 2..4], [3..4, 0..1], [0..1, 4..6]] {
        let refused = std::panic::catch_unwind(|| ranges(&mut [0; 5], &wrong).parts());
        assert!(refused.is_err(), "{wrong:?}");
    }
}

#[test]
fn a_team_leaves_the_other_threads_asleep() {
    let pool = ThreadPool::new(4).unwrap();
    for (team, expected) in [(2, 2), (1, 1), (0, 1), (9, 4), (3, 3)] {
        pool.set_team(team);
        let seen = Mutex::new(std::collections::BTreeSet::new());
        for _ in 0..20 {
            let mut numbers = [0, 1, 2, 3]; // the memory that a thread has says which one it is
            pool.for_each_with(&mut numbers, 0..100, |number, _, _| {
                std::hint::black_box((0..1000).sum::<usize>());
                lock(&seen).insert(*number);
            });
        }
        let seen = seen.into_inner().unwrap();
        assert!(seen.iter().all(|number| *number < expected), "{team}: {seen:?}");
    }
}

#[test]
fn a_pool_works_with_every_patience() {
    for wait in ["passive", "active", "balanced", "0", "20"] {
        let options = PoolOptions { wait: wait.parse().unwrap(), ..PoolOptions::default() };
        let pool = ThreadPool::with_options(3, options).unwrap();
        let mut values = [0; 64];
        for _ in 0..100 {
            pool.for_each(items(&mut values), |_, value| *value += 1);
        }
        assert_eq!(values, [100; 64], "{wait}");
    }
    assert!(WaitPolicy::from_str("-1").is_err() && WaitPolicy::from_str("").is_err());
}

#[test]
fn more_than_sixty_four_threads_are_woken() {
    let pool = ThreadPool::new(70).unwrap();
    while !(1..70).all(|worker| pool.shared.gate.sleeps(worker)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Each part waits for all others, so every thread has one.
    let all = std::sync::Barrier::new(70);
    pool.for_each(0..70, |_, _| {
        all.wait();
    });
}

#[test]
fn too_many_threads_are_refused() {
    assert_eq!(ThreadPool::new(1 << 20).err().unwrap().kind(), io::ErrorKind::InvalidInput);
}

#[cfg(target_os = "linux")]
#[test]
fn threads_run_where_they_are_put() {
    let allowed = crate::cpu::topology::Topology::detect().allowed;
    let places: Vec<_> = (0..3).map(|thread| vec![allowed[thread % allowed.len()]]).collect();
    let options = PoolOptions { places: places.clone(), ..PoolOptions::default() };
    let pool = ThreadPool::with_options(3, options).unwrap();
    std::thread::scope(|scope| {
        // On a thread that ends, so that the test's own may go where it likes.
        scope.spawn(|| {
            pool.attach().unwrap();
            let all = std::sync::Barrier::new(3);
            let mut numbers = [0, 1, 2];
            pool.for_each_with(&mut numbers, 0..3, |number, _, _| {
                all.wait();
                assert_eq!(affinity::current(), places[*number], "thread {number}");
            });
        });
    });
}

#[test]
fn a_place_that_does_not_exist_is_an_error() {
    let options = PoolOptions { places: vec![vec![], vec![1 << 20]], ..PoolOptions::default() };
    assert!(ThreadPool::with_options(2, options).is_err());
}
