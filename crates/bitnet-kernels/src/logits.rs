//! Logits of a batch: which of a token's are wanted, and those that were computed.
//!
//! Whoever draws from logits says which can matter to it, so that a head may leave out the others. A head may always give
//! all of them.

use std::ops::Range;

use crate::memory::heap_bytes;

/// Which of a token's logits are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Wanted {
    /// All.
    #[default]
    All,
    /// Those of some ids whatever they are, and the great ones among the others'.
    Some {
        /// Ids in ascending order, none twice. Those past the vocabulary are left out.
        always: Vec<u32>,
        /// Which others.
        others: Others,
    },
}

/// Which logits are great enough to be wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Others {
    /// This many, one at least; all that equal the last of them count as well.
    Greatest(usize),
    /// Those that are less than the greatest by this much at most, which is not negative.
    Within(f64),
}

impl Wanted {
    /// The ids wanted of a whole row, in ascending order: what a head that leaves out others is held against.
    pub fn of(&self, logits: &[f32]) -> Vec<u32> {
        let all = 0..logits.len() as u32;
        let Self::Some { always, others } = self else { return all.collect() };
        let is_always = |id: &u32| always.binary_search(id).is_ok();
        let mut great: Vec<f32> =
            all.clone().filter(|id| !is_always(id)).map(|id| logits[id as usize]).collect();
        let least = others.least(&mut great);
        all.filter(|id| is_always(id) || f64::from(logits[*id as usize]) >= least).collect()
    }
}

impl Others {
    /// The least logit that is wanted if there are no others than these, which it puts in another order.
    pub(crate) fn least(self, logits: &mut [f32]) -> f64 {
        match self {
            Self::Greatest(count) if count >= logits.len() => f64::NEG_INFINITY,
            Self::Greatest(count) => {
                let (_, last, _) =
                    logits.select_nth_unstable_by(count.max(1) - 1, |a, b| b.total_cmp(a));
                f64::from(*last)
            }
            Self::Within(distance) => {
                let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                f64::from(greatest) - distance
            }
        }
    }
}

/// Logits of some tokens, in full or in part.
#[derive(Clone, Debug, Default)]
pub struct Logits {
    vocab_size: usize,
    /// The rows that are whole, one after the other.
    whole: Vec<f32>,
    /// The [`peak`](crate::scalar::head::peak) of each `peak_width` logits of these, the last of a row of fewer; empty where nobody looked.
    peaks: Vec<f32>,
    peak_width: usize,
    /// Ids and logits of all others.
    ids: Vec<u32>,
    some: Vec<f32>,
    rows: Vec<Place>,
}

/// Where a row is.
#[derive(Clone, Debug)]
enum Place {
    /// The index among those that are whole.
    Whole(usize),
    /// The range in `ids` and `some`.
    Some(Range<usize>),
}

/// One token's logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LogitRow<'a> {
    /// All, `[vocab_size]`.
    All(&'a [f32]),
    /// All, and the [`peak`](crate::scalar::head::peak) of each `width` of them, which spares looking at most.
    Peaked {
        /// `[vocab_size]`.
        logits: &'a [f32],
        /// One for each `width` logits, the last of which may be fewer.
        peaks: &'a [f32],
        /// How many.
        width: usize,
    },
    /// What was [`Wanted`], and maybe more.
    Some {
        /// In ascending order.
        ids: &'a [u32],
        /// One for each id.
        logits: &'a [f32],
    },
}

impl<'a> LogitRow<'a> {
    /// The logits that there are.
    pub fn logits(self) -> &'a [f32] {
        match self {
            Self::All(logits) | Self::Peaked { logits, .. } | Self::Some { logits, .. } => logits,
        }
    }

    /// The id of a logit, by its place.
    pub fn id(self, place: usize) -> u32 {
        match self {
            Self::All(_) | Self::Peaked { .. } => place as u32,
            Self::Some { ids, .. } => ids[place],
        }
    }

    /// The place of an id's logit, if it is there.
    pub fn place(self, id: u32) -> Option<usize> {
        match self {
            Self::All(logits) | Self::Peaked { logits, .. } => {
                Some(id as usize).filter(|&id| id < logits.len())
            }
            Self::Some { ids, .. } => ids.binary_search(&id).ok(),
        }
    }
}

impl Logits {
    /// Bytes in use, with those kept for later.
    pub fn heap_bytes(&self) -> usize {
        let floats = [&self.whole, &self.peaks, &self.some].map(heap_bytes);
        floats.iter().sum::<usize>() + heap_bytes(&self.ids) + heap_bytes(&self.rows)
    }

    /// Whole rows, `[rows, vocab_size]`.
    ///
    /// # Panics
    /// If the last row is not whole.
    pub fn from_whole(values: Vec<f32>, vocab_size: usize) -> Self {
        assert!(values.len().is_multiple_of(vocab_size), "rows are whole");
        let rows = (0..values.len() / vocab_size).map(Place::Whole).collect();
        Self { vocab_size, whole: values, rows, ..Self::default() }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A row.
    pub fn row(&self, row: usize) -> LogitRow<'_> {
        match &self.rows[row] {
            Place::Whole(row) => {
                let logits = &self.whole[row * self.vocab_size..][..self.vocab_size];
                if self.peaks.is_empty() {
                    return LogitRow::All(logits);
                }
                let (width, count) = (self.peak_width, self.vocab_size.div_ceil(self.peak_width));
                LogitRow::Peaked { logits, peaks: &self.peaks[row * count..][..count], width }
            }
            Place::Some(range) => {
                LogitRow::Some { ids: &self.ids[range.clone()], logits: &self.some[range.clone()] }
            }
        }
    }

