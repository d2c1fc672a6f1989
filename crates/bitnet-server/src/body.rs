//! Bodies of requests: read within a size and a time, as JSON.

use std::future::poll_fn;
use std::pin::Pin;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use futures_core::Stream;
use serde_json::Value;

use crate::config::ServerConfig;
use crate::error::ApiError;

/// The bytes of a body that says it is JSON.
pub async fn read(
    headers: &HeaderMap,
    body: Body,
    config: &ServerConfig,
) -> Result<Vec<u8>, ApiError> {
    check_type(headers)?;
    let limit = config.max_body_bytes;
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if declared.and_then(|length| length.parse().ok()).is_some_and(|length: usize| length > limit) {
        return Err(ApiError::too_large(limit));
    }
    match tokio::time::timeout(config.body_timeout, collect(body, limit)).await {
        Ok(bytes) => bytes,
        Err(_) => Err(ApiError::slow_body(config.body_timeout.as_secs())),
    }
}

async fn collect(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let (mut parts, mut bytes) = (body.into_data_stream(), Vec::new());
    while let Some(part) = poll_fn(|context| Pin::new(&mut parts).poll_next(context)).await {
        let part = part.map_err(|_| ApiError::broken_body())?;
        if bytes.len() + part.len() > limit {
            return Err(ApiError::too_large(limit));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = text.map(|text| text.split(';').next().unwrap_or_default().trim());
    match kind {
        Some(kind) if kind.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => Err(ApiError::media_type(kind)),
    }
}

/// The value that the bytes describe. Nesting is limited by the parser.
pub fn json(bytes: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| ApiError::json(&error))
}
