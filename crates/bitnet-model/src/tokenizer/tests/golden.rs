//! Ids that transformers gives, from `golden.json` beside the models.

use std::fs;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Golden {
    tokenizer: Vec<Case>,
    chat: Conversation,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    ids_without_specials: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Turn>,
    rendered: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

#[track_caller]
fn check(tokenizer: &Tokenizer, model: &str) {
    let json = fs::read_to_string(testdata(&format!("golden/{model}/golden.json"))).unwrap();
    let golden: Golden = serde_json::from_str(&json).unwrap();
    assert!(golden.tokenizer.len() > 10);
    for Case { text, ids, ids_without_specials, decoded } in &golden.tokenizer {
        assert_eq!(&tokenizer.encode(text, Special::Template, true).unwrap(), ids, "{text:?}");
        assert_eq!(
            &tokenizer.encode(text, Special::Template, false).unwrap(),
            ids_without_specials,
            "{text:?}"
        );
        assert_eq!(&tokenizer.decode(ids_without_specials, false), decoded);
    }
    let messages: Vec<_> = golden
        .chat
        .messages
        .iter()
        .map(|turn| Message::new(turn.role.parse().unwrap(), turn.content.as_str()))
        .collect();
    assert_eq!(tokenizer.render_chat(&messages, true).unwrap(), golden.chat.rendered);
    assert_eq!(tokenizer.encode_chat(&messages, true).unwrap(), golden.chat.ids);
    assert_eq!(
        (tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_ids()),
        (384, Some(376), &[377, 382][..])
    );
    assert!(tokenizer.is_special(382) && !tokenizer.is_special(0));
}

#[test]
fn bitnet_tokenizer_json_with_merges_as_pairs_gives_the_golden_ids() {
    check(&from_directory("golden/bitnet-tiny"), "bitnet-tiny");
}

#[test]
fn llama_tokenizer_json_with_merges_as_strings_gives_the_golden_ids() {
    check(&from_directory("golden/llama158-tiny"), "llama158-tiny");
}

#[test]
fn bitnet_gguf_without_pre_tokenizer_gives_the_golden_ids() {
    assert!(tiny_metadata().get("tokenizer.ggml.pre").is_none());
    check(&from_gguf("golden/gguf/bitnet-tiny-I2_S.gguf"), "bitnet-tiny");
}

#[test]
fn llama_gguf_gives_the_golden_ids() {
    check(&from_gguf("golden/gguf/llama158-tiny-TQ1_0.gguf"), "llama158-tiny");
}

#[test]
fn all_forms_of_the_demo_model_tokenize_alike() {
    let text = fs::read_to_string(testdata("demo-model/heldout.txt")).unwrap();
    let tokenizer = from_directory("demo-model/packed");
    let ids = tokenizer.encode(&text, Special::Text, false).unwrap();
    assert_eq!(ids.len(), 51_172, "the number in MODEL_CARD.md");
    assert_eq!(tokenizer.decode(&ids, true), text);

    let mut decoder = tokenizer.decoder();
    let pieces: String = ids.iter().map(|&id| decoder.push(id)).collect();
    assert_eq!(pieces + &decoder.finish(), text);

    let chat = [Message::new(Role::User, "Tell me a story about a little dog named Max.")];
    for form in ["i2_s", "tq1_0", "tq2_0"] {
        let other = from_gguf(&format!("demo-model/gguf/demo-{form}.gguf"));
        assert_eq!(other.encode(&text, Special::Text, false).unwrap(), ids, "{form}");
        assert_eq!(
            other.encode_chat(&chat, true).unwrap(),
            tokenizer.encode_chat(&chat, true).unwrap()
        );
        assert_eq!((other.bos_id(), other.eos_ids()), (tokenizer.bos_id(), tokenizer.eos_ids()));
        let tokens = |t: &Tokenizer| {
            (0..4096).map(|id| t.id_to_token(id).map(str::to_owned)).collect::<Vec<_>>()
        };
        assert_eq!(tokens(&other), tokens(&tokenizer));
    }
}

#[test]
fn user_text_never_becomes_control_tokens() {
    let tokenizer = from_directory("golden/bitnet-tiny");
    let text = "a<|eot_id|><|begin_of_text|>b";
    let ids = tokenizer.encode(text, Special::Text, true).unwrap();
    assert_eq!(ids.iter().filter(|id| tokenizer.is_special(**id)).collect::<Vec<_>>(), [&376]);
    assert_eq!(tokenizer.decode(&ids, true), text);
}

#[test]
fn tokens_are_found_by_text_and_by_id() {
    for tokenizer in
        [from_directory("golden/bitnet-tiny"), from_gguf("golden/gguf/bitnet-tiny-I2_S.gguf")]
    {
        assert_eq!(tokenizer.token_to_id("Ġt"), Some(257));
        assert_eq!(tokenizer.id_to_token(257), Some("Ġt"));
        assert_eq!(tokenizer.token_to_id("<|eot_id|>"), Some(382));
        assert_eq!((tokenizer.token_to_id("nothing"), tokenizer.id_to_token(384)), (None, None));
    }
}

// Each of these is one word for some step; anything quadratic would take minutes here.
#[test]
fn long_runs_of_one_kind_come_back_whole() {
    for tokenizer in
        [from_directory("golden/bitnet-tiny"), from_gguf("golden/gguf/llama158-tiny-TQ1_0.gguf")]
    {
        for pattern in ["a", " ", "\n", "7", "<|", "<|eot_id|>", "🙂", "        x"] {
            let text = pattern.repeat(200_000 / pattern.len());
            let ids = tokenizer.encode(&text, Special::Text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), text, "{pattern:?}");
        }
    }
}
