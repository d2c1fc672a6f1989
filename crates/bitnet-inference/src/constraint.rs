//! What a text has to be, as the sampler sees it: which tokens may come next, token by token.

use std::fmt;

use bitnet_kernels::logits::LogitRow;

use crate::sampler::SampleError;

/// Rules for a text, and how far the text has come.
pub trait Rules: fmt::Debug + Send + Sync {
    /// The tokens that may come next.
    ///
    /// # Errors
    /// If that cannot be said, or if there is none and the text may not end either.
    fn allowed(&mut self) -> Result<TokenMask, SampleError>;

    /// Takes a token that was allowed. Returns whether the text is whole and nothing may follow.
    ///
    /// # Errors
    /// If the rules cannot follow.
    fn advance(&mut self, token: u32) -> Result<bool, SampleError>;

    /// How many of these tokens, from the first on, may come one after the other.
    fn fitting(&mut self, tokens: &[u32]) -> usize;

    /// The same for another text that is as far.
    fn boxed_clone(&self) -> Box<dyn Rules>;
}

/// Tokens that may come next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    /// A bit for each token, from the lowest bit of the first word on; tokens past the last word are not allowed.
    pub words: Vec<u32>,
    /// Whether the text may end here.
    pub may_end: bool,
}

impl TokenMask {
    fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// How many tokens are allowed, not counting those that end the text.
    fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Those tokens, in ascending order.
    fn ids(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.words).filter(|(_, word)| **word != 0).flat_map(|(index, &word)| {
            (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 32 + bit)
        })
    }
}

/// Allowed tokens up to which only their logits are asked for.
const FEW: usize = 64;

/// A text under [`Rules`] on its way. The tokens that may come next are found out when the token before them is drawn, and the
/// first ones when this is made.
#[derive(Debug)]
pub struct Constraint {
    rules: Box<dyn Rules>,
    next: Result<TokenMask, SampleError>,
    complete: bool,
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        Self { rules: self.rules.boxed_clone(), next: self.next.clone(), complete: self.complete }
    }
}

impl Constraint {
    /// A text that has no token yet.
    ///
    /// # Errors
    /// If no token may come first.
    pub fn new(mut rules: Box<dyn Rules>) -> Result<Self, SampleError> {
        let next = rules.allowed()?;
        match next.count() {
            0 => Err(SampleError::Grammar),
            _ => Ok(Self { rules, next: Ok(next), complete: false }),
        }
    }

    /// Whether the text is whole and nothing may follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The tokens whose logits matter, if they are few; `ends` are those that end the text.
    pub(crate) fn few(&self, ends: &[u32]) -> Option<impl Iterator<Item = u32>> {
        let mask = self.next.as_ref().ok().filter(|mask| mask.count() <= FEW)?;
        let ends = if mask.may_end { ends } else { &[] };
        Some(mask.ids().chain(ends.iter().copied()))
    }

    /// Excludes all tokens from `logits`, a copy of `row`'s, that may not come next. Those of `ends`, which are sorted, end the
    /// text.
    pub(crate) fn apply(
        &self,
        row: LogitRow<'_>,
        logits: &mut [f32],
        ends: &[u32],
    ) -> Result<(), SampleError> {
        let mask = self.next.as_ref().map_err(|error| *error)?;
        for (place, logit) in logits.iter_mut().enumerate() {
            let id = row.id(place);
            let ends_well = || mask.may_end && ends.binary_search(&id).is_ok();
            if !mask.allows(id) && !ends_well() {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Takes a token that was allowed and does not end the text.
    pub(crate) fn advance(&mut self, token: u32) {
        self.next = self.rules.advance(token).and_then(|complete| {
            self.complete = complete;
            match complete {
                true => Ok(TokenMask { words: Vec::new(), may_end: true }),
                false => self.rules.allowed(),
            }
        });
    }

    /// How many tokens of a draft may come.
    pub(crate) fn fitting(&mut self, draft: &[u32]) -> usize {
        self.rules.fitting(draft)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Counts up: after `n` comes `n + 1` or `n + 2`, the text may end with an even number, and is whole with 20.
    #[derive(Clone, Debug)]
    pub(crate) struct Counting(pub u32);

    impl Rules for Counting {
        fn allowed(&mut self) -> Result<TokenMask, SampleError> {
            let words = (0b110 << self.0) & ((1 << 21) - 1);
            Ok(TokenMask { words: vec![words], may_end: self.0 > 0 && self.0.is_multiple_of(2) })
        }

        fn advance(&mut self, token: u32) -> Result<bool, SampleError> {
            assert!(self.fitting(&[token]) == 1, "only what is allowed is drawn");
            self.0 = token;
            Ok(token == 20)
        }

        fn fitting(&mut self, tokens: &[u32]) -> usize {
            let mut last = self.0;
            let fits = |id: &&u32| {
                let fits = (last + 1..=(last + 2).min(20)).contains(*id);
                last = **id;
                fits
            };
            tokens.iter().take_while(fits).count()
        }

        fn boxed_clone(&self) -> Box<dyn Rules> {
            Box::new(self.clone())
        }
    }

    #[test]
    fn a_mask_knows_its_tokens() {
        let mask = TokenMask { words: vec![0b101, 0, 1 << 31], may_end: false };
        assert_eq!(mask.ids().collect::<Vec<_>>(), [0, 2, 95]);
        assert_eq!(mask.count(), 3);
        assert_eq!(
            [0, 1, 2, 94, 95, 96, 1 << 20].map(|id| mask.allows(id)),
            [true, false, true, false, true, false, false]
        );
    }

    #[test]
    fn what_is_not_allowed_is_excluded_and_an_end_counts_where_there_may_be_one() {
        let apply = |last: u32| {
            let constraint = Constraint::new(Box::new(Counting(last))).unwrap();
            let mut logits = [1.0; 6];
            constraint.apply(LogitRow::All(&[1.0; 6]), &mut logits, &[5]).unwrap();
            logits.map(f32::is_finite)
        };
        assert_eq!(apply(0), [false, true, true, false, false, false]);
        assert_eq!(apply(2), [false, false, false, true, true, true]);
    }

    #[test]
    fn few_tokens_are_asked_for_by_name() {
        let few = |last: u32| {
            let constraint = Constraint::new(Box::new(Counting(last))).unwrap();
            constraint.few(&[30]).map(|ids| ids.collect::<Vec<_>>())
        };
        assert_eq!(few(1), Some(vec![2, 3]));
        assert_eq!(few(2), Some(vec![3, 4, 30]));
    }
}
