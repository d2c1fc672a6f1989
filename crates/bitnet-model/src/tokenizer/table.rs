//! Every token's text by id, and how to turn ids back into bytes.

use std::collections::HashMap;

use super::error::TokenizerError;

/// No id may be as large as this: 4 million is 15 times the largest vocabulary known (Gemma's 262144), and a table of that
/// size is still small, so a hostile id cannot make a huge one.
pub(super) const MAX_IDS: usize = 1 << 22;

/// How the texts of a vocabulary stand for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// GPT-2's alphabet: each character of a token is one byte.
    ByteLevel,
    /// Text with `▁` for a space, and `<0xXX>` for single bytes.
    SentencePiece {
        /// Whether encoding puts a space before a text, which decoding takes away again.
        space_prefix: bool,
    },
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No token has this id.
    Missing,
    /// A piece of text, written in the vocabulary's style.
    Normal,
    /// A single byte.
    Byte(u8),
    /// Plain text outside the style, added after training.
    Added,
    /// A control token: `<s>`, `<|eot_id|>`.
    Special,
}

/// Bytes of a map, about: a table that is at most seven eighths full, and a byte for each place.
pub(super) fn map_bytes<K, V, S>(map: &HashMap<K, V, S>) -> usize {
    (map.capacity() * 8 / 7).next_power_of_two() * (size_of::<(K, V)>() + 1)
}

/// Bytes of the texts that are keys, about, with a word before each and the rest of sixteen bytes.
pub(super) fn text_bytes<'a>(texts: impl Iterator<Item = &'a Box<str>>) -> usize {
    texts.map(|text| (text.len() + 8).next_multiple_of(16).max(32)).sum()
}

/// The texts of all tokens, by id.
#[derive(Debug)]
pub(super) struct TokenTable {
    text: String,
    /// Where each id's text ends in `text`; it begins where the one before ends.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    pub(super) style: Style,
}

impl TokenTable {
    /// `tokens[id]` is a token's text and kind.
    pub(super) fn new(tokens: &[(&str, Kind)], style: Style) -> Result<Self, TokenizerError> {
        let mut text = String::with_capacity(tokens.iter().map(|(text, _)| text.len()).sum());
        let mut ends = Vec::with_capacity(tokens.len());
        for (token, _) in tokens {
            text.push_str(token);
            ends.push(u32::try_from(text.len()).map_err(|_| {
                TokenizerError::malformed("vocabulary", "its texts are longer than 4 GiB")
            })?);
        }
        Ok(Self { text, ends, kinds: tokens.iter().map(|(_, kind)| *kind).collect(), style })
    }

    /// Bytes that it takes, and those of what it has of kind and end for each token.
    pub(super) fn heap_bytes(&self) -> usize {
        let each = size_of::<u32>() + size_of::<Kind>();
        self.text.capacity() + self.ends.capacity() * each
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Missing)
    }

    /// The token as the vocabulary writes it (`Ġthe`, `▁the`).
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] as usize };
        (self.kinds[id] != Kind::Missing).then(|| &self.text[start..end])
    }

    /// Appends the bytes that a token stands for; nothing for an unknown id.
    pub(super) fn append_bytes(&self, id: u32, bytes: &mut Vec<u8>) {
        let Some(text) = self.text(id) else { return };
        match (self.kind(id), self.style) {
            (Kind::Byte(byte), _) => bytes.push(byte),
            (Kind::Normal, Style::ByteLevel) => append_byte_level(text, bytes),
            (Kind::Normal, Style::SentencePiece { .. }) => {
                for part in text.split_inclusive('▁') {
                    match part.strip_suffix('▁') {
                        Some(word) => bytes.extend(word.bytes().chain([b' '])),
                        None => bytes.extend_from_slice(part.as_bytes()),
                    }
                }
            }
            _ => bytes.extend_from_slice(text.as_bytes()),
        }
    }
}

/// A token with a character outside the alphabet means itself, as in Hugging Face's decoder.
fn append_byte_level(text: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for c in text.chars() {
        let Some(byte) = byte_of_char(c) else {
            bytes.truncate(start);
            bytes.extend_from_slice(text.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

/// The byte a `<0xXX>` token stands for.
pub(super) fn parse_byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    (digits.len() == 2 && digits.bytes().all(upper_hex))
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// GPT-2's character for a byte: printable Latin-1 characters stand for themselves, the 68 other bytes for U+0100 and on.
/// Source: Radford et al. 2019, `encoder.py` of GPT-2.
pub(super) const fn char_of_byte(byte: u8) -> char {
    let shifted = match byte {
        0..=0x20 => byte as u32,
        0x7f..=0xa0 => byte as u32 - 0x7f + 0x21,
        0xad => 0x43,
        _ => return byte as char,
    };
    match char::from_u32(0x100 + shifted) {
        Some(c) => c,
        None => unreachable!(),
    }
}

/// The byte of a character of GPT-2's alphabet.
pub(super) const fn byte_of_char(c: char) -> Option<u8> {
    match c as u32 {
        c @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(c as u8),
        c @ 0x100..=0x120 => Some((c - 0x100) as u8),
        c @ 0x121..=0x142 => Some((c - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character_and_back() {
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        assert_eq!([b' ', b'\n', 0xad, b'!'].map(char_of_byte), ['Ġ', 'Ċ', 'Ń', '!']);
    }

    #[test]
    fn only_two_upper_case_hex_digits_make_a_byte_token() {
        let found = ["<0x0A>", "<0xff>", "<0x+1>", "<0x0A", "<0x00A>"].map(parse_byte_token);
        assert_eq!(found, [Some(10), None, None, None, None]);
    }
}
