//! What an answer took and how it ended, for people and as JSON.

use std::time::Duration;

use bitnet::bench::hash;
use bitnet::{FinishReason, GenerationConfig, Output, Stop, Timings};
use serde_json::{Value, json};

use crate::load::Loaded;
use crate::report::{Align, Table, plural, rate, seconds};

/// A table for stderr.
pub fn table(loaded: &Loaded, timings: &Timings) -> String {
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Right, Align::Right]);
    let (prompt, answer) = (timings.prompt_tokens, timings.generated_tokens);
    table.row(["load", "", &seconds(loaded.model.info().load_time)]);
    if answer > 0 {
        table.row(["first token", "", &seconds(timings.time_to_first_token())]);
    }
    let speed = rate(timings.prompt_tokens_per_second());
    let prompt = match timings.cached_tokens {
        0 => plural(prompt, "token"),
        cached => format!("{}, {cached} of them cached", plural(prompt, "token")),
    };
    // Without an answer it is not known when the prompt was done.
    let took = |time| if answer > 0 { seconds(time) } else { "-".to_owned() };
    table.row(["prompt", &prompt, &took(timings.prompt_time), &speed]);
    let speed = rate(timings.decode_tokens_per_second());
    table.row(["answer", &plural(answer, "token"), &took(timings.decode_time), &speed]);
    table.render("")
}

/// What to know about an end that the model did not choose.
pub fn finish_note(output: &Output, context: usize) -> Option<String> {
    match &output.finish_reason {
        FinishReason::Length => Some(format!(
            "stopped after {}, the limit that -n sets",
            plural(output.ids.len(), "token")
        )),
        FinishReason::Context => Some(format!("stopped: the context of {context} tokens is full")),
        _ => None,
    }
}

/// The same, and ends that the model or a text that was asked for chose.
pub fn end_note(output: &Output, context: usize) -> Option<String> {
    match &output.finish_reason {
        FinishReason::Stop(Stop::Text(text)) => Some(format!("stopped before the text {text:?}")),
        FinishReason::Stop(Stop::Token(_)) => Some("stopped: the model ended its text".into()),
        FinishReason::Stop(Stop::Complete) => Some("stopped: the text is complete".into()),
        _ => finish_note(output, context),
    }
}

/// The result of a run as one object.
pub fn json(loaded: &Loaded, config: &GenerationConfig, output: &Output) -> Value {
    let (info, timings) = (loaded.model.info(), &output.timings);
    // Null where there was nothing to measure.
    let of_answer = |time: Duration| (timings.generated_tokens > 0).then_some(time.as_secs_f64());
    json!({
        "model": info.name,
        "model_hash": info.fingerprint(),
        "prompt_ids": output.prompt_ids,
        "ids": output.ids,
        "ids_hash": hash::of_ids(&output.ids),
        "text": output.text,
        "finish_reason": finish_name(&output.finish_reason),
        "stop": stop_text(&output.finish_reason),
        "seed": config.seed,
        "context_length": info.context_length,
        "kv_dtype": info.kv_dtype.name(),
        "head": info.head.to_string(),
        "machine": loaded.machine,
        "device": info.device,
        "simd": info.simd_level,
        "packing": info.packing.packing.name(),
        "threads": { "count": loaded.threads.count, "rule": loaded.threads.rule.to_string() },
        "timings": {
            "load_s": info.load_time.as_secs_f64(),
            "time_to_first_token_s": of_answer(timings.time_to_first_token()),
            "prompt_tokens": timings.prompt_tokens,
            "cached_tokens": timings.cached_tokens,
            "prompt_s": of_answer(timings.prompt_time),
            "prompt_tokens_per_s": timings.prompt_tokens_per_second(),
            "generated_tokens": timings.generated_tokens,
            "generation_s": of_answer(timings.decode_time),
            "generation_tokens_per_s": timings.decode_tokens_per_second(),
        },
    })
}

fn finish_name(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop(_) => "stop",
        FinishReason::Length => "length",
        FinishReason::Context => "context",
        FinishReason::Deadline => "deadline",
        FinishReason::Cancelled => "cancelled",
    }
}

fn stop_text(reason: &FinishReason) -> Option<&str> {
    match reason {
        FinishReason::Stop(Stop::Text(text)) => Some(text),
        _ => None,
    }
}
