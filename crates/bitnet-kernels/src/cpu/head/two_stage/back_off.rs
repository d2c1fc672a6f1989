//! Which searches pay: where those for what is wanted mostly are given up, few are begun.
//!
//! A search that is given up costs its time besides that of all logits. On a model with wide bounds, or with settings that
//! ask for many logits, nearly all are. So the share of searches that found something is kept for each kind of what is
//! wanted, and while it is low, only one token in many is searched for, to see whether that is still so. Logits are the same
//! either way, only how many of them are computed differs.

use crate::logits::{Others, Wanted};

/// The share of searches below which they do not pay. Of the time of all logits, a search takes a quarter to a third
/// (3.5 to 4.3 ms of 12 to 13 for 128256 rows of 2560).
const LEAST_SHARE: f32 = 0.3;

/// Weight of the newest search in a running mean. Of searches that all are given up, the first thirteen are begun.
const NEWEST: f32 = 0.09;

/// Tokens that are not searched for after a search that was given up, at least; doubled each time, up to the most.
const WAIT: u32 = 16;
const LONGEST_WAIT: u32 = 1024;

/// What may be wanted, in kinds that are about as hard to find.
const KINDS: usize = 64;

/// How searches went for each kind of what is wanted.
#[derive(Debug)]
pub(super) struct BackOff([Kind; KINDS]);

#[derive(Clone, Copy, Debug)]
struct Kind {
    /// Share of searches that found what was wanted, a running mean.
    found: f32,
    /// Tokens not to search for from now on.
    left: u32,
    /// How many these were the last time.
    wait: u32,
}

impl Default for BackOff {
    fn default() -> Self {
        Self([Kind { found: 1.0, left: 0, wait: 0 }; KINDS])
    }
}

impl BackOff {
    /// Whether a token is to be searched for. What comes of it is to be told to [`learn`](Self::learn).
    pub fn pays(&mut self, wanted: &Wanted) -> bool {
        let kind = &mut self.0[kind(wanted)];
        let pays = kind.left == 0;
        kind.left = kind.left.saturating_sub(1);
        pays
    }

    /// Books how a search ended.
    pub fn learn(&mut self, wanted: &Wanted, found: bool) {
        let kind = &mut self.0[kind(wanted)];
        kind.found += NEWEST * (f32::from(u8::from(found)) - kind.found);
        if found {
            kind.wait = 0;
        } else if kind.found < LEAST_SHARE {
            kind.wait = (2 * kind.wait).clamp(WAIT, LONGEST_WAIT);
            kind.left = kind.wait;
        }
    }
}

/// Counts by powers of two, and distances too.
fn kind(wanted: &Wanted) -> usize {
    let half = KINDS / 2;
    match wanted {
        Wanted::All => 0,
        Wanted::Some { always, others: Others::Greatest(count) } => {
            let count = count.saturating_add(always.len());
            (count.max(1).ilog2() as usize).min(half - 1)
        }
        // From less than 2⁻¹⁵ to 2¹⁵ and more, where an int8 head's logits are all the same or no two are near.
        Wanted::Some { others: Others::Within(distance), .. } => {
            half + (distance.max(1e-9).log2().floor().clamp(-16.0, 15.0) + 16.0) as usize
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greatest(count: usize) -> Wanted {
        Wanted::Some { always: Vec::new(), others: Others::Greatest(count) }
    }

    fn within(distance: f64) -> Wanted {
        Wanted::Some { always: Vec::new(), others: Others::Within(distance) }
    }

    /// How many of so many tokens are searched for, if `found(i)` says what comes of the search for token `i`.
    fn searched(tokens: u64, back_off: &mut BackOff, found: impl Fn(u64) -> bool) -> u64 {
        let search = |i: &u64| {
            let pays = back_off.pays(&greatest(1));
            if pays {
                back_off.learn(&greatest(1), found(*i));
            }
            pays
        };
        (0..tokens).filter(search).count() as u64
    }

    #[test]
    fn searches_that_are_always_given_up_become_rare() {
        let mut back_off = BackOff::default();
        let first = searched(1000, &mut back_off, |_| false);
        assert!((10..25).contains(&first), "{first}");
        let later = searched(20_000, &mut back_off, |_| false);
        assert!(later <= 25, "{later}");
    }

    #[test]
    fn searches_that_mostly_find_something_go_on() {
        for lost_of in [3, 10, 100] {
            let mut back_off = BackOff::default();
            let lost = |i: u64| i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
            let count = searched(10_000, &mut back_off, |i| !lost(i).is_multiple_of(lost_of));
            assert!(count >= 9_900, "{count} where one in {lost_of} is lost");
        }
    }

    #[test]
    fn searches_that_find_something_again_are_taken_up_again() {
        let mut back_off = BackOff::default();
        searched(10_000, &mut back_off, |_| false);
        let count = searched(3000, &mut back_off, |_| true);
        assert!(count > 3000 - u64::from(LONGEST_WAIT) - 1, "{count}");
    }

    #[test]
    fn what_is_hard_to_find_does_not_end_searches_for_what_is_easy() {
        let mut back_off = BackOff::default();
        for _ in 0..100 {
            for hard in [greatest(500), within(9.0)] {
                if back_off.pays(&hard) {
                    back_off.learn(&hard, false);
                }
            }
            for easy in [greatest(1), greatest(40), within(0.5)] {
                assert!(back_off.pays(&easy));
            }
        }
        assert!(!back_off.pays(&greatest(500)) && !back_off.pays(&within(9.0)));
    }

    #[test]
    fn everything_that_may_be_wanted_is_of_some_kind() {
        let counts = [0, 1, 2, 40, 1 << 31, usize::MAX].map(greatest);
        let distances = [0.0, 1e-300, 1e-3, 1.0, 1e5, 1e300, f64::INFINITY, f64::NAN].map(within);
        for wanted in counts.iter().chain(&distances).chain([&Wanted::All]) {
            assert!(kind(wanted) < KINDS, "{wanted:?}");
        }
        let always = Wanted::Some { always: vec![1; 63], others: Others::Greatest(1) };
        assert_eq!(kind(&always), kind(&greatest(64)));
        assert!(kind(&counts[5]) < kind(&distances[0]));
    }
}
