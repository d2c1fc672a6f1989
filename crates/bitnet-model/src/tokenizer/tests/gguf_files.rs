//! GGUF metadata with something wrong or unusual in them.

use proptest::prelude::*;

use super::*;

/// Loads the golden metadata with one value changed, and looks for all `expected` texts in the error.
#[track_caller]
fn refused(key: &str, value: Option<Value>, expected: &[&str]) {
    let mut metadata = tiny_metadata();
    match value {
        Some(value) => set(&mut metadata, key, value),
        None => drop(metadata.0.remove(key)),
    }
    let error = Tokenizer::from_gguf(&metadata).unwrap_err().to_string();
    for part in [key].iter().chain(expected) {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn missing_arrays_are_refused() {
    refused("tokenizer.ggml.model", None, &["missing"]);
    refused("tokenizer.ggml.tokens", None, &["missing"]);
    refused("tokenizer.ggml.merges", None, &["missing"]);
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    refused(
        "tokenizer.ggml.tokens",
        Some(Value::Ints(vec![1])),
        &["an array of texts", "integers"],
    );
    refused("tokenizer.ggml.merges", Some(Value::Bool(true)), &["an array of texts", "true"]);
    refused("tokenizer.ggml.token_type", Some(texts(&["a"])), &["an array of integers"]);
    refused("tokenizer.ggml.bos_token_id", Some(Value::Int(-1)), &["a token id", "-1"]);
    refused("tokenizer.ggml.pre", Some(Value::Int(1)), &["a text"]);
    refused("tokenizer.ggml.add_bos_token", Some(Value::Int(1)), &["a truth value"]);
    refused("tokenizer.chat_template", Some(Value::Int(1)), &["a text"]);
}

#[test]
fn lengths_that_disagree_are_refused() {
    refused("tokenizer.ggml.token_type", Some(Value::Ints(vec![1; 3])), &["3", "384"]);
    refused("tokenizer.ggml.tokens", Some(texts(&[])), &["0 tokens"]);
}

#[test]
fn wrong_merges_are_refused_with_their_number() {
    refused("tokenizer.ggml.merges", Some(texts(&["h e", "he"])), &["[1]", "\"he\""]);
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    refused("tokenizer.ggml.bos_token_id", Some(Value::Int(384)), &["384 tokens"]);
    refused("tokenizer.ggml.eos_token_id", Some(Value::Int(1 << 40)), &["384 tokens"]);
}

#[test]
fn unknown_names_are_refused_with_the_known_ones() {
    refused("tokenizer.ggml.model", Some(Value::String("bert".into())), &["bert", "gpt2, llama"]);
    refused(
        "tokenizer.ggml.pre",
        Some(Value::String("tekken".into())),
        &["tekken", "llama-bpe", "qwen2"],
    );
}

#[test]
fn the_pre_tokenizer_decides_how_words_are_split() {
    // Merges join only within a word: up to four digits, and a full stop with the letter after it.
    let count = |architecture: &str, pre: Option<&str>, text: &str| {
        let mut metadata = tiny_metadata();
        set(&mut metadata, "general.architecture", Value::String(architecture.into()));
        if let Some(pre) = pre {
            set(&mut metadata, "tokenizer.ggml.pre", Value::String(pre.into()));
        }
        let mut tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().to_vec();
        for (at, token) in ["7777", "777", "77", ".t"].iter().enumerate() {
            tokens[360 + at] = token.to_string();
        }
        set(&mut metadata, "tokenizer.ggml.tokens", Value::Strings(tokens));
        set(&mut metadata, "tokenizer.ggml.merges", texts(&["7 7", "77 7", "77 77", ". t"]));
        Tokenizer::from_gguf(&metadata).unwrap().encode(text, Special::Text, false).unwrap().len()
    };
    let digits = |architecture, pre| count(architecture, pre, "7777");
    assert_eq!(
        ["llama-bpe", "qwen2", "gpt-2", "default"].map(|pre| digits("llama", Some(pre))),
        [2, 4, 1, 2]
    );
    assert_eq!(
        ["bitnet-b1.58", "bitnet-25", "qwen2"].map(|architecture| digits(architecture, None)),
        [2, 2, 2]
    );
    let stop = |architecture, pre| count(architecture, pre, ".t");
    assert_eq!(
        ["llama-bpe", "qwen2", "gpt-2", "default"].map(|pre| stop("llama", Some(pre))),
        [1, 1, 2, 2]
    );
    // Without a name, BitNet's words are Llama's and all others' llama.cpp's default.
    assert_eq!(
        ["bitnet-b1.58", "bitnet-25", "qwen2"].map(|architecture| stop(architecture, None)),
        [1, 1, 2]
    );
}

#[test]
fn llama3s_control_tokens_are_known_by_id() {
    // As a converter of April 2024 wrote them.
    let mut tokens: Vec<String> = (0..=255).map(|byte| table::char_of_byte(byte).into()).collect();
    tokens.extend((256..128_000).map(|id| format!("token{id}")));
    tokens.extend((128_000..128_256).map(|id| match id {
        128_000 => "<|begin_of_text|>".to_owned(),
        128_001 => "<|begin_of_text|><|end_of_text|>".to_owned(),
        128_009 => "<|begin_of_text|><|eot_id|>".to_owned(),
        _ => format!("<|begin_of_text|><|reserved_special_token_{id}|>"),
    }));
    let mut metadata = Metadata::default();
    set(&mut metadata, "tokenizer.ggml.model", Value::String("gpt2".into()));
    set(&mut metadata, "tokenizer.ggml.tokens", Value::Strings(tokens));
    set(&mut metadata, "tokenizer.ggml.merges", texts(&[]));

    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids()), (Some(128_000), &[128_001, 128_009][..]));
    let ids = tokenizer.encode("1<|eot_id|>", Special::Template, true).unwrap();
    assert_eq!(ids, [128_000, 49, 128_009]);
    assert_eq!(tokenizer.decode(&ids, true), "1");
}

