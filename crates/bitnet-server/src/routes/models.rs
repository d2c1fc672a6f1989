//! `/v1/models`: what can be asked.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;

use crate::error::ApiError;
use crate::json;
use crate::state::{App, Engines};

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The model's own name.
    root: &'a str,
    parent: Option<&'a str>,
    max_model_len: usize,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

fn model<'a>(engines: &'a Engines, id: &'a str) -> Model<'a> {
    let info = engines.model().info();
    Model {
        id,
        object: "model",
        created: engines.created,
        owned_by: "bitnet",
        root: &info.name,
        parent: None,
        max_model_len: info.context_length,
    }
}

/// All names of the model.
pub async fn list(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let engines = app.engines()?;
    let data = engines.names.iter().map(|name| model(&engines, name)).collect();
    Ok(json::response(&List { object: "list", data }))
}

/// One of them. A name may have slashes in it.
pub async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let engines = app.engines()?;
    engines.check_name(Some(&id))?;
    Ok(json::response(&model(&engines, &id)))
}
