//! The search for the logits that are wanted, among rows of which upper bounds are known.
//!
//! Rows are computed in the order of their bounds, some at a time, until no bound of the others reaches the least logit
//! that is wanted. Rows with the same bound are computed together or not at all, so equal logits are never told apart.

use crate::cpu::packed::PANEL_ROWS;
use crate::logits::{Others, Wanted};

/// Rows to compute first, besides as many as are wanted: this many, and one for each 2048 rows.
const FIRST: usize = 16;

/// Rows to compute after the first, doubled each time.
const NEXT: usize = 128;

/// Of so many rows at most one is computed; if more may matter, all are, in the order in which they lie. One row by itself
/// takes two to three times as long as one in order.
const ONE_OF: usize = 4;

/// How far a search has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// Rows are to be computed.
    #[default]
    Pending,
    /// All that is wanted is found.
    Found,
    /// Too many rows may matter.
    GivenUp,
}

/// One token's search. Kept to use its memory again.
#[derive(Debug, Default)]
pub(super) struct Search {
    others: Option<Others>,
    /// Ids wanted in any case, in ascending order.
    always: Vec<u32>,
    state: State,
    /// Rows to compute now.
    pending: Vec<u32>,
    /// Rows that may have to be computed later.
    rest: Vec<u32>,
    /// Rows that have been computed, without those that are not wanted any more; some of `always` among them.
    found: Vec<(u32, f32)>,
    computed: usize,
    /// All rows with this bound or a greater one were computed at first; nothing before.
    first: Option<f32>,
    next: usize,
    spare: Vec<f32>,
}

impl Search {
    /// Begins anew. `bounds`: of each row; `greatest`: of each panel.
    pub fn begin(&mut self, always: &[u32], others: Others, bounds: &[f32], greatest: &[f32]) {
        self.found.clear();
        self.rest.clear();
        self.pending.clear();
        self.always.clear();
        self.always.extend(always.iter().filter(|&&id| (id as usize) < bounds.len()));
        (self.others, self.computed, self.next) = (Some(others), 0, NEXT);
        let count = match others {
            Others::Greatest(count) => count.max(1),
            Others::Within(_) => 1,
        };
        // Those of `always` may be the greatest of all.
        let count = count.saturating_add(self.always.len() + FIRST + bounds.len() / 2048);
        if count > greatest.len() / 2 {
            self.state = State::GivenUp;
            return;
        }
        // As many panels have a row with such a bound.
        self.spare.clear();
        self.spare.extend_from_slice(greatest);
        let (_, first, _) = self.spare.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        let first = *first;
        self.first = Some(first);
        self.pending.extend_from_slice(&self.always);
        self.collect(bounds, greatest, f64::from(first), f32::INFINITY);
        self.pending.append(&mut self.rest);
        self.state = State::Pending;
        self.check_limit(bounds.len());
    }

    /// Appends rows to `rest` whose bounds are at least `from` and less than `below`, `always` left out.
    fn collect(&mut self, bounds: &[f32], greatest: &[f32], from: f64, below: f32) {
        let panels = greatest.iter().zip(bounds.chunks(PANEL_ROWS)).zip((0..).step_by(PANEL_ROWS));
        for ((_, bounds), start) in
            panels.filter(|((greatest, _), _)| f64::from(**greatest) >= from)
        {
            for (&bound, id) in bounds.iter().zip(start..) {
                if f64::from(bound) >= from
                    && bound < below
                    && self.always.binary_search(&id).is_err()
                {
                    self.rest.push(id);
                }
            }
        }
    }

    fn check_limit(&mut self, rows: usize) {
        if self.computed + self.pending.len() + self.rest.len() > rows / ONE_OF {
            self.state = State::GivenUp;
        }
    }

    /// Takes the logits of the rows that were pending, and says what next.
    pub fn advance(&mut self, logits: &[f32], bounds: &[f32], greatest: &[f32]) {
        assert_eq!(logits.len(), self.pending.len());
        self.computed += logits.len();
        self.found.extend(self.pending.drain(..).zip(logits.iter().copied()));
        let others = self.others.expect("a search has begun");
        let Self { found, always, spare, .. } = self;
        let is_always = |id: u32| always.binary_search(&id).is_ok();
        spare.clear();
        spare.extend(found.iter().filter(|(id, _)| !is_always(*id)).map(|(_, logit)| *logit));
        let least = others.least(spare);
        found.retain(|&(id, logit)| f64::from(logit) >= least || is_always(id));
        match self.first.take() {
            Some(first) => self.collect(bounds, greatest, least, first),
            None => self.rest.retain(|&id| f64::from(bounds[id as usize]) >= least),
        }
        self.check_limit(bounds.len());
        if self.state == State::GivenUp {
            return;
        }
        if self.rest.is_empty() {
            self.found.sort_unstable_by_key(|(id, _)| *id);
            self.state = State::Found;
            return;
        }
        let bound = |id: &u32| bounds[*id as usize];
        if self.next < self.rest.len() {
            let by_bound = |a: &u32, b: &u32| bound(b).total_cmp(&bound(a));
            self.rest.select_nth_unstable_by(self.next, by_bound);
        }
        self.pending.extend(self.rest.drain(..self.next.min(self.rest.len())));
        self.next *= 2;
    }

