//! Sequences whose text has a form.

use super::*;
use crate::constraint::Constraint;
use crate::constraint::tests::Counting;

#[test]
fn a_draft_is_cut_where_the_form_does_not_allow_it_and_a_whole_text_ends() {
    let config = GenerationConfig { draft: DraftStrategy::Ngram, ..Default::default() };
    let constraint = Constraint::new(Box::new(Counting(0))).unwrap();
    let sampling = config.sampling().unwrap().constrained(constraint);
    let work = Work::Generate { sampling, max_new_tokens: 50, stop_ids: vec![99] };
    let mut scheduler = Scheduler::new(LIMITS);
    add(&mut scheduler, Request::new(vec![9, 1, 2, 4, 30, 9], work));
    let mut next = |token: u32| {
        let plan = plan(&mut scheduler).unwrap();
        scheduler.observe(&plan, Duration::from_millis(1));
        let drawn = draw(&mut scheduler, &plan, |_| token);
        let mut events = commit(&mut scheduler, &plan, &drawn);
        (plan.entries[0].draft.clone(), events.remove(0))
    };
    assert!(next(1).0.is_empty());
    assert!(next(2).0.is_empty());
    let (draft, event) = next(4);
    assert_eq!((draft, &event.tokens[..1]), (vec![4], &[4][..]));
    let mut last = event;
    while last.finished.is_none() {
        let token = last.tokens[last.tokens.len() - 1] + 2;
        last = next(token).1;
    }
    assert_eq!(last.tokens.last(), Some(&20));
    let complete = FinishReason::Stop(Stop::Complete);
    assert_eq!(last.finished, Some(Finished::Generated(complete)));
}
