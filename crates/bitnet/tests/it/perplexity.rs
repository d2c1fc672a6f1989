//! Perplexities of the demo model against those of transformers and llama.cpp in its model card.

use bitnet::{BitNetModel, Error, HeadType, KvType, ModelConfig, Perplexity, PerplexityMethod};

use crate::support::{demo, load, load_exact, testdata};

fn heldout() -> String {
    std::fs::read_to_string(testdata("demo-model/heldout.txt")).unwrap()
}

fn measure(model: &bitnet::BitNetModel, window: usize, method: PerplexityMethod) -> Perplexity {
    model.perplexity(heldout(), window, method, |_| {}).unwrap()
}

/// Windows of 128 tokens of the first 2000 bytes, against an independent forward pass in numpy's float64 on the same weights.
///
/// Another order of float operations turns some roundings of activations to int8 the other way: the same program in float32
/// moves these means by up to 0.0021, and leaving out or adding a token by more than 0.01.
#[track_caller]
fn check(method: PerplexityMethod, scored: usize, mean_nll: f64, std_error: f64) {
    let text = &heldout()[..2000];
    let mut seen = Vec::new();
    let model = load_exact("demo-model/packed");
    let result = model.perplexity(text, 128, method, |progress| seen.push(progress)).unwrap();
    assert_eq!(result.scored, scored);
    assert!((result.mean_nll - mean_nll).abs() < 4e-3, "{}", result.mean_nll);
    assert!((result.std_error.unwrap() - std_error).abs() < 1e-3, "{:?}", result.std_error);
    let last = seen.last().unwrap();
    assert_eq!(
        (seen.len(), last.done, last.total),
        (result.windows, result.windows, result.windows)
    );
    assert_eq!(last.so_far, result);
}

#[test]
fn llama_cpp_counts_the_end_of_each_window() {
    check(PerplexityMethod::LlamaCpp, 189, 1.749_814, 0.158_755);
}

#[test]
fn bos_counts_all_tokens() {
    check(PerplexityMethod::Bos, 381, 2.137_679, 0.131_553);
}

#[test]
fn bos_second_half_counts_the_second_half() {
    check(PerplexityMethod::BosSecondHalf, 192, 1.793_609, 0.157_553);
}

#[test]
fn no_bos_counts_all_but_the_first() {
    check(PerplexityMethod::NoBos, 381, 2.025_529, 0.119_391);
}

#[test]
fn documents_are_counted_with_their_ends() {
    check(PerplexityMethod::Documents, 369, 1.733_803, 0.118_973);
}

/// Divergence and perplexity of an int8 head beside the file's, on 2000 bytes.
#[test]
fn an_int8_head_predicts_as_the_files_head_does() {
    let logits = |head| {
        let config = ModelConfig { kv_dtype: KvType::F32, head, ..Default::default() };
        let builder = BitNetModel::from_pretrained(testdata("demo-model/packed"));
        let model = builder.with_config(config).load().unwrap();
        let ids = model.encode(&heldout()[..2000].into()).unwrap();
        (model.logits(&ids[..400]).unwrap(), ids)
    };
    let ((file, ids), (int8, _)) = (logits(HeadType::File), logits(HeadType::Int8));
    let (mut divergence, mut nll) = (0.0, 0.0);
    for token in 0..399 {
        let [p, q] = [&file, &int8].map(|logits| log_probabilities(logits.row(token)));
        divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        let next = ids[token + 1] as usize;
        nll += p[next] - q[next];
    }
    let (divergence, nll) = (divergence / 399.0, nll / 399.0);
    println!("mean divergence {divergence:.2e}, mean -ln p higher by {nll:.2e}");
    assert!(divergence > 0.0, "two heads, not one");
    assert!(divergence < 2e-4 && nll.abs() < 2e-3, "{divergence}, {nll}");
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}

#[test]
fn tokens_are_taken_as_they_are() {
    let model = demo();
    let text = &heldout()[..2000];
    let ids = model.encode(&text.into()).unwrap();
    let of_text = model.perplexity(text, 128, PerplexityMethod::LlamaCpp, |_| {}).unwrap();
    let of_ids = model.perplexity(ids, 128, PerplexityMethod::LlamaCpp, |_| {}).unwrap();
    assert_eq!(of_text, of_ids);
}

#[track_caller]
fn check_error(text: &str, window: usize, method: PerplexityMethod, expected: &str) {
    let error = demo().perplexity(text, window, method, |_| {}).unwrap_err();
    assert!(matches!(error, Error::Config(_)));
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_window_that_does_not_fit_is_an_error() {
    let method = PerplexityMethod::LlamaCpp;
    let range = "it should be from 4 to 512, the context";
    check_error("text", 3, method, &format!("`window` is 3; {range}"));
    check_error("text", 513, method, &format!("`window` is 513; {range}"));
    let short = "`window` is 100; it should be less, as the text has 3 tokens";
    check_error("A dog", 100, method, short);
    let empty = "`text` is empty; it should be one that has at least one document";
    check_error("\n\n\n", 100, PerplexityMethod::Documents, empty);
}

#[test]
#[ignore = "takes minutes in a debug build; run with --release"]
fn all_figures_of_the_model_card() {
    // 512,000 tokens.
    use PerplexityMethod::{Bos, BosSecondHalf, Documents, LlamaCpp, NoBos};
    for (model, window, method, scored, expected) in [
        ("packed", 512, Documents, 50_979, 7.2434),
        ("packed", 512, Bos, 51_100, 8.1118),
        ("master-bf16", 512, Bos, 51_100, 8.1106),
        ("packed", 512, BosSecondHalf, 25_600, 7.2550),
        ("packed", 256, Bos, 51_000, 8.9946),
        ("packed", 512, NoBos, 50_589, 7.6396),
        ("packed", 512, LlamaCpp, 25_245, 7.4032),
        ("gguf/demo-i2_s.gguf", 512, LlamaCpp, 25_245, 7.4032),
        ("gguf/demo-tq2_0.gguf", 512, LlamaCpp, 25_245, 7.4032),
        ("gguf/demo-tq1_0.gguf", 512, LlamaCpp, 25_245, 7.4032),
    ] {
        let result = measure(&load(&format!("demo-model/{model}")), window, method);
        let value = result.value();
        println!("{model} {window} {method}: {value:.4}, expected {expected:.4}");
        assert_eq!(result.scored, scored);
        assert!((value / expected - 1.0).abs() < 1e-3, "{model} {window} {method}: {value}");
    }
}
