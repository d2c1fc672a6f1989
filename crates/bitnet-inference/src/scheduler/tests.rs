use std::collections::{BTreeMap, HashSet};

use bitnet_kernels::kv::PAGE;
use bitnet_kernels::logits::Wanted;
use bitnet_model::kv::PageLayout;
use proptest::prelude::*;

use super::*;
use crate::block_pool::EvictionStrategy;
use crate::request::{DraftStrategy, GenerationConfig, Work};
use crate::sequence::Stop;

mod service;

const LIMITS: Limits = Limits {
    max_seq_len: 4 * PAGE,
    pages: 8,
    max_batch_size: 4,
    max_batch_tokens: 100,
    max_outputs: 30,
    step_target: None,
    row_tokens: 0.3,
    max_waiting: 100,
    max_waiting_tokens: 1000,
    priority_step: Duration::from_secs(1),
    prefix_cache: false,
    eviction: EvictionStrategy::Lru,
    layout: PageLayout { layers: 1, group: 1, group_bytes: 1, chunk_bytes: 1 },
};

const VOCAB_SIZE: u32 = 100;

fn generate(prompt_len: usize, max_new_tokens: usize) -> Request {
    generate_with(DraftStrategy::Off, prompt_len, max_new_tokens)
}

fn generate_with(draft: DraftStrategy, prompt_len: usize, max_new_tokens: usize) -> Request {
    let sampling = GenerationConfig { draft, ..Default::default() }.sampling().unwrap();
    let work = Work::Generate { sampling, max_new_tokens, stop_ids: vec![99] };
    Request::new(vec![1; prompt_len], work)
}

/// Draws for each entry that generates; `token` says what follows the token of an index.
fn draw(scheduler: &mut Scheduler, plan: &Plan, token: impl Fn(usize) -> u32) -> Vec<usize> {
    let one_hot = |index| (0..VOCAB_SIZE).map(move |id| f32::from(u8::from(id == index)));
    let mut count = |entry: &Entry| {
        let generates =
            matches!(scheduler.running_mut(entry.id).unwrap().task, Task::Generate { .. });
        let rows: Vec<Vec<f32>> =
            entry.outputs.clone().map(|i| one_hot(token(i)).collect()).collect();
        let rows = rows.iter().map(|row| LogitRow::All(row));
        if generates && rows.len() > 0 { scheduler.draw(entry, rows).unwrap() } else { 0 }
    };
    plan.entries.iter().map(&mut count).collect()
}

/// A request that comes now.
fn add(scheduler: &mut Scheduler, request: Request) -> SeqId {
    scheduler.add(request, Instant::now())
}

fn plan(scheduler: &mut Scheduler) -> Option<Plan> {
    let mut plan = Plan::default();
    scheduler.plan(&mut plan).then_some(plan)
}

fn batch(scheduler: &Scheduler, plan: &Plan) -> Batch {
    let mut batch = Batch::default();
    scheduler.fill(&mut batch, plan);
    batch
}

/// What a step brought for one sequence.
struct Event {
    id: SeqId,
    tokens: Vec<u32>,
    finished: Option<Finished>,
}

fn commit(scheduler: &mut Scheduler, plan: &Plan, drawn: &[usize]) -> Vec<Event> {
    let mut events = Vec::new();
    scheduler.commit(plan, drawn, |id, tokens, finished| {
        events.push(Event { id, tokens: tokens.to_vec(), finished });
    });
    events
}

/// Plans and commits a step in which every token drawn is `token`. Returns tokens by sequence, and the events.
fn step(scheduler: &mut Scheduler, token: u32) -> (Vec<(u64, usize)>, Vec<Event>) {
    let plan = plan(scheduler).expect("there is something to do");
    let drawn = draw(scheduler, &plan, |_| token);
    let events = commit(scheduler, &plan, &drawn);
    (plan.entries.iter().map(|entry| (entry.id.0, entry.count)).collect(), events)
}

