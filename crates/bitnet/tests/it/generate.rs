//! Generating: blocking and async, alone and together, and how it ends.

use std::fs;

use bitnet::{
    BitNetModel, DraftStrategy, Error, FinishReason, GenerationConfig, HeadType, Message,
    ModelConfig, Prompt, Role, SamplingStrategy, Stop,
};
use futures_lite::{StreamExt, future};
use serde_json::Value;

use crate::support::{demo, load, load_exact, testdata};

fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { max_new_tokens, ..Default::default() }
}

fn sampled(seed: u64) -> GenerationConfig {
    GenerationConfig {
        sampling_strategy: SamplingStrategy::TopP,
        temperature: 0.9,
        top_p: 0.95,
        top_k: 40,
        repetition_penalty: 1.1,
        seed: Some(seed),
        max_new_tokens: 40,
        ..Default::default()
    }
}

/// The demo model writes transformers' story, up to the token that ends it.
#[track_caller]
fn check_story(model: &str) {
    let text = fs::read_to_string(testdata("demo-model/reference.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    let expected: Vec<u32> = serde_json::from_value(reference["greedy_ids"].clone()).unwrap();
    let output = load_exact(model).generate_blocking("Once upon a time", &greedy(400)).unwrap();
    assert_eq!([&output.prompt_ids[..], &output.ids].concat(), expected);
    assert_eq!(output.finish_reason, FinishReason::Stop(Stop::Token(4081)));
    assert!(output.text.starts_with(", there was a little girl named Lily. "), "{}", output.text);
    assert!(!output.text.contains("<|"), "{}", output.text);
}

#[test]
fn the_demo_model_writes_the_story_of_the_reference() {
    check_story("demo-model/packed");
    check_story("demo-model/gguf/demo-i2_s.gguf");
}

#[test]
fn pieces_joined_are_the_output() {
    let mut stream = demo().generate_stream("Tom had a", &greedy(30)).unwrap().blocking();
    assert_eq!(stream.output(), None);
    let pieces: Vec<_> = stream.by_ref().map(Result::unwrap).collect();
    let output = stream.output().unwrap();
    assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), output.text);
    let ids: Vec<u32> = pieces.iter().flat_map(|piece| piece.ids.clone()).collect();
    assert_eq!(ids, output.ids);
    assert_eq!(output.finish_reason, FinishReason::Length);
    assert_eq!(output.to_string(), output.text);
    let timings = output.timings;
    assert_eq!((timings.prompt_tokens, timings.generated_tokens), (output.prompt_ids.len(), 30));
    assert!(timings.decode_tokens_per_second().unwrap() > 0.0);
    assert!(timings.time_to_first_token() >= timings.prompt_time);
}

#[test]
fn any_runtime_will_do() {
    let expected = demo().generate_blocking("Hello", &greedy(10)).unwrap().text;
    let generate = || async { demo().generate("Hello", &greedy(10)).await.unwrap().text };
    assert_eq!(future::block_on(generate()), expected);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(generate()), expected);
    let handle = runtime.block_on(async { tokio::join!(generate(), generate()) });
    assert_eq!(handle, (expected.clone(), expected));
}

#[test]
fn the_future_can_go_to_another_thread() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let config = greedy(3);
    let model = demo().clone();
    std::thread::spawn(move || {
        future::block_on(is_send(model.generate("Hello", &config))).unwrap()
    })
    .join()
    .unwrap();
}

#[test]
fn many_threads_get_what_they_would_get_alone() {
    let prompts = ["Once upon a time", "Tom had a", "The dog was very", "Mom said,", "One day, a"];
    let alone = prompts.map(|prompt| demo().generate_blocking(prompt, &sampled(3)).unwrap().ids);
    std::thread::scope(|scope| {
        for (prompt, alone) in prompts.iter().zip(&alone) {
            scope.spawn(move || {
                for _ in 0..2 {
                    let output = demo().generate_blocking(*prompt, &sampled(3)).unwrap();
                    assert_eq!(output.ids, *alone);
                }
            });
        }
    });
}

#[test]
fn the_seed_decides() {
    let ids = |seed| demo().generate_blocking("One day", &sampled(seed)).unwrap().ids;
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1), ids(2));
}

#[test]
fn a_stop_text_ends_the_generation_where_it_begins() {
    let whole = demo().generate_blocking("Once upon a time", &greedy(60)).unwrap().text;
    // The first two cross the borders of tokens; the last never comes.
    for stop in ["irl nam", ". She lov", "g", "xyzzy"] {
        let config = GenerationConfig { stop: vec![stop.into()], ..greedy(60) };
        let mut stream = demo().generate_stream("Once upon a time", &config).unwrap().blocking();
        let text: String = stream.by_ref().map(|piece| piece.unwrap().text).collect();
        let output = stream.output().unwrap();
        let expected = whole.split(stop).next().unwrap();
        assert_eq!((text.as_str(), output.text.as_str()), (expected, expected), "{stop}");
        let found = FinishReason::Stop(Stop::Text(stop.into()));
        let reason = if whole.contains(stop) { found } else { FinishReason::Length };
        assert_eq!(output.finish_reason, reason);
    }
}

