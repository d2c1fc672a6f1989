//! Tokenizers of Hugging Face checkpoints: `tokenizer.json` and the small files beside it.

use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::added::{AddedToken, AddedTokens};
use super::bpe::{Bpe, BpeError, BpeOptions};
use super::chat::Chat;
use super::error::TokenizerError;
use super::json::{Merges, TokenizerFile, VocabFile};
use super::table::{Kind, MAX_IDS, Style, TokenTable, parse_byte_token};
use super::words::Words;
use super::{Model, Tokenizer, stop_names};
use crate::format::impostor::{self, Impostor};
use crate::format::source::read_small;

/// Longest tokenizer.json, above any real one (Gemma's has 33 MB).
const MAX_TOKENIZER: u64 = 64 << 20;

/// Longest of the files beside it; those of published models have less than a megabyte.
const MAX_SIDE_FILE: u64 = 16 << 20;

/// Settings from the files beside tokenizer.json; each file may be missing.
struct Settings {
    tokenizer_config: Value,
    special_tokens_map: Value,
    generation_config: Value,
    config: Value,
}

impl Tokenizer {
    /// Loads the tokenizer of a Hugging Face checkpoint.
    ///
    /// Reads the files that [`from_files`](Self::from_files) names.
    pub fn from_directory(dir: &Path) -> Result<Self, TokenizerError> {
        let limit =
            |name: &str| if name == "tokenizer.json" { MAX_TOKENIZER } else { MAX_SIDE_FILE };
        Self::from_files(dir, |name| read(&dir.join(name), limit(name))).map_err(|error| {
            let sentence_piece = dir.join("tokenizer.model");
            match error {
                TokenizerError::NotFound { .. } if sentence_piece.exists() => {
                    TokenizerError::SentencePieceOnly { path: sentence_piece }
                }
                error => error,
            }
        })
    }

    /// Loads the tokenizer of a Hugging Face checkpoint from texts that need not be files.
    ///
    /// `text_of` gives a file's text by its name, or none where there is no such file. It is asked for `tokenizer.json`,
    /// which must be there, `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json`, `config.json`
    /// (stop tokens only) and `chat_template.jinja`. Errors speak of files in `dir`.
    pub fn from_files(
        dir: &Path,
        text_of: impl Fn(&str) -> Result<Option<String>, TokenizerError>,
    ) -> Result<Self, TokenizerError> {
        let name = dir.join("tokenizer.json").display().to_string();
        let text = text_of("tokenizer.json")?
            .ok_or_else(|| TokenizerError::NotFound { dir: dir.into() })?;
        let file: TokenizerFile = serde_json::from_str(&text)
            .map_err(|error| TokenizerError::malformed(&name, error.to_string()))?;
        let json_of = |name: &str| match text_of(name)? {
            None => Ok(Value::Null),
            Some(text) => serde_json::from_str(&text).map_err(|error| {
                TokenizerError::malformed(dir.join(name).display().to_string(), error.to_string())
            }),
        };
        let settings = Settings {
            tokenizer_config: json_of("tokenizer_config.json")?,
            special_tokens_map: json_of("special_tokens_map.json")?,
            generation_config: json_of("generation_config.json")?,
            config: json_of("config.json")?,
        };
        let template_file = text_of("chat_template.jinja")?;
        let mut tokenizer = build(&name, &file, &settings)?;
        tokenizer.chat =
            Chat::from_files(dir, template_file, &settings.tokenizer_config["chat_template"]);
        Ok(tokenizer)
    }
}

/// The text of a file, or none if there is no such file.
fn read(path: &Path, limit: u64) -> Result<Option<String>, TokenizerError> {
    let bytes = match read_small(path, limit) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|source| TokenizerError::Read { path: path.into(), source })?,
    };
    if let Some(Impostor { what, help }) = impostor::recognize(&bytes) {
        return Err(TokenizerError::Impostor { path: path.into(), found: what, help });
    }
    let malformed = |problem| TokenizerError::malformed(path.display().to_string(), problem);
    if bytes.len() as u64 > limit {
        return Err(malformed(format!("longer than {limit} bytes, as no such file is")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        malformed(format!("not UTF-8 text from byte {} on", error.utf8_error().valid_up_to()))
    })?;
    Ok(Some(text))
}

