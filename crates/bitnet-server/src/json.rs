//! Answers in JSON.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::Serialize;

/// A value as a response.
pub fn response(value: &impl Serialize) -> Response {
    let json = serde_json::to_vec(value).expect("answers are objects of texts and numbers");
    let mut response = Response::new(Body::from(json));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
