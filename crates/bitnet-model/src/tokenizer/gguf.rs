//! Tokenizers in the metadata of GGUF files.
//!
//! The keys are `tokenizer.ggml.*`, described in ggml's `gguf.md`; what missing keys mean is llama.cpp's behaviour, but for
//! Microsoft's BitNet files, whose pre-tokenizer and chat template llama.cpp gets wrong.

use std::collections::BTreeSet;

use super::added::{AddedToken, AddedTokens};
use super::bpe::{Atoms, Bpe, BpeError, BpeOptions};
use super::chat::Chat;
use super::error::TokenizerError;
use super::sentencepiece::SentencePiece;
use super::split::{GPT2, LLAMA3, QWEN2};
use super::table::{Kind, MAX_IDS, Style, TokenTable, parse_byte_token};
use super::words::Words;
use super::{Model, Tokenizer, stop_names};
use crate::format::metadata::{Metadata, Value};

/// What microsoft/bitnet-b1.58-2B-4T was trained on. Source: its `gpu/tokenizer.py` and its tokenizer_config.json.
///
/// The file `ggml-model-i2_s.gguf` carries an older template instead, with `Human:` and `BITNETAssistant:`.
const BITNET_TEMPLATE: &str = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
    {{ message.role | capitalize }}: {{ message.content | trim }}<|eot_id|>{% endfor %}\
    {% if add_generation_prompt %}Assistant: {% endif %}";

/// How llama.cpp splits words for `default`, and where a file names no pre-tokenizer. It is Falcon's.
const LLAMA_CPP_DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// Names in `tokenizer.ggml.pre`, their patterns, and whether they are of Llama 3's kind: a word that is a token needs no
/// merges, and texts start with BOS.
const PRE_TOKENIZERS: [(&[&str], &[&str], bool); 5] = [
    (&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon_e", "falcon-e"], &[LLAMA3], true),
    (&["smaug-bpe", "dbrx", "chatglm-bpe"], &[LLAMA3], false),
    (&["qwen2", "deepseek-r1-qwen", "stablelm2"], &[QWEN2], false),
    (&["gpt-2", "phi-2", "olmo", "mpt", "jais"], &[GPT2], false),
    (&["default"], &LLAMA_CPP_DEFAULT, false),
];

/// Llama 3's vocabulary, whose control tokens are known by id: files converted before May 2024 spell them wrongly.
const LLAMA3_VOCAB: usize = 128_256;
const LLAMA3_BEGIN: (&str, u32) = ("<|begin_of_text|>", 128_000);
const LLAMA3_END: u32 = 128_001;
const LLAMA3_END_OF_TURN: u32 = 128_009;

/// `tokenizer.ggml.token_type`.
const UNKNOWN: i128 = 2;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;
const BYTE: i128 = 6;

impl Tokenizer {
    /// Loads the tokenizer in a GGUF file's metadata.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let keys = Keys(metadata);
        let model = keys.required("model", Metadata::string, "a text")?;
        let sentence_piece = match model {
            "gpt2" => false,
            "llama" => true,
            _ => {
                let place = "`tokenizer.ggml.model`".into();
                return Err(TokenizerError::Unsupported {
                    place,
                    found: model.into(),
                    known: "gpt2, llama".into(),
                });
            }
        };
        let vocab = Vocab::read(&keys, sentence_piece)?;
        let defaults =
            if sentence_piece { [Some(1), Some(2), Some(0)] } else { vocab.default_ids() };
        let [bos, eos, unk] = ["bos_token_id", "eos_token_id", "unknown_token_id"];
        let bos = keys.token_id(bos, &vocab)?.or(defaults[0].filter(|id| vocab.has(*id)));
        let eos = keys.token_id(eos, &vocab)?.or(defaults[1].filter(|id| vocab.has(*id)));
        let unk = keys.token_id(unk, &vocab)?.or(defaults[2].filter(|id| vocab.has(*id)));

        let control_ids = [
            bos,
            eos,
            keys.token_id("eot_token_id", &vocab)?,
            keys.token_id("eom_token_id", &vocab)?,
        ];
        let vocab = vocab.with_control(control_ids.into_iter().flatten());
        let (model, style, bos_by_default) = if sentence_piece {
            let space_prefix =
                keys.optional("add_space_prefix", Metadata::bool, "a truth value")?.unwrap_or(true);
            (
                vocab.sentence_piece(&keys, unk, space_prefix)?,
                Style::SentencePiece { space_prefix },
                true,
            )
        } else {
            let (words, llama3_like) = words(&keys, &vocab)?;
            (vocab.bpe(&keys, words, llama3_like)?, Style::ByteLevel, llama3_like)
        };
        let added = vocab.added()?;
        let mut stops: Vec<u32> = control_ids[1..].iter().copied().flatten().collect();
        stops.extend(
            stop_names()
                .filter_map(|name| added.id(name))
                .filter(|id| vocab.kind(*id) == Kind::Special),
        );
        stops.sort_unstable();
        stops.dedup();

        let add_bos = keys
            .optional("add_bos_token", Metadata::bool, "a truth value")?
            .unwrap_or(bos_by_default);
        let names = [("bos_token", bos), ("eos_token", eos), ("unk_token", unk)];
        let text = |id: Option<u32>| Some(vocab.texts[id? as usize].to_owned());
        Ok(Self {
            table: TokenTable::new(&vocab.entries(), style)?.into(),
            added,
            model,
            bos,
            prefix: bos.filter(|_| add_bos).into_iter().collect(),
            eos: stops,
            special_names: names
                .into_iter()
                .filter_map(|(name, id)| Some((name, text(id)?)))
                .collect(),
            chat: chat(metadata)?,
        })
    }
}

