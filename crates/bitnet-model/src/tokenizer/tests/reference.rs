//! The same ids as the `tokenizers` crate, on random text and for the kinds of tokenizer.json that have no golden data.

use std::fs;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Our tokenizer and Hugging Face's from one file.
struct Pair {
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
}

impl Pair {
    fn from_json(json: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), json).unwrap();
        Self { ours: Tokenizer::from_directory(dir.path()).unwrap(), theirs: json.parse().unwrap() }
    }

    #[track_caller]
    fn check(&self, text: &str) {
        let expected = self.theirs.encode(text, true).unwrap();
        let ids = self.ours.encode(text, Special::Template, true).unwrap();
        assert_eq!(ids, expected.get_ids(), "{text:?}: {:?}", expected.get_tokens());
        // Hugging Face's text of invalid bytes has another number of U+FFFD.
        let decoded = self.theirs.decode(&ids, true).unwrap();
        if !decoded.contains('\u{fffd}') {
            assert_eq!(self.ours.decode(&ids, true), decoded);
        }
    }
}

/// Llama 2's layout: characters, byte fallback, spaces as `▁`.
fn llama2(normalizer: serde_json::Value, pre_tokenizer: serde_json::Value) -> Pair {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "b", "▁a", "ab", "▁ab", "▁▁", "ba", "aa"].map(str::to_owned));
    let vocab: serde_json::Map<_, _> =
        tokens.into_iter().zip(0..).map(|(token, id)| (token, json!(id))).collect();
    let special = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>", true), special(1, "<s>", true), special(2, "</s>", true),
                         special(268, "<tool>", false)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": ["▁ a", "a b", "▁a b", "▁ ab", "▁ ▁", "b a", "a a"]},
    });
    Pair::from_json(&file.to_string())
}

static DEMO: LazyLock<Pair> = LazyLock::new(|| {
    Pair::from_json(&fs::read_to_string(testdata("demo-model/packed/tokenizer.json")).unwrap())
});

/// Prepends and replaces while normalizing, as older files do.
static LLAMA2: LazyLock<Pair> = LazyLock::new(|| {
    let normalizer = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    llama2(normalizer, json!(null))
});

/// Leaves both to a pre-tokenizer that marks the start of the input only, as newer files do.
static LLAMA2_METASPACE: LazyLock<Pair> = LazyLock::new(|| {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    llama2(json!({"type": "NFC"}), metaspace)
});

proptest! {
    #[test]
    fn byte_level_ids_are_those_of_the_reference(text in r"([ \t\r\n\u{3000}a-eé0-9'!.🙂]|<\|eot_id\|>|the |n't|\PC){0,40}") {
        DEMO.check(&text);
    }

    #[test]
    fn llama2_ids_are_those_of_the_reference(text in r"([ ab\né🙂]|<s>|</s>|<tool>){0,20}") {
        LLAMA2.check(&text);
        LLAMA2_METASPACE.check(&text);
    }
}

#[test]
fn the_reference_agrees_on_a_long_text() {
    DEMO.check(&fs::read_to_string(testdata("demo-model/heldout.txt")).unwrap());
}
