use bitnet_kernels::cpu::packed::{PackedTernary, Packing};
use bitnet_model::format::{Checkpoint, OpenOptions};

use super::*;
use crate::{BitNetModel, ModelConfig};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/golden/gguf/");

fn quick() -> BenchConfig {
    BenchConfig {
        prompt_tokens: 20,
        generated_tokens: 6,
        iterations: 2,
        warmup: 0,
        ..BenchConfig::default()
    }
}

fn measure(config: &BenchConfig) -> BenchReport {
    run(&BitNetModel::demo, &ModelConfig::default(), config, &mut |_| ()).unwrap()
}

fn measurements(report: &BenchReport) -> Vec<&Measurement> {
    let measured = |case: &Case| matches!(case.outcome, Outcome::Measured(_));
    assert!(report.cases.iter().any(measured));
    report
        .cases
        .iter()
        .filter_map(|case| match &case.outcome {
            Outcome::Measured(measurement) => Some(&**measurement),
            Outcome::NotAvailable { .. } => None,
        })
        .collect()
}

#[test]
fn all_levels_and_thread_counts_give_the_same_tokens_and_logits() {
    let levels = ["scalar", "sse", "avx", "avx2", "avx512", "neon"].map(str::to_owned).into();
    let report = measure(&BenchConfig { simd_levels: levels, threads: vec![1, 2], ..quick() });
    assert_eq!(report.cases.len(), 12);
    let found = measurements(&report);
    assert_eq!(found[0].agreement, Agreement::Reference);
    assert!(found[1..].iter().all(|m| m.agreement == Agreement::Same), "{report:#?}");
    assert!(found.iter().all(|m| m.prompt.as_ref().unwrap().samples.len() == 2));
    assert!(found.iter().all(|m| m.generation.as_ref().unwrap().median > 0.0));
}

#[test]
fn a_level_of_another_architecture_is_not_available_and_says_why() {
    let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    let report = measure(&BenchConfig { simd_levels: vec![foreign.into()], ..quick() });
    let Outcome::NotAvailable { reason } = &report.cases[0].outcome else { panic!("it ran") };
    assert!(reason.contains("not available here: this CPU lacks"), "{reason}");
    assert!(report.model.ternary_weights > 0);
}

#[test]
fn more_threads_than_processors_are_flagged() {
    let report = measure(&BenchConfig { threads: vec![1, 999_999 / 10_000], ..quick() });
    let flags: Vec<bool> = report.cases.iter().map(|case| case.oversubscribed).collect();
    assert_eq!(flags, [false, report.machine.processors < 99]);
}

#[test]
fn settings_that_measure_nothing_are_refused() {
    for config in [
        BenchConfig { iterations: 0, ..quick() },
        BenchConfig { prompt_tokens: 0, generated_tokens: 0, ..quick() },
        BenchConfig { threads: vec![0], ..quick() },
        BenchConfig { prompt_tokens: 1 << 20, ..quick() },
    ] {
        let error = run(&BitNetModel::demo, &ModelConfig::default(), &config, &mut |_| ());
        assert!(matches!(error, Err(crate::Error::Config(_))), "{config:?}");
    }
}

#[test]
fn parts_can_be_left_out() {
    let report = measure(&BenchConfig { prompt_tokens: 0, ..quick() });
    assert!(measurements(&report)[0].prompt.is_none());
    let report = measure(&BenchConfig { generated_tokens: 0, ..quick() });
    let found = measurements(&report)[0];
    assert!(found.generation.is_none() && found.bytes_per_second.is_none());
}

/// The parts are what the tensor table says, with ternary weights at two bits as the kernels hold them.
#[track_caller]
fn check_bytes(file: &str) {
    let path = std::path::Path::new(GOLDEN).join(file);
    let checkpoint = Checkpoint::open(&path, &OpenOptions::default()).unwrap();
    let head = crate::HeadType::File;
    let model_config = ModelConfig { head, ..Default::default() };
    let model = BitNetModel::from_pretrained(&path).with_config(model_config).load().unwrap();
    let (mut ternary, mut other, mut tables) = (0, 0, 0);
    for tensor in checkpoint.tensors() {
        match (&tensor.shape[..], tensor.name.strip_suffix(".weight")) {
            (&[rows, cols], Some(name)) if name.ends_with("_proj") => {
                let matrix = checkpoint.ternary(name, rows, cols).unwrap();
                ternary += PackedTernary::pack(&matrix, Packing::TwoBits).bytes() as u64;
            }
            (&[_, _], _) => tables += tensor.bytes,
            (shape, _) => other += 4 * shape[0] as u64,
        }
    }
    let (config, info) = (model.config(), model.info());
    let row = info.bytes.embedding / config.vocab_size as u64;
    let found = TokenBytes::new(&model, 10.0);
    assert_eq!(found, TokenBytes::of_checkpoint(&checkpoint, crate::KvType::F16, head, 10.0));
    let kv = 10 * 2 * 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers;
    let embedding = if config.tie_word_embeddings { 0 } else { info.bytes.embedding };
    assert_eq!((found.ternary, found.other), (ternary, other + row));
    assert_eq!((found.head, found.kv), (tables - embedding, kv as u64));
    assert_eq!(found.total(), ternary + other + row + found.head + found.kv);
}

#[test]
fn bytes_per_token_are_the_sum_of_the_tensor_table() {
    check_bytes("bitnet-tiny-I2_S.gguf");
    check_bytes("llama158-tiny-TQ1_0.gguf");
}
