//! From a request's fields and headers to what the library wants: the one place that knows both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use bitnet::{GenerationConfig, Queue, RequestOptions, ResponseFormat, SamplingStrategy};
use serde_json::Value;

use crate::auth::Client;
use crate::config::ServerConfig;
use crate::error::{ApiError, shown};
use crate::fields::{self, Fields};
use crate::{format, unsupported};

/// Most that `priority` can be above or below 0.
const PRIORITIES: i64 = 100;
/// Bytes of a `cache_salt`.
const SALT: usize = 256;
/// Tokens that `logit_bias` and `stop_token_ids` may name: each is looked at for each token of the answer.
const NAMED_TOKENS: usize = 1024;
/// Alternatives to a token that may be asked for.
const TOP_LOGPROBS: i64 = 20;

/// The two endpoints, which ask for probabilities in ways of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Chat,
    Text,
}

/// What a request for text wants, but for its prompt.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The name of the model, if it has one.
    pub model: Option<String>,
    /// How tokens are drawn, and what ends the text; `max_new_tokens` is not decided yet.
    pub config: GenerationConfig,
    /// What form the answer has.
    pub format: ResponseFormat,
    /// Most tokens of the answer.
    pub max_tokens: Option<usize>,
    /// Answers to each prompt.
    pub n: usize,
    /// How it is served beside others.
    pub options: RequestOptions,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Whether the last of these pieces says how many tokens there were.
    pub include_usage: bool,
    /// The tier that it was served in, if it asked for one.
    pub service_tier: Option<String>,
}

impl Asked {
    /// Takes all fields but the prompt's.
    pub fn read(
        endpoint: Endpoint,
        fields: &mut Fields,
        headers: &HeaderMap,
        client: &Client,
        server: &ServerConfig,
    ) -> Result<Self, ApiError> {
        let model = fields.string("model")?;
        let max_tokens = max_tokens(fields)?;
        let logprobs = logprobs(endpoint, fields)?;
        let config = GenerationConfig { logprobs, ..config(fields, server)? };
        let format = format::read(fields)?;
        let n = fields.integer("n", 1, server.max_choices as i64)?.unwrap_or(1) as usize;
        let (stream, include_usage) = streaming(fields)?;
        let service_tier = fields.string("service_tier")?;
        let options = options(fields, headers, client, server, service_tier.as_deref())?;
        unsupported::refuse(fields)?;
        Ok(Self {
            model,
            config,
            format,
            max_tokens,
            n,
            options,
            stream,
            include_usage,
            service_tier,
        })
    }

    /// The settings of answer `index`: with a seed, each has another one.
    pub fn config_of(&self, index: usize, max_new_tokens: usize) -> GenerationConfig {
        let seed = self.config.seed.map(|seed| seed.wrapping_add(index as u64));
        GenerationConfig { seed, max_new_tokens, ..self.config.clone() }
    }
}

/// `max_completion_tokens` is the new name of `max_tokens`.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let (old, new) = (fields.count("max_tokens", 1)?, fields.count("max_completion_tokens", 1)?);
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let message = format!("'max_tokens' is {old} and 'max_completion_tokens' {new}.");
            Err(ApiError::value("max_tokens", message))
        }
        (old, new) => Ok(new.or(old)),
    }
}

fn config(fields: &mut Fields, server: &ServerConfig) -> Result<GenerationConfig, ApiError> {
    let default = GenerationConfig::default();
    let temperature = fields.number("temperature")?.unwrap_or(1.0);
    let top_p = fields.number("top_p")?.unwrap_or(default.top_p);
    // -1 is vLLM's way to say all.
    let top_k = fields.integer("top_k", -1, i64::MAX)?.unwrap_or(0).max(0) as usize;
    let min_p = fields.number("min_p")?.unwrap_or(default.min_p);
    Ok(GenerationConfig {
        sampling_strategy: SamplingStrategy::of(temperature, top_k, top_p, min_p),
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty: fields
            .number("repetition_penalty")?
            .unwrap_or(default.repetition_penalty),
        repeat_last_n: fields.count("repeat_last_n", 0)?.unwrap_or(default.repeat_last_n),
        presence_penalty: fields.number("presence_penalty")?.unwrap_or_default(),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or_default(),
        seed: fields.integer("seed", i64::MIN, i64::MAX)?.map(i64::cast_unsigned),
        stop: stop(fields, server)?,
        ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
        min_tokens: fields.count("min_tokens", 0)?.unwrap_or(0),
        stop_token_ids: stop_token_ids(fields)?,
        logit_bias: logit_bias(fields)?,
        ..default
    })
}

