//! Answers that have to keep to a grammar.

use bitnet::{
    BitNetModel, DraftStrategy, Error, FinishReason, GenerationConfig, HeadType, InferenceConfig,
    InferenceRequest, Message, ModelConfig, Output, Prompt, ResponseFormat, Role, SamplingStrategy,
    Stop,
};
use futures_lite::future;
use serde_json::{Value, json};

use crate::schemas::{Random, is_valid};
use crate::support::{demo, testdata};

fn sampled(seed: u64, max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig {
        sampling_strategy: SamplingStrategy::Temperature,
        temperature: 1.0,
        seed: Some(seed),
        max_new_tokens,
        ..Default::default()
    }
}

fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { max_new_tokens, ..Default::default() }
}

fn schema(schema: &Value) -> ResponseFormat {
    ResponseFormat::JsonSchema(schema.to_string())
}

fn regex(regex: &str) -> ResponseFormat {
    ResponseFormat::Regex(regex.into())
}

fn request(
    prompt: impl Into<Prompt>,
    config: GenerationConfig,
    format: &ResponseFormat,
) -> InferenceRequest {
    InferenceRequest::new(prompt, config).with_format(format.clone())
}

fn generate(model: &BitNetModel, request: InferenceRequest) -> Result<Output, Error> {
    future::block_on(model.submit(request)?.finish())
}

fn answer(config: GenerationConfig, format: &ResponseFormat) -> Output {
    generate(demo(), request("Once upon a time", config, format)).unwrap()
}

#[test]
fn answers_are_valid_by_two_hundred_random_schemas() {
    let mut random = Random::new(1);
    let schemas: Vec<Value> = (0..200).map(|_| random.schema(3)).collect();
    for (first, chunk) in (0..).step_by(10).zip(schemas.chunks(10)) {
        let start = |(seed, of): (u64, &Value)| {
            let request = request("Once upon a time", sampled(seed, 400), &schema(of));
            demo().submit(request).unwrap_or_else(|error| panic!("{of}: {error}"))
        };
        let streams: Vec<_> = (first..).zip(chunk).map(start).collect();
        for (stream, of) in streams.into_iter().zip(chunk) {
            let output = future::block_on(stream.finish()).unwrap();
            let text = &output.text;
            assert!(matches!(output.finish_reason, FinishReason::Stop(_)), "{of}: {output:?}");
            let value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{of}: {e}: {text}"));
            assert!(is_valid(&value, of), "{of}: {text}");
        }
    }
}

#[test]
fn a_json_object_is_one_or_has_no_end() {
    let mut ended = 0;
    for seed in 0..20 {
        let output = answer(sampled(seed, 150), &ResponseFormat::JsonObject);
        assert!(output.text.trim_start().starts_with('{'), "{output}");
        if output.finish_reason == FinishReason::Length {
            continue;
        }
        ended += 1;
        let value: Value = serde_json::from_str(&output.text).unwrap();
        assert!(value.is_object());
    }
    assert!(ended > 0);
}

#[test]
fn characters_that_are_not_allowed_never_come() {
    for seed in 0..10 {
        let config = GenerationConfig { temperature: 1.5, ..sampled(seed, 60) };
        let text = answer(config, &regex("[a-f ]{10,200}")).text;
        assert!(text.chars().all(|c| matches!(c, 'a'..='f' | ' ')) && text.len() >= 10, "{text:?}");
        let text = answer(sampled(seed, 40), &regex("[^a-z]{5,}")).text;
        assert!(!text.contains(|c: char| c.is_ascii_lowercase()), "{text:?}");
    }
}

#[test]
fn a_text_ends_when_it_is_whole_also_where_the_end_is_ignored() {
    for ignore_eos in [false, true] {
        let config = GenerationConfig { ignore_eos, ..greedy(50) };
        let output = answer(config, &regex("(yes|no)(, (yes|no)){3}"));
        assert_eq!(output.text.split(", ").filter(|word| ["yes", "no"].contains(word)).count(), 4);
        assert_eq!(output.finish_reason, FinishReason::Stop(Stop::Complete));
    }
}

