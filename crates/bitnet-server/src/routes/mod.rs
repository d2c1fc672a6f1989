//! The paths, a module for each.

mod chat;
mod completions;
mod health;
mod models;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware;
use axum::routing::{get, post};

use crate::error::ApiError;
use crate::front;
use crate::state::App;

/// Paths that need no key and answer while the server drains.
pub const PROBES: [&str; 2] = ["/health", "/ready"];

/// All paths, behind what all of them have in common.
pub fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::health))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(Arc::clone(app), front::front))
        .with_state(Arc::clone(app))
}

async fn no_path(request: Request) -> ApiError {
    ApiError::no_path(request.method().as_str(), request.uri().path())
}

async fn no_method(request: Request) -> ApiError {
    ApiError::method(request.method().as_str(), request.uri().path())
}
