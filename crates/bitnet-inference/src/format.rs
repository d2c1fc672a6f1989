//! What form an answer has to have, and why it cannot be asked for.

/// What form an answer has.
///
/// All but [`Text`](Self::Text) need the feature `grammar` of this library.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResponseFormat {
    /// Any text.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid by this JSON schema, itself JSON. A keyword that says what cannot be kept to is an error.
    JsonSchema(String),
    /// A text that all of matches this regular expression, in the syntax of the Rust crate `regex`, without look-around.
    Regex(String),
    /// A text of this context-free grammar in the syntax of Lark, as `llguidance` has it.
    Lark(String),
}

impl ResponseFormat {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::JsonObject => "JSON object",
            Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "Lark grammar",
        }
    }
}

/// Why an answer cannot have the form that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The program has no grammars.
    #[error("a {format} is asked for, but this program was built without grammars")]
    NotBuilt {
        /// What was asked for.
        format: &'static str,
    },
    /// A grammar is malformed, or asks for what cannot be kept to.
    #[error("the {format} cannot be used: {message}")]
    Invalid {
        /// What kind of grammar.
        format: &'static str,
        /// What is wrong with it, keywords by their names.
        message: String,
    },
    /// A grammar is larger than grammars may be.
    #[error("the {format} has {found} {unit}, but {limit} is the most")]
    TooLarge {
        /// What kind of grammar.
        format: &'static str,
        /// Of what there is too much.
        unit: &'static str,
        /// How much there is.
        found: usize,
        /// How much there may be.
        limit: usize,
    },
    /// The tokenizer's tokens cannot be searched.
    #[error("the vocabulary cannot be used for grammars: {message}")]
    Vocabulary {
        /// What is wrong with it.
        message: String,
    },
    /// The system refused the thread that reads grammars.
    #[error("no thread can be started to read the {format}: {message}")]
    Thread {
        /// What kind of grammar.
        format: &'static str,
        /// What the system said.
        message: String,
    },
}

impl FormatError {
    /// What to try next.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NotBuilt { .. } => Some("build it with the feature `grammar`"),
            Self::Invalid { .. } => Some("leave out what is not supported, or make it simpler"),
            Self::TooLarge { .. } => Some("make it simpler"),
            Self::Vocabulary { .. } | Self::Thread { .. } => None,
        }
    }
}
