//! Cutting text into words with the regular expressions of tokenizers.
//!
//! Nearly all of them end in `|\s+(?!\S)|\s+`: a run of white space, without its last character if a word follows.
//! That look-ahead is the only thing in them that needs a backtracking engine, which gives up on a megabyte of spaces.
//! So it is done by hand, and the rest in linear time; only other look-around takes the backtracking engine.

use regex_automata::Input;
use regex_automata::meta;
use tokenizers::Offsets;
use tokenizers::tokenizer::pattern::Pattern;

/// GPT-2's words. Source: `encoder.py` of GPT-2.
pub(super) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Llama 3's words. Source: its tokenizer.json.
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Qwen 2's words: as Llama 3's, but digits stand alone. Source: its tokenizer.json.
pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const SPACE_RUN: &str = r"|\s+(?!\S)|\s+";

/// A compiled regular expression that finds words.
#[derive(Debug)]
pub(super) enum Splitter {
    /// The second pattern, if there is one, is a run of white space that leaves its last character to a following word.
    Linear(meta::Regex),
    Backtracking(Box<fancy_regex::Regex>),
}

impl Splitter {
    /// The error is the regular expression engine's text.
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        let linear = match pattern.strip_suffix(SPACE_RUN) {
            Some(words) => meta::Regex::new_many(&[words, r"\s+"]),
            None => meta::Regex::new(pattern),
        };
        match linear {
            Ok(regex) => Ok(Self::Linear(regex)),
            // Look-around in another place. A wrong pattern is wrong for both, and the second says so.
            Err(_) => fancy_regex::Regex::new(pattern)
                .map(|regex| Self::Backtracking(Box::new(regex)))
                .map_err(|error| error.to_string()),
        }
    }

    /// The first match at or after byte `at`.
    fn find_at(&self, text: &str, at: usize) -> Result<Option<(usize, usize)>, String> {
        match self {
            Self::Linear(regex) => Ok(regex.find(Input::new(text).range(at..)).map(|found| {
                let leave_last = found.pattern().as_usize() == 1 && found.end() < text.len();
                let last =
                    || text[found.range()].char_indices().next_back().map_or(0, |(at, _)| at);
                match leave_last.then(last) {
                    Some(shorter @ 1..) => (found.start(), found.start() + shorter),
                    _ => (found.start(), found.end()),
                }
            })),
            Self::Backtracking(regex) => regex
                .find_from_pos(text, at)
                .map(|found| found.map(|found| (found.start(), found.end())))
                .map_err(|error| format!("its regular expression gave up: {error}")),
        }
    }

    /// All of `text` in order, as ranges of bytes that match or do not. One at a time: a list of a long text's words is longer than the text.
    pub(super) fn split<'a>(&'a self, text: &'a str) -> Parts<'a> {
        Parts { splitter: self, text, done: 0, at: 0, matched: None }
    }
}

/// See [`Splitter::split`].
pub(super) struct Parts<'a> {
    splitter: &'a Splitter,
    text: &'a str,
    /// Where the parts given so far end, but for `matched`.
    done: usize,
    /// Where to look next.
    at: usize,
    /// A match that comes after the text before it, which was given first.
    matched: Option<Offsets>,
}

impl Iterator for Parts<'_> {
    type Item = Result<(Offsets, bool), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(matched) = self.matched.take() {
            return Some(Ok((matched, true)));
        }
        let (text, done) = (self.text, self.done);
        while self.at < text.len() {
            let (start, end) = match self.splitter.find_at(text, self.at) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(error) => {
                    (self.done, self.at) = (text.len(), text.len());
                    return Some(Err(error));
                }
            };
            // `\K` in a look-behind starts a match before where it was looked for.
            let start = start.max(done);
            if start >= end {
                self.at = self.at.max(end);
                self.at += text[self.at..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            (self.done, self.at) = (end, end);
            if done < start {
                self.matched = Some((start, end));
                return Some(Ok(((done, start), false)));
            }
            return Some(Ok(((start, end), true)));
        }
        (self.done, self.at) = (text.len(), text.len());
        (done < text.len()).then_some(Ok(((done, text.len()), false)))
    }
}

impl Pattern for &Splitter {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        match inside {
            "" => Ok(vec![((0, 0), false)]),
            _ => Ok(self.split(inside).collect::<Result<_, _>>()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, text: &str, expected: &[&str]) {
        let splitter = Splitter::new(pattern).unwrap();
        let parts: Vec<_> = splitter.split(text).map(Result::unwrap).collect();
        assert_eq!(
            parts.iter().map(|&((start, end), _)| &text[start..end]).collect::<Vec<_>>(),
            expected
        );
    }

    proptest! {
        #[test]
        fn words_are_those_of_the_backtracking_engine(text in r"[ \t\r\n\u{3000}aé1'sL!。]{0,24}") {
            for pattern in [GPT2, LLAMA3, QWEN2] {
                let regex = fancy_regex::Regex::new(pattern).unwrap();
                let expected: Vec<_> = regex.find_iter(&text).map(|found| found.unwrap().range()).collect();
                let splitter = Splitter::new(pattern).unwrap();
                let found = splitter.split(&text).map(Result::unwrap);
                let found: Vec<_> = found.map(|((start, end), _)| start..end).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn the_usual_patterns_need_no_backtracking() {
        for pattern in [GPT2, LLAMA3, QWEN2] {
            assert!(matches!(Splitter::new(pattern), Ok(Splitter::Linear(_))), "{pattern}");
        }
    }

    #[test]
    fn a_space_run_leaves_its_last_space_to_the_word() {
        check(LLAMA3, "a   b  ", &["a", "  ", " b", "  "]);
    }

    #[test]
    fn text_between_matches_is_kept() {
        check("[0-9]", "a1b", &["a", "1", "b"]);
        check("x*", "axb", &["a", "x", "b"]);
    }

    #[test]
    fn a_pattern_that_runs_away_is_an_error() {
        let text = "a".repeat(40);
        let splitter = Splitter::new(r"(a|aa)+(?=b)\1").unwrap();
        let parts: Vec<_> = splitter.split(&text).collect();
        assert!(matches!(&parts[..], [Err(error)] if error.contains("gave up")), "{parts:?}");
    }

    #[test]
    fn no_text_is_found_twice() {
        // `\K` in a look-behind starts the second match inside the first.
        check(r"b|(?<=a\Kb)c", "abc", &["a", "b", "c"]);
    }

    #[test]
    fn a_wrong_pattern_is_an_error() {
        assert!(Splitter::new("(").is_err());
    }
}
