//! `/v1/loads`: what each engine has to do, in SGLang's shape, which gateways read.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::response::Response;
use bitnet::{BitNetModel, PAGE_TOKENS};
use serde::Serialize;

use crate::error::ApiError;
use crate::json;
use crate::state::App;

#[derive(Serialize)]
struct Loads {
    /// Seconds since 1970.
    timestamp: f64,
    dp_rank_count: usize,
    loads: Vec<Load>,
}

/// An engine. SGLang calls it a rank.
#[derive(Serialize)]
struct Load {
    dp_rank: usize,
    num_running_reqs: usize,
    num_waiting_reqs: usize,
    num_waiting_uncached_tokens: usize,
    num_total_reqs: usize,
    num_used_tokens: usize,
    max_total_num_tokens: usize,
    /// Part of the cache that requests hold.
    token_usage: f64,
    /// Tokens per second of late.
    gen_throughput: f64,
    /// Part of the tokens of prompts that were in the cache, since the start.
    cache_hit_rate: f64,
    /// Part of the places for requests that are taken.
    utilization: f64,
    max_running_requests: usize,
}

fn load(dp_rank: usize, model: &BitNetModel, gen_throughput: f64) -> Load {
    let (stats, limits) = (model.stats(), model.limits());
    let part = |some: f64, all: f64| if all > 0.0 { some / all } else { 0.0 };
    let max_running_requests = limits.max_batch_size;
    Load {
        dp_rank,
        num_running_reqs: stats.running,
        num_waiting_reqs: stats.waiting,
        num_waiting_uncached_tokens: stats.waiting_tokens,
        num_total_reqs: stats.running + stats.waiting,
        num_used_tokens: stats.kv_pages_used * PAGE_TOKENS,
        max_total_num_tokens: stats.kv_pages * PAGE_TOKENS,
        token_usage: part(stats.kv_pages_used as f64, stats.kv_pages as f64),
        gen_throughput,
        cache_hit_rate: part(stats.cached_tokens as f64, stats.prompt_tokens as f64),
        utilization: part(stats.running as f64, max_running_requests as f64),
        max_running_requests,
    }
}

/// All engines.
pub async fn loads(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let engines = app.engines()?;
    engines.look();
    let loads: Vec<Load> = engines
        .all()
        .enumerate()
        .map(|(rank, (model, tokens_per_second))| load(rank, model, tokens_per_second))
        .collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (timestamp, dp_rank_count) = (now.as_secs_f64(), loads.len());
    Ok(json::response(&Loads { timestamp, dp_rank_count, loads }))
}
