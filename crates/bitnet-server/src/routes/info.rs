//! `/server_info` and `/model_info`: what is served, and how, in SGLang's shapes, which gateways read.

use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bitnet::PAGE_TOKENS;
use serde::Serialize;

use crate::error::ApiError;
use crate::json;
use crate::state::App;

#[derive(Serialize)]
struct ServerInfo<'a> {
    model_id: &'a str,
    model_path: Option<&'a Path>,
    served_model_name: &'a str,
    version: &'static str,
    is_embedding: bool,
    context_length: usize,
    max_total_tokens: usize,
    max_running_requests: usize,
    max_queued_requests: usize,
    tp_size: usize,
    dp_size: usize,
    pp_size: usize,
    device: &'a str,
    simd_level: &'static str,
    packing: &'static str,
    head: String,
    kv_cache_dtype: &'static str,
    threads: usize,
    system_fingerprint: &'a str,
}

/// How the model is served. Numbers of requests and tokens are those of all engines together.
pub async fn server(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let engines = app.engines()?;
    let (model, count) = (engines.model(), engines.all().count());
    let (info, limits) = (model.info(), model.limits());
    Ok(json::response(&ServerInfo {
        model_id: engines.name(),
        model_path: info.path.as_deref(),
        served_model_name: engines.name(),
        version: env!("CARGO_PKG_VERSION"),
        is_embedding: false,
        context_length: info.context_length,
        max_total_tokens: model.stats().kv_pages * PAGE_TOKENS * count,
        max_running_requests: limits.max_batch_size * count,
        max_queued_requests: limits.max_waiting * count,
        tp_size: 1,
        dp_size: count,
        pp_size: 1,
        device: &info.device,
        simd_level: info.simd_level,
        packing: info.packing.packing.name(),
        head: info.head.to_string(),
        kv_cache_dtype: info.kv_dtype.name(),
        threads: info.threads,
        system_fingerprint: &engines.fingerprint,
    }))
}

#[derive(Serialize)]
struct ModelInfo<'a> {
    model_path: Option<&'a Path>,
    tokenizer_path: Option<&'a Path>,
    is_generation: bool,
    model_type: &'a str,
    architectures: [&'a str; 1],
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    has_chat_template: bool,
}

/// What the model is.
pub async fn model(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let engines = app.engines()?;
    let model = engines.model();
    let (info, config) = (model.info(), model.config());
    Ok(json::response(&ModelInfo {
        model_path: info.path.as_deref(),
        tokenizer_path: info.path.as_deref(),
        is_generation: true,
        model_type: &info.architecture,
        architectures: [&info.architecture],
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        num_hidden_layers: config.num_hidden_layers,
        has_chat_template: model.tokenizer().chat_template().is_some(),
    }))
}
