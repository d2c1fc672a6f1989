//! `/health` and `/ready`: whether requests are answered.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use crate::error::ApiError;
use crate::json;
use crate::state::App;

/// 200, or 503 while the model is loaded, while the server drains, and when the engine stands still. It does not wait for the
/// engine.
pub async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.health()?;
    Ok(json::response(&json!({"status": "ok"})))
}
