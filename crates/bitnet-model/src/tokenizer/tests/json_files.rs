//! Directories with something wrong or unusual in them.

use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A small correct tokenizer.json.
fn file() -> serde_json::Value {
    json!({
        "added_tokens": [{"id": 4, "content": "<s>", "special": true}, {"id": 5, "content": "</s>", "special": true}],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\s+|\\S+"}, "behavior": "Isolated", "invert": false},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "bb": 3}, "merges": ["a b", "b b"]},
    })
}

fn load(
    tokenizer: &str,
    others: &[(&str, serde_json::Value)],
) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), tokenizer).unwrap();
    for (name, content) in others {
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        fs::write(dir.path().join(name), text).unwrap();
    }
    Tokenizer::from_directory(dir.path())
}

/// Loads the file with the value at `pointer` replaced, and looks for all `expected` texts in the error.
#[track_caller]
fn refused(pointer: &str, value: serde_json::Value, expected: &[&str]) {
    let mut file = file();
    *file.pointer_mut(pointer).unwrap() = value;
    let error = load(&file.to_string(), &[]).unwrap_err().to_string();
    for part in ["tokenizer.json"].iter().chain(expected) {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn the_small_file_is_correct() {
    let tokenizer = load(&file().to_string(), &[]).unwrap();
    assert_eq!(tokenizer.encode("abbb", Special::Text, true).unwrap(), [2, 3]);
}

#[test]
fn invalid_json_is_refused_with_its_line() {
    let error = load("{\n  \"model\": [", &[]).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("line 2"), "{error}");
    let nested = "[".repeat(100_000);
    load(&nested, &[]).unwrap_err();
    load(&format!("{{\"normalizer\": {nested}"), &[]).unwrap_err();
}

#[test]
fn missing_parts_are_refused() {
    refused("/model", json!(null), &["`model`", "missing"]);
    refused("/model/vocab", json!({}), &["`model.merges[0]`", "\"a\""]);
}

#[test]
fn an_empty_vocabulary_is_refused() {
    let empty = json!({"model": {"type": "BPE", "vocab": {}, "merges": []}, "decoder": {"type": "ByteLevel"}});
    let error = load(&empty.to_string(), &[]).unwrap_err().to_string();
    assert!(error.contains("`model.vocab`") && error.contains("not one token"), "{error}");
}

#[test]
fn other_models_are_refused_by_name() {
    let unigram = json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0]]});
    refused("/model", unigram, &["`model.type`", "Unigram", "BPE"]);
    refused("/model/vocab", json!([["a", -1.0]]), &["`model.vocab`"]);
}

#[test]
fn merges_of_unknown_tokens_are_refused() {
    refused("/model/merges", json!(["a b", "b c"]), &["`model.merges[1]`", "\"c\""]);
    refused("/model/merges", json!([["a", "b"], ["ab", "bb"]]), &["`model.merges[1]`", "\"abbb\""]);
}

#[test]
fn merges_that_are_no_pairs_are_refused() {
    refused("/model/merges", json!(["ab"]), &["merge 0", "\"ab\""]);
    refused("/model/merges", json!(["a b", "a b b"]), &["merge 1"]);
    refused("/model/merges", json!([["a"]]), &["merge 0"]);
    refused("/model/merges", json!([["a", "b", "b"]]), &["merge 0"]);
    refused("/model/merges", json!([7]), &["a merge"]);
}

#[test]
fn merges_as_pairs_load_too() {
    let mut pairs = file();
    pairs["model"]["merges"] = json!([["a", "b"], ["b", "b"]]);
    let tokenizer = load(&pairs.to_string(), &[]).unwrap();
    assert_eq!(tokenizer.encode("abbb", Special::Text, true).unwrap(), [2, 3]);
}

#[test]
fn ids_that_collide_or_are_huge_are_refused() {
    refused("/model/vocab/b", json!(0), &["`model.vocab`", "id 0", "\"a\"", "\"b\""]);
    refused("/added_tokens/0/id", json!(1), &["`added_tokens`", "id 1", "\"b\"", "\"<s>\""]);
    refused("/model/vocab/b", json!(4_294_967_295_u32), &["`model.vocab`", "4294967295"]);
    refused("/model/vocab/b", json!(4_294_967_296_u64), &["4294967296"]);
    refused("/model/vocab/b", json!(-1), &["-1"]);
}

#[test]
fn unknown_or_wrong_parts_are_refused_by_name() {
    refused("/decoder", json!({"type": "WordPiece"}), &["`decoder`", "WordPiece"]);
    refused("/decoder", json!(null), &["`decoder`", "null"]);
    refused("/pre_tokenizer/type", json!("FixedLength"), &["`pre_tokenizer`", "FixedLength"]);
    refused("/pre_tokenizer/pattern/Regex", json!("("), &["`pre_tokenizer`", "regular expression"]);
    refused("/pre_tokenizer/behavior", json!("Upside"), &["`pre_tokenizer`", "Upside"]);
    refused("/added_tokens/0/content", json!(""), &["`added_tokens`", "empty"]);
}