/// Requests come at the beginning; `expected` is the tokens by sequence of each step.
#[track_caller]
fn check(limits: Limits, requests: &[Request], expected: &[&[(u64, usize)]]) {
    let mut scheduler = Scheduler::new(limits);
    for request in requests {
        add(&mut scheduler, request.clone());
    }
    let steps: Vec<_> = expected.iter().map(|_| step(&mut scheduler, 5).0).collect();
    assert_eq!(steps, expected);
}

#[test]
fn a_prompt_is_computed_at_once_and_then_a_token_at_a_time() {
    check(LIMITS, &[generate(33, 3)], &[&[(0, 33)], &[(0, 1)], &[(0, 1)]]);
}

#[test]
fn a_long_prompt_takes_several_steps() {
    check(LIMITS, &[generate(230, 2)], &[&[(0, 100)], &[(0, 100)], &[(0, 30)], &[(0, 1)]]);
}

#[test]
fn answers_go_on_while_a_prompt_is_computed() {
    check(
        LIMITS,
        &[generate(10, 9), generate(150, 9)],
        &[&[(0, 10), (1, 90)], &[(0, 1), (1, 60)], &[(0, 1), (1, 1)]],
    );
}

#[test]
fn sequences_join_in_the_order_in_which_they_came() {
    let limits = Limits { max_batch_size: 2, ..LIMITS };
    check(
        limits,
        &[generate(10, 2), generate(10, 3), generate(10, 3)],
        &[&[(0, 10), (1, 10)], &[(0, 1), (1, 1)], &[(1, 1), (2, 10)], &[(2, 1)]],
    );
}

#[test]
fn a_sequence_without_room_waits_and_none_overtakes_it() {
    let limits = Limits { pages: 4, ..LIMITS };
    check(
        limits,
        &[generate(PAGE, 2), generate(4 * PAGE - 1, 2), generate(1, 2)],
        &[&[(0, PAGE)], &[(0, 1)], &[(1, 100)]],
    );
}

#[test]
fn rows_of_logits_are_limited_too() {
    let score = Request::new(vec![1; 50], Work::Score { from: 11 });
    // Rows 10 to 48 are wanted, 30 in a step; the last token predicts nothing.
    check(LIMITS, &[score], &[&[(0, 40)], &[(0, 9)]]);
    let logits = Request::new(vec![1; 50], Work::Logits { from: 0 });
    check(LIMITS, &[logits, generate(10, 2)], &[&[(0, 30), (1, 9)], &[(1, 1), (0, 20)]]);
}

#[test]
fn the_wanted_rows_are_those_of_the_batch() {
    let mut scheduler = Scheduler::new(LIMITS);
    add(&mut scheduler, generate(5, 2));
    add(&mut scheduler, Request::new(vec![2; 6], Work::Score { from: 4 }));
    let plan = plan(&mut scheduler).unwrap();
    let batch = batch(&scheduler, &plan);
    assert_eq!(batch.ids, [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
    let rows: Vec<_> = batch.outputs.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows, [4, 8, 9]); // the last token of one, tokens 3 and 4 of the other
}

#[track_caller]
fn check_end(request: Request, token: u32, expected: FinishReason) {
    let mut scheduler = Scheduler::new(LIMITS);
    add(&mut scheduler, request);
    let last = loop {
        let (_, events) = step(&mut scheduler, token);
        if let Some(Event { finished: Some(finished), .. }) = events.into_iter().next() {
            break finished;
        }
    };
    assert_eq!(last, Finished::Generated(expected));
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.free_pages(), LIMITS.pages);
}

#[test]
fn a_generation_ends_for_one_of_three_reasons() {
    check_end(generate(7, 3), 5, FinishReason::Length);
    check_end(generate(7, 3), 99, FinishReason::Stop(Stop::Token(99)));
    check_end(generate(LIMITS.max_seq_len - 3, 9), 5, FinishReason::Context);
}

#[test]
fn the_context_holds_prompt_and_answer() {
    let mut scheduler = Scheduler::new(LIMITS);
    add(&mut scheduler, generate(LIMITS.max_seq_len - 3, 9));
    let mut tokens = 0;
    while !scheduler.is_idle() {
        tokens += step(&mut scheduler, 5).1.iter().map(|event| event.tokens.len()).sum::<usize>();
    }
    assert_eq!(tokens, 3);
}

