//! Who is served when: shares, priorities, the time of a step.

use super::*;
use crate::options::{Queue, RequestOptions};

const SECOND: Duration = Duration::from_secs(1);

fn with(options: RequestOptions, prompt_len: usize, max_new_tokens: usize) -> Request {
    Request { options, ..generate(prompt_len, max_new_tokens) }
}

fn of_priority(priority: i32) -> RequestOptions {
    RequestOptions { priority, ..Default::default() }
}

fn of_queue(name: &str, weight: f64) -> RequestOptions {
    RequestOptions { queue: Queue::new(name, weight), ..Default::default() }
}

/// Requests that come so many seconds after the first, with a priority, on an engine that has room for one; who was served in
/// which order.
#[track_caller]
fn check_order(requests: &[(u64, i32)], expected: &[u64]) {
    let mut scheduler = Scheduler::new(Limits { max_batch_size: 1, ..LIMITS });
    let epoch = scheduler.epoch;
    for &(came, priority) in requests {
        scheduler.add(with(of_priority(priority), 5, 1), epoch + SECOND * came as u32);
    }
    let order: Vec<u64> = expected.iter().map(|_| step(&mut scheduler, 5).0[0].0).collect();
    assert_eq!(order, expected);
}

#[test]
fn the_higher_priority_goes_first_and_of_equals_who_came_first() {
    check_order(&[(0, 0), (0, 0), (1, 5), (2, 5)], &[2, 3, 0, 1]);
}

#[test]
fn waiting_counts_as_much_as_priority() {
    // Each level is worth a second.
    check_order(&[(0, 0), (4, 5), (6, 5)], &[1, 0, 2]);
}

#[test]
fn a_request_of_low_priority_is_served_while_more_important_ones_keep_coming() {
    let mut scheduler = Scheduler::new(Limits { max_batch_size: 1, ..LIMITS });
    let epoch = scheduler.epoch;
    let low = scheduler.add(with(of_priority(-20), 5, 1), epoch);
    for second in 1.. {
        scheduler.add(with(of_priority(0), 5, 1), epoch + SECOND * second);
        if step(&mut scheduler, 5).0[0].0 == low.0 {
            assert_eq!(second, 20);
            return;
        }
    }
}

#[test]
fn extreme_priorities_are_no_overflow() {
    check_order(&[(0, i32::MIN), (0, i32::MAX), (0, 0)], &[1, 2, 0]);
    let day = Duration::from_secs(24 * 60 * 60);
    let mut scheduler = Scheduler::new(Limits { priority_step: day, ..LIMITS });
    for priority in [i32::MIN, i32::MAX] {
        add(&mut scheduler, with(of_priority(priority), 5, 1));
    }
    assert_eq!(scheduler.waiting.first().unwrap().id, SeqId(1));
}

#[test]
fn a_far_more_important_request_takes_the_place_of_one_that_runs() {
    for (priority, expected) in [(PREEMPTING - 1, (0, 1)), (PREEMPTING, (1, 5))] {
        let mut scheduler = Scheduler::new(Limits { max_batch_size: 1, ..LIMITS });
        let epoch = scheduler.epoch;
        scheduler.add(generate(5, 30), epoch);
        step(&mut scheduler, 5);
        scheduler.add(with(of_priority(priority), 5, 2), epoch + SECOND);
        assert_eq!(step(&mut scheduler, 5).0, [expected]);
        assert_eq!(scheduler.preemptions(), u64::from(priority == PREEMPTING));
    }
}

#[test]
fn who_has_waited_long_does_not_lose_its_place() {
    let mut scheduler = Scheduler::new(Limits { max_batch_size: 1, ..LIMITS });
    let epoch = scheduler.epoch;
    scheduler.add(generate(5, 30), epoch);
    step(&mut scheduler, 5);
    scheduler.add(with(of_priority(PREEMPTING), 5, 2), epoch + SECOND * 11);
    assert_eq!(step(&mut scheduler, 5).0, [(0, 1)]);
}

