//! Byte-pair encoding by merge rank, as in GPT-2, Llama 3 and Falcon.
//!
//! Written here rather than taken from the `tokenizers` crate for three reasons: that one panics on some malformed merge
//! lists, drops characters that have no token without a word, and keeps a cache per thread that outlives the model.

use std::collections::HashMap;

use super::error::TokenizerError;
use super::fold_hash::FoldHash;
use super::merge::{Merger, Symbol};
use super::table::{char_of_byte, map_bytes, text_bytes};

/// What a word is made of before the first merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Atoms {
    /// Bytes, written in GPT-2's alphabet in the vocabulary.
    Bytes,
    /// Characters, as they stand in the vocabulary.
    Chars,
}

/// How to treat what the merges do not settle.
#[derive(Debug)]
pub(super) struct BpeOptions<'a> {
    pub(super) atoms: Atoms,
    /// A word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// A character without a token becomes its bytes as `<0xXX>` tokens.
    pub(super) byte_fallback: bool,
    /// The token of a character that has none.
    pub(super) unk_token: Option<&'a str>,
    /// One such token for a run of those characters.
    pub(super) fuse_unk: bool,
}

/// A vocabulary and its merges.
#[derive(Debug)]
pub(super) struct Bpe {
    ids: HashMap<Box<str>, u32, FoldHash>,
    /// Rank and result of joining two tokens, by `pair`.
    merges: Merges,
    /// Tokens of single bytes: the atoms of byte-level BPE, or the byte fallback.
    bytes: [Option<u32>; 256],
    atoms: Atoms,
    ignore_merges: bool,
    unk: Option<u32>,
    fuse_unk: bool,
}

type Merges = HashMap<u64, (u32, u32), FoldHash>;

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Tells which merge or token is wrong, for the caller to name the file and key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BpeError {
    /// Merge number `index` needs a token that does not exist.
    Merge { index: usize, token: String },
    /// The unknown token is not in the vocabulary.
    Unknown { token: String },
}

impl Bpe {
    /// Bytes that it takes, about.
    pub(super) fn heap_bytes(&self) -> usize {
        map_bytes(&self.ids) + text_bytes(self.ids.keys()) + map_bytes(&self.merges)
    }

