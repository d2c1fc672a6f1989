//! What requests ask of the choice of tokens, and what they are told about it.

use bitnet::{
    BitNetModel, DraftStrategy, FinishReason, GenerationConfig, HeadType, ModelConfig, Output,
    SamplingStrategy, Stop, StreamingConfig, TokenLogprobs,
};
use futures_lite::{StreamExt, future};

use crate::support::{demo, testdata};

const STORY: &str = "Once upon a time";

fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { max_new_tokens, ..Default::default() }
}

fn sampled(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig {
        sampling_strategy: SamplingStrategy::Temperature,
        temperature: 1.3,
        repetition_penalty: 1.2,
        seed: Some(4),
        ..greedy(max_new_tokens)
    }
}

fn generate(config: &GenerationConfig) -> Output {
    demo().generate_blocking(STORY, config).unwrap()
}

/// The logarithms of the softmax of logits.
fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    logits.iter().map(|&x| (f64::from(x) - sum.ln()) as f32).collect()
}

/// Holds what is told of tokens against the logits after those before them.
#[track_caller]
fn check_logprobs(
    model: &BitNetModel,
    ids: &[u32],
    from: usize,
    found: &[TokenLogprobs],
    top: usize,
) {
    let logits = model.logits(ids).unwrap();
    assert_eq!(found.iter().map(|f| f.id).collect::<Vec<_>>(), ids[from..]);
    for (index, found) in (from..).zip(found) {
        let expected = log_softmax(logits.row(index - 1));
        let near = |id: u32, found: f32| (found - expected[id as usize]).abs() < 1e-4;
        assert!(near(found.id, found.logprob), "{found:?}");
        assert_eq!(found.top.len(), top);
        assert!(found.top.iter().all(|&(id, logprob)| near(id, logprob)), "{found:?}");
        let mut order: Vec<f32> = expected.clone();
        order.sort_by(|a, b| b.total_cmp(a));
        assert!(found.top.iter().zip(&order).all(|(f, e)| (f.1 - e).abs() < 1e-4), "{found:?}");
    }
}

#[test]
fn logprobs_are_those_of_the_models_logits_whatever_is_done_to_them() {
    let biased = GenerationConfig { logit_bias: [(4000, 3.0)].into(), ..sampled(30) };
    for (config, top) in [(greedy(30), 0), (greedy(30), 5), (sampled(30), 20), (biased, 1)] {
        let plain = generate(&config);
        let output = generate(&GenerationConfig { logprobs: Some(top), ..config });
        assert_eq!((&output.ids, &output.text), (&plain.ids, &plain.text));
        assert!(plain.logprobs.is_empty());
        let ids = [&output.prompt_ids[..], &output.ids].concat();
        check_logprobs(demo(), &ids, output.prompt_ids.len(), &output.logprobs, top);
    }
}

#[test]
fn logprobs_come_with_their_tokens_also_in_portions() {
    let config = GenerationConfig { logprobs: Some(2), ..greedy(10) };
    let expected = generate(&config).logprobs;
    let streaming = StreamingConfig { buffer_size: 4, ..Default::default() };
    let by_token = demo().generate_stream(STORY, &config).unwrap();
    let portions = demo().generate_streaming(STORY, &config, streaming).unwrap();
    for mut stream in [by_token, portions] {
        let mut all = Vec::new();
        while let Some(piece) = future::block_on(stream.next()) {
            let piece = piece.unwrap();
            assert_eq!(piece.logprobs.iter().map(|l| l.id).collect::<Vec<_>>(), piece.ids);
            all.extend(piece.logprobs);
        }
        assert_eq!(all, expected);
    }
}

#[test]
fn a_head_that_leaves_logits_out_and_drafts_tell_the_same() {
    let load = |head| {
        let config = ModelConfig { head, ..Default::default() };
        let builder = BitNetModel::from_pretrained(testdata("demo-model/packed"));
        builder.with_config(config).load().unwrap()
    };
    let [int8, two_stage] = [HeadType::Int8, HeadType::TwoStage].map(load);
    let config = GenerationConfig { logprobs: Some(3), ..greedy(60) };
    let drafts = GenerationConfig { draft: DraftStrategy::Ngram, ..config.clone() };
    let prompt = "The dog ran. The cat ran. The dog ran. The cat";
    let expected = int8.generate_blocking(prompt, &config).unwrap();
    for (model, config) in [(&two_stage, &config), (&int8, &drafts), (&two_stage, &drafts)] {
        let output = model.generate_blocking(prompt, config).unwrap();
        assert_eq!(
            (output.ids, output.logprobs),
            (expected.ids.clone(), expected.logprobs.clone())
        );
    }
}

