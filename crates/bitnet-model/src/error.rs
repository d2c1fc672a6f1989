//! Why a model was not loaded.

use std::path::{Path, PathBuf};

use crate::format::{impostor::Impostor, ternary::TernaryError};

/// A model that cannot be loaded: where, what was found, what was expected; [`help`](Self::help) says what to try.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The operating system refused.
    #[error("{}: cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A path where no model is.
    #[error("{}: {found}, but a model is a .gguf file or a directory with config.json and safetensors files", .path.display())]
    NoModel {
        /// The path.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A file that is something else than its name says.
    #[error("{}: this is {found}, but {expected} is needed", .path.display())]
    Impostor {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What should be there.
        expected: &'static str,
        /// What to try.
        help: &'static str,
    },
    /// The file ends before something that it announces.
    #[error("{}: {what} needs {needed} bytes from byte {offset} on, but the file has {size}", .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What would be there.
        what: String,
        /// Where it starts.
        offset: u64,
        /// Its length in bytes.
        needed: u64,
        /// Length of the file.
        size: u64,
    },
    /// The container breaks its own format.
    #[error("{}: {place} is {found}, but it should be {expected}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which part.
        place: String,
        /// What it holds.
        found: String,
        /// What the format demands.
        expected: String,
    },
    /// A file that is no JSON.
    #[error("{}: not the JSON that it should be", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A key of the configuration or metadata has a value that no model can have.
    #[error("{}: `{key}` is {found}, but it should be {expected}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A key without which the model is not known.
    #[error("{}: `{key}` is missing; it should be {expected}", .path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would do.
        expected: String,
    },
    /// A weight that the architecture needs.
    #[error("{}: tensor `{name}` is missing; {architecture} needs it as {expected:?}", .path.display())]
    MissingTensor {
        /// The file or directory.
        path: PathBuf,
        /// The tensor, under the name that this kind of file would give it.
        name: String,
        /// The architecture as the file names it.
        architecture: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// A weight that would change the model's results and that the engine does not know.
    #[error("{}: tensor `{name}` is unexpected: {reason}", .path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why it cannot be left out.
        reason: String,
    },
    /// The file declares a shape that the architecture cannot have.
    #[error("{}: tensor `{name}` is {found:?}, but {architecture} needs {expected:?}", .path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The architecture as the file names it.
        architecture: String,
        /// The shape in the file, rows first.
        found: Vec<usize>,
        /// The shape from the configuration.
        expected: Vec<usize>,
    },
    /// A tensor stored in a way that does not fit its place.
    #[error("{}: tensor `{name}` is stored as {found}, but {expected} is needed", .path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// How it is stored.
        found: String,
        /// What would do.
        expected: String,
    },
    /// Weights that are not ternary, or scales that are no numbers.
    #[error("{}: tensor `{name}` does not hold ternary weights", .path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with them.
        source: TernaryError,
    },
    /// Something well-formed that the engine does not do.
    #[error("{}: {what} is not supported: {reason}", .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature by name.
        what: String,
        /// Why.
        reason: String,
        /// What to try.
        help: String,
    },
}

impl LoadError {
    pub(crate) fn impostor(path: &Path, impostor: Impostor, expected: &'static str) -> Self {
        Self::Impostor { path: path.into(), found: impostor.what, expected, help: impostor.help }
    }

    /// The next thing to try.
    pub fn help(&self) -> &str {
        match self {
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => {
                    "check the path; a Hugging Face id has to be downloaded first"
                }
                std::io::ErrorKind::PermissionDenied => "give yourself permission to read it",
                std::io::ErrorKind::InvalidInput => "put a regular file there",
                _ => "check the disk, or copy the file and try the copy",
            },
            Self::NoModel { .. } => {
                "name the .gguf file, or the directory that holds config.json and model.safetensors"
            }
            Self::Impostor { help, .. } => help,
            Self::Truncated { .. } => {
                "the download or copy is probably incomplete: compare its size with the source's and fetch it again"
            }
            Self::Malformed { .. } => {
                "the file is damaged, or the tool that wrote it has a bug: fetch or convert it again"
            }
            Self::Json { .. } => "open the file and look at the place, or fetch it again",
            Self::Key { .. } => "correct the value, or convert the model again",
            Self::MissingKey { .. } => "add the key, or convert the model again with current tools",
            Self::MissingTensor { .. } => {
                "the file is incomplete or of another architecture than it says: fetch or convert it again"
            }
            Self::UnexpectedTensor { .. } => {
                "use a model of a supported architecture: BitNet b1.58, or Llama with ternary weights"
            }
            Self::Shape { found, expected, .. } if is_other_layout(found, expected) => {
                "the tensor has the shape of another byte order of packed weights: choose it with the option for the packed layout (--packed-layout, `packed_layout`)"
            }
            Self::Shape { .. } => {
                "the configuration and the weights belong to different models: take both from one place"
            }
            Self::Encoding { .. } => {
                "convert the model again: ternary linear layers as I2_S, TQ1_0, TQ2_0 or packed uint8, embedding and head as F16, BF16, Q8_0 or Q6_K"
            }
            Self::Weights { .. } => {
                "the weights are damaged, or were never ternary: fetch the model again, or convert it from its bf16 master weights"
            }
            Self::Unsupported { help, .. } => help,
        }
    }
}

/// Whether a packed matrix `[rows / 4, cols]` is there where `[rows, cols / 4]` was expected, or the other way round.
fn is_other_layout(found: &[usize], expected: &[usize]) -> bool {
    match (found, expected) {
        (&[rows, cols], &[more_rows, fewer_cols]) => {
            let fits = |a: usize, b: usize| a.checked_mul(4) == Some(b);
            (fits(rows, more_rows) && fits(fewer_cols, cols))
                || (fits(more_rows, rows) && fits(cols, fewer_cols))
        }
        _ => false,
    }
}
