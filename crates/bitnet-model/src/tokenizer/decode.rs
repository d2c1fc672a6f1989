//! Token ids back to text, all at once or one by one.

use std::sync::Arc;

use super::table::{Kind, Style, TokenTable};

/// Turns a stream of tokens into text, one call for each token, without ever cutting a character.
///
/// The pieces joined, with [`finish`](Self::finish) at the end, are exactly what decoding all ids at once gives.
#[derive(Clone, Debug)]
pub struct IncrementalDecoder {
    table: Arc<TokenTable>,
    skip_special: bool,
    /// Whether a space in front is still to be dropped.
    at_start: bool,
    /// The start of a character whose other bytes are still to come; at most three bytes between calls.
    pending: Vec<u8>,
}

impl IncrementalDecoder {
    pub(super) fn new(table: Arc<TokenTable>, skip_special: bool) -> Self {
        let at_start = matches!(table.style, Style::SentencePiece { space_prefix: true });
        Self { table, skip_special, at_start, pending: Vec::new() }
    }

    /// Keeps a space in front, for text that goes on where a prompt ended.
    ///
    /// SentencePiece vocabularies put a space before each text, and decoding drops it again; it is no such space then.
    pub fn continuing(mut self) -> Self {
        self.at_start = false;
        self
    }

    /// Adds a token and returns the text that is now complete, which may be empty.
    ///
    /// Bytes that are no UTF-8 become U+FFFD. An id that the vocabulary does not have stands for nothing.
    pub fn push(&mut self, id: u32) -> String {
        self.append(id);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let (valid, invalid) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        self.pending = invalid.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &invalid[bad..];
                }
            }
        }
    }

    /// What is left when no more tokens come: U+FFFD for a character that was cut short, or nothing.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    /// The text of all `ids`; the decoder must be new.
    pub(super) fn all(mut self, ids: &[u32]) -> String {
        for &id in ids {
            self.append(id);
        }
        self.finish()
    }

    fn append(&mut self, id: u32) {
        if self.skip_special && self.table.kind(id) == Kind::Special {
            return;
        }
        let start = self.pending.len();
        self.table.append_bytes(id, &mut self.pending);
        if self.at_start && self.pending.len() > start {
            self.at_start = false;
            if self.pending[start] == b' ' {
                self.pending.remove(start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::table::char_of_byte;
    use super::*;

    /// Ids 0 to 255 are the bytes, 256 is `Ġhi`, 257 a control token.
    fn byte_level() -> IncrementalDecoder {
        let texts: Vec<String> = (0..=u8::MAX).map(|byte| char_of_byte(byte).into()).collect();
        let tokens = texts.iter().map(|text| (text.as_str(), Kind::Normal));
        let tokens: Vec<_> =
            tokens.chain([("Ġhi", Kind::Normal), ("<s>", Kind::Special)]).collect();
        IncrementalDecoder::new(TokenTable::new(&tokens, Style::ByteLevel).unwrap().into(), true)
    }

    fn sentence_piece() -> IncrementalDecoder {
        let tokens = [
            ("<s>", Kind::Special),
            ("▁Hello", Kind::Normal),
            ("▁", Kind::Normal),
            ("a▁b▁", Kind::Normal),
            ("<0xE2>", Kind::Byte(0xe2)),
            ("<0x82>", Kind::Byte(0x82)),
            ("<0xAC>", Kind::Byte(0xac)),
            ("", Kind::Missing),
        ];
        let table = TokenTable::new(&tokens, Style::SentencePiece { space_prefix: true }).unwrap();
        IncrementalDecoder::new(table.into(), true)
    }

    #[track_caller]
    fn check(mut decoder: IncrementalDecoder, ids: &[u32], pieces: &[&str], end: &str) {
        assert_eq!(decoder.clone().all(ids), pieces.concat() + end);
        assert_eq!(ids.iter().map(|&id| decoder.push(id)).collect::<Vec<_>>(), pieces);
        assert_eq!(decoder.finish(), end);
    }

    #[test]
    fn an_emoji_over_four_tokens_comes_whole() {
        check(byte_level(), &[0xf0, 0x9f, 0x99, 0x82, 256], &["", "", "", "🙂", " hi"], "");
    }

    #[test]
    fn a_character_cut_by_the_end_is_one_replacement() {
        check(byte_level(), &[0x61, 0xf0, 0x9f], &["a", "", ""], "\u{fffd}");
    }

    #[test]
    fn invalid_bytes_become_replacements_at_once() {
        check(byte_level(), &[0xff, 0xe2, 0x82, 0x61], &["\u{fffd}", "", "", "\u{fffd}a"], "");
    }

    #[test]
    fn control_tokens_and_unknown_ids_are_silent() {
        check(byte_level(), &[257, 256, 9999], &["", " hi", ""], "");
    }

    #[test]
    fn only_the_first_space_of_a_text_is_dropped() {
        check(sentence_piece(), &[0, 1, 1], &["", "Hello", " Hello"], "");
        check(sentence_piece(), &[2, 1], &["", " Hello"], "");
        check(sentence_piece(), &[3, 2, 7], &["a b ", " ", ""], "");
    }

    #[test]
    fn a_continued_text_keeps_its_space() {
        check(sentence_piece().continuing(), &[1], &[" Hello"], "");
    }

    #[test]
    fn byte_tokens_join_to_a_character() {
        check(sentence_piece(), &[4, 5, 6, 4], &["", "", "€", ""], "\u{fffd}");
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_whole(ids in prop::collection::vec(0..260u32, 0..40)) {
            let mut decoder = byte_level();
            let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
            prop_assert!(decoder.pending.len() < 4);
            text.push_str(&decoder.finish());
            prop_assert_eq!(text, byte_level().all(&ids));
        }
    }
}
