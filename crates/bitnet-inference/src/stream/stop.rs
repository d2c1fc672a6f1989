//! Cutting a stream of text at stop texts.

/// Lets text through up to the first stop text, and holds back what may be the beginning of one.
///
/// The stop text that is complete first wins; of several that end at the same character, the longest. So the result does not
/// depend on how the text was cut into pieces.
#[derive(Clone, Debug, Default)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    /// A filter for these texts, none of which is empty.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Adds text. Returns what can be shown now, and the stop text if one is complete; what comes later is nothing to show.
    pub fn push(&mut self, text: &str) -> (String, Option<String>) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, stop))
        });
        if let Some((_, start, stop)) = found.min() {
            let stop = stop.clone();
            self.held.truncate(start);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let held = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - held);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that `stop` begins with, short of all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    let is_start = |&len: &usize| {
        stop.is_char_boundary(len) && text.as_bytes().ends_with(&stop.as_bytes()[..len])
    };
    (1..=longest).rev().find(is_start).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(stops: &[&str], pieces: &[&str], expected: &[&str], end: Result<&str, &str>) {
        let mut filter = StopFilter::new(stops.iter().map(ToString::to_string).collect());
        let mut shown = Vec::new();
        for piece in pieces {
            let (text, stop) = filter.push(piece);
            shown.push(text);
            if let Some(stop) = stop {
                assert_eq!(
                    (shown, Ok(stop.as_str())),
                    (expected.iter().map(ToString::to_string).collect(), end)
                );
                return;
            }
        }
        assert_eq!(shown, expected);
        assert_eq!(Err(filter.finish().as_str()), end);
    }

    #[test]
    fn text_goes_through_when_there_is_no_stop() {
        check(&[], &["a", "", "bc"], &["a", "", "bc"], Err(""));
    }

    #[test]
    fn a_stop_text_over_several_pieces_is_cut_exactly() {
        check(&["\nUser:"], &["Hi!\n", "Us", "er: x"], &["Hi!", "", ""], Ok("\nUser:"));
    }

    #[test]
    fn text_that_only_looked_like_a_stop_comes_out_when_that_is_certain() {
        check(&["\nUser:"], &["Hi!\n", "Us", "ed"], &["Hi!", "", "\nUsed"], Err(""));
        check(&["abc"], &["xab"], &["x"], Err("ab"));
        check(&["aab"], &["aa", "a", "b"], &["", "a", ""], Ok("aab"));
    }

    #[test]
    fn the_stop_that_is_complete_first_wins() {
        check(&["bcd", "c"], &["abcd"], &["ab"], Ok("c"));
        check(&["c", "bc"], &["abcd"], &["a"], Ok("bc"));
    }

    #[test]
    fn characters_of_several_bytes_stay_whole() {
        check(&["é!"], &["caf", "é", "?"], &["caf", "", "é?"], Err(""));
        check(&["ê"], &["é"], &["é"], Err("")); // they share their first byte
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_pieces(
            text in "[abé]{0,12}",
            stops in prop::collection::vec("[abé]{1,4}", 0..3),
            cut in prop::collection::vec(any::<bool>(), 12),
        ) {
            let run = |pieces: Vec<String>| {
                let mut filter = StopFilter::new(stops.clone());
                let mut shown = String::new();
                for piece in pieces {
                    let (text, stop) = filter.push(&piece);
                    shown += &text;
                    if stop.is_some() {
                        return (shown, stop);
                    }
                }
                (shown + &filter.finish(), None)
            };
            let mut pieces = vec![String::new()];
            for (c, cut) in text.chars().zip(cut) {
                if cut {
                    pieces.push(String::new());
                }
                pieces.last_mut().unwrap().push(c);
            }
            let whole = run(vec![text.clone()]);
            prop_assert_eq!(&run(pieces), &whole);
            prop_assert!(stops.iter().all(|stop| !whole.0.contains(stop)));
            prop_assert!(text.starts_with(&whole.0));
        }
    }
}
