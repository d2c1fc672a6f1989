//! SentencePiece's BPE: the pair whose joined text is the token with the highest score goes first.
//!
//! Source: Kudo and Richardson 2018, arXiv:1808.06226; Llama 2 and 1bitLLM's models. GGUF files carry the scores and no
//! merges; merges made up from scores would not be exact, as two pairs that join to one token share its score.

use std::collections::HashMap;

use super::error::TokenizerError;
use super::fold_hash::FoldHash;
use super::merge::{Merger, Symbol};
use super::table::{map_bytes, parse_byte_token, text_bytes};

/// Tokens that text can become, and their scores.
#[derive(Debug)]
pub(super) struct SentencePiece {
    ids: HashMap<Box<str>, u32, FoldHash>,
    /// Smaller is better; by id.
    priorities: Vec<u32>,
    bytes: [Option<u32>; 256],
    unk: Option<u32>,
    /// Whether a text gets a space in front.
    space_prefix: bool,
}

impl SentencePiece {
    /// Bytes that it takes, about.
    pub(super) fn heap_bytes(&self) -> usize {
        let priorities = self.priorities.capacity() * size_of::<u32>();
        map_bytes(&self.ids) + text_bytes(self.ids.keys()) + priorities
    }

    /// `tokens` hold neither control nor byte tokens; `scores` and `texts` have one entry for each id.
    pub(super) fn new<'a>(
        tokens: impl Iterator<Item = (&'a str, u32)>,
        bytes: impl Iterator<Item = (&'a str, u32)>,
        scores: &[f64],
        unk: Option<u32>,
        space_prefix: bool,
    ) -> Self {
        let mut ids = HashMap::with_capacity_and_hasher(scores.len(), FoldHash::default());
        for (text, id) in tokens {
            ids.entry(Box::from(text)).or_insert(id);
        }
        let mut byte_ids = [None; 256];
        for (text, id) in bytes {
            if let Some(byte) = parse_byte_token(text) {
                byte_ids[usize::from(byte)] = Some(id);
            }
        }
        Self { ids, priorities: priorities(scores), bytes: byte_ids, unk, space_prefix }
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Appends the tokens of the text between two control tokens.
    pub(super) fn encode(
        &self,
        text: &str,
        merger: &mut Merger,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if text.is_empty() {
            return Ok(());
        }
        let prefix = if self.space_prefix { "▁" } else { "" };
        let text = format!("{prefix}{}", text.replace(' ', "▁"));
        let slice =
            |symbol: &Symbol| &text[symbol.start as usize..(symbol.start + symbol.len) as usize];

        merger.clear();
        for (at, c) in text.char_indices() {
            merger.push(0, at as u32, c.len_utf8() as u32);
        }
        let join = |left: &Symbol, right: &Symbol| {
            let joined = &text[left.start as usize..(right.start + right.len) as usize];
            let id = self.id(joined)?;
            Some((self.priorities[id as usize], id))
        };
        for symbol in merger.run(join) {
            self.push_token(slice(symbol), ids)?;
        }
        Ok(())
    }

    fn push_token(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if let Some(id) = self.id(text) {
            ids.push(id);
            return Ok(());
        }
        for byte in text.bytes() {
            let Some(id) = self.bytes[usize::from(byte)] else {
                let unk = self.unk.ok_or_else(|| {
                    TokenizerError::encode(format!(
                        "the vocabulary has neither {text:?} nor the byte 0x{byte:02X}"
                    ))
                })?;
                ids.push(unk);
                return Ok(());
            };
            ids.push(id);
        }
        Ok(())
    }
}

/// Ranks scores from the highest to the lowest; equal scores share a rank.
fn priorities(scores: &[f64]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_unstable_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut ranks = vec![0; scores.len()];
    let mut rank = 0;
    for pair in order.windows(2) {
        rank += u32::from(scores[pair[0]] != scores[pair[1]]);
        ranks[pair[1]] = rank;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [(&str, f64); 9] = [
        ("▁", -9.0),
        ("a", -9.0),
        ("b", -9.0),
        ("ab", -2.0),
        ("ba", -1.0),
        ("▁a", -3.0),
        ("aa", -1.5),
        ("aaa", -1.0),
        ("aab", -0.5),
    ];

    #[track_caller]
    fn check(space_prefix: bool, text: &str, expected: &[&str]) {
        let scores: Vec<f64> = TOKENS.iter().map(|(_, score)| *score).chain([0.0; 2]).collect();
        let tokens = TOKENS.iter().map(|(text, _)| *text).zip(0..);
        let model = SentencePiece::new(
            tokens,
            [("<0xC3>", 9), ("<0xA9>", 10)].into_iter(),
            &scores,
            None,
            space_prefix,
        );
        let mut ids = Vec::new();
        model.encode(text, &mut Merger::default(), &mut ids).unwrap();
        let texts: Vec<_> = ids
            .iter()
            .map(|&id| TOKENS.get(id as usize).map_or("byte", |(text, _)| text))
            .collect();
        assert_eq!(texts, expected, "{text:?}");
    }

    #[test]
    fn the_highest_score_joins_first() {
        check(false, "ab", &["ab"]);
        check(false, "aba", &["a", "ba"]);
    }

    #[test]
    fn of_equal_scores_the_leftmost_joins_first() {
        check(false, "aaaa", &["aaa", "a"]);
    }

    #[test]
    fn a_space_is_put_in_front_only_where_the_model_asks() {
        check(true, "a", &["▁a"]);
        check(false, "a", &["a"]);
        check(true, "", &[]);
    }

    #[test]
    fn characters_without_token_become_bytes() {
        check(false, "aéb", &["a", "byte", "byte", "b"]);
    }
}
