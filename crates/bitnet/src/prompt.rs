//! What to continue.

use bitnet_model::tokenizer::{IncrementalDecoder, Message, Special, Tokenizer};

use crate::error::Error;

/// What the model continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text. The tokenizer puts its first token before it, if it has one; control tokens in it are plain text.
    Text(String),
    /// Tokens, taken as they are.
    Ids(Vec<u32>),
    /// A conversation, which the model's chat template writes; the answer comes next.
    Chat(Vec<Message>),
}

impl Prompt {
    /// The tokens.
    pub fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, Error> {
        Ok(match self {
            Self::Text(text) => tokenizer.encode(text, Special::Text, true)?,
            Self::Ids(ids) => ids.clone(),
            Self::Chat(messages) => tokenizer.encode_chat(messages, true)?,
        })
    }

    /// A decoder for what comes next: the rest of a text, or an answer, which is a text of its own.
    pub(crate) fn decoder(&self, tokenizer: &Tokenizer) -> IncrementalDecoder {
        match self {
            Self::Text(_) | Self::Ids(_) => tokenizer.decoder().continuing(),
            Self::Chat(_) => tokenizer.decoder(),
        }
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Self {
        Self::Ids(ids)
    }
}

impl From<&[u32]> for Prompt {
    fn from(ids: &[u32]) -> Self {
        Self::Ids(ids.to_vec())
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Self::Chat(messages)
    }
}
