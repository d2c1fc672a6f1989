//! What holds for every tokenizer that loads, however hostile its files. The fuzz targets and an ordinary test share this.

use std::path::Path;

use bitnet_model::format::metadata::{Metadata, Value};
use bitnet_model::tokenizer::{Message, Role, Special, Tokenizer};
use serde_json::Value as Json;

/// The parts of an input lie between NUL bytes, which no JSON and no template contains.
pub struct Input<'a> {
    /// tokenizer.json. Its keys `tokenizer.*` are the metadata of a GGUF file.
    pub tokenizer: &'a str,
    pub tokenizer_config: &'a str,
    /// `-` stands for one that adds nothing to the messages, so that none may give a control token.
    pub chat_template: &'a str,
    /// What a user types.
    pub text: &'a str,
}

impl<'a> Input<'a> {
    /// Bytes that are no UTF-8 end the input.
    pub fn parse(data: &'a [u8]) -> Self {
        let valid = data.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        let mut parts = valid.splitn(4, '\0').map(|part| part.trim_matches('\n'));
        let mut next = || parts.next().unwrap_or_default();
        Self { tokenizer: next(), tokenizer_config: next(), chat_template: next(), text: next() }
    }

    /// The tokenizer of the JSON files, if they make one.
    pub fn load_files(&self) -> Option<Tokenizer> {
        let text_of = |name: &str| {
            let text = match name {
                "tokenizer.json" => self.tokenizer,
                "tokenizer_config.json" => self.tokenizer_config,
                "chat_template.jinja" => self.template(),
                _ => "",
            };
            Ok((!text.is_empty()).then(|| text.to_owned()))
        };
        let tokenizer = Tokenizer::from_files(Path::new("fuzz"), text_of).ok()?;
        let json = serde_json::from_str(self.tokenizer).unwrap_or(Json::Null);
        let unk = json["model"]["unk_token"].as_str().and_then(|unk| tokenizer.token_to_id(unk));
        check(&tokenizer, unk, self.text);
        Some(tokenizer)
    }

    /// The tokenizer of the GGUF metadata, if it makes one.
    pub fn load_metadata(&self) -> Option<Tokenizer> {
        let Ok(Json::Object(pairs)) = serde_json::from_str(self.tokenizer) else { return None };
        let pairs =
            pairs.into_iter().filter_map(|(key, value)| Some((key, metadata_value(value)?)));
        let mut metadata = Metadata(pairs.collect());
        if !self.template().is_empty() {
            let template = Value::String(self.template().into());
            metadata.0.insert("tokenizer.chat_template".into(), template);
        }
        from_metadata(&metadata, self.text)
    }

    fn template(&self) -> &'a str {
        if self.chat_template == "-" { ONLY_MESSAGES } else { self.chat_template }
    }
}

/// A template that adds nothing of its own.
const ONLY_MESSAGES: &str = "{% for m in messages %}{{ m.content | trim }}{% endfor %}";

/// The tokenizer in a GGUF file's metadata, if there is one.
pub fn from_metadata(metadata: &Metadata, text: &str) -> Option<Tokenizer> {
    let tokenizer = Tokenizer::from_gguf(metadata).ok()?;
    // SentencePiece's default, as in llama.cpp.
    let unk = metadata.u64("tokenizer.ggml.unknown_token_id").unwrap_or(0);
    let unk = u32::try_from(unk).ok();
    check(&tokenizer, unk, text);
    Some(tokenizer)
}

fn metadata_value(value: Json) -> Option<Value> {
    Some(match value {
        Json::Bool(value) => Value::Bool(value),
        Json::Number(value) => match value.as_i64() {
            Some(value) => Value::Int(value.into()),
            None => Value::Float(value.as_f64()?),
        },
        Json::String(value) => Value::String(value),
        Json::Array(values) => match values.first()? {
            Json::String(_) => {
                Value::Strings(all(&values, |value| value.as_str().map(str::to_owned))?)
            }
            Json::Bool(_) => Value::Bools(all(&values, Json::as_bool)?),
            Json::Number(number) if number.is_i64() => {
                Value::Ints(all(&values, |value| value.as_i64().map(Into::into))?)
            }
            _ => Value::Floats(all(&values, Json::as_f64)?),
        },
        Json::Null | Json::Object(_) => return None,
    })
}

fn all<T>(values: &[Json], get: impl Fn(&Json) -> Option<T>) -> Option<Vec<T>> {
    values.iter().map(get).collect()
}

/// `unk` may be a control token, and stands for characters that have no token.
fn check(tokenizer: &Tokenizer, unk: Option<u32>, text: &str) {
    let size = tokenizer.vocab_size() as u32;
    assert!(tokenizer.eos_ids().iter().all(|id| *id < size));
    assert!(tokenizer.bos_id().is_none_or(|id| id < size));
    let specials = control_tokens(tokenizer);
    let long = [" ", "a", "é", "1"].map(|part| part.repeat(300)).concat();
    for text in
        ["", " ", "a  b\n\n 12é🙂\u{301}", "\u{fdfa}\u{0}\u{200d}▁Ġ", &long, &specials, text]
    {
        if let Ok(ids) = tokenizer.encode(text, Special::Text, false) {
            assert!(ids.iter().all(|id| *id < size), "{text:?}: {ids:?}");
            let mut special = ids.iter().filter(|id| tokenizer.is_special(**id));
            assert!(special.all(|id| Some(*id) == unk), "{text:?}: {ids:?}");
            decode(tokenizer, &ids);
        }
        if let Ok(ids) = tokenizer.encode(text, Special::Template, true) {
            assert!(ids.iter().all(|id| *id < size), "{text:?}: {ids:?}");
            decode(tokenizer, &ids);
        }
    }
    // Any ids may come out of a model, those above the vocabulary too.
    let ids: Vec<u32> =
        text.bytes().flat_map(|byte| [byte.into(), size / 2 + u32::from(byte)]).collect();
    decode(tokenizer, &ids);
    for messages in conversations(text, &specials) {
        let _ = tokenizer.render_chat(&messages, true);
        if let Ok(ids) = tokenizer.encode_chat(&messages, true) {
            assert!(ids.iter().all(|id| *id < size), "{ids:?}");
            let mut special = ids.iter().filter(|id| tokenizer.is_special(**id));
            let adds =
                tokenizer.chat_template().is_none_or(|template| template.source() != ONLY_MESSAGES);
            assert!(adds || special.all(|id| Some(*id) == unk), "{messages:?}: {ids:?}");
            decode(tokenizer, &ids);
        }
    }
}

fn decode(tokenizer: &Tokenizer, ids: &[u32]) {
    let mut decoder = tokenizer.decoder();
    let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
    text.push_str(&decoder.finish());
    assert_eq!(text, tokenizer.decode(ids, true), "{ids:?}");
    let _ = tokenizer.decode(ids, false);
}

/// The texts of a few control tokens.
fn control_tokens(tokenizer: &Tokenizer) -> String {
    let ids = (0..tokenizer.vocab_size() as u32).filter(|id| tokenizer.is_special(*id)).take(8);
    ids.filter_map(|id| tokenizer.id_to_token(id)).collect::<Vec<_>>().join(" ")
}

fn conversations(text: &str, specials: &str) -> [Vec<Message>; 2] {
    let message = |role, text: &str| Message::new(role, text);
    [
        vec![message(Role::User, text)],
        vec![
            message(Role::System, "Be <b>brief</b>."),
            message(Role::User, specials),
            message(Role::Assistant, "<think>\nno</think>\nyes"),
            message(Role::Tool, text),
        ],
    ]
}
