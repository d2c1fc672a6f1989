//! What can be wrong with a tokenizer, and with text given to it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a tokenizer could not be loaded, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is there and cannot be read.
    #[error("{}: cannot be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// A file that is something else than its name says.
    #[error("{}: this is {found}", .path.display())]
    Impostor {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What to try.
        help: &'static str,
    },

    /// The directory holds no tokenizer.
    #[error("{}: no tokenizer.json in this directory", .dir.display())]
    NotFound {
        /// The directory.
        dir: PathBuf,
    },

    /// The directory holds only a SentencePiece model.
    #[error("{}: a SentencePiece model, with no tokenizer.json beside it", .path.display())]
    SentencePieceOnly {
        /// The `tokenizer.model`.
        path: PathBuf,
    },

    /// The file or the GGUF metadata contradict themselves or the format.
    #[error("{place}: {problem}")]
    Malformed {
        /// File and key, or GGUF key.
        place: String,
        /// What was found and what was expected.
        problem: String,
    },

    /// The file is right, but asks for something this engine does not do.
    #[error("{place}: {found:?} is not supported; known are {known}")]
    Unsupported {
        /// File and key, or GGUF key.
        place: String,
        /// What the file asks for.
        found: String,
        /// What would have worked.
        known: String,
    },

    /// The text cannot be turned into tokens.
    #[error("the text cannot be tokenized: {reason}")]
    Encode {
        /// Why.
        reason: String,
    },
}

impl TokenizerError {
    pub(super) fn malformed(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Malformed { place: place.into(), problem: problem.into() }
    }

    pub(super) fn encode(reason: impl Into<String>) -> Self {
        Self::Encode { reason: reason.into() }
    }

    /// Names the file before the key.
    pub(super) fn in_file(mut self, path: &Path) -> Self {
        if let Self::Malformed { place, .. } | Self::Unsupported { place, .. } = &mut self {
            *place = format!("{}: {place}", path.display());
        }
        self
    }

    /// What to try next.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                Some("put a regular file there")
            }
            Self::Read { .. } => Some("check that the path is right and that you may read it"),
            Self::Impostor { help, .. } => Some(help),
            Self::NotFound { .. } => Some(
                "download tokenizer.json and tokenizer_config.json of the same model into this directory",
            ),
            Self::SentencePieceOnly { .. } => Some(
                "make a tokenizer.json with transformers, \
                 `AutoTokenizer.from_pretrained(DIR, use_fast=True).save_pretrained(DIR)`, or use a GGUF file of this model",
            ),
            Self::Malformed { .. } => {
                Some("the file may be damaged or cut short: download or convert it again")
            }
            Self::Unsupported { .. } => Some("use the tokenizer that was published with the model"),
            Self::Encode { .. } => None,
        }
    }
}