/// A text, or several.
fn stop(fields: &mut Fields, server: &ServerConfig) -> Result<Vec<String>, ApiError> {
    let texts = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(texts)) => texts,
        Some(text) => vec![text],
    };
    if texts.len() > server.max_stop {
        let message = format!("'stop' has {} texts; it may have {}.", texts.len(), server.max_stop);
        return Err(ApiError::value("stop", message));
    }
    let texts: Vec<String> =
        texts.into_iter().map(|text| fields::string(text, "stop")).collect::<Result<_, _>>()?;
    match texts.iter().find(|text| text.len() > server.max_stop_bytes) {
        Some(long) => {
            let (found, most) = (long.len(), server.max_stop_bytes);
            let message = format!("A text in 'stop' has {found} bytes; it may have {most}.");
            Err(ApiError::value("stop", message))
        }
        None => Ok(texts),
    }
}

fn too_many(field: &'static str, found: usize) -> Result<(), ApiError> {
    match found > NAMED_TOKENS {
        true => {
            let message = format!("'{field}' has {found} tokens; it may have {NAMED_TOKENS}.");
            Err(ApiError::value(field, message))
        }
        false => Ok(()),
    }
}

fn stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    const FIELD: &str = "stop_token_ids";
    let values = fields.array(FIELD)?.unwrap_or_default();
    too_many(FIELD, values.len())?;
    fields::ids(&values, FIELD)
}

/// An object with token ids for names.
fn logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, ApiError> {
    const FIELD: &str = "logit_bias";
    let Some(mut biases) = fields.object(FIELD)? else { return Ok(BTreeMap::new()) };
    let names = biases.names();
    too_many(FIELD, names.len())?;
    let bias = |name: String| match (name.parse(), biases.number(&name)?) {
        (Ok(id), bias) => Ok((id, bias.unwrap_or(0.0))),
        (Err(_), _) => {
            let path = biases.path(shown(&name).as_str());
            let message = format!("Invalid '{path}': the name should be a token id.");
            Err(ApiError::value(path, message))
        }
    };
    names.into_iter().map(bias).collect()
}

/// How many alternatives to each token are told, if anything is.
fn logprobs(endpoint: Endpoint, fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    if endpoint == Endpoint::Text {
        let count = fields.integer("logprobs", 0, TOP_LOGPROBS)?;
        return Ok(count.map(|count| count as usize));
    }
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, TOP_LOGPROBS)?.unwrap_or(0);
    if top > 0 && !wanted {
        let message = "'top_logprobs' is for requests with 'logprobs': true.";
        return Err(ApiError::value("top_logprobs", message));
    }
    Ok(wanted.then_some(top as usize))
}

fn streaming(fields: &mut Fields) -> Result<(bool, bool), ApiError> {
    let stream = fields.bool("stream")?.unwrap_or(false);
    let Some(mut options) = fields.object("stream_options")? else { return Ok((stream, false)) };
    if !stream {
        let message = "'stream_options' is for requests with 'stream': true.";
        return Err(ApiError::value("stream_options", message));
    }
    let include_usage = options.bool("include_usage")?.unwrap_or(false);
    for name in ["include_obfuscation", "continuous_usage_stats"] {
        if options.bool(name)? == Some(true) {
            return Err(ApiError::unsupported(options.path(name), "this server does not do that"));
        }
    }
    options.end()?;
    Ok((stream, include_usage))
}