#[test]
fn the_sequence_that_came_last_makes_room() {
    // Each fills a page; then both need another, and one is left.
    let limits = Limits { pages: 3, ..LIMITS };
    let mut scheduler = Scheduler::new(limits);
    add(&mut scheduler, generate(PAGE - 1, 10));
    add(&mut scheduler, generate(PAGE - 1, 10));
    let mut steps: Vec<_> = (0..4).map(|_| step(&mut scheduler, 5).0).collect();
    assert_eq!(steps.remove(0), [(0, 63), (1, 37)]);
    assert_eq!(steps.remove(0), [(0, 1), (1, 26)]);
    assert_eq!(steps.remove(0), [(0, 1), (1, 1)]);
    // Sequence 0 has taken the third page; sequence 1 gives its page back and waits until it can compute all again.
    assert_eq!(steps.remove(0), [(0, 1)]);
    assert_eq!(scheduler.waiting.first().unwrap().tokens.len(), PAGE + 1);
    let mut steps = Vec::new();
    while !scheduler.is_idle() {
        steps.push(step(&mut scheduler, 5).0);
    }
    assert_eq!(steps[6], [(1, PAGE + 1)]);
    assert_eq!(scheduler.free_pages(), limits.pages);
}

#[test]
fn removing_a_sequence_frees_its_pages() {
    let mut scheduler = Scheduler::new(LIMITS);
    let ids = [add(&mut scheduler, generate(PAGE, 9)), add(&mut scheduler, generate(4 * PAGE, 9))];
    step(&mut scheduler, 5);
    assert_eq!(scheduler.free_pages(), 3);
    scheduler.remove(ids[0]);
    assert_eq!(scheduler.free_pages(), 4);
    scheduler.remove(ids[1]);
    assert_eq!(scheduler.free_pages(), 8);
    assert!(scheduler.is_idle());
}

const SHARING: Limits = Limits { prefix_cache: true, ..LIMITS };

#[test]
fn a_beginning_that_was_computed_is_not_computed_again() {
    // The second request waits for a place; all but the last token of three pages could be shared, so two are.
    let limits = Limits { max_batch_size: 1, max_batch_tokens: 1000, ..SHARING };
    let requests = [generate(2 * PAGE + 5, 1), generate(3 * PAGE, 1), generate(3 * PAGE, 1)];
    let (a, b) = (2 * PAGE + 5, PAGE);
    check(limits, &requests, &[&[(0, a)], &[(1, b)], &[(2, b)]]);
    // Of a text to be scored, what comes before the first row that is wanted.
    let score = |from| Request::new(vec![1; 3 * PAGE], Work::Score { from });
    let requests = [generate(3 * PAGE, 1), score(2 * PAGE), score(2 * PAGE + 1)];
    let limits = Limits { max_outputs: 1000, ..limits };
    check(limits, &requests, &[&[(0, 3 * PAGE)], &[(1, 2 * PAGE - 1)], &[(2, PAGE - 1)]]);
}

#[test]
fn an_answer_is_found_by_the_next_turn() {
    let mut scheduler = Scheduler::new(Limits { max_batch_tokens: 1000, ..SHARING });
    add(&mut scheduler, generate(PAGE - 3, 5));
    while !scheduler.is_idle() {
        step(&mut scheduler, 7);
    }
    let ids = [vec![1; PAGE - 3], vec![7; 5], vec![2; 4]].concat();
    add(&mut scheduler, Request { ids, ..generate(1, 1) });
    assert_eq!(step(&mut scheduler, 7).0, [(1, 6)]);
    assert_eq!(scheduler.prefix_stats().shared, 1);
}

#[test]
fn the_last_token_of_an_answer_is_not_in_the_cache() {
    let mut scheduler = Scheduler::new(Limits { max_batch_tokens: 1000, ..SHARING });
    add(&mut scheduler, generate(PAGE - 5, 5));
    while !scheduler.is_idle() {
        step(&mut scheduler, 7);
    }
    let ids = [vec![1; PAGE - 5], vec![7; 5], vec![2; 4]].concat();
    add(&mut scheduler, Request { ids, ..generate(1, 1) });
    assert_eq!(step(&mut scheduler, 7).0, [(1, PAGE + 4)]);
}

