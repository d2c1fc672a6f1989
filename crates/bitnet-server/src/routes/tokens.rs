//! `/tokenize` and `/detokenize`: text to token ids and back, in vLLM's shapes.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bitnet::{ChatError, Error, Special, Tokenizer};
use serde::Serialize;

use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::generate::{Received, receive};
use crate::state::App;
use crate::{json, messages};

#[derive(Serialize)]
struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Text {
    prompt: String,
}

/// The tokens of a text, or of a conversation.
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let tokens = receive(app, request).await?.compute(tokens).await?;
    Ok(json::response(&tokens))
}

fn tokens(request: &Received, mut fields: Fields) -> Result<Tokens, ApiError> {
    let model = request.engines.model();
    request.engines.check_name(fields.string("model")?.as_deref())?;
    let strings = fields.bool("return_token_strs")?.unwrap_or(false);
    let tokenizer = model.tokenizer();
    let tokens = match fields.string("prompt")? {
        Some(text) => of_text(&text, tokenizer, &mut fields)?,
        None => of_messages(tokenizer, &mut fields)?,
    };
    fields.end()?;
    let string = |id: &u32| tokenizer.id_to_token(*id).unwrap_or_default().to_owned();
    Ok(Tokens {
        count: tokens.len(),
        max_model_len: model.info().context_length,
        token_strs: strings.then(|| tokens.iter().map(string).collect()),
        tokens,
    })
}

fn of_text(text: &str, tokenizer: &Tokenizer, fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let special = fields.bool("add_special_tokens")?.unwrap_or(true);
    let ids = tokenizer.encode(text, Special::Text, special);
    ids.map_err(|error| ApiError::from_library(&Error::Tokenizer(error), "prompt"))
}

fn of_messages(tokenizer: &Tokenizer, fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let Some(messages) = messages::read(fields)? else { return Err(ApiError::missing("prompt")) };
    let answer = fields.bool("add_generation_prompt")?.unwrap_or(true);
    let failed = |error: ChatError| ApiError::from_library(&Error::Chat(error), "messages");
    tokenizer.encode_chat(&messages, answer).map_err(failed)
}

/// The text of tokens.
pub async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let text = receive(app, request).await?.compute(text).await?;
    Ok(json::response(&text))
}

fn text(request: &Received, mut fields: Fields) -> Result<Text, ApiError> {
    request.engines.check_name(fields.string("model")?.as_deref())?;
    let tokens = fields.array("tokens")?.ok_or_else(|| ApiError::missing("tokens"))?;
    let ids = fields::ids(&tokens, "tokens")?;
    fields.end()?;
    let tokenizer = request.engines.model().tokenizer();
    let size = tokenizer.vocab_size();
    match ids.iter().position(|&id| id as usize >= size) {
        None => Ok(Text { prompt: tokenizer.decode(&ids, false) }),
        Some(index) => {
            let path = format!("tokens[{index}]");
            let message =
                format!("Invalid '{path}': {}; token ids end at {}.", ids[index], size - 1);
            Err(ApiError::value(path, message))
        }
    }
}