fn build(
    name: &str,
    file: &TokenizerFile,
    settings: &Settings,
) -> Result<Tokenizer, TokenizerError> {
    let model =
        file.model.as_ref().ok_or_else(|| TokenizerError::malformed(name, "`model` is missing"))?;
    if model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        let found = model.kind.clone().unwrap_or_default();
        return Err(TokenizerError::Unsupported {
            place: format!("{name}: `model.type`"),
            found,
            known: "BPE".into(),
        });
    }
    let VocabFile::Map(vocab) = &model.vocab else {
        return Err(TokenizerError::malformed(
            format!("{name}: `model.vocab`"),
            "expected an object of tokens and ids",
        ));
    };
    for (key, text) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(found) = text.clone().filter(|text| !text.is_empty()) {
            let place = format!("{name}: `model.{key}`");
            return Err(TokenizerError::Unsupported {
                place,
                found,
                known: "null and \"\"".into(),
            });
        }
    }
    let style = style(name, &file.decoder)?;
    let (texts, kinds) = tokens_by_id(name, vocab, &file.added_tokens, style, model.byte_fallback)?;
    let (words, atoms) =
        Words::of_json(name, file.normalizer.as_ref(), file.pre_tokenizer.as_ref())?;
    let options = BpeOptions {
        atoms,
        ignore_merges: model.ignore_merges,
        byte_fallback: model.byte_fallback,
        unk_token: model.unk_token.as_deref(),
        fuse_unk: model.fuse_unk,
    };
    let bpe = bpe(name, vocab, &kinds, &model.merges, &options)?;
    let tokens: Vec<_> = texts.into_iter().zip(kinds).collect();
    let added = added_tokens(name, &file.added_tokens)?;
    let table = TokenTable::new(&tokens, style)?;
    let id = |text: &str| added.id(text).or_else(|| bpe.id(text));
    let bos = settings.token("bos", &id, &table);
    Ok(Tokenizer {
        prefix: prefix(name, file.post_processor.as_ref(), settings, bos, &table)?,
        bos,
        eos: eos_ids(settings, &id, &table),
        special_names: settings.special_names(bos, &id, &table),
        table: table.into(),
        model: Model::Bpe { words: words.into(), bpe },
        added,
        chat: Chat::Missing,
    })
}

/// Texts and kinds by id, of the model's and the added tokens together.
fn tokens_by_id<'a>(
    name: &str,
    vocab: &'a [(String, u32)],
    added: &'a [AddedTokenFile],
    style: Style,
    byte_fallback: bool,
) -> Result<(Vec<&'a str>, Vec<Kind>), TokenizerError> {
    let normal = vocab.iter().map(|(text, id)| {
        let byte =
            (byte_fallback && style != Style::ByteLevel).then(|| parse_byte_token(text)).flatten();
        (text.as_str(), *id, byte.map_or(Kind::Normal, Kind::Byte), "model.vocab")
    });
    let added = added.iter().map(|token| {
        (
            token.content.as_str(),
            token.id,
            if token.special { Kind::Special } else { Kind::Added },
            "added_tokens",
        )
    });
    let (mut texts, mut kinds) = (Vec::with_capacity(vocab.len()), Vec::with_capacity(vocab.len()));
    for (text, id, kind, key) in normal.chain(added) {
        let malformed =
            |problem| Err(TokenizerError::malformed(format!("{name}: `{key}`"), problem));
        let at = id as usize;
        if at >= MAX_IDS {
            return malformed(format!(
                "token {text:?} has the id {id}, and no vocabulary is so large"
            ));
        }
        if at >= texts.len() {
            texts.resize(at + 1, "");
            kinds.resize(at + 1, Kind::Missing);
        }
        if kinds[at] != Kind::Missing && texts[at] != text {
            return malformed(format!("id {id} belongs to both {:?} and {text:?}", texts[at]));
        }
        (texts[at], kinds[at]) = (text, kind);
    }
    match texts.is_empty() {
        true => Err(TokenizerError::malformed(
            format!("{name}: `model.vocab`"),
            "there is not one token",
        )),
        false => Ok((texts, kinds)),
    }
}

