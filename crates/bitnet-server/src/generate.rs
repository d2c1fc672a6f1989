//! What the endpoints that answer with text have in common.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::http::HeaderMap;
use bitnet::Prompt;
use serde::Serialize;

use crate::answers::Answers;
use crate::auth::Client;
use crate::body;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::state::{App, Engines};
use crate::translate::Asked;

/// A request whose body has come in whole.
pub struct Received {
    pub app: Arc<App>,
    pub engines: Arc<Engines>,
    pub headers: HeaderMap,
    pub client: Client,
    bytes: Vec<u8>,
}

/// Takes a request in, if there is a model that could answer it.
pub async fn receive(app: Arc<App>, request: Request) -> Result<Received, ApiError> {
    let engines = app.engines()?;
    let (mut parts, stream) = request.into_parts();
    let bytes = body::read(&parts.headers, stream, &app.config).await?;
    let client = parts.extensions.remove::<Client>().unwrap_or_default();
    Ok(Received { app, engines, headers: parts.headers, client, bytes })
}

impl Received {
    /// Does what is to be done with the fields of the body, away from the tasks that must not wait for it.
    pub async fn compute<T: Send + 'static>(
        self,
        work: impl FnOnce(&Self, Fields) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = Arc::clone(&self.app);
        app.compute(move || work(&self, Fields::body(body::json(&self.bytes)?)?)).await
    }
}

/// Has the engine begin with all answers to some prompts, which came in `field`, or with none. Without `max_tokens` an answer
/// may have what is left of the context.
pub fn begin(
    engines: &Engines,
    asked: &Asked,
    prompts: &[Prompt],
    field: &'static str,
    max_tokens: Option<usize>,
) -> Result<Answers, ApiError> {
    let failed = |error| ApiError::from_library(&error, field);
    let mut streams = Vec::with_capacity(prompts.len() * asked.n);
    for prompt in prompts {
        let model = engines.free();
        let ids = model.encode(prompt).map_err(failed)?;
        let most = room(ids.len(), max_tokens, model.info().context_length, field)?;
        for _ in 0..asked.n {
            let config = asked.config_of(streams.len(), most);
            let (ids, options) = (ids.clone(), asked.options.clone());
            let format = &asked.format;
            let stream = model.generate_stream_encoded(prompt, ids, &config, options, format);
            streams.push(stream.map_err(failed)?);
        }
    }
    Ok(Answers::new(streams, field))
}

/// Tokens that an answer to a prompt of so many tokens may have.
fn room(
    prompt: usize,
    max_tokens: Option<usize>,
    context: usize,
    field: &str,
) -> Result<usize, ApiError> {
    let answer = max_tokens.unwrap_or(1);
    match context.checked_sub(prompt).filter(|room| *room >= answer) {
        Some(room) => Ok(max_tokens.unwrap_or(room)),
        None => Err(ApiError::too_long(prompt, answer, context, field)),
    }
}

/// What all parts of an answer say about it.
#[derive(Clone, Debug, Serialize)]
pub struct Head {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<&'static str>,
}

impl Head {
    /// For a new answer, whose id begins with `prefix`.
    pub fn new(prefix: &str, object: &'static str, engines: &Engines, tier: Option<&str>) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            id: format!("{prefix}-{}", unique()),
            object,
            created,
            model: engines.name().to_owned(),
            system_fingerprint: engines.fingerprint.clone(),
            service_tier: tier.map(|tier| match tier {
                "flex" => "flex",
                "priority" => "priority",
                _ => "default",
            }),
        }
    }
}

/// 32 hexadecimal digits that nobody else has: the keys of hash maps are random.
pub fn unique() -> String {
    let half = || RandomState::new().hash_one(SystemTime::now());
    format!("{:016x}{:016x}", half(), half())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(max_tokens: Option<usize>, prompt: usize, expected: Option<usize>) {
        assert_eq!(room(prompt, max_tokens, 100, "prompt").ok(), expected);
    }

    #[test]
    fn prompt_and_answer_fit_the_context_together() {
        check(Some(40), 60, Some(40));
        check(Some(41), 60, None);
        check(Some(usize::MAX), 60, None);
        check(None, 60, Some(40));
        check(None, 99, Some(1));
        check(None, 100, None);
        check(None, 101, None);
    }

    #[test]
    fn ids_differ() {
        assert_ne!(unique(), unique());
        assert_eq!(unique().len(), 32);
    }
}
