//! The golden models write what transformers writes, however the work is cut and whatever runs beside it.

use std::fs;

use bitnet_inference::{EngineConfig, FinishReason, InferenceConfig, spawn};
use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::pool::ThreadPool;
use serde_json::Value;

use crate::support::{exact, generate, load, testdata, tokens};

/// A prompt and the 32 tokens after it.
type Case = (Vec<u32>, Vec<u32>);

/// Prompts and answers of `golden.json`.
fn cases(folder: &str) -> Vec<Case> {
    let text = fs::read_to_string(testdata(&format!("golden/{folder}/golden.json"))).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let ids = |case: &Value, key: &str| serde_json::from_value(case[key].clone()).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    prompts.iter().map(|case| (ids(case, "input_ids"), ids(case, "generated"))).collect()
}

/// The same prompts with the answers of the TQ1_0 file, whose scales went through f16.
fn cases_of_float16_scales() -> Vec<Case> {
    let file =
        fs::read(testdata("golden/llama158-tiny/golden-float16-scales.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + header_len]).unwrap();
    let data = &file[8 + header_len..];
    let answer = |index: usize| {
        let offsets = &header[format!("p{index}.generated")]["data_offsets"];
        let offset = |end: usize| offsets[end].as_u64().unwrap() as usize;
        data[offset(0)..offset(1)].as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    };
    cases("llama158-tiny").into_iter().enumerate().map(|(i, (ids, _))| (ids, answer(i))).collect()
}

fn models() -> [(&'static str, Vec<Case>); 5] {
    [
        ("golden/bitnet-tiny", cases("bitnet-tiny")),
        ("golden/gguf/bitnet-tiny-I2_S.gguf", cases("bitnet-tiny")),
        ("golden/bitnet-tiny-bf16", cases("bitnet-tiny-bf16")),
        ("golden/llama158-tiny", cases("llama158-tiny")),
        ("golden/gguf/llama158-tiny-TQ1_0.gguf", cases_of_float16_scales()),
    ]
}

/// All prompts of all models at the same time.
#[track_caller]
fn check(isa: Isa, threads: usize, config: &EngineConfig) {
    for (name, cases) in models() {
        let model = load(name, CpuBackend::with_pool(isa, ThreadPool::new(threads).unwrap()));
        let engine = spawn(model, config).unwrap();
        let running: Vec<_> = cases
            .iter()
            .map(|(prompt, answer)| engine.submit(generate(prompt, answer.len())).unwrap())
            .collect();
        for (events, (prompt, answer)) in running.iter().zip(&cases) {
            let expected = (answer.clone(), Ok(FinishReason::Length));
            let place = format!("{name} after {} tokens, {} × {threads}", prompt.len(), isa.name());
            assert_eq!(tokens(events), expected, "{place}");
        }
    }
}

fn in_steps_of(max_batch_tokens: usize, max_batch_size: usize) -> EngineConfig {
    let inference = InferenceConfig { max_batch_tokens, max_batch_size, ..Default::default() };
    EngineConfig { inference, ..exact() }
}

#[test]
fn on_every_simd_level_and_several_threads() {
    for &isa in Isa::available() {
        for threads in [1, 2] {
            check(isa, threads, &exact());
        }
    }
}

#[test]
fn token_by_token() {
    check(Isa::best(), 1, &in_steps_of(1, 1));
}

#[test]
fn with_prompts_cut_anywhere() {
    for step in [2, 3, 7, 16, 20, 32] {
        check(Isa::best(), 1, &in_steps_of(step, 1));
    }
}

#[test]
fn with_prompts_cut_anywhere_beside_others() {
    for step in [3, 5, 13, 34] {
        check(Isa::best(), 2, &in_steps_of(step, 3));
    }
}