#[test]
fn a_text_that_may_go_on_ends_with_a_token_that_ends_it() {
    let ends = |seed| answer(sampled(seed, 400), &regex("(Lily|Tom)([ a-z,.]*[.])?"));
    let outputs: Vec<Output> = (0..8).map(ends).collect();
    let by_token = |output: &&Output| matches!(output.finish_reason, FinishReason::Stop(Stop::Token(id)) if demo().stop_ids().contains(&id));
    assert!(outputs.iter().filter(by_token).count() > 0);
    for output in outputs.iter().filter(by_token) {
        assert!(output.text.ends_with(['y', 'm', '.']), "{output}");
    }
}

#[test]
fn a_budget_that_is_too_small_ends_the_answer_where_it_is() {
    let output = answer(greedy(3), &regex("a{100}"));
    assert_eq!((output.ids.len(), output.finish_reason), (3, FinishReason::Length));
}

#[test]
fn a_stop_text_ends_a_text_of_a_grammar_too() {
    let config = GenerationConfig { stop: vec!["bb".into()], ..greedy(50) };
    let output = answer(config, &regex("aabbcc"));
    assert_eq!(output.text, "aa");
    assert_eq!(output.finish_reason, FinishReason::Stop(Stop::Text("bb".into())));
}

#[test]
fn lark_grammars_may_nest() {
    let balanced = ResponseFormat::Lark("start: \"(\" start? \")\"".into());
    for seed in 0..5 {
        let output = answer(sampled(seed, 200), &balanced);
        if output.finish_reason != FinishReason::Length {
            let half = output.text.len() / 2;
            assert_eq!(output.text, "(".repeat(half) + &")".repeat(half));
        }
    }
}

#[test]
fn control_tokens_are_no_text() {
    for format in [regex(r"(.|\n){1,300}"), regex(r"<\|[a-z_]+\|>x")] {
        for seed in 0..5 {
            let config =
                GenerationConfig { temperature: 3.0, ignore_eos: true, ..sampled(seed, 60) };
            let ids = answer(config, &format).ids;
            assert!(!ids.iter().any(|&id| demo().tokenizer().is_special(id)), "{ids:?}");
        }
    }
}

#[test]
fn every_character_of_any_script_can_come() {
    let text = "Žluťoučký 🦊 漢字\u{1}\u{7f}";
    let output = answer(greedy(100), &regex(text));
    assert_eq!(output.text, text);
}

#[test]
fn a_chat_answers_in_the_form_as_well() {
    let messages = vec![Message::new(Role::User, "Tell me a story.")];
    let format = regex(" [A-Z][a-z]{2,9}!");
    let output = generate(demo(), request(messages, greedy(30), &format)).unwrap();
    assert!(output.text.starts_with(' ') && output.text.ends_with('!'), "{output}");
}

/// A model that has room for few sequences at a time, and one that has room for all.
fn narrow_and_roomy(head: HeadType) -> [BitNetModel; 2] {
    [(true, 1 << 20), (false, 0)].map(|(prefix_cache, kv_cache_bytes)| {
        let config = ModelConfig { max_seq_len: 256, head, ..Default::default() };
        let inference = InferenceConfig { kv_cache_bytes, prefix_cache, ..Default::default() };
        let builder = BitNetModel::from_pretrained(testdata("demo-model/packed"));
        builder.with_config(config).with_inference_config(inference).load().unwrap()
    })
}

