use bitnet_kernels::cpu::packed::PackedTernary;
use bitnet_kernels::kv::PAGE;
use bitnet_model::format::{Checkpoint, OpenOptions};

use super::measure::run_cases;
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
    let found: Vec<_> = report.cases.iter().filter_map(Case::measurement).collect();
    assert!(!found.is_empty(), "{report:#?}");
    found
}

#[test]
fn all_levels_and_thread_counts_give_what_the_scalar_code_gives() {
    let levels = ["sse", "avx", "avx2", "avx512", "neon"].map(str::to_owned).into();
    let report = measure(&BenchConfig { simd_levels: levels, threads: vec![1, 2], ..quick() });
    assert_eq!(report.cases.len(), 10);
    for case in &report.cases {
        assert!(!matches!(case.outcome, Outcome::Wrong { .. }), "{case:?}");
    }
    let loaded = measurements(&report)[0].load_seconds;
    for found in measurements(&report) {
        assert_eq!(found.outputs, report.oracles[0].outputs);
        assert_eq!(found.load_seconds, loaded, "all cases have the same weights");
        assert_eq!(found.lines.len(), 2);
        for line in &found.lines {
            assert_eq!(line.rate.samples.len(), 2);
            assert!(line.rate.median > 0.0 && line.of_bound.median > 0.0, "{line:?}");
        }
    }
    assert_eq!(report.model.sha256.as_ref().map(String::len), Some(64));
}

#[test]
fn a_case_is_judged_by_the_forms_that_it_ran_with() {
    let report = measure(&BenchConfig {
        threads: vec![1],
        packings: vec![Some(Packing::TwoBits), Some(Packing::FiveTrits)],
        heads: vec![HeadType::Int8, HeadType::TwoStage, HeadType::File],
        kv_dtypes: vec![KvType::F16, KvType::Int8],
        ..quick()
    });
    let model = BitNetModel::demo().load().unwrap();
    let (config, info) = (model.config(), model.info());
    let found = measurements(&report);
    assert_eq!((found.len(), report.oracles.len()), (12, 6));
    assert!(report.is_right(), "{report:#?}");
    for (case, m) in report.cases.iter().zip(found) {
        let Setup { packing, head, kv_dtype, .. } = &case.setup;
        let packing = packing.unwrap();
        let stored = if *head == HeadType::File { "Q8_0".to_owned() } else { head.to_string() };
        let forms = (&*m.forms.packing, &*m.forms.head, &*m.forms.kv_dtype);
        assert_eq!(forms, (packing.name(), &*stored, kv_dtype.name()));
        let line = m.line(|work| matches!(work, Work::Generation { .. })).unwrap();
        let (read, products) = (line.bytes_per_step, line.products_per_token);
        assert_eq!(read.ternary, bytes::packed_bytes(config, packing));
        let per_token = (bitnet_model::kv::page_bytes(config, *kv_dtype) / PAGE) as f64;
        assert_eq!(read.kv, (per_token * read.context) as u64);
        let weights = (config.vocab_size * config.hidden_size) as f64;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let fixed = head.bytes(vocab, hidden, info.bytes.embedding + info.bytes.head);
        match head {
            HeadType::Int8 => assert_eq!((read.head, products.head), (fixed, 2.0 * weights)),
            HeadType::File => assert_eq!((read.head, products.head), (fixed, 0.0)),
            HeadType::TwoStage => {
                assert!(read.head > fixed && products.head > weights, "{line:?}");
            }
        }
        assert_eq!(products.attention > 0.0, *kv_dtype == KvType::Int8);
    }
}