#[test]
fn a_chat_ends_with_the_turn_and_not_with_typed_control_tokens() {
    let request = "Tell me a story about a little dog named Max.";
    let chat = |text: &str| vec![Message::new(Role::User, text)];
    let output = demo().generate_blocking(chat(request), &greedy(400)).unwrap();
    assert_eq!(output.finish_reason, FinishReason::Stop(Stop::Token(4089)));
    assert!(output.text.contains("Max") && !output.text.contains("<|"), "{}", output.text);
    let typed = demo().encode(&Prompt::from(chat("<|eot_id|>"))).unwrap();
    assert_eq!(typed.iter().filter(|&&id| id == 4089).count(), 1); // the template's own
    let text = demo().encode(&Prompt::from("<|eot_id|>")).unwrap();
    assert!(!text.contains(&4089) && text[0] == 4080);
}

#[test]
fn ignoring_the_end_goes_on_to_the_context() {
    let config = ModelConfig { max_seq_len: 200, ..Default::default() };
    let builder = BitNetModel::from_pretrained(testdata("demo-model/packed")).with_config(config);
    let config = GenerationConfig { ignore_eos: true, ..greedy(1000) };
    let output = builder.load().unwrap().generate_blocking("Once upon a time", &config).unwrap();
    assert_eq!(output.finish_reason, FinishReason::Context);
    assert_eq!(output.prompt_ids.len() + output.ids.len(), 200);
}

#[test]
fn a_prompt_longer_than_the_context_is_an_error_with_both_numbers() {
    let error = demo().generate_blocking(vec![5; 600], &greedy(1)).unwrap_err();
    let expected = "the prompt has 600 tokens, but the context has room for 512";
    assert_eq!(error.to_string(), expected);
    let expected = "shorten it by 88 tokens or raise max_seq_len if the model allows more";
    assert_eq!(error.help().unwrap(), expected);
}

#[test]
fn a_setting_that_cannot_be_is_an_error_before_any_work() {
    let config = GenerationConfig { temperature: f32::NAN, ..Default::default() };
    let error = demo().generate_blocking("Hello", &config).unwrap_err();
    assert!(matches!(error, Error::Config(_)));
    let expected = "`temperature` is NaN; it should be a finite number from 0 up";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_cancelled_generation_keeps_what_it_has() {
    let mut stream = demo().generate_stream("Once upon a time", &greedy(400)).unwrap();
    future::block_on(async {
        let first = stream.next().await.unwrap().unwrap();
        stream.cancel();
        assert!(stream.next().await.is_none());
        let output = stream.output().unwrap();
        assert_eq!((output.ids, output.finish_reason), (first.ids, FinishReason::Cancelled));
    });
}

#[test]
fn a_stream_outlives_the_model_it_came_from() {
    let stream = load("golden/bitnet-tiny")
        .generate_stream("a", &GenerationConfig { ignore_eos: true, ..greedy(50) });
    assert_eq!(
        stream.unwrap().blocking().filter(|piece| !piece.as_ref().unwrap().ids.is_empty()).count(),
        50
    );
}

#[test]
fn logits_are_those_that_generating_chooses_by() {
    let prompt = demo().encode(&"Once upon a time".into()).unwrap();
    let output = demo().generate_blocking(prompt.clone(), &greedy(5)).unwrap();
    let ids = [&prompt[..], &output.ids].concat();
    let logits = demo().logits(&ids).unwrap();
    assert_eq!((logits.tokens, logits.vocab), (ids.len(), 4096));
    for (index, &id) in output.ids.iter().enumerate() {
        let row = logits.row(prompt.len() - 1 + index);
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert_eq!(best, id as usize);
    }
}

#[test]
fn a_two_stage_head_chooses_what_an_int8_head_does() {
    let path = testdata("demo-model/gguf/demo-tq2_0.gguf");
    let [int8, two_stage] = [HeadType::Int8, HeadType::TwoStage].map(|head| {
        let config = ModelConfig { head, ..Default::default() };
        BitNetModel::from_pretrained(&path).with_config(config).load().unwrap()
    });
    let warm = |strategy| GenerationConfig {
        sampling_strategy: strategy,
        temperature: 0.9,
        seed: Some(3),
        ..greedy(60)
    };
    let configs = [
        greedy(60),
        GenerationConfig { repetition_penalty: 1.3, presence_penalty: 0.4, ..greedy(60) },
        GenerationConfig { draft: DraftStrategy::Ngram, ..greedy(60) },
        GenerationConfig { top_k: 40, ..warm(SamplingStrategy::TopK) },
        GenerationConfig { top_k: 20, top_p: 0.9, min_p: 0.02, ..warm(SamplingStrategy::TopP) },
        GenerationConfig { min_p: 0.05, frequency_penalty: 0.3, ..warm(SamplingStrategy::MinP) },
        GenerationConfig { top_p: 0.9, ..warm(SamplingStrategy::TopP) },
        warm(SamplingStrategy::Temperature),
    ];
    for config in configs {
        for prompt in ["Once upon a time", "The little dog said", "Tom and Sue"] {
            let ids = |model: &BitNetModel| model.generate_blocking(prompt, &config).unwrap().ids;
            assert_eq!(ids(&two_stage), ids(&int8), "{prompt}: {config:?}");
        }
    }
    let ids = int8.encode(&"One day".into()).unwrap();
    assert_eq!(two_stage.logits(&ids).unwrap(), int8.logits(&ids).unwrap());
    let counts = two_stage.head_counts().unwrap();
    assert!(counts.found > 500 && counts.audits > 0 && counts.misses == 0, "{counts:?}");
    assert_eq!(int8.head_counts(), None);
}
