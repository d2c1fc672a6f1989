//! Why a model was not found or fetched.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::HubId;

/// A model that is not there: what was looked for, where, what was found; [`help`](Self::help) says what to try.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Not an id.
    #[error("`{given}` names no model on the hub: {problem}")]
    Id {
        /// What was given.
        given: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No cache was named where models could be kept.
    #[error("{id} cannot be looked up: it is not known where downloaded models are kept")]
    NoCache {
        /// The model.
        id: Box<HubId>,
    },
    /// A setting that cannot be used.
    #[error("`{given}` is no address of a proxy")]
    Proxy {
        /// What was given.
        given: String,
    },
    /// Not in the cache, and the network was not to be asked.
    #[error("{id} is not in the cache {} and downloads are switched off", .cache.display())]
    Offline {
        /// The model.
        id: Box<HubId>,
        /// Where it would be.
        cache: PathBuf,
    },
    /// Not in the cache, and the hub does not answer.
    #[error("{id} is not in the cache {} and {url} does not answer", .cache.display())]
    Unreachable {
        /// The model.
        id: Box<HubId>,
        /// Where it would be.
        cache: PathBuf,
        /// What was asked.
        url: String,
        /// What the network said.
        source: io::Error,
    },
    /// A request or download that broke off.
    #[error("the connection to {url} broke")]
    Connection {
        /// What was asked.
        url: String,
        /// What the network said.
        source: io::Error,
    },
    /// The hub refuses.
    #[error("{url} answered with status {status}{}", .reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})")))]
    Status {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The hub's own word for it.
        reason: Option<String>,
    },
    /// The hub answers something else than a hub would.
    #[error("{url} answered with {found}, but expected was {expected}")]
    Answer {
        /// What was asked.
        url: String,
        /// What came.
        found: String,
        /// What should have come.
        expected: String,
    },
    /// The repository does not have the file.
    #[error("{id}: there is no such file; there are {}", list(.files))]
    NoSuchFile {
        /// The model.
        id: Box<HubId>,
        /// What there is.
        files: Vec<String>,
    },
    /// More than one model in a repository.
    #[error("{id} has several GGUF files: {}", list(.files))]
    SeveralModels {
        /// The model.
        id: Box<HubId>,
        /// The files.
        files: Vec<String>,
    },
    /// No model in a repository.
    #[error("{id} has neither a GGUF file nor config.json with safetensors; there are {}", list(.files))]
    NoModel {
        /// The model.
        id: Box<HubId>,
        /// What there is.
        files: Vec<String>,
    },
    /// A file of another length than announced.
    #[error("{file}: {found} bytes came, but {expected} were announced")]
    Size {
        /// The file's address.
        file: String,
        /// Its length.
        found: u64,
        /// The length that the hub had named.
        expected: u64,
    },
    /// A file with other contents than announced.
    #[error("{file}: its {algorithm} is {found}, but {expected} was announced")]
    Checksum {
        /// The file's address.
        file: String,
        /// The hash function.
        algorithm: &'static str,
        /// What the contents give.
        found: String,
        /// What the hub had named.
        expected: String,
    },
    /// The cache cannot be read or written.
    #[error("{}: the cache cannot be used", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The first names of a list, which may be long.
fn list(files: &[String]) -> String {
    const SHOWN: usize = 12;
    match files {
        [] => "no files".into(),
        _ if files.len() > SHOWN => {
            format!("{} and {} more", files[..SHOWN].join(", "), files.len() - SHOWN)
        }
        _ => files.join(", "),
    }
}

impl HubError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }

    /// Tells what was looked for and where, if the hub could not be reached at all.
    pub(super) fn with_place(self, id: &HubId, cache: &Path) -> Self {
        match self {
            Self::Connection { url, source } => {
                Self::Unreachable { id: Box::new(id.clone()), cache: cache.into(), url, source }
            }
            other => other,
        }
    }

    /// Whether the same request may succeed in a moment.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502..=504),
            // A refused connection or an unknown host will be refused again.
            Self::Connection { source, .. } => {
                !matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
            }
            _ => false,
        }
    }

    /// The next thing to try.
    pub fn help(&self) -> String {
        match self {
            Self::Id { .. } => {
                "write hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE.gguf".into()
            }
            Self::NoCache { .. } => {
                "name a cache directory with `ModelBuilder::with_hub`, or give the path of a file".into()
            }
            Self::Proxy { .. } => "write http://HOST:PORT".into(),
            Self::Offline { id, .. } => format!(
                "allow downloads once, or fetch {} on another machine and give the path of the file",
                id.repo()
            ),
            Self::Unreachable { id, .. } => format!(
                "check the network and the proxy, name a mirror as endpoint, or fetch {} on another machine and give the path of the file",
                id.repo()
            ),
            Self::Connection { .. } => {
                "run the same command again: the download continues where it stopped".into()
            }
            Self::Status { status: 401 | 403, .. } => {
                "the repository does not exist, or it is private or gated: check its name, accept its terms on the hub, and give a token".into()
            }
            Self::Status { status: 404, .. } => {
                "check the owner, the name and the revision".into()
            }
            Self::Status { .. } => "the hub has a problem or limits requests: try again later".into(),
            Self::Answer { .. } => {
                "check the endpoint; a login page of the network may stand in between".into()
            }
            Self::NoSuchFile { .. } | Self::SeveralModels { .. } => {
                "name the file: hf:OWNER/NAME/FILE.gguf".into()
            }
            Self::NoModel { .. } => {
                "take a repository of a ternary model in GGUF (I2_S, TQ1_0, TQ2_0) or safetensors".into()
            }
            Self::Size { .. } | Self::Checksum { .. } => {
                "the file was damaged on its way and has been removed: try again, or another endpoint".into()
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space, or keep the cache on another disk".into()
            }
            Self::Io { .. } => "check that the cache directory exists and belongs to you".into(),
        }
    }
}