#[test]
fn bitnets_wrong_chat_template_is_replaced() {
    let mut metadata = tiny_metadata();
    let wrong = "{% for message in messages %}Human: {{ message['content'] }}\n\nBITNETAssistant: {% endfor %}";
    set(&mut metadata, "tokenizer.chat_template", Value::String(wrong.into()));
    let messages = [
        Message::new(Role::System, "Be brief."),
        Message::new(Role::User, " Hi \n"),
        Message::new(Role::Assistant, "Ho"),
        Message::new(Role::User, "!"),
    ];
    let text = Tokenizer::from_gguf(&metadata).unwrap().render_chat(&messages, true).unwrap();
    let expected = "<|begin_of_text|>System: Be brief.<|eot_id|>User: Hi<|eot_id|>Assistant: Ho<|eot_id|>User: !<|eot_id|>Assistant: ";
    assert_eq!(text, expected);
}

#[test]
fn without_template_there_is_no_chat() {
    let mut metadata = tiny_metadata();
    metadata.0.remove("tokenizer.chat_template");
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert!(matches!(tokenizer.encode_chat(&[], true), Err(ChatError::NoTemplate)));
}

/// A SentencePiece vocabulary with a token that users define.
fn sentence_piece() -> Metadata {
    let tokens = [
        ("<unk>", 2, 0.0),
        ("<s>", 3, 0.0),
        ("</s>", 3, 0.0),
        ("<0x21>", 6, 0.0),
        ("▁", 1, -1.0),
        ("s", 1, -2.0),
        ("<", 1, -3.0),
        (">", 1, -4.0),
        ("<s", 1, -5.0),
        ("▁s", 1, -6.0),
        ("<user>", 4, 0.0),
    ];
    let mut metadata = Metadata::default();
    set(&mut metadata, "tokenizer.ggml.model", Value::String("llama".into()));
    set(&mut metadata, "tokenizer.ggml.tokens", texts(&tokens.map(|(text, ..)| text)));
    set(
        &mut metadata,
        "tokenizer.ggml.token_type",
        Value::Ints(tokens.map(|(_, kind, _)| kind).to_vec()),
    );
    set(
        &mut metadata,
        "tokenizer.ggml.scores",
        Value::Floats(tokens.map(|(.., score)| score).to_vec()),
    );
    metadata
}

