//! The paths, a module for each.

mod chat;
mod completions;
mod health;
mod info;
mod loads;
mod metrics;
mod models;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware;
use axum::routing::{MethodRouter, get, post};

use crate::error::ApiError;
use crate::front;
use crate::state::App;

/// Paths that need no key and answer while the server drains.
pub const PROBES: [&str; 2] = ["/health", "/ready"];

type Path = (&'static str, fn() -> MethodRouter<Arc<App>>);

const PATHS: [Path; 12] = [
    (PROBES[0], || get(health::health)),
    (PROBES[1], || get(health::health)),
    ("/metrics", || get(metrics::metrics)),
    ("/model_info", || get(info::model)),
    ("/server_info", || get(info::server)),
    ("/v1/loads", || get(loads::loads)),
    ("/v1/models", || get(models::list)),
    ("/v1/models/{*id}", || get(models::one)),
    ("/tokenize", || post(tokens::tokenize)),
    ("/detokenize", || post(tokens::detokenize)),
    ("/v1/chat/completions", || post(chat::create)),
    ("/v1/completions", || post(completions::create)),
];

/// All paths, behind what all of them have in common.
pub fn router(app: &Arc<App>) -> Router {
    let routed = PATHS.iter().fold(Router::new(), |router, (path, at)| router.route(path, at()));
    routed
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(Arc::clone(app), front::front))
        .with_state(Arc::clone(app))
}

/// The path that a request's path is counted under.
pub fn counted_as(path: &str) -> &'static str {
    let known = PATHS.iter().map(|(known, _)| *known).find(|known| match known.split_once('{') {
        None => *known == path,
        Some((begin, _)) => path.starts_with(begin),
    });
    known.unwrap_or("other")
}

async fn no_path(request: Request) -> ApiError {
    ApiError::no_path(request.method().as_str(), request.uri().path())
}

async fn no_method(request: Request) -> ApiError {
    ApiError::method(request.method().as_str(), request.uri().path())
}