    /// How far it has come.
    pub fn state(&self) -> State {
        self.state
    }

    /// Rows to compute now.
    pub fn pending(&self) -> &[u32] {
        match self.state {
            State::Pending => &self.pending,
            State::Found | State::GivenUp => &[],
        }
    }

    /// Rows computed so far.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// What was found, in the order of ids.
    pub fn found(&self) -> &[(u32, f32)] {
        &self.found
    }

    /// Whether a whole row of logits has all that is wanted among what was found, and nothing else there.
    pub fn agrees(&self, wanted: &Wanted, logits: &[f32]) -> bool {
        let find = |id: u32| self.found.binary_search_by_key(&id, |(id, _)| *id).ok();
        wanted.of(logits).into_iter().all(|id| find(id).is_some())
            && self
                .found
                .iter()
                .all(|&(id, found)| found.to_bits() == logits[id as usize].to_bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches among logits whose bounds are too high by `slack(id)`.
    fn search(
        logits: &[f32],
        always: &[u32],
        others: Others,
        slack: impl Fn(usize) -> f32,
    ) -> Search {
        let bounds: Vec<f32> = logits.iter().enumerate().map(|(i, x)| x + slack(i)).collect();
        let max = |panel: &[f32]| panel.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let greatest: Vec<f32> = bounds.chunks(PANEL_ROWS).map(max).collect();
        let mut search = Search::default();
        search.begin(always, others, &bounds, &greatest);
        while search.state() == State::Pending {
            let values: Vec<f32> = search.pending().iter().map(|&id| logits[id as usize]).collect();
            search.advance(&values, &bounds, &greatest);
        }
        search
    }

    fn logits() -> Vec<f32> {
        (0..20_000_u64).map(|i| ((i * 2_654_435_761) % 9973) as f32 / 1000.0).collect()
    }

    #[track_caller]
    fn check(always: &[u32], others: Others, slack: impl Fn(usize) -> f32) -> usize {
        let logits = logits();
        let search = search(&logits, always, others, slack);
        assert_eq!(search.state(), State::Found);
        let expected = Wanted::Some { always: always.to_vec(), others }.of(&logits);
        let found: Vec<u32> = search.found().iter().map(|(id, _)| *id).collect();
        assert_eq!(found, expected);
        assert!(search.found().iter().all(|&(id, logit)| logit == logits[id as usize]));
        search.computed()
    }

    #[test]
    fn what_is_wanted_is_found_whatever_the_bounds() {
        let uneven = |i: usize| (i * 7919 % 1000) as f32 / 2000.0;
        for always in [&[][..], &[0, 7, 5000, 19_999, 20_000]] {
            for count in [1, 2, 40, 200] {
                check(always, Others::Greatest(count), |_| 0.0);
                check(always, Others::Greatest(count), |_| 0.3);
                check(always, Others::Greatest(count), uneven);
            }
            check(always, Others::Within(0.0), uneven);
            check(always, Others::Within(0.4), uneven);
        }
    }

    #[test]
    fn few_rows_are_computed_where_bounds_are_near() {
        assert!(check(&[], Others::Greatest(1), |_| 0.0) < 100);
        assert!(check(&[], Others::Greatest(1), |_| 0.3) < 1000);
    }

    #[test]
    fn a_search_that_would_take_too_long_is_given_up() {
        let state = |others, slack: f32| search(&logits(), &[], others, |_| slack).state();
        assert_eq!(state(Others::Greatest(1), 5.0), State::GivenUp);
        assert_eq!(state(Others::Greatest(5000), 0.0), State::GivenUp);
        assert_eq!(state(Others::Greatest(usize::MAX), 0.0), State::GivenUp);
        assert_eq!(state(Others::Within(1e9), 0.0), State::GivenUp);
        assert_eq!(
            search(&[1.0; 20_000], &[], Others::Greatest(1), |_| 0.0).state(),
            State::GivenUp
        );
    }

    #[test]
    fn an_audit_finds_what_is_missing_and_what_is_wrong() {
        let mut logits = logits();
        let wanted = Wanted::Some { always: vec![3], others: Others::Greatest(5) };
        let search = search(&logits, &[3], Others::Greatest(5), |_| 0.1);
        assert!(search.agrees(&wanted, &logits));
        logits[4] = 1e3;
        assert!(!search.agrees(&wanted, &logits));
        logits[4] = 0.0;
        logits[3] += 1.0;
        assert!(!search.agrees(&wanted, &logits));
    }
}
