//! Fields that other servers know and this one does not act on.
//!
//! A value that asks for nothing (`"logprobs": false`) is taken; any other is an error that names the field, so that nobody
//! believes to have got what was left out. A field that becomes supported loses its line here.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::Fields;

/// Values that change nothing.
#[derive(Clone, Copy)]
enum Idle {
    /// This one, in JSON.
    Only(&'static str),
    /// Either.
    Either(&'static str, &'static str),
    /// Any: the field says something about the request, and nothing about the answer.
    Any,
}

const NO: &str = "this server does not do that";
const IMAGES: &str = "the model reads and writes text alone";
const TOOLS: &str = "this server does not call tools";
const GRAMMAR: &str = "grammars come in response_format, regex and lark";
const PROBABILITIES: &str = "probabilities are asked for with logprobs";
const STORE: &str = "this server stores nothing";
const TEMPLATE: &str = "the model's own chat template is used as it is";
const SAMPLER: &str = "this way of sampling is not built in";

#[rustfmt::skip]
const FIELDS: &[(&str, Idle, &str)] = &[
    // OpenAI's
    ("prompt_logprobs", Idle::Only("0"), PROBABILITIES),
    ("best_of", Idle::Only("1"), NO),
    ("tools", Idle::Only("[]"), TOOLS),
    ("tool_choice", Idle::Either(r#""none""#, r#""auto""#), TOOLS),
    ("parallel_tool_calls", Idle::Either("true", "false"), TOOLS),
    ("functions", Idle::Only("[]"), TOOLS),
    ("function_call", Idle::Either(r#""none""#, r#""auto""#), TOOLS),
    ("modalities", Idle::Only(r#"["text"]"#), IMAGES),
    ("audio", Idle::Only("{}"), IMAGES),
    ("prediction", Idle::Only("{}"), NO),
    ("reasoning_effort", Idle::Only(r#""none""#), "the model does not think before it answers"),
    ("verbosity", Idle::Only(r#""medium""#), "the model cannot be told how much to say"),
    ("web_search_options", Idle::Only("{}"), TOOLS),
    ("store", Idle::Only("false"), STORE),
    ("metadata", Idle::Only("{}"), STORE),
    ("user", Idle::Any, ""),
    ("safety_identifier", Idle::Any, ""),
    ("prompt_cache_key", Idle::Any, ""), // beginnings of prompts are found without
    ("prompt_cache_retention", Idle::Only(r#""in_memory""#), "what is cached is in memory"),
    // vLLM's, SGLang's and llama.cpp's
    ("bad_words", Idle::Only("[]"), SAMPLER),
    ("allowed_token_ids", Idle::Only("[]"), SAMPLER),
    ("length_penalty", Idle::Only("1.0"), SAMPLER),
    ("use_beam_search", Idle::Only("false"), SAMPLER),
    ("typical_p", Idle::Only("1.0"), SAMPLER),
    ("mirostat", Idle::Only("0"), SAMPLER),
    ("dry_multiplier", Idle::Only("0.0"), SAMPLER),
    ("xtc_probability", Idle::Only("0.0"), SAMPLER),
    ("top_n_sigma", Idle::Only("-1.0"), SAMPLER),
    ("n_probs", Idle::Only("0"), PROBABILITIES),
    ("skip_special_tokens", Idle::Only("true"), "control tokens are never written"),
    ("spaces_between_special_tokens", Idle::Either("true", "false"), NO), // there are none in the text
    ("include_stop_str_in_output", Idle::Only("false"), "the stop text is cut off"),
    ("no_stop_trim", Idle::Only("false"), "the stop text is cut off"),
    ("truncate_prompt_tokens", Idle::Only("-1"), "a prompt is never cut"),
    ("ebnf", Idle::Only(r#""""#), GRAMMAR),
    ("grammar", Idle::Only(r#""""#), GRAMMAR),
    ("json_schema", Idle::Only("{}"), GRAMMAR),
    ("guided_json", Idle::Only("{}"), GRAMMAR),
    ("guided_regex", Idle::Only(r#""""#), GRAMMAR),
    ("guided_choice", Idle::Only("[]"), GRAMMAR),
    ("guided_grammar", Idle::Only(r#""""#), GRAMMAR),
    ("structured_outputs", Idle::Only("{}"), GRAMMAR),
    ("structural_tag", Idle::Only(r#""""#), GRAMMAR),
    ("add_generation_prompt", Idle::Only("true"), TEMPLATE),
    ("continue_final_message", Idle::Only("false"), TEMPLATE),
    ("add_special_tokens", Idle::Either("true", "false"), TEMPLATE),
    ("chat_template", Idle::Only(r#""""#), TEMPLATE),
    ("chat_template_kwargs", Idle::Only("{}"), TEMPLATE),
    ("documents", Idle::Only("[]"), TEMPLATE),
    ("separate_reasoning", Idle::Either("true", "false"), NO), // there is no reasoning to put anywhere
    ("stream_reasoning", Idle::Either("true", "false"), NO),
    ("include_reasoning", Idle::Either("true", "false"), NO),
    ("return_hidden_states", Idle::Only("false"), NO),
    ("return_token_ids", Idle::Only("false"), NO),
    ("return_tokens_as_token_ids", Idle::Only("false"), NO),
    ("cache_prompt", Idle::Only("true"), "beginnings of prompts are always shared; cache_salt keeps them apart"),
    ("id_slot", Idle::Only("-1"), "there are no slots"),
    ("timings_per_token", Idle::Only("false"), NO),
    ("return_progress", Idle::Only("false"), NO),
];

impl Idle {
    fn takes(self, value: &Value) -> bool {
        match self {
            Self::Only(one) => same(value, one),
            Self::Either(one, other) => same(value, one) || same(value, other),
            Self::Any => true,
        }
    }
}

/// Numbers are compared as such: 1 is 1.0.
fn same(value: &Value, json: &str) -> bool {
    let expected: Value = serde_json::from_str(json).unwrap_or_else(|_| json!(json));
    match (value.as_f64(), expected.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => *value == expected,
    }
}

/// Takes these fields, and refuses those that ask for something.
pub fn refuse(fields: &mut Fields) -> Result<(), ApiError> {
    for &(name, idle, why) in FIELDS {
        if let Some(value) = fields.take(name)
            && !idle.takes(&value)
        {
            return Err(ApiError::unsupported(fields.path(name), why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(value: Value) -> bool {
        refuse(&mut Fields::body(value).unwrap()).is_err()
    }

    #[test]
    fn values_that_ask_for_nothing_are_taken() {
        for (name, idle, _) in FIELDS {
            let (Idle::Only(value) | Idle::Either(value, _)) = *idle else { continue };
            let value: Value = serde_json::from_str(value).unwrap();
            assert!(!refused(json!({*name: value})), "{name}");
        }
        assert!(!refused(json!({"best_of": 1.0, "n_probs": null, "user": 5})));
    }

    #[test]
    fn all_others_are_refused_by_name() {
        for (name, idle, _) in FIELDS {
            if !matches!(idle, Idle::Any) {
                assert!(refused(json!({*name: "something"})), "{name}");
            }
        }
    }

    #[test]
    fn no_field_is_listed_twice() {
        let mut names: Vec<_> = FIELDS.iter().map(|(name, ..)| name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