fn bpe(
    name: &str,
    vocab: &[(String, u32)],
    kinds: &[Kind],
    merges: &Merges,
    options: &BpeOptions,
) -> Result<Bpe, TokenizerError> {
    // The unknown token is often a control token as well; ordinary text cannot spell it by accident.
    let usable = |text: &str, id: u32| {
        kinds[id as usize] != Kind::Special || options.unk_token == Some(text)
    };
    let tokens =
        vocab.iter().map(|(text, id)| (text.as_str(), *id)).filter(|(text, id)| usable(text, *id));
    Bpe::new(tokens, merges.iter(), options).map_err(|error| match error {
        BpeError::Merge { index, token } => TokenizerError::malformed(
            format!("{name}: `model.merges[{index}]`"),
            format!("{token:?} is not a token"),
        ),
        BpeError::Unknown { token } => TokenizerError::malformed(
            format!("{name}: `model.unk_token`"),
            format!("{token:?} is not a token"),
        ),
    })
}

/// An entry of `added_tokens`.
#[derive(Deserialize)]
pub(super) struct AddedTokenFile {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

fn added_tokens(name: &str, tokens: &[AddedTokenFile]) -> Result<AddedTokens, TokenizerError> {
    let place = format!("{name}: `added_tokens`");
    if let Some(empty) = tokens.iter().find(|token| token.content.is_empty()) {
        return Err(TokenizerError::malformed(place, format!("token {} is empty", empty.id)));
    }
    let tokens = tokens.iter().map(|token| {
        let AddedTokenFile { id, special, single_word, lstrip, rstrip, .. } = *token;
        AddedToken { id, text: token.content.clone(), special, single_word, lstrip, rstrip }
    });
    AddedTokens::new(tokens.collect())
        .map_err(|error| TokenizerError::malformed(place, error.to_string()))
}

/// Reads how ids become text from `decoder`.
fn style(name: &str, decoder: &Value) -> Result<Style, TokenizerError> {
    let unsupported = |found: &Value| TokenizerError::Unsupported {
        place: format!("{name}: `decoder`"),
        found: found["type"].as_str().unwrap_or("null").into(),
        known: "ByteLevel, Metaspace, and sequences of Replace, ByteFallback, Fuse, Strip".into(),
    };
    let metaspace =
        |part: &Value| part["add_prefix_space"] != false && part["prepend_scheme"] != "never";
    match decoder["type"].as_str() {
        Some("ByteLevel") => Ok(Style::ByteLevel),
        Some("Metaspace") => Ok(Style::SentencePiece { space_prefix: metaspace(decoder) }),
        Some("Sequence") => {
            let parts = decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice);
            let mut space_prefix = false;
            for part in parts {
                match part["type"].as_str() {
                    Some("ByteLevel") if parts.len() == 1 => return Ok(Style::ByteLevel),
                    Some("Replace")
                        if part["pattern"]["String"] == "▁" && part["content"] == " " => {}
                    Some("ByteFallback" | "Fuse") => {}
                    Some("Strip") if part["content"] == " " && part["stop"] == 0 => {
                        space_prefix |= part["start"] == 1
                    }
                    Some("Metaspace") => space_prefix |= metaspace(part),
                    _ => return Err(unsupported(part)),
                }
            }
            Ok(Style::SentencePiece { space_prefix })
        }
        _ => Err(unsupported(decoder)),
    }
}

