//! What went wrong, as OpenAI's error object: `{"error": {"message", "type", "param", "code"}}`.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bitnet::{ChatError, EngineError, Error, FormatError, InvalidConfig};
use serde::Serialize;

use crate::format::field;

/// Seconds after which a place in a queue may be free.
const RETRY_AFTER: &str = "1";

/// An answer that says what is wrong. Made by the functions below, which decide on statuses and codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

/// As it goes over the wire.
#[derive(Serialize)]
struct Object<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: Some(code) }
    }

    /// Names the field that is wrong.
    pub fn param(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// A field has a value that it cannot have.
    pub fn value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).param(param)
    }

    /// A field is of another type than it should be.
    pub fn field_type(param: impl Into<String>, expected: &str, found: &str) -> Self {
        let param = param.into();
        let message =
            format!("Invalid type for '{param}': expected {expected}, but got {found} instead.");
        Self::new(StatusCode::BAD_REQUEST, "invalid_type", message).param(param)
    }

    /// A field is not there.
    pub fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Missing required parameter: '{param}'.");
        Self::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).param(param)
    }

    /// A field that nobody knows.
    pub fn unknown(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Unknown parameter: '{param}'.");
        Self::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).param(param)
    }

    /// A field that is known, and asks for what is not done here.
    pub fn unsupported(param: impl Into<String>, why: &str) -> Self {
        let param = param.into();
        let message = format!("Unsupported parameter: '{param}': {why}.");
        Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message).param(param)
    }

    /// The body is no JSON.
    pub fn json(error: &serde_json::Error) -> Self {
        let message = format!("The body of the request is no JSON: {error}.");
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    }

    /// The client closed the connection, or sent something that is no body.
    pub fn broken_body() -> Self {
        let message = "The body of the request broke off.";
        Self::new(StatusCode::BAD_REQUEST, "incomplete_body", message)
    }

    /// The body is longer than is taken.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("The body of the request has more than {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    /// The body came too slowly.
    pub fn slow_body(seconds: u64) -> Self {
        let message = format!("The body of the request was not complete within {seconds} s.");
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    /// The body is of another media type.
    pub fn media_type(found: Option<&str>) -> Self {
        let found = found.map_or_else(|| "has none".to_owned(), |found| format!("is '{found}'"));
        let message = format!("The Content-Type {found}; it should be 'application/json'.");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    /// There is nothing at this path.
    pub fn no_path(method: &str, path: &str) -> Self {
        let message = format!("Unknown request URL: {method} {path}.");
        Self::new(StatusCode::NOT_FOUND, "unknown_url", message)
    }

    /// There is something at this path, but not for this method.
    pub fn method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}; the header Allow has what it does.");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// A model of another name.
    pub fn no_model(name: &str) -> Self {
        let name = shown(name);
        let message = format!("The model '{name}' does not exist; /v1/models lists those that do.");
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message).param("model")
    }

    /// No key, or none that is known.
    pub fn key(given: bool) -> Self {
        let message = match given {
            true => "The API key is not one of this server's.",
            false => "There is no API key; send one in the header 'Authorization: Bearer KEY'.",
        };
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    /// The model is not there yet.
    pub fn loading() -> Self {
        let message = "The model is being loaded.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "loading", message)
    }

    /// The server is about to end.
    pub fn draining() -> Self {
        let message = "The server finishes what it has and takes nothing new.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", message)
    }

    /// The engine makes no progress.
    pub fn stalled(seconds: u64) -> Self {
        let message = format!("The engine has not finished a step for {seconds} s.");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stalled", message)
    }

    /// Prompt and answer have more tokens than the context.
    pub fn too_long(prompt: usize, answer: usize, context: usize, param: &str) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens. However, you requested {} tokens \
             ({prompt} in the {param}, {answer} in the completion).",
            prompt.saturating_add(answer)
        );
        Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message).param(param)
    }

    /// The answer was not complete at its deadline.
    pub fn deadline() -> Self {
        let message = "The answer was not complete before its deadline.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "deadline_exceeded", message)
    }

    /// A bug, of which the log says more.
    pub fn bug() -> Self {
        let message = "The server failed to answer; its log says why.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// What the library says of a request whose prompt is in the field `prompt`.
    pub fn from_library(error: &Error, prompt: &str) -> Self {
        let invalid = |message: String| {
            Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).param(prompt)
        };
        match error {
            Error::Config(error) => Self::setting(error),
            Error::Chat(ChatError::NoTemplate) => {
                let message =
                    "This model has no chat template; /v1/completions continues plain text.";
                Self::new(StatusCode::BAD_REQUEST, "no_chat_template", message).param(prompt)
            }
            Error::Chat(error) => invalid(sentence(error)),
            Error::Tokenizer(error) => invalid(sentence(error)),
            Error::Format(error) => Self::format(error),
            Error::Engine(error) => match error {
                EngineError::PromptTooLong { tokens, context } => {
                    Self::too_long(*tokens, 1, *context, prompt)
                }
                EngineError::EmptyPrompt | EngineError::UnknownToken { .. } => {
                    invalid(sentence(error))
                }
                EngineError::QueueFull { .. } | EngineError::QueueTokens { .. } => {
                    let message = format!("The server is busy: {error}.");
                    Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
                }
                EngineError::OutOfMemory { .. } => Self::memory(error),
                EngineError::DeadlineExceeded | EngineError::TokenTimeout { .. } => {
                    Self::deadline()
                }
                EngineError::Config(error) => Self::setting(error),
                other => Self::log(other),
            },
            Error::MemoryLimit { .. } => Self::memory(error),
            other => Self::log(other),
        }
    }

    /// A form that an answer cannot have.
    fn format(error: &FormatError) -> Self {
        match error {
            FormatError::NotBuilt { format } => {
                Self::unsupported(field(format), "this server was built without grammars")
            }
            FormatError::Invalid { format, .. } | FormatError::TooLarge { format, .. } => {
                Self::value(field(format), sentence(error))
            }
            other => Self::log(other),
        }
    }

    /// There is no memory for it now.
    fn memory(error: &dyn std::fmt::Display) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "out_of_memory", sentence(error))
    }

    /// A setting that the library does not take, under the name it has here.
    fn setting(error: &InvalidConfig) -> Self {
        let param = match error.field {
            "max_new_tokens" => "max_tokens",
            field => field,
        };
        let message =
            format!("Invalid '{param}': {}; it should be {}.", error.found, error.expected);
        Self::value(param, message)
    }

    fn log(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "a request failed");
        Self::bug()
    }

    /// The error object: the one place that makes it.
    pub fn object(&self) -> String {
        let r#type = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::REQUEST_TIMEOUT => "timeout_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let Self { message, param, code, .. } = self;
        let inner = Inner { message, r#type, param: param.as_deref(), code: *code };
        serde_json::to_string(&Object { error: inner }).expect("texts can be written")
    }
}

/// A name that somebody made up, as far as a message repeats it.
pub fn shown(name: &str) -> String {
    match name.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

fn sentence(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.object()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.status.as_u16(), 429 | 503) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
