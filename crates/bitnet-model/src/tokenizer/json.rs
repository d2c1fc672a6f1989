//! The layout of tokenizer.json, read straight into the few large pieces that the model is built from.
//!
//! A vocabulary has 128,000 tokens and 280,000 merges: general JSON values would double loading time and memory.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::hf::AddedTokenFile;

/// tokenizer.json, without what is not about encoding one text (truncation and padding).
#[derive(Deserialize)]
pub(super) struct TokenizerFile {
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedTokenFile>,
    #[serde(default)]
    pub(super) normalizer: Option<Value>,
    #[serde(default)]
    pub(super) pre_tokenizer: Option<Value>,
    #[serde(default)]
    pub(super) post_processor: Option<Value>,
    #[serde(default)]
    pub(super) decoder: Value,
    #[serde(default)]
    pub(super) model: Option<ModelFile>,
}

/// `model`.
#[derive(Deserialize)]
pub(super) struct ModelFile {
    #[serde(default, rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) unk_token: Option<String>,
    #[serde(default)]
    pub(super) continuing_subword_prefix: Option<String>,
    #[serde(default)]
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    #[serde(default)]
    pub(super) vocab: VocabFile,
    #[serde(default)]
    pub(super) merges: Merges,
}

/// `model.vocab`.
#[derive(Default)]
pub(super) enum VocabFile {
    #[default]
    Missing,
    /// Tokens and ids, as BPE has them.
    Map(Vec<(String, u32)>),
    /// Something else, of another kind of model.
    Other,
}

impl<'de> Deserialize<'de> for VocabFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = VocabFile;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tokens and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabFile, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(VocabFile::Map(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<VocabFile, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(VocabFile::Other)
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

/// `model.merges`, all texts in one: merge `i` is `text[start..middle]` and `text[middle..end]`.
#[derive(Default)]
pub(super) struct Merges {
    text: String,
    cuts: Vec<(usize, usize, usize)>,
}

impl Merges {
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.cuts
            .iter()
            .map(|&(start, middle, end)| (&self.text[start..middle], &self.text[middle..end]))
    }

    fn push(&mut self, left: &str, right: &str) {
        let start = self.text.len();
        self.text.push_str(left);
        let middle = self.text.len();
        self.text.push_str(right);
        self.cuts.push((start, middle, self.text.len()));
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Merges;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merges, A::Error> {
                let mut merges = Merges::default();
                while seq.next_element_seed(Merge(&mut merges))?.is_some() {}
                Ok(merges)
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// One merge, `"a b"` in older files and `["a", "b"]` in newer ones.
struct Merge<'a>(&'a mut Merges);

impl<'de> serde::de::DeserializeSeed<'de> for Merge<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Merge<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a merge, \"a b\" or [\"a\", \"b\"]")
    }

    fn visit_str<E: Error>(self, merge: &str) -> Result<(), E> {
        match merge.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => self.0.push(left, right),
            // The first line of a merges.txt, which some files carry along.
            _ if merge.starts_with("#version") => {}
            _ => {
                let index = self.0.cuts.len();
                return Err(E::custom(format!(
                    "merge {index} is {merge:?}, and not two tokens with a space between"
                )));
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let index = self.0.cuts.len();
        let mut next = || seq.next_element::<std::borrow::Cow<str>>();
        match (next()?, next()?, next()?) {
            (Some(left), Some(right), None) => self.0.push(&left, &right),
            _ => return Err(A::Error::custom(format!("merge {index} is not a pair"))),
        }
        Ok(())
    }
}