#[test]
fn the_most_important_runs_first_and_makes_room_last() {
    let mut scheduler = Scheduler::new(Limits { pages: 4, ..LIMITS });
    let epoch = scheduler.epoch;
    scheduler.add(generate(PAGE - 1, 10), epoch);
    step(&mut scheduler, 5);
    scheduler.add(with(of_priority(5), PAGE - 1, 10), epoch + SECOND);
    let steps: Vec<_> = (0..4).map(|_| step(&mut scheduler, 5).0).collect();
    assert_eq!(steps[0], [(0, 1), (1, PAGE - 1)]);
    assert_eq!(steps[1], [(1, 1), (0, 1)]);
    // A third page for one of them and then a fourth; when there are no more it is the less important one that stops.
    let mut scheduler = Scheduler::new(Limits { pages: 5, ..LIMITS });
    scheduler.add(generate(2 * PAGE - 4, 80), epoch);
    step(&mut scheduler, 5);
    scheduler.add(with(of_priority(5), PAGE - 4, 100), epoch + SECOND);
    while scheduler.preemptions() == 0 {
        step(&mut scheduler, 5);
    }
    assert_eq!(scheduler.waiting.first().unwrap().id, SeqId(0));
}

/// Both queues always have requests, the first always three that wait, the second as many or, if `steady` is false, one in all;
/// the share of the computed tokens that the first got in so many steps.
fn share(
    weights: [f64; 2],
    limits: Limits,
    (steps, steady): (usize, bool),
    request: impl Fn(usize, usize) -> Request,
) -> f64 {
    let mut scheduler = Scheduler::new(limits);
    let mut owner = Vec::new();
    let mut waiting = [0usize; 2];
    let mut served = [0usize; 2];
    for _ in 0..steps {
        for queue in 0..2 {
            let runs = |s: &Sequence| &*s.queue.name == "b";
            let is_busy = !steady && queue == 1 && scheduler.running.iter().any(runs);
            while waiting[queue] < if steady || queue == 0 { 3 } else { 1 } && !is_busy {
                let options = of_queue(["a", "b"][queue], weights[queue]);
                add(&mut scheduler, Request { options, ..request(queue, owner.len()) });
                owner.push(queue);
                waiting[queue] += 1;
            }
        }
        let before: HashSet<u64> = scheduler.running.iter().map(|s| s.id.0).collect();
        for (id, tokens) in step(&mut scheduler, 5).0 {
            let queue = owner[id as usize];
            served[queue] += tokens;
            waiting[queue] -= usize::from(!before.contains(&id));
        }
    }
    served[0] as f64 / (served[0] + served[1]) as f64
}

#[test]
fn queues_get_tokens_by_their_weights() {
    for (weights, lengths, size) in [
        ([0.7, 0.3], [(20, 15), (20, 15)], 4),
        ([0.7, 0.3], [(20, 15), (20, 15)], 1),
        ([0.7, 0.3], [(5, 30), (90, 5)], 4),
        ([0.5, 0.5], [(5, 40), (5, 4)], 4),
        ([9.0, 1.0], [(20, 15), (20, 15)], 4),
    ] {
        let limits = Limits { max_batch_size: size, ..ROOMY };
        let share = share(weights, limits, (6000, true), |queue, i| {
            let (prompt, answer) = lengths[queue];
            generate(prompt, 1 + i * 13 % (2 * answer))
        });
        let expected = weights[0] / (weights[0] + weights[1]);
        assert!((share - expected).abs() < 0.03, "{share} of {expected}: {lengths:?}, {size}");
    }
}

const ROOMY: Limits = Limits { pages: 100, max_batch_size: 4, ..LIMITS };

#[track_caller]
fn check_halves(limits: Limits, steps: usize, request: impl Fn(usize, usize) -> Request) {
    let share = share([1.0, 1.0], limits, (steps, true), request);
    assert!((share - 0.5).abs() < 0.06, "{share}");
}

#[test]
fn what_was_expected_and_not_used_is_given_back() {
    check_halves(ROOMY, 6000, |queue, _| match queue {
        0 => generate(20, 15),
        _ => {
            let work = Work::Generate {
                sampling: GenerationConfig::default().sampling().unwrap(),
                max_new_tokens: 200,
                stop_ids: vec![5],
            };
            Request::new(vec![1; 20], work) // ends with its first token
        }
    });
}

#[test]
fn long_answers_do_not_keep_others_waiting() {
    let limits = Limits { max_seq_len: 64 * PAGE, pages: 1000, prefix_cache: true, ..ROOMY };
    check_halves(limits, 5000, |queue, _| generate(5, [3000, 3][queue]));
}

#[test]
fn what_was_in_the_cache_is_free() {
    let limits = Limits { prefix_cache: true, max_batch_tokens: 1000, ..ROOMY };
    check_halves(limits, 6000, |queue, i| match queue {
        0 => Request { ids: vec![2; 3 * PAGE + 10], ..generate(1, 5) },
        _ => Request { ids: vec![1000 + i as u32; 20], ..generate(1, 5) },
    });
}