fn chat(metadata: &Metadata) -> Result<Chat, TokenizerError> {
    const KEY: &str = "tokenizer.chat_template";
    match metadata.get(KEY) {
        None => Ok(Chat::Missing),
        Some(Value::String(source)) if source.contains("BITNETAssistant") => {
            tracing::warn!(
                "the file's chat template (`Human:`, `BITNETAssistant:`) is not what BitNet b1.58 2B4T was trained on; \
                 using the published one (`User:`, `Assistant:`)"
            );
            Ok(Chat::new(format!("`{KEY}`"), BITNET_TEMPLATE))
        }
        Some(Value::String(source)) => Ok(Chat::new(format!("`{KEY}`"), source)),
        Some(other) => Err(TokenizerError::malformed(
            format!("`{KEY}`"),
            format!("found {other}, expected a text"),
        )),
    }
}

/// The words of `tokenizer.ggml.pre`, and whether it is of Llama 3's kind.
fn words(keys: &Keys, vocab: &Vocab) -> Result<(Words, bool), TokenizerError> {
    let architecture = keys.0.string("general.architecture").unwrap_or_default();
    let name = match keys.optional("pre", Metadata::string, "a text")? {
        Some(name) => name,
        // Microsoft's converter leaves the key out, and its models all have Llama 3's tokenizer.
        None if matches!(architecture, "bitnet-b1.58" | "bitnet-25") || vocab.is_llama3() => {
            "llama-bpe"
        }
        None => {
            tracing::warn!(
                "`tokenizer.ggml.pre` is missing; words are split as llama.cpp's `default`, which may be wrong"
            );
            "default"
        }
    };
    let known = PRE_TOKENIZERS.iter().find(|(names, ..)| names.contains(&name));
    let (_, patterns, llama3_like) = known.ok_or_else(|| TokenizerError::Unsupported {
        place: "`tokenizer.ggml.pre`".into(),
        found: name.into(),
        known: PRE_TOKENIZERS
            .iter()
            .flat_map(|(names, ..)| *names)
            .copied()
            .collect::<Vec<_>>()
            .join(", "),
    })?;
    let words = Words::of_patterns(patterns)
        .map_err(|error| TokenizerError::malformed("`tokenizer.ggml.pre`", error))?;
    Ok((words, *llama3_like))
}

/// Access to `tokenizer.ggml.*` with errors that name the key.
struct Keys<'a>(&'a Metadata);