#[test]
fn who_waits_for_room_does_not_count_on_the_pages_that_it_shares() {
    let mut scheduler = Scheduler::new(Limits { pages: 4, max_batch_tokens: 1000, ..SHARING });
    add(&mut scheduler, Request { ids: vec![3; 2 * PAGE], ..generate(1, 1) });
    step(&mut scheduler, 5);
    add(&mut scheduler, generate(PAGE + 1, 9));
    add(&mut scheduler, Request { ids: vec![3; 3 * PAGE], ..generate(1, 1) });
    assert_eq!(step(&mut scheduler, 5).0, [(1, PAGE + 1)]);
    assert_eq!(scheduler.prefix_stats().shared, 0, "it did not begin");
}

#[test]
fn two_that_run_together_end_up_with_the_same_pages() {
    let mut scheduler = Scheduler::new(Limits { max_batch_tokens: 1000, ..SHARING });
    add(&mut scheduler, generate(2 * PAGE + 1, 9));
    add(&mut scheduler, generate(2 * PAGE + 1, 9));
    step(&mut scheduler, 5);
    assert_eq!(scheduler.running[0].pages[..2], scheduler.running[1].pages[..2]);
    assert_eq!(scheduler.free_pages(), 8 - 4);
    assert_eq!(step(&mut scheduler, 5).0, [(0, 1), (1, 1)]);
}

#[test]
fn a_sequence_that_made_room_finds_its_pages_again() {
    let limits = Limits { pages: 4, max_batch_tokens: 1000, ..SHARING };
    let mut scheduler = Scheduler::new(limits);
    add(&mut scheduler, generate(PAGE - 1, 10));
    add(&mut scheduler, Request { ids: vec![3; 2 * PAGE - 1], ..generate(1, 10) });
    let steps: Vec<_> = (0..3).map(|_| step(&mut scheduler, 5).0).collect();
    // Three pages were held, then the first sequence took the fourth, and the second gave its two back.
    assert_eq!(steps, [vec![(0, PAGE - 1), (1, 2 * PAGE - 1)], vec![(0, 1), (1, 1)], vec![(0, 1)]]);
    while scheduler.running.iter().all(|sequence| sequence.id.0 == 0) {
        step(&mut scheduler, 5);
    }
    assert_eq!(scheduler.running[0].computed, 2 * PAGE + 1, "two pages were still there");
    assert_eq!(scheduler.running[0].cached, Some(0), "when it first began there were none");
}

#[test]
fn kept_pages_make_room_for_sequences() {
    let mut scheduler = Scheduler::new(Limits { max_batch_tokens: 1000, ..SHARING });
    for token in 0..20 {
        add(&mut scheduler, Request { ids: vec![token; 3 * PAGE], ..generate(1, 1) });
        step(&mut scheduler, 5);
        assert!(scheduler.is_idle());
        assert_eq!(scheduler.free_pages(), 8);
    }
    assert_eq!(scheduler.prefix_stats(), PrefixStats { shared: 0, evicted: 20 * 3 - 8 });
}

#[test]
fn a_draft_that_is_right_saves_steps_and_a_wrong_one_costs_nothing_but_time() {
    let mut scheduler = Scheduler::new(LIMITS);
    add(&mut scheduler, generate_with(DraftStrategy::Ngram, 10, 12));
    let mut steps = Vec::new();
    while let Some(plan) = plan(&mut scheduler) {
        assert_eq!(
            batch(&scheduler, &plan).len(),
            plan.entries[0].count + plan.entries[0].draft.len()
        );
        scheduler.observe(&plan, Duration::from_millis(1));
        let drawn = draw(&mut scheduler, &plan, |index| if index == 15 { 2 } else { 1 });
        commit(&mut scheduler, &plan, &drawn);
        steps.push((plan.entries[0].draft.len(), drawn[0]));
    }
    // The first answer step is timed without a draft. The token after index 15 is not what the draft says.
    assert_eq!(steps[..4], [(0, 1), (0, 1), (3, 4), (5, 1)]);
    assert_eq!(steps.iter().map(|(_, drawn)| drawn).sum::<usize>(), 12);
}