#[test]
fn a_queue_pays_its_debts_also_if_it_has_one_request_at_a_time() {
    let limits = Limits { max_batch_size: 1, ..ROOMY };
    let request = |queue: usize, _| generate([5, 90][queue], 1);
    let share = share([9.0, 1.0], limits, (6000, false), request);
    assert!((share - 0.9).abs() < 0.03, "{share}");
}

#[test]
fn a_queue_that_comes_late_does_not_catch_up() {
    let mut scheduler = Scheduler::new(Limits { max_batch_size: 1, ..LIMITS });
    for name in ["a", "b"].repeat(200) {
        add(&mut scheduler, with(of_queue(name, 1.0), 5, 1));
    }
    for _ in 0..200 {
        step(&mut scheduler, 5);
    }
    for _ in 0..100 {
        add(&mut scheduler, with(of_queue("c", 1.0), 5, 1));
    }
    let mut served = BTreeMap::new();
    for _ in 0..90 {
        let name = scheduler.waiting.first().unwrap().queue.name.to_string();
        *served.entry(name).or_insert(0) += 1;
        step(&mut scheduler, 5);
    }
    assert!(served.values().all(|count| (28..=32).contains(count)), "{served:?}");
}

#[test]
fn a_place_is_taken_from_the_same_queue_only() {
    let mut scheduler = Scheduler::new(Limits { max_batch_size: 1, ..LIMITS });
    let epoch = scheduler.epoch;
    scheduler.add(with(of_queue("a", 1.0), 5, 30), epoch);
    step(&mut scheduler, 5);
    scheduler.add(with(of_priority(PREEMPTING), 5, 2), epoch + SECOND);
    assert_eq!(step(&mut scheduler, 5).0, [(0, 1)]);
}

#[test]
fn a_queue_that_is_alone_gets_all_and_owes_nothing_later() {
    let mut scheduler = Scheduler::new(Limits { max_batch_size: 1, ..LIMITS });
    for _ in 0..50 {
        add(&mut scheduler, with(of_queue("a", 0.3), 5, 1));
        assert_eq!(step(&mut scheduler, 5).0.len(), 1);
    }
    // From now on both are served as if they had begun together.
    let mut served = Vec::new();
    for _ in 0..4 {
        add(&mut scheduler, with(of_queue("a", 1.0), 5, 1));
        add(&mut scheduler, with(of_queue("b", 1.0), 5, 1));
    }
    for _ in 0..8 {
        served.push((step(&mut scheduler, 5).0[0].0 - 50) % 2);
    }
    assert_eq!(served.iter().sum::<u64>(), 4);
    assert!(served[..4].contains(&0) && served[..4].contains(&1), "{served:?}");
}

#[test]
fn a_queue_that_nobody_uses_is_forgotten() {
    let mut scheduler = Scheduler::new(LIMITS);
    for name in 0..100 {
        add(&mut scheduler, with(of_queue(&name.to_string(), 1.0), 5, 3));
        while !scheduler.is_idle() {
            step(&mut scheduler, 5);
        }
    }
    add(&mut scheduler, generate(5, 1));
    step(&mut scheduler, 5);
    let left = format!("{:?}", scheduler.waiting).matches("Waiting").count();
    assert_eq!(left, 0);
}

/// A step takes this long.
fn time(size: StepSize) -> Duration {
    Duration::from_secs_f64(1e-3 + 1e-3 * size.tokens + 1e-6 * size.pairs)
}

/// Runs until all is done; the longest step with an answer in it and the tokens of all steps.
fn run_timed(scheduler: &mut Scheduler) -> (Duration, Vec<usize>) {
    let (mut longest, mut sizes) = (Duration::ZERO, Vec::new());
    while let Some(plan) = plan(scheduler) {
        scheduler.observe(&plan, time(plan.size));
        let has_answer = plan.entries.iter().any(|entry| entry.id == SeqId(0)) && sizes.len() > 5;
        if has_answer {
            longest = longest.max(time(plan.size));
        }
        sizes.push(plan.entries.iter().map(Entry::tokens).sum());
        let drawn = draw(scheduler, &plan, |_| 5);
        commit(scheduler, &plan, &drawn);
    }
    (longest, sizes)
}