    /// `tokens` must not hold control tokens, or text could turn into one.
    pub(super) fn new<'a>(
        tokens: impl Iterator<Item = (&'a str, u32)>,
        merges: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
        options: &BpeOptions,
    ) -> Result<Self, BpeError> {
        let mut ids = HashMap::with_capacity_and_hasher(
            tokens.size_hint().1.unwrap_or(0),
            FoldHash::default(),
        );
        for (text, id) in tokens {
            // Of two tokens with one text, the first is the one that encoding gives.
            ids.entry(Box::from(text)).or_insert(id);
        }
        let unk = match options.unk_token {
            Some(token) => {
                Some(*ids.get(token).ok_or_else(|| BpeError::Unknown { token: token.into() })?)
            }
            None => None,
        };
        let merges = rank_merges(&ids, merges)?;
        let mut bytes = [None; 256];
        for (byte, id) in (0..=u8::MAX).zip(&mut bytes) {
            *id = match options.atoms {
                Atoms::Bytes => {
                    ids.get(char_of_byte(byte).encode_utf8(&mut [0; 4]) as &str).copied()
                }
                Atoms::Chars if options.byte_fallback => {
                    ids.get(format!("<0x{byte:02X}>").as_str()).copied()
                }
                Atoms::Chars => None,
            };
        }
        let BpeOptions { atoms, ignore_merges, fuse_unk, .. } = *options;
        Ok(Self { ids, merges, bytes, atoms, ignore_merges, unk, fuse_unk })
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Appends the tokens of one word.
    pub(super) fn encode(
        &self,
        word: &str,
        merger: &mut Merger,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if let Some(id) = self.whole_word(word) {
            ids.push(id);
            return Ok(());
        }
        merger.clear();
        match self.atoms {
            Atoms::Bytes => self.push_bytes(word, 0, merger)?,
            Atoms::Chars => self.push_chars(word, merger)?,
        }
        let join =
            |left: &Symbol, right: &Symbol| self.merges.get(&pair(left.id, right.id)).copied();
        ids.extend(merger.run(join).map(|symbol| symbol.id));
        Ok(())
    }

    fn whole_word(&self, word: &str) -> Option<u32> {
        match self.atoms {
            _ if !self.ignore_merges => None,
            Atoms::Chars => self.id(word),
            Atoms::Bytes => self.id(&word.bytes().map(char_of_byte).collect::<String>()),
        }
    }

    fn push_bytes(
        &self,
        text: &str,
        start: u32,
        merger: &mut Merger,
    ) -> Result<(), TokenizerError> {
        for (at, byte) in (start..).zip(text.bytes()) {
            let id = self.bytes[usize::from(byte)].or(self.unk).ok_or_else(|| {
                TokenizerError::encode(format!(
                    "the vocabulary has no token for the byte 0x{byte:02X}"
                ))
            })?;
            merger.push(id, at, 1);
        }
        Ok(())
    }

    fn push_chars(&self, word: &str, merger: &mut Merger) -> Result<(), TokenizerError> {
        let mut after_unk = false;
        for (at, c) in word.char_indices() {
            let text = &word[at..at + c.len_utf8()];
            let (start, len) = (at as u32, text.len() as u32);
            if let Some(id) = self.id(text) {
                merger.push(id, start, len);
            } else if text.bytes().all(|byte| self.bytes[usize::from(byte)].is_some()) {
                self.push_bytes(text, start, merger)?;
            } else if let Some(unk) = self.unk {
                if !(after_unk && self.fuse_unk) {
                    merger.push(unk, start, len);
                }
                after_unk = true;
                continue;
            } else {
                return Err(TokenizerError::encode(format!(
                    "the vocabulary has no token for {c:?}"
                )));
            }
            after_unk = false;
        }
        Ok(())
    }
}

fn rank_merges<'a>(
    ids: &HashMap<Box<str>, u32, FoldHash>,
    merges: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
) -> Result<Merges, BpeError> {
    let mut ranks = HashMap::with_capacity_and_hasher(merges.len(), FoldHash::default());
    let mut joined = String::new();
    for (index, (left, right)) in merges.enumerate() {
        let find = |token: &str| {
            ids.get(token).copied().ok_or_else(|| BpeError::Merge { index, token: token.into() })
        };
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        // A pair listed twice keeps its last rank, as in the reference.
        ranks.insert(pair(find(left)?, find(right)?), (index as u32, find(&joined)?));
    }
    Ok(ranks)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::Model;

    use super::*;

    const TOKENS: [&str; 12] =
        ["<unk>", "a", "b", "c", "ab", "bc", "abc", "aa", "aaa", "<0xC3>", "<0xA9>", "ca"];
    const MERGES: [(&str, &str); 7] =
        [("b", "c"), ("a", "b"), ("a", "a"), ("a", "bc"), ("ab", "c"), ("aa", "a"), ("c", "a")];

    fn options(ignore_merges: bool, fuse_unk: bool) -> BpeOptions<'static> {
        BpeOptions {
            atoms: Atoms::Chars,
            ignore_merges,
            byte_fallback: true,
            unk_token: Some("<unk>"),
            fuse_unk,
        }
    }

    fn ours(options: &BpeOptions) -> Bpe {
        Bpe::new(TOKENS.into_iter().zip(0..), MERGES.into_iter(), options).unwrap()
    }

    fn encode(bpe: &Bpe, word: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        bpe.encode(word, &mut Merger::default(), &mut ids).unwrap();
        ids
    }

    proptest! {
        // Not `d`, which has no token at all, together with `é`, which has bytes: the reference then changes their order.
        #[test]
        fn ids_are_those_of_the_reference(word in "[abcd]{0,20}|[abcé]{0,20}", ignore_merges: bool, fuse_unk: bool) {
            let reference = tokenizers::models::bpe::BPE::builder()
                .vocab_and_merges(
                    TOKENS.iter().map(|t| t.to_string()).zip(0..).collect::<tokenizers::models::bpe::Vocab>(),
                    MERGES.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<Vec<_>>(),
                )
                .unk_token("<unk>".into())
                .fuse_unk(fuse_unk)
                .byte_fallback(true)
                .ignore_merges(ignore_merges)
                .build()
                .unwrap();
            let expected: Vec<u32> = reference.tokenize(&word).unwrap().iter().map(|token| token.id).collect();
            prop_assert_eq!(encode(&ours(&options(ignore_merges, fuse_unk)), &word), expected);
        }
    }

    #[test]
    fn a_character_without_token_is_an_error_when_there_is_no_unknown_token() {
        let options = BpeOptions { unk_token: None, ..options(false, false) };
        let error =
            ours(&options).encode("ax", &mut Merger::default(), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("'x'"), "{error}");
    }

    #[test]
    fn a_merge_of_unknown_tokens_is_refused_with_its_number() {
        let merges = [("a", "b"), ("b", "b")];
        let error =
            Bpe::new(TOKENS.into_iter().zip(0..), merges.into_iter(), &options(false, false))
                .unwrap_err();
        assert_eq!(error, BpeError::Merge { index: 1, token: "bb".into() });
    }
}
