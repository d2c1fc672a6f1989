//! What can go wrong between a request and its text.

use crate::sampler::SampleError;

/// A setting with a value that it cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is {found}; it should be {expected}")]
pub struct InvalidConfig {
    /// Name of the field.
    pub field: &'static str,
    /// Its value.
    pub found: String,
    /// What would do.
    pub expected: String,
}

impl InvalidConfig {
    pub(crate) fn new(
        field: &'static str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self { field, found: found.to_string(), expected: expected.into() }
    }
}

/// Why a request got no answer, or only part of one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Nothing to go on from.
    #[error("the prompt is empty: there is no token to continue from")]
    EmptyPrompt,
    /// The prompt has more tokens than the model can look back on.
    #[error("the prompt has {}, but the context has room for {context}", count(*.tokens))]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: usize,
        /// Tokens that a sequence may have.
        context: usize,
    },
    /// A token that the model does not have.
    #[error("token id {id} at position {position} is not in the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The token.
        id: u32,
        /// Where it stands in the prompt.
        position: usize,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// As many requests are waiting as may wait.
    #[error("{waiting} requests are waiting already, which is the limit")]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
    },
    /// The prompts of those that wait have as many tokens as they may have.
    #[error(
        "the prompts of the {waiting} requests that wait have {tokens} tokens; with this one they would have more than {limit}"
    )]
    QueueTokens {
        /// Requests that wait.
        waiting: usize,
        /// Their tokens.
        tokens: usize,
        /// Most of them.
        limit: usize,
    },
    /// The deadline came before the turn.
    #[error("the request did not begin before its deadline")]
    DeadlineExceeded,
    /// A token came later than it may come after the one before it.
    #[error("the next token did not come within {timeout_ms} ms")]
    TokenTimeout {
        /// The time allowed.
        timeout_ms: u64,
    },
    /// The model gave something that no token can be drawn from.
    #[error("no token can be drawn after {}", count(*.tokens))]
    Sample {
        /// Tokens before it.
        tokens: usize,
        /// What was wrong.
        source: SampleError,
    },
    /// What the request needs is more memory than there is, also when no other request has any.
    #[error("there is no memory for the keys and values of {}", count(*.tokens))]
    OutOfMemory {
        /// Tokens so far, of prompt and answer.
        tokens: usize,
    },
    /// A computation broke off. The engine lives on.
    #[error("a bug in the engine ended this request: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// The engine's thread is not there any more.
    #[error("the engine has stopped")]
    Stopped,
    /// The system refused a thread.
    #[error("the engine's thread cannot be started: {message}")]
    Thread {
        /// What the system said.
        message: String,
    },
    /// Settings that do not fit the model.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
}

impl EngineError {
    /// What to try next.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::EmptyPrompt => {
                "give some text; this model's tokenizer puts no token of its own before it".into()
            }
            Self::PromptTooLong { tokens, context } => {
                format!(
                    "shorten it by {} or raise max_seq_len if the model allows more",
                    count(tokens - context)
                )
            }
            Self::UnknownToken { .. } => {
                "use the tokenizer that was published with this model".into()
            }
            Self::QueueFull { .. } => {
                "try again when a request has finished, or raise max_waiting".into()
            }
            Self::QueueTokens { .. } => {
                "try again when a request has finished, or raise max_waiting_tokens".into()
            }
            Self::DeadlineExceeded => {
                "allow more time, send fewer requests at once, or give this one a higher priority"
                    .into()
            }
            Self::OutOfMemory { .. } => {
                "shorten it, raise the memory limit, or try again when less memory is in use".into()
            }
            Self::TokenTimeout { .. } => {
                "raise token_timeout_ms, or send fewer requests at once".into()
            }
            Self::Sample { .. } => {
                "the weights may be damaged or read in a wrong layout; compare the file's checksum"
                    .into()
            }
            Self::Panicked { .. } => "please report it with the prompt and the model's name".into(),
            Self::Stopped | Self::Thread { .. } | Self::Config(_) => return None,
        })
    }
}

/// `1 token`, `2 tokens`.
fn count(tokens: usize) -> String {
    format!("{tokens} token{}", if tokens == 1 { "" } else { "s" })
}