#[test]
fn a_prompts_logprobs_are_those_of_its_logits() {
    let ids = generate(&sampled(150)).ids;
    let found = future::block_on(demo().prompt_logprobs(&ids, 4, Default::default())).unwrap();
    check_logprobs(demo(), &ids, 1, &found, 4);
    let of = |ids: &[u32]| future::block_on(demo().prompt_logprobs(ids, 0, Default::default()));
    assert_eq!(of(&ids[..1]).unwrap(), []);
    assert!(of(&[]).is_err() && of(&[1 << 20]).is_err());
}

#[test]
fn a_bias_makes_tokens_come_always_or_never() {
    let plain = generate(&greedy(40)).ids;
    let always = GenerationConfig { logit_bias: [(300, 100.0)].into(), ..greedy(5) };
    assert_eq!(generate(&always).ids, [300; 5]);
    let never = plain.iter().map(|&id| (id, -100.0)).collect();
    let ids = generate(&GenerationConfig { logit_bias: never, ..greedy(40) }).ids;
    assert!(ids.iter().all(|id| !plain.contains(id)), "{ids:?}");
}

#[test]
fn a_stop_token_ends_the_text_before_itself_whether_the_end_is_ignored_or_not() {
    let plain = generate(&greedy(20));
    let stop = plain.ids[9];
    let first = plain.ids.iter().position(|&id| id == stop).unwrap();
    for ignore_eos in [false, true] {
        let config = GenerationConfig { stop_token_ids: vec![stop], ignore_eos, ..greedy(20) };
        let output = generate(&config);
        assert_eq!(output.ids, plain.ids[..=first]);
        assert_eq!(output.text, demo().tokenizer().decode(&plain.ids[..first], true));
        assert_eq!(output.finish_reason, FinishReason::Stop(Stop::Token(stop)));
    }
}

#[test]
fn a_text_has_the_least_number_of_tokens() {
    let plain = generate(&greedy(400));
    let count = plain.ids.len();
    assert!(matches!(plain.finish_reason, FinishReason::Stop(Stop::Token(_))));
    let same = generate(&GenerationConfig { min_tokens: count - 1, ..greedy(400) });
    assert_eq!(same.ids, plain.ids);
    let longer = generate(&GenerationConfig { min_tokens: count + 7, ..greedy(400) });
    assert_eq!(longer.ids[..count - 1], plain.ids[..count - 1]);
    let ends = |ids: &[u32]| ids.iter().any(|id| demo().stop_ids().contains(id));
    assert!(longer.ids.len() > count + 7 && !ends(&longer.ids[..count + 7]));
}

#[test]
fn tokens_outside_the_vocabulary_are_errors() {
    let error = |config| demo().generate_blocking(STORY, &config).unwrap_err().to_string();
    let size = demo().config().vocab_size as u32;
    let stop = GenerationConfig { stop_token_ids: vec![3, size], ..greedy(1) };
    assert!(error(stop).starts_with(&format!("`stop_token_ids` is for token {size}; it should")));
    let bias = GenerationConfig { logit_bias: [(size, 1.0)].into(), ..greedy(1) };
    assert!(error(bias).starts_with(&format!("`logit_bias` is for token {size}; it should")));
}

#[test]
fn a_configuration_as_json_has_tokens_as_keys() {
    let text =
        r#"{"logit_bias": {"300": 2.5}, "logprobs": 3, "stop_token_ids": [1], "min_tokens": 2}"#;
    let config: GenerationConfig = serde_json::from_str(text).unwrap();
    let expected = GenerationConfig {
        logit_bias: [(300, 2.5)].into(),
        logprobs: Some(3),
        stop_token_ids: vec![1],
        min_tokens: 2,
        ..Default::default()
    };
    assert_eq!(config, expected);
}

#[cfg(not(feature = "grammar"))]
#[test]
fn a_form_is_an_error_in_a_program_without_grammars() {
    let request = bitnet::InferenceRequest::new(STORY, greedy(1))
        .with_format(bitnet::ResponseFormat::Regex("a".into()));
    let error = demo().submit(request).unwrap_err();
    let expected = "a regular expression is asked for, but this program was built without grammars";
    assert_eq!(error.to_string(), expected);
}