/// Runs one sequence with drafts until it has one, and gives the plan with it. Steps draw `tokens`, one each.
fn plan_with_draft(
    scheduler: &mut Scheduler,
    ids: &[u32],
    config: &GenerationConfig,
    tokens: &[u32],
) -> Plan {
    let config = GenerationConfig { draft: DraftStrategy::Ngram, ..config.clone() };
    let (sampling, max_new_tokens) = (config.sampling().unwrap(), config.max_new_tokens);
    let work = Work::Generate { sampling, max_new_tokens, stop_ids: vec![99] };
    add(scheduler, Request::new(ids.to_vec(), work));
    for &token in tokens {
        let plan = plan(scheduler).unwrap();
        scheduler.observe(&plan, Duration::from_millis(1));
        let drawn = draw(scheduler, &plan, |_| token);
        commit(scheduler, &plan, &drawn);
    }
    plan(scheduler).unwrap()
}

#[test]
fn a_draft_does_not_lead_past_what_ends_an_answer() {
    let mut scheduler = Scheduler::new(LIMITS);
    let config = GenerationConfig::default();
    let plan = plan_with_draft(&mut scheduler, &[3, 1, 2, 99, 7, 8, 3], &config, &[1, 2]);
    assert_eq!(plan.entries[0].draft, [99, 7, 8]);
    // All of the draft is right, but the answer ends with its first token.
    let drawn = draw(&mut scheduler, &plan, |index| [99, 7, 8, 3][index - 8]);
    let events = commit(&mut scheduler, &plan, &drawn);
    assert_eq!(events[0].tokens, [99]);
    let stop = FinishReason::Stop(Stop::Token(99));
    assert_eq!(events[0].finished, Some(Finished::Generated(stop)));
}

#[test]
fn a_draft_is_no_longer_than_what_is_left_of_an_answer() {
    let ids: Vec<u32> = [1, 2, 3, 4, 5].repeat(20);
    for left in 1..6 {
        let config = GenerationConfig { max_new_tokens: 2 + left, ..Default::default() };
        let plan = plan_with_draft(&mut Scheduler::new(LIMITS), &ids, &config, &[1, 2]);
        assert_eq!(plan.entries[0].draft.len(), (left - 1).min(3), "{left} tokens left");
        let limits = Limits { max_seq_len: ids.len() + 2 + left, ..LIMITS };
        let config = GenerationConfig::default();
        let plan = plan_with_draft(&mut Scheduler::new(limits), &ids, &config, &[1, 2]);
        assert_eq!(plan.entries[0].draft.len(), (left - 1).min(3), "room for {left} tokens");
    }
}

#[test]
fn rows_of_a_draft_want_what_the_tokens_before_them_make_less_likely() {
    let config = GenerationConfig { frequency_penalty: 0.5, ..Default::default() };
    let mut scheduler = Scheduler::new(LIMITS);
    let plan = plan_with_draft(&mut scheduler, &[2, 3, 4, 5, 6, 2], &config, &[3, 4]);
    assert_eq!(plan.entries[0].draft, [5, 6, 2]);
    let always = batch(&scheduler, &plan).outputs.into_iter().map(|(_, wanted)| match wanted {
        Wanted::Some { always, .. } => always,
        Wanted::All => panic!("a greedy sequence wants some logits"),
    });
    let always: Vec<_> = always.collect();
    assert_eq!(always, [&[3, 4][..], &[3, 4, 5], &[3, 4, 5, 6], &[2, 3, 4, 5, 6]]);
}

#[test]
fn drafts_of_many_sequences_stay_within_the_budgets() {
    for limits in [Limits { max_batch_tokens: 7, ..LIMITS }, Limits { max_outputs: 7, ..LIMITS }] {
        let mut scheduler = Scheduler::new(limits);
        for _ in 0..3 {
            add(&mut scheduler, generate_with(DraftStrategy::Ngram, 4, 30));
        }
        let mut most = 0;
        for _ in 0..12 {
            let plan = plan(&mut scheduler).unwrap();
            let batch = batch(&scheduler, &plan);
            assert!(batch.len() <= limits.max_batch_tokens, "{} tokens", batch.len());
            assert!(batch.outputs.len() <= limits.max_outputs, "{} rows", batch.outputs.len());
            scheduler.observe(&plan, Duration::from_millis(1));
            let drawn = draw(&mut scheduler, &plan, |_| 1);
            commit(&mut scheduler, &plan, &drawn);
            most = most.max(plan.entries.iter().map(|entry| entry.draft.len()).sum());
        }
        assert!(most >= 4, "three sequences leave so much of 7, and {most} were used");
    }
}