/// The tokens that `post_processor` puts before a text; what it puts after one would end a prompt, and is left out.
fn prefix(
    name: &str,
    processor: Option<&Value>,
    settings: &Settings,
    bos: Option<u32>,
    table: &TokenTable,
) -> Result<Vec<u32>, TokenizerError> {
    let mut ids = Vec::new();
    match processor.filter(|value| !value.is_null()) {
        Some(processor) => {
            collect_prefix(processor, &mut ids).map_err(|problem| {
                TokenizerError::malformed(format!("{name}: `post_processor`"), problem)
            })?;
        }
        None if settings.tokenizer_config["add_bos_token"] == true => ids.extend(bos),
        None => {}
    }
    match ids.iter().find(|id| table.text(**id).is_none()) {
        Some(id) => Err(TokenizerError::malformed(
            format!("{name}: `post_processor`"),
            format!("no token has the id {id}"),
        )),
        None => Ok(ids),
    }
}

fn collect_prefix(processor: &Value, ids: &mut Vec<u32>) -> Result<(), String> {
    let id = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or(format!("`{value}` is no id"))
    };
    match processor["type"].as_str() {
        Some("Sequence") => processor["processors"]
            .as_array()
            .into_iter()
            .flatten()
            .try_for_each(|part| collect_prefix(part, ids)),
        Some("TemplateProcessing") => {
            for part in processor["single"].as_array().into_iter().flatten() {
                let Some(special) = part["SpecialToken"]["id"].as_str() else { break };
                let listed = processor["special_tokens"][special]["ids"].as_array();
                let listed = listed.ok_or(format!("`special_tokens` has no {special:?}"))?;
                for value in listed {
                    ids.push(id(value)?);
                }
            }
            Ok(())
        }
        Some("RobertaProcessing" | "BertProcessing") => {
            ids.push(id(&processor["cls"][1])?);
            Ok(())
        }
        Some("ByteLevel") => Ok(()),
        _ => Err(format!("its type is {}, which is not known", processor["type"])),
    }
}

impl Settings {
    /// A special token by its role (`bos`, `eos`), wherever it is named first.
    fn token(
        &self,
        role: &str,
        id: &impl Fn(&str) -> Option<u32>,
        table: &TokenTable,
    ) -> Option<u32> {
        let by_id = |file: &Value| {
            let id = file[format!("{role}_token_id")].as_u64()?;
            u32::try_from(id).ok().filter(|id| table.text(*id).is_some())
        };
        let name = self.special_name(role).and_then(id);
        name.or_else(|| by_id(&self.generation_config)).or_else(|| by_id(&self.config))
    }

    fn special_name(&self, role: &str) -> Option<&str> {
        let key = format!("{role}_token");
        [&self.tokenizer_config, &self.special_tokens_map]
            .into_iter()
            .find_map(|file| file[&key].as_str().or_else(|| file[&key]["content"].as_str()))
    }

    /// What chat templates call `bos_token` and so on.
    fn special_names(
        &self,
        bos: Option<u32>,
        id: &impl Fn(&str) -> Option<u32>,
        table: &TokenTable,
    ) -> Vec<(&'static str, String)> {
        let text = |id: Option<u32>| id.and_then(|id| table.text(id)).map(str::to_owned);
        let names = [
            ("bos_token", self.special_name("bos").map(str::to_owned).or_else(|| text(bos))),
            (
                "eos_token",
                self.special_name("eos")
                    .map(str::to_owned)
                    .or_else(|| text(self.token("eos", id, table))),
            ),
            ("unk_token", self.special_name("unk").map(str::to_owned)),
            ("pad_token", self.special_name("pad").map(str::to_owned)),
        ];
        names.into_iter().filter_map(|(key, name)| Some((key, name?))).collect()
    }
}

/// All ids that end a generation.
fn eos_ids(settings: &Settings, id: &impl Fn(&str) -> Option<u32>, table: &TokenTable) -> Vec<u32> {
    let mut ids: Vec<u32> = Vec::new();
    for file in [&settings.generation_config, &settings.config] {
        let value = &file["eos_token_id"];
        let listed = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        ids.extend(listed.iter().filter_map(|value| u32::try_from(value.as_u64()?).ok()));
    }
    ids.extend(settings.special_name("eos").and_then(id));
    ids.extend(stop_names().filter_map(id).filter(|id| table.kind(*id) == Kind::Special));
    ids.retain(|id| table.text(*id).is_some());
    ids.sort_unstable();
    ids.dedup();
    ids
}
