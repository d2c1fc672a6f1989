//! Whole tokenizers: ids of the references, files that are wrong, conversations that try to cheat.

mod chat;
mod gguf_files;
mod golden;
mod json_files;
mod reference;

use std::path::PathBuf;

use super::*;
use crate::format::gguf::read_metadata;
use crate::format::metadata::{Metadata, Value};

fn testdata(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata")).join(path)
}

fn from_directory(path: &str) -> Tokenizer {
    Tokenizer::from_directory(&testdata(path)).unwrap()
}

fn from_gguf(path: &str) -> Tokenizer {
    Tokenizer::from_gguf(&read_metadata(&testdata(path)).unwrap()).unwrap()
}

/// Metadata of the golden BitNet model, to be changed by tests.
fn tiny_metadata() -> Metadata {
    read_metadata(&testdata("golden/gguf/bitnet-tiny-I2_S.gguf")).unwrap()
}

fn set(metadata: &mut Metadata, key: &str, value: Value) {
    metadata.0.insert(key.into(), value);
}

fn texts(list: &[&str]) -> Value {
    Value::Strings(list.iter().map(|text| text.to_string()).collect())
}

#[test]
fn tokenizers_can_be_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Tokenizer>();
    check::<IncrementalDecoder>();
}

#[test]
fn the_bytes_of_tokens_are_those_of_the_text_and_control_tokens_have_none() {
    for tokenizer in
        [from_directory("demo-model/packed"), from_gguf("golden/gguf/bitnet-tiny-I2_S.gguf")]
    {
        let text = "Once upon a time, Zoë saw 3 🦊s.\n";
        let ids = tokenizer.encode(text, Special::Text, true).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
        for &id in tokenizer.eos_ids() {
            assert!(tokenizer.token_bytes(id).is_empty());
        }
    }
}