#[test]
fn prompts_are_cut_to_the_time_of_a_step_while_there_are_answers() {
    let limits = Limits {
        max_seq_len: 4096,
        pages: 1000,
        max_batch_tokens: 512,
        step_target: Some(Duration::from_millis(60)),
        ..LIMITS
    };
    let mut scheduler = Scheduler::new(limits);
    add(&mut scheduler, generate(600, 300));
    for _ in 0..3 {
        add(&mut scheduler, generate(1000, 1));
    }
    let (longest, sizes) = run_timed(&mut scheduler);
    assert_eq!(sizes[0], 512, "nobody waits for an answer yet");
    assert!(
        longest > Duration::from_millis(50) && longest < Duration::from_millis(66),
        "{longest:?}"
    );
    assert!(sizes.len() > 50);
}

#[test]
fn prompts_go_on_also_where_answers_alone_take_too_long() {
    let limits = Limits { step_target: Some(Duration::from_micros(1)), ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    add(&mut scheduler, generate(5, 90));
    step(&mut scheduler, 5);
    add(&mut scheduler, generate(100, 1));
    add(&mut scheduler, generate(100, 1));
    let (_, sizes) = run_timed(&mut scheduler);
    // The first piece is large enough to learn from; then one prompt after the other.
    assert_eq!(sizes[..3], [1 + FIRST_PIECE, 1 + LEAST_PIECE, 1 + LEAST_PIECE]);
}

#[test]
fn without_a_target_prompts_come_as_they_fit() {
    let mut scheduler = Scheduler::new(LIMITS);
    add(&mut scheduler, generate(5, 90));
    step(&mut scheduler, 5);
    add(&mut scheduler, generate(200, 1));
    assert_eq!(step(&mut scheduler, 5).0, [(0, 1), (1, 99)]);
}

#[test]
fn a_page_is_left_for_each_that_runs() {
    let mut scheduler = Scheduler::new(Limits { pages: 4, ..LIMITS });
    add(&mut scheduler, generate(PAGE, 9));
    add(&mut scheduler, generate(3 * PAGE, 9));
    assert_eq!(step(&mut scheduler, 5).0, [(0, PAGE)]);
    // The first now needs its second page.
    assert_eq!(step(&mut scheduler, 5).0, [(0, 1)]);
    assert_eq!(scheduler.preemptions(), 0);
}

#[test]
fn no_page_is_left_for_who_needs_no_more() {
    let mut scheduler = Scheduler::new(Limits { pages: 3, max_batch_tokens: 1000, ..LIMITS });
    add(&mut scheduler, generate(PAGE - 8, 9)); // the last token is drawn and not computed
    add(&mut scheduler, generate(2 * PAGE, 1));
    assert_eq!(step(&mut scheduler, 5).0, [(0, PAGE - 8), (1, 2 * PAGE)]);
}

#[test]
fn nobody_is_let_in_for_whom_there_is_no_time() {
    let limits = Limits { step_target: Some(Duration::from_millis(1)), ..ROOMY };
    let mut scheduler = Scheduler::new(limits);
    add(&mut scheduler, generate(5, 90));
    step(&mut scheduler, 5);
    add(&mut scheduler, generate(100, 1));
    add(&mut scheduler, generate(100, 1));
    step(&mut scheduler, 5);
    assert_eq!(scheduler.running(), 2);
}

#[test]
fn what_a_broken_step_may_be_tried_again_waits_with_its_tokens() {
    let mut scheduler = Scheduler::new(Limits { prefix_cache: true, ..LIMITS });
    let retried = RequestOptions { max_retries: 1, ..Default::default() };
    add(&mut scheduler, with(retried, 70, 9));
    add(&mut scheduler, generate(5, 9));
    step(&mut scheduler, 5);
    step(&mut scheduler, 5);
    assert_eq!(scheduler.restart_running(), [SeqId(1)]);
    assert_eq!(scheduler.free_pages(), LIMITS.pages);
    // Two tokens of the answer are there already.
    assert_eq!(step(&mut scheduler, 5).0, [(0, 72)]);
    assert_eq!(scheduler.restart_running(), [SeqId(0)]);
    assert!(scheduler.is_idle());
}

#[test]
fn what_was_drawn_but_not_told_is_not_tried_again() {
    let mut scheduler = Scheduler::new(LIMITS);
    let retried = RequestOptions { max_retries: 5, ..Default::default() };
    add(&mut scheduler, with(retried, 7, 9));
    let plan = plan(&mut scheduler).unwrap();
    draw(&mut scheduler, &plan, |_| 99);
    assert_eq!(scheduler.restart_running(), [SeqId(0)]);
}