#[test]
fn other_tokens_than_the_oracles_are_wrong_and_not_fast() {
    let config = ModelConfig::default();
    let auto = Setup { threads: 1, ..Setup::of(&config) };
    let cases = vec![auto.clone(), Setup { simd_level: "scalar".to_owned(), threads: 2, ..auto }];
    let oracle = Outputs { tokens_hash: "0".into(), logits_hash: "1".into() };
    let injected = Some(oracle.clone());
    let report =
        run_cases(&BitNetModel::demo, &config, &quick(), cases, injected, &mut |_| ()).unwrap();
    assert_eq!(report.cases.len(), 2);
    for case in &report.cases {
        let Outcome::Wrong { found, expected, .. } = &case.outcome else { panic!("{case:?}") };
        assert_eq!(*expected, oracle);
        assert_ne!(found, expected);
    }
    assert_eq!(report.advice, Advice::default());
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
fn depths_and_batches_are_lines_of_their_own() {
    let report = measure(&BenchConfig {
        depths: vec![10, 100],
        batch_sizes: vec![1, 3],
        generated_tokens: 8,
        ..quick()
    });
    let lines = &measurements(&report)[0].lines;
    let works: Vec<String> = lines.iter().map(|line| line.work.to_string()).collect();
    assert_eq!(
        works,
        [
            "prompt of 20",
            "generate at 10",
            "generate at 100",
            "1 sequence at 10",
            "3 sequences at 10"
        ]
    );
    assert_eq!(lines[1].bytes_per_step.context, 10.0 + 5.5);
    assert_eq!(lines[2].bytes_per_step.context, 100.0 + 6.0); // between two whole prompts
    let [one, three] = [&lines[3], &lines[4]];
    assert_eq!(three.bytes_per_step.kv, 3 * one.bytes_per_step.kv);
    assert_eq!(three.bytes_per_step.ternary, one.bytes_per_step.ternary);
    assert_eq!((one.tokens_per_step, three.tokens_per_step), (1.0, 3.0));
    assert_eq!(three.rate.samples.len(), 2);
    assert_eq!(report.advice.batch.unwrap().threads, report.cases[0].setup.threads);
}

#[test]
fn more_threads_than_processors_are_flagged() {
    let config = BenchConfig { threads: vec![1, 99], prompt_tokens: 4, iterations: 1, ..quick() };
    let report = measure(&config);
    let flags: Vec<bool> = report.cases.iter().map(|case| case.oversubscribed).collect();
    assert_eq!(flags, [false, report.machine.processors < 99]);
}

#[cfg(target_os = "linux")]
#[test]
fn memory_that_was_to_be_locked_is_or_nothing_is_measured() {
    let model = ModelConfig { lock_memory: true, ..ModelConfig::default() };
    let config = BenchConfig { prompt_tokens: 0, threads: vec![1], ..quick() };
    let result = run(&BitNetModel::demo, &model, &config, &mut |_| ());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    match result {
        Ok(_) => assert_ne!(locked.trim(), "0 kB"),
        Err(error) => assert!(matches!(error, Error::Lock(_)) && error.help().is_some(), "{error}"),
    }
}

#[test]
fn settings_that_measure_nothing_are_refused() {
    for config in [
        BenchConfig { iterations: 0, ..quick() },
        BenchConfig { prompt_tokens: 0, generated_tokens: 0, ..quick() },
        BenchConfig { threads: vec![0], ..quick() },
        BenchConfig { prompt_tokens: 1 << 20, ..quick() },
        BenchConfig { depths: vec![1 << 20], ..quick() },
        BenchConfig { batch_sizes: vec![0], ..quick() },
        BenchConfig { batch_sizes: vec![usize::MAX], ..quick() },
        BenchConfig { warmup: usize::MAX, ..quick() },
        BenchConfig { batch_sizes: vec![2], generated_tokens: 0, ..quick() },
    ] {
        let error = run(&BitNetModel::demo, &ModelConfig::default(), &config, &mut |_| ());
        assert!(matches!(error, Err(crate::Error::Config(_))), "{config:?}");
    }
}

#[test]
fn parts_can_be_left_out() {
    let report = measure(&BenchConfig { prompt_tokens: 0, ..quick() });
    assert!(matches!(measurements(&report)[0].lines[0].work, Work::Generation { .. }));
    assert_eq!(report.advice.prompt, None);
    let report = measure(&BenchConfig { generated_tokens: 0, ..quick() });
    assert_eq!(measurements(&report)[0].lines.len(), 1);
    assert_eq!(report.advice.generation, None);
}

/// The parts are what the tensor table says, with ternary weights as the kernels hold them: a small model at two bits.
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
                ternary +=
                    PackedTernary::pack_as(model.info().packing.packing, &matrix).bytes() as u64;
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