#[test]
fn sentence_piece_text_starts_with_bos_and_a_space() {
    let tokenizer = Tokenizer::from_gguf(&sentence_piece()).unwrap();
    let check = |text, special, expected: &[u32]| {
        let ids = tokenizer.encode(text, special, true).unwrap();
        assert_eq!(ids, [&[1], expected].concat(), "{text:?}");
    };
    check("s!s", Special::Text, &[9, 3, 5]);
    // The joined text `<s>` is a control token, and no user can write that.
    check("<s>", Special::Text, &[4, 8, 7]);
    check("<s>s", Special::Template, &[1, 9]);
    check("s<user>s", Special::Text, &[9, 10, 9]);
    check("é", Special::Text, &[4, 0]);
    assert_eq!(tokenizer.decode(&[1, 9, 3, 9, 2], true), "s! s");
    assert_eq!((tokenizer.eos_ids(), tokenizer.token_to_id("▁s")), (&[2][..], Some(9)));
}

#[test]
fn sentence_piece_without_prefix_keeps_the_first_space() {
    let mut metadata = sentence_piece();
    set(&mut metadata, "tokenizer.ggml.add_space_prefix", Value::Bool(false));
    set(&mut metadata, "tokenizer.ggml.add_bos_token", Value::Bool(false));
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!(tokenizer.encode("s", Special::Text, true).unwrap(), [5]);
    assert_eq!(tokenizer.decode(&[9], true), " s");
}

#[test]
fn sentence_piece_needs_scores() {
    let mut metadata = sentence_piece();
    set(&mut metadata, "tokenizer.ggml.scores", Value::Floats(vec![0.0; 2]));
    let error = Tokenizer::from_gguf(&metadata).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.scores") && error.contains("11"), "{error}");
    metadata.0.remove("tokenizer.ggml.scores");
    assert!(
        Tokenizer::from_gguf(&metadata).unwrap_err().to_string().contains("tokenizer.ggml.scores")
    );
}

proptest! {
    // Whatever stands under a key, there is a tokenizer or an error.
    #[test]
    fn changed_metadata_never_panics(key in 0..40usize, value in any_value()) {
        let mut metadata = tiny_metadata();
        let key = metadata.0.keys().filter(|key| key.starts_with("tokenizer.")).cycle().nth(key).unwrap().clone();
        set(&mut metadata, &key, value);
        if let Ok(tokenizer) = Tokenizer::from_gguf(&metadata) {
            let _ = tokenizer.encode("The <|eot_id|> 12é", Special::Template, true);
            let _ = tokenizer.encode_chat(&[Message::new(Role::User, "hi")], true);
            tokenizer.decode(&[0, 5, 999], false);
        }
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop_oneof![Just(0), Just(-1), Just(383), Just(384), any::<i128>()].prop_map(Value::Int),
        any::<f64>().prop_map(Value::Float),
        any::<bool>().prop_map(Value::Bool),
        "llama|gpt2|default|[{%} a-z]{0,9}".prop_map(Value::String),
        prop::collection::vec(-1..8i128, 384).prop_map(Value::Ints),
        prop::collection::vec(any::<i128>(), 0..5).prop_map(Value::Ints),
        prop::collection::vec(any::<f64>(), 384).prop_map(Value::Floats),
        prop::collection::vec("[a-d ]{0,3}", 0..8).prop_map(Value::Strings),
        prop::collection::vec("[a-dĠ<>|]{0,3}", 384).prop_map(Value::Strings),
    ]
}