#[test]
fn a_text_is_the_same_alone_and_among_others_that_take_its_place() {
    let mut random = Random::new(9);
    let formats: Vec<ResponseFormat> = (0..8)
        .map(|i| match i % 4 {
            0 => schema(&random.schema(3)),
            1 => regex("[a-z ]{600}[.]"),
            2 => {
                ResponseFormat::Lark("start: (\"Tom \" | \"Lily \" | /[a-z]+/ \", \"){100}".into())
            }
            _ => ResponseFormat::Text,
        })
        .collect();
    let config = |seed| GenerationConfig {
        draft: if seed % 3 == 0 { DraftStrategy::Ngram } else { DraftStrategy::Off },
        logprobs: (seed % 3 == 1).then_some(2),
        repetition_penalty: 1.1,
        ..sampled(seed, 120)
    };
    for head in [HeadType::Int8, HeadType::TwoStage] {
        let [narrow, roomy] = narrow_and_roomy(head);
        let requests =
            || (0..).zip(&formats).map(|(seed, f)| request("Once upon a time", config(seed), f));
        let alone: Vec<Output> = requests().map(|r| generate(&roomy, r).unwrap()).collect();
        let streams: Vec<_> = requests().map(|r| narrow.submit(r).unwrap()).collect();
        for (stream, alone) in streams.into_iter().zip(&alone) {
            let output = future::block_on(stream.finish()).unwrap();
            assert_eq!((&output.ids, &output.logprobs), (&alone.ids, &alone.logprobs));
            assert_eq!(output.finish_reason, alone.finish_reason);
        }
        assert!(narrow.stats().preemptions > 0);
    }
}

#[test]
fn drafts_that_a_grammar_forbids_change_nothing() {
    let prompt = "The dog ran. The cat ran. The dog ran. The cat ran. The dog";
    for format in [regex("( ran\\. The (dog|cat)){4} sat\\."), regex("([A-Z ]|\\.){60}")] {
        let [plain, drafted] = [DraftStrategy::Off, DraftStrategy::Ngram].map(|draft| {
            let config = GenerationConfig { draft, ..greedy(60) };
            generate(demo(), request(prompt, config, &format)).unwrap().ids
        });
        assert_eq!(plain, drafted);
    }
}

#[track_caller]
fn check_error(format: ResponseFormat, parts: &[&str]) {
    let error = demo().submit(request("Once", greedy(5), &format)).unwrap_err();
    assert!(matches!(error, Error::Format(_)), "{error:?}");
    let message = error.to_string();
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    assert!(message.len() < 600, "{message}");
}

#[test]
fn what_cannot_be_kept_to_is_an_error_that_names_it() {
    check_error(
        schema(&json!({"type": "array", "uniqueItems": true})),
        &["JSON schema", "uniqueItems"],
    );
    let nested = json!({"type": "object", "properties": {"a": {"not": {"type": "null"}}}});
    check_error(schema(&nested), &["\"not\""]);
    let two = json!({"type": "object", "propertyNames": {}, "dependentRequired": {}});
    check_error(schema(&two), &["propertyNames", "dependentRequired"]);
    check_error(schema(&json!({"if": true, "then": true})), &["\"if\"", "\"then\""]);
    check_error(
        schema(&json!({"type": "object", "x-guidance": {"lenient": true}})),
        &["x-guidance"],
    );
    check_error(schema(&json!({"type": "strin"})), &["strin"]);
    check_error(schema(&json!({"$ref": "https://example.org/schema"})), &["$ref", "example.org"]);
    check_error(schema(&json!({"type": "integer", "minimum": 5, "maximum": 1})), &["minimum"]);
    check_error(schema(&json!([])), &["object"]);
    check_error(schema(&json!(false)), &["valid"]);
    check_error(ResponseFormat::JsonSchema("{".into()), &["JSON schema", "EOF"]);
    check_error(regex("a(b"), &["regular expression"]);
    check_error(regex("(?=a)b"), &["look-around"]);
    check_error(regex(""), &["empty"]);
    check_error(ResponseFormat::Lark("start: missing".into()), &["Lark grammar", "missing"]);
    check_error(regex(&"a".repeat(200_000)), &["200000 bytes", "131072"]);
}