/// Priority, queue, deadline, and who may share what is cached.
fn options(
    fields: &mut Fields,
    headers: &HeaderMap,
    client: &Client,
    server: &ServerConfig,
    tier: Option<&str>,
) -> Result<RequestOptions, ApiError> {
    let priority = fields.integer("priority", -PRIORITIES, PRIORITIES)?.map(|level| level as i32);
    let tier = tier.map(of_tier).transpose()?.flatten();
    let mut queue = client.queue.as_deref().and_then(|name| server.queue(name));
    let mut class = None;
    for name in ["x-smg-priority", "x-priority"] {
        match header(headers, name)?.map(|text| (text, server.queue(text))) {
            None => {}
            Some((_, Some(named))) => queue = Some(named),
            Some((text, None)) => class = Some(of_class(text, name)?),
        }
    }
    let salt = fields.short_string("cache_salt", SALT)?;
    Ok(RequestOptions {
        queue: queue.cloned().unwrap_or_default(),
        priority: priority.or(class).or(tier).unwrap_or(DEFAULT),
        deadline: deadline(headers, server)?,
        cache_salt: client.salt(salt.as_deref()).map(Arc::from),
        ..Default::default()
    })
}

/// The priority of who says nothing: that of the class `default`.
const DEFAULT: i32 = 10;

/// The classes of gateways, ten levels apart, so that each takes the places of the one below.
fn class(name: &str) -> Option<i32> {
    Some(match name {
        "bulk" => 0,
        "default" => DEFAULT,
        "interactive" => 20,
        "system" => 30,
        _ => return None,
    })
}

fn of_class(text: &str, header: &'static str) -> Result<i32, ApiError> {
    let level = || text.parse().ok().filter(|level| (-PRIORITIES..=PRIORITIES).contains(level));
    class(text).or_else(|| level().map(|level| level as i32)).ok_or_else(|| {
        let message = format!(
            "The header {header} is none of the classes bulk, default, interactive and system, no whole \
             number from -{PRIORITIES} to {PRIORITIES}, and no queue of this server."
        );
        ApiError::value(header, message)
    })
}

/// OpenAI's tiers.
fn of_tier(name: &str) -> Result<Option<i32>, ApiError> {
    Ok(match name {
        "auto" => None,
        "default" => class("default"),
        "flex" => class("bulk"),
        "priority" => class("interactive"),
        _ => {
            let message = "'service_tier' should be auto, default, flex or priority.";
            return Err(ApiError::value("service_tier", message));
        }
    })
}

/// When the answer is of no more use: as the client says, but no later than the server's own limit.
fn deadline(headers: &HeaderMap, server: &ServerConfig) -> Result<Option<Instant>, ApiError> {
    const NAME: &str = "x-request-timeout";
    let asked = match header(headers, NAME)? {
        None => None,
        Some(text) => Some(seconds(text).ok_or_else(|| {
            let message = format!(
                "The header {NAME} should be seconds, above 0 and up to a day, such as 2.5."
            );
            ApiError::value(NAME, message)
        })?),
    };
    let time = asked.into_iter().chain(server.request_timeout).min();
    Ok(time.map(|time| Instant::now() + time))
}

fn seconds(text: &str) -> Option<Duration> {
    let seconds = text.parse().ok().filter(|&seconds| seconds > 0.0 && seconds <= 86_400.0)?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A header that is text.
fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, ApiError> {
    let text = |value: &'a axum::http::HeaderValue| {
        value.to_str().map_err(|_| ApiError::value(name, format!("The header {name} is no text.")))
    };
    Ok(headers.get(name).map(text).transpose()?.map(str::trim))
}

/// A queue of the server by name.
impl ServerConfig {
    fn queue(&self, name: &str) -> Option<&Queue> {
        self.queues.iter().find(|queue| &*queue.name == name)
    }
}