fn requests() -> impl Strategy<Value = Vec<(usize, Request)>> {
    let request = (1..4 * PAGE, 1..80usize, 0..4u8).prop_map(|(len, count, kind)| match kind {
        0 if len > 1 => Request::new(vec![1; len], Work::Score { from: 1 + count % (len - 1) }),
        1 => Request::new(vec![1; len], Work::Logits { from: count % len }),
        2 => generate_with(DraftStrategy::Ngram, len, count),
        _ => generate(len, count),
    });
    prop::collection::vec((0..20usize, request), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..Default::default() })]
    #[test]
    fn every_request_gets_all_it_asked_for(
        requests in requests(),
        pages in 4..12usize,
        max_batch_size in 1..5usize,
        max_batch_tokens in 5..200usize,
        prefix_cache: bool,
        eviction in prop::sample::select(&[EvictionStrategy::Lru, EvictionStrategy::Lfu, EvictionStrategy::Fifo][..]),
    ) {
        let limits =
            Limits { pages, max_batch_size, max_batch_tokens, prefix_cache, eviction, ..LIMITS };
        let mut scheduler = Scheduler::new(limits);
        let mut due = requests.into_iter();
        let mut pause = 0;
        let mut wanted: BTreeMap<SeqId, (usize, usize)> = BTreeMap::new(); // what is left: tokens, rows
        for _ in 0..20_000 {
            if pause == 0 && let Some((next, request)) = due.next() {
                pause = next;
                let room = limits.max_seq_len - request.ids.len();
                let left = match &request.work {
                    Work::Generate { max_new_tokens, .. } => (room.min(*max_new_tokens), 0),
                    Work::Score { from } => (0, request.ids.len() - from),
                    Work::Logits { from } => (0, request.ids.len() - from),
                };
                wanted.insert(add(&mut scheduler, request), left);
            }
            pause = pause.saturating_sub(1);
            let Some(plan) = plan(&mut scheduler) else {
                prop_assert!(scheduler.is_idle(), "work is left, but there is no plan");
                continue;
            };
            let batch = batch(&scheduler, &plan);
            prop_assert!(batch.len() <= max_batch_tokens && batch.outputs.len() <= limits.max_outputs);
            prop_assert!(plan.entries.len() <= max_batch_size);
            let held: Vec<u32> = scheduler.running.iter().flat_map(|s| s.pages.clone()).collect();
            let distinct = held.iter().collect::<HashSet<_>>().len();
            prop_assert!(prefix_cache || distinct == held.len(), "a page is shared");
            prop_assert_eq!(distinct + scheduler.free_pages(), pages);
            scheduler.observe(&plan, Duration::from_millis(1));
            // Sometimes as a draft foresees, sometimes not.
            let drawn = draw(&mut scheduler, &plan, |index| if index % 7 == 0 { 6 } else { 5 });
            for (entry, drawn) in plan.entries.iter().zip(&drawn) {
                let left = wanted.get_mut(&entry.id).unwrap();
                if left.0 == 0 {
                    left.1 -= entry.outputs.len(); // no row comes twice
                }
                prop_assert!(*drawn <= 1 + entry.draft.len());
            }
            for event in commit(&mut scheduler, &plan, &drawn) {
                let left = wanted.get_mut(&event.id).unwrap();
                left.0 -= event.tokens.len();
                prop_assert_eq!(event.finished.is_some(), *left == (0, 0));
            }
        }
        prop_assert!(wanted.values().all(|left| *left == (0, 0)), "some request starves");
        prop_assert_eq!(scheduler.free_pages(), pages);
    }
}