    /// All rows, `[rows, vocab_size]`, where all are whole: if all logits were wanted.
    ///
    /// # Panics
    /// If one is not.
    pub fn whole(&self) -> &[f32] {
        assert_eq!(self.whole.len(), self.len() * self.vocab_size, "all rows are whole");
        &self.whole
    }

    /// Adds a row of some logits, with their ids in ascending order.
    pub fn push_some(&mut self, ids: &[u32], logits: &[f32]) {
        debug_assert!(ids.is_sorted() && ids.len() == logits.len());
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        self.some.extend_from_slice(logits);
        self.rows.push(Place::Some(start..self.ids.len()));
    }

    /// Forgets all rows, makes room for `count` whole ones, which are still to be pushed, and gives it, `[count, vocab_size]`,
    /// for filling.
    pub(crate) fn reset(&mut self, vocab_size: usize, count: usize) -> &mut [f32] {
        self.vocab_size = vocab_size;
        self.rows.clear();
        self.ids.clear();
        self.some.clear();
        self.peaks.clear();
        self.whole.clear();
        self.whole.resize(count * vocab_size, 0.0);
        &mut self.whole
    }

    /// Adds a whole row, by its place among these.
    pub(crate) fn push_whole(&mut self, place: usize) {
        self.rows.push(Place::Whole(place));
    }

    /// As [`Self::reset`], with all the whole rows pushed.
    pub(crate) fn reset_whole(&mut self, rows: usize, vocab_size: usize) -> &mut [f32] {
        self.reset(vocab_size, rows);
        self.rows.extend((0..rows).map(Place::Whole));
        &mut self.whole
    }

    /// As [`Self::reset_whole`], with room for the [`peak`](crate::scalar::head::peak) of each `width` logits of a row, to be filled as well.
    pub(crate) fn reset_peaked(
        &mut self,
        rows: usize,
        vocab_size: usize,
        width: usize,
    ) -> (&mut [f32], &mut [f32]) {
        self.reset_whole(rows, vocab_size);
        self.peak_width = width;
        self.peaks.resize(rows * vocab_size.div_ceil(width), 0.0);
        (&mut self.whole, &mut self.peaks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(always: &[u32], others: Others, expected: &[u32]) {
        let wanted = Wanted::Some { always: always.to_vec(), others };
        assert_eq!(wanted.of(&[1.0, 3.0, -1.0, 3.0, 2.0, f32::NEG_INFINITY]), expected);
    }

    #[test]
    fn what_is_wanted_is_what_is_named_and_the_greatest_of_the_others() {
        check(&[], Others::Greatest(1), &[1, 3]); // equals
        check(&[], Others::Greatest(3), &[1, 3, 4]);
        check(&[1, 5, 77], Others::Greatest(1), &[1, 3, 5]);
        check(&[1, 3], Others::Greatest(1), &[1, 3, 4]);
        check(&[], Others::Within(1.0), &[1, 3, 4]);
        check(&[1, 3], Others::Within(0.5), &[1, 3, 4]);
        check(&[], Others::Greatest(6), &[0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn rows_of_either_kind_know_their_ids() {
        let mut logits = Logits::default();
        let (whole, peaks) = logits.reset_peaked(2, 5, 2);
        (0..10).for_each(|i| whole[i] = i as f32);
        peaks.copy_from_slice(&[1.0, 3.0, 4.0, 6.0, 8.0, 9.0]);
        let [first, second] = [0, 1].map(|row| logits.row(row));
        let expected = [5.0, 6.0, 7.0, 8.0, 9.0];
        let row = LogitRow::Peaked { logits: &expected, peaks: &[6.0, 8.0, 9.0], width: 2 };
        assert_eq!(second, row);
        assert_eq!((first.place(4), first.place(5), first.id(3)), (Some(4), None, 3));

        let mut logits = Logits::from_whole(vec![1.0, 2.0, 3.0, 4.0], 2);
        logits.push_some(&[3, 7, 9], &[0.5, 0.1, 0.2]);
        assert_eq!((logits.len(), logits.row(1)), (3, LogitRow::All(&[3.0, 4.0])));
        let (all, some) = (logits.row(0), logits.row(2));
        assert_eq!(some, LogitRow::Some { ids: &[3, 7, 9], logits: &[0.5, 0.1, 0.2] });
        assert_eq!([all.place(0), all.place(1), all.place(2)], [Some(0), Some(1), None]);
        assert_eq!([some.place(3), some.place(4), some.place(9)], [Some(0), None, Some(2)]);
        assert_eq!((all.id(1), some.id(1)), (1, 7));
    }
}