impl<'a> Keys<'a> {
    fn optional<T>(
        &self,
        key: &str,
        get: impl Fn(&'a Metadata, &str) -> Option<T>,
        expected: &str,
    ) -> Result<Option<T>, TokenizerError> {
        let key = format!("tokenizer.ggml.{key}");
        match (get(self.0, &key), self.0.get(&key)) {
            (None, Some(found)) => Err(TokenizerError::malformed(
                format!("`{key}`"),
                format!("found {found}, expected {expected}"),
            )),
            (value, _) => Ok(value),
        }
    }

    fn required<T>(
        &self,
        key: &str,
        get: impl Fn(&'a Metadata, &str) -> Option<T>,
        expected: &str,
    ) -> Result<T, TokenizerError> {
        self.optional(key, get, expected)?.ok_or_else(|| {
            TokenizerError::malformed(
                format!("`tokenizer.ggml.{key}`"),
                format!("missing; it should be {expected}"),
            )
        })
    }

    fn token_id(&self, key: &str, vocab: &Vocab) -> Result<Option<u32>, TokenizerError> {
        let id = self.optional(key, Metadata::u64, "a token id")?;
        id.map(|id| match u32::try_from(id) {
            Ok(id) if vocab.has(id) => Ok(id),
            _ => {
                let problem =
                    format!("found {id}, but the vocabulary has {} tokens", vocab.texts.len());
                Err(TokenizerError::malformed(format!("`tokenizer.ggml.{key}`"), problem))
            }
        })
        .transpose()
    }

    /// An array with an entry for each token.
    fn per_token<T>(
        &self,
        key: &str,
        values: Option<&'a [T]>,
        vocab: usize,
    ) -> Result<Option<&'a [T]>, TokenizerError> {
        match values {
            Some(values) if values.len() != vocab => {
                let problem =
                    format!("found {} entries, expected {vocab}, one for each token", values.len());
                Err(TokenizerError::malformed(format!("`tokenizer.ggml.{key}`"), problem))
            }
            values => Ok(values),
        }
    }
}

/// Texts and types of all tokens.
struct Vocab<'a> {
    texts: Vec<&'a str>,
    types: Vec<i128>,
    byte_level: bool,
}

impl<'a> Vocab<'a> {
    fn read(keys: &Keys<'a>, sentence_piece: bool) -> Result<Self, TokenizerError> {
        let tokens = keys.required("tokens", Metadata::strings, "an array of texts")?;
        if tokens.is_empty() || tokens.len() > MAX_IDS {
            let problem = format!("found {} tokens, expected 1 to {MAX_IDS}", tokens.len());
            return Err(TokenizerError::malformed("`tokenizer.ggml.tokens`", problem));
        }
        let types = keys.optional("token_type", Metadata::ints, "an array of integers")?;
        let types = keys.per_token("token_type", types, tokens.len())?;
        let mut texts: Vec<&str> = tokens.iter().map(String::as_str).collect();
        if !sentence_piece && texts.len() == LLAMA3_VOCAB {
            repair_llama3(&mut texts);
        }
        let types = types.map_or_else(|| vec![1; texts.len()], <[i128]>::to_vec);
        Ok(Self { texts, types, byte_level: !sentence_piece })
    }

    fn has(&self, id: u32) -> bool {
        (id as usize) < self.texts.len()
    }

    fn is_llama3(&self) -> bool {
        let (text, id) = LLAMA3_BEGIN;
        self.byte_level && self.texts.len() == LLAMA3_VOCAB && self.texts[id as usize] == text
    }

    /// BOS, EOS and the unknown token where the file does not say.
    fn default_ids(&self) -> [Option<u32>; 3] {
        match self.is_llama3() {
            true => [Some(LLAMA3_BEGIN.1), Some(LLAMA3_END), None],
            false => [None; 3],
        }
    }

    /// Marks control tokens that the file calls normal, as converters did for a time.
    fn with_control(mut self, ids: impl Iterator<Item = u32>) -> Self {
        let names: BTreeSet<&str> = stop_names().chain([LLAMA3_BEGIN.0]).collect();
        let named =
            self.texts.iter().zip(0..).filter(|(text, _)| names.contains(*text)).map(|(_, id)| id);
        let turn = self.is_llama3().then_some(LLAMA3_END_OF_TURN);
        for id in named.chain(ids).chain(turn).collect::<Vec<u32>>() {
            let kind = &mut self.types[id as usize];
            *kind = if *kind == UNKNOWN { UNKNOWN } else { CONTROL };
        }
        self
    }