#[test]
fn text_that_would_grow_without_end_is_refused() {
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let mut greedy = file();
    for normalizer in [
        json!({"type": "Sequence", "normalizers": vec![double; 30]}),
        json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "a".repeat(70_000)}),
        json!({"type": "Prepend", "prepend": "a".repeat(70_000)}),
    ] {
        greedy["normalizer"] = normalizer;
        let tokenizer = load(&greedy.to_string(), &[]).unwrap();
        let error = tokenizer.encode("a", Special::Text, false).unwrap_err();
        assert!(error.to_string().contains("normalizer"), "{error}");
    }
    let sequence = |part: serde_json::Value, count| json!({"type": "Sequence", "pretokenizers": vec![part; count]});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false});
    refused("/pre_tokenizer", sequence(byte_level, 2), &["`pre_tokenizer`", "ByteLevel"]);
    let whitespace = json!({"type": "Whitespace"});
    refused("/pre_tokenizer", sequence(whitespace, 33), &["`pre_tokenizer`", "too many"]);
}

#[test]
fn a_post_processor_without_its_token_is_refused() {
    let mut wrong = file();
    wrong["post_processor"] = json!({"type": "TemplateProcessing", "special_tokens": {},
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]});
    let error = load(&wrong.to_string(), &[]).unwrap_err().to_string();
    assert!(error.contains("`post_processor`") && error.contains("<s>"), "{error}");
}

#[test]
fn a_word_without_token_is_an_error() {
    let error =
        load(&file().to_string(), &[]).unwrap().encode("ac", Special::Text, false).unwrap_err();
    assert!(error.to_string().contains("'c'"), "{error}");
}

#[test]
fn a_directory_without_tokenizer_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_directory(dir.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::NotFound { .. }), "{error}");
    fs::write(dir.path().join("tokenizer.model"), "").unwrap();
    let error = Tokenizer::from_directory(dir.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::SentencePieceOnly { .. }), "{error}");
    assert!(error.help().is_some_and(|help| help.contains("GGUF")));
}

#[test]
fn stop_tokens_come_from_all_files() {
    let check = |others: &[(&str, serde_json::Value)], bos: Option<u32>, eos: &[u32]| {
        let tokenizer = load(&file().to_string(), others).unwrap();
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids()), (bos, eos));
    };
    check(&[], None, &[]);
    check(&[("config.json", json!({"bos_token_id": 4, "eos_token_id": 5}))], Some(4), &[5]);
    check(&[("generation_config.json", json!({"eos_token_id": [5, 3, 99]}))], None, &[3, 5]);
    check(
        &[("tokenizer_config.json", json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>"}))],
        Some(4),
        &[5],
    );
    check(&[("special_tokens_map.json", json!({"eos_token": {"content": "</s>"}}))], None, &[5]);
}

#[test]
fn bos_is_added_as_the_settings_say_where_there_is_no_post_processor() {
    let settings = json!({"bos_token": "<s>", "add_bos_token": true});
    let tokenizer = load(&file().to_string(), &[("tokenizer_config.json", settings)]).unwrap();
    assert_eq!(tokenizer.encode("a", Special::Text, true).unwrap(), [4, 0]);
    assert_eq!(tokenizer.encode("a", Special::Text, false).unwrap(), [0]);
}

#[test]
fn chat_templates_are_found_in_every_place() {
    let check = |others: &[(&str, serde_json::Value)], expected: &str| {
        let tokenizer = load(&file().to_string(), others).unwrap();
        assert_eq!(tokenizer.chat_template().map(ChatTemplate::source), Some(expected));
    };
    let config =
        |template: serde_json::Value| ("tokenizer_config.json", json!({"chat_template": template}));
    check(&[config(json!("one"))], "one");
    let list =
        json!([{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]);
    check(&[config(list)], "three");
    check(&[config(json!("one")), ("chat_template.jinja", json!("four"))], "four");
}

#[test]
fn a_broken_template_matters_only_for_chat() {
    for template in [json!("{% for %}"), json!([{"name": "rag", "template": "x"}]), json!(7)] {
        let config = json!({"chat_template": template});
        let tokenizer = load(&file().to_string(), &[("tokenizer_config.json", config)]).unwrap();
        assert!(tokenizer.chat_template().is_none());
        let error = tokenizer.encode_chat(&[], true).unwrap_err();
        assert!(matches!(error, ChatError::Syntax { .. }), "{error}");
        assert!(error.to_string().contains("tokenizer_config.json"), "{error}");
    }
}

proptest! {
    // A byte changed or the end cut off: a tokenizer or an error.
    #[test]
    fn damaged_files_never_panic(at in 0..11_900usize, byte: u8, cut: bool) {
        let mut bytes = fs::read(testdata("golden/bitnet-tiny/tokenizer.json")).unwrap();
        match cut {
            true => bytes.truncate(at),
            false => bytes[at] = byte,
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), bytes).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_directory(dir.path()) {
            let _ = tokenizer.encode("The <|eot_id|> 12é", Special::Template, true);
        }
    }
}
