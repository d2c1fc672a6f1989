//! What a benchmark measures in each case, and how much room that needs.

use bitnet_inference::InferenceConfig;

use super::drive::{self, Windows};
use super::report::{Settings, Work};
use super::{BenchConfig, invalid};
use crate::error::Error;
use crate::model::BitNetModel;

/// More of anything than can be measured, and so few that their products are numbers.
const MOST: usize = 1 << 20;

/// Refuses what measures nothing, or more than any machine does.
pub(super) fn check(config: &BenchConfig) -> Result<(), Error> {
    if config.iterations == 0 {
        return Err(invalid("iterations", 0, "at least 1"));
    }
    if config.prompt_tokens == 0 && config.generated_tokens == 0 {
        let expected = "at least 1, or prompt_tokens has to be";
        return Err(invalid("generated_tokens", 0, expected));
    }
    if config.threads.contains(&0) {
        return Err(invalid("threads", 0, "at least 1"));
    }
    let counts = [
        ("prompt_tokens", Some(config.prompt_tokens)),
        ("generated_tokens", Some(config.generated_tokens)),
        ("depths", config.depths.iter().copied().max()),
        ("batch_sizes", config.batch_sizes.iter().copied().max()),
        ("iterations", Some(config.iterations)),
        ("warmup", Some(config.warmup)),
    ];
    for (field, most) in counts {
        if let Some(found) = most.filter(|&count| count > MOST) {
            return Err(invalid(field, found, format!("at most {MOST}")));
        }
    }
    if config.batch_sizes.contains(&0) {
        return Err(invalid("batch_sizes", 0, "at least 1"));
    }
    if config.generated_tokens == 0 && !(config.batch_sizes.is_empty() && config.depths.is_empty())
    {
        return Err(invalid("generated_tokens", 0, "at least 1 to measure depths and batches"));
    }
    Ok(())
}

fn depths(config: &BenchConfig) -> Vec<usize> {
    if config.depths.is_empty() { vec![0] } else { config.depths.clone() }
}

/// What is the same for all cases.
pub(super) fn settings(config: &BenchConfig) -> Settings {
    Settings {
        prompt_tokens: config.prompt_tokens,
        generated_tokens: config.generated_tokens,
        depths: depths(config),
        batch_sizes: config.batch_sizes.clone(),
        iterations: config.iterations,
        warmup: config.warmup,
    }
}

/// The lines of each case.
pub(super) fn works(config: &BenchConfig) -> Vec<Work> {
    let mut works = Vec::new();
    if config.prompt_tokens > 0 {
        works.push(Work::Prompt { tokens: config.prompt_tokens });
    }
    let (tokens, depths) = (config.generated_tokens, depths(config));
    if tokens > 0 {
        works.extend(depths.iter().map(|&depth| Work::Generation { tokens, depth }));
        let batch = |&sequences: &usize| Work::Batch {
            sequences,
            tokens: batch_windows(config).tokens,
            depth: depths[0],
        };
        works.extend(config.batch_sizes.iter().map(batch));
    }
    works
}

/// How a generation at a depth is cut into measurements. One far from the start is one long sequence, since filling the cache
/// takes so long; elsewhere each measurement is a sequence of its own.
pub(super) fn generation_windows(config: &BenchConfig, depth: usize) -> Windows {
    let (tokens, runs) = (config.generated_tokens, config.warmup + config.iterations);
    match depth >= 4 * tokens * runs {
        true => Windows::around(depth, tokens, config.warmup, config.iterations),
        false => Windows { prompt: depth.max(1), tokens, warmup: 0, count: 1 },
    }
}

/// How sequences generated together are: prompts of many sequences take long, so they are computed once.
pub(super) fn batch_windows(config: &BenchConfig) -> Windows {
    let tokens = config.generated_tokens;
    Windows::around(depths(config)[0], tokens, config.warmup, config.iterations)
}

/// Tokens of the longest sequence.
fn longest(config: &BenchConfig) -> (&'static str, usize) {
    let step_tokens = InferenceConfig::default().max_batch_tokens;
    let generations =
        depths(config).iter().map(|&d| generation_windows(config, d).longest(1, step_tokens)).max();
    let batches = config
        .batch_sizes
        .iter()
        .map(|&sequences| batch_windows(config).longest(sequences, step_tokens))
        .max();
    let candidates = [
        ("prompt_tokens", config.prompt_tokens + 1),
        ("generated_tokens", generations.unwrap_or(0)),
        ("batch_sizes", batches.unwrap_or(0)),
    ];
    candidates.into_iter().max_by_key(|&(_, tokens)| tokens).expect("there are three")
}

/// Refuses what is longer than the model's context.
pub(super) fn check_context(config: &BenchConfig, context: usize) -> Result<(), Error> {
    let (field, tokens) = longest(config);
    match tokens <= context {
        true => Ok(()),
        false => {
            let found = format!("such that a sequence gets {tokens} tokens");
            Err(invalid(field, found, format!("less than the context, {context} tokens")))
        }
    }
}

/// An engine with room for all that is measured.
pub(super) fn room(
    config: &BenchConfig,
    context: usize,
    bytes_per_token: usize,
) -> InferenceConfig {
    let most = config.batch_sizes.iter().copied().max().unwrap_or(1);
    let step_tokens = InferenceConfig::default().max_batch_tokens;
    let longest = batch_windows(config).longest(most, step_tokens);
    drive::room_for(most, longest, context, bytes_per_token)
}

/// Tokens as various as those of a text, the same in every run, others for each sequence.
pub(super) fn prompt_ids(model: &BitNetModel, sequence: usize, count: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size as u64;
    let first = 1 + sequence as u64 * 0x1000_0000;
    let id = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16) % vocab;
    (first..first + count as u64).map(|i| id(i) as u32).collect()
}