    fn kind(&self, id: u32) -> Kind {
        let text = self.texts[id as usize];
        match self.types[id as usize] {
            UNKNOWN | CONTROL => Kind::Special,
            USER_DEFINED => Kind::Added,
            BYTE => parse_byte_token(text).map_or(Kind::Normal, Kind::Byte),
            _ => Kind::Normal,
        }
    }

    fn entries(&self) -> Vec<(&'a str, Kind)> {
        (0..).zip(&self.texts).map(|(id, text)| (*text, self.kind(id))).collect()
    }

    /// Tokens that ordinary text can become.
    fn ordinary(&self) -> impl Iterator<Item = (&'a str, u32)> {
        let tokens = self.texts.iter().copied().zip(0..);
        tokens.filter(|(_, id)| {
            !matches!(self.types[*id as usize], UNKNOWN | CONTROL | UNUSED | BYTE)
        })
    }

    /// Tokens that are cut out of the text.
    fn added(&self) -> Result<AddedTokens, TokenizerError> {
        let tokens =
            (0..).zip(&self.texts).filter(|(_, text)| !text.is_empty()).filter_map(|(id, text)| {
                let special = match self.kind(id) {
                    Kind::Special => true,
                    Kind::Added => false,
                    _ => return None,
                };
                Some(AddedToken { special, ..AddedToken::control(id, text) })
            });
        AddedTokens::new(tokens.collect()).map_err(|error| {
            TokenizerError::malformed("`tokenizer.ggml.tokens`", error.to_string())
        })
    }

    fn bpe(&self, keys: &Keys, words: Words, ignore_merges: bool) -> Result<Model, TokenizerError> {
        let merges = keys.required("merges", Metadata::strings, "an array of texts")?;
        let place = |index: usize| format!("`tokenizer.ggml.merges[{index}]`");
        let pairs = merges.iter().enumerate().map(|(index, merge)| {
            split_merge(merge).ok_or_else(|| {
                TokenizerError::malformed(
                    place(index),
                    format!("found {merge:?}, expected two tokens with a space between"),
                )
            })
        });
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        let options = BpeOptions {
            atoms: Atoms::Bytes,
            ignore_merges,
            byte_fallback: false,
            unk_token: None,
            fuse_unk: false,
        };
        let bpe =
            Bpe::new(self.ordinary(), pairs.into_iter(), &options).map_err(
                |error| match error {
                    BpeError::Merge { index, token } => {
                        TokenizerError::malformed(place(index), format!("{token:?} is not a token"))
                    }
                    BpeError::Unknown { token } => TokenizerError::malformed(
                        "`tokenizer.ggml.tokens`",
                        format!("{token:?} is not there"),
                    ),
                },
            )?;
        Ok(Model::Bpe { words: words.into(), bpe })
    }

    fn sentence_piece(
        &self,
        keys: &Keys,
        unk: Option<u32>,
        space_prefix: bool,
    ) -> Result<Model, TokenizerError> {
        let scores = keys.required("scores", Metadata::floats, "an array of floats")?;
        keys.per_token("scores", Some(scores), self.texts.len())?;
        let bytes =
            self.texts.iter().copied().zip(0..).filter(|(_, id)| self.types[*id as usize] == BYTE);
        Ok(Model::SentencePiece(SentencePiece::new(
            self.ordinary(),
            bytes,
            scores,
            unk,
            space_prefix,
        )))
    }
}

/// Old converters wrote `<|begin_of_text|><|eot_id|>` for `<|eot_id|>`, and so on for all control tokens.
fn repair_llama3(texts: &mut [&str]) {
    let (begin, first) = LLAMA3_BEGIN;
    let mut repaired = 0;
    for text in &mut texts[first as usize..] {
        if let Some(rest) = text.strip_prefix(begin).filter(|rest| !rest.is_empty()) {
            *text = rest;
            repaired += 1;
        }
    }
    if repaired > 0 {
        tracing::warn!(
            "{repaired} control tokens are spelled with {begin:?} in front, as an old converter did; corrected"
        );
    }
}

/// Cuts a merge at its space; a token may start with one.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let second = merge.chars().next()?.len_utf8();
    let space = second + merge[second..].find(' ')?;
    let (left, right) = (&merge[..space], &merge[space + 1..]);
    (!right.is_empty()).then_some((left, right))
}
