//! `hf:owner/name` → files on this disk: from Hugging Face's cache if they are there, else downloaded into it.
//!
//! The cache has the layout of Python's `huggingface_hub`, and both use each other's files: `blobs/` holds contents by
//! hash, `snapshots/COMMIT/` links names to them, `refs/` turns branches into commits. A blob gets its name only when its
//! hash is right, so what has its name is whole; an interrupted download stays beside it as `.incomplete` and is continued.
//!
//! The crate `hf-hub` was weighed: 0.5 compares no hashes and asks the environment, and 1.0 brings an asynchronous stack of
//! 280 crates and a TLS library that wants cmake.

mod cache;
mod choice;
mod client;
mod error;
mod id;

use std::{fmt, path::PathBuf, time::Duration};

use self::{
    cache::Repo,
    choice::{Choice, Weights},
    client::Client,
};
pub use self::{error::HubError, id::HubId};

/// Where models come from and where they are kept.
#[derive(Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// The cache: the folder that holds `models--OWNER--NAME`.
    pub cache: PathBuf,
    /// Sent to `endpoint`, and to no other host, with every request.
    pub token: Option<String>,
    /// Take what is in the cache and never ask the network.
    pub offline: bool,
    /// Address of an HTTP proxy that all requests go through.
    pub proxy: Option<String>,
    /// Wait before the first repetition of a request that failed in passing; each further one takes twice as long.
    pub retry_delay: Duration,
    /// How long connecting may take, and the beginning of an answer. A request that failed is not repeated any more when it has
    /// taken this long in all, so that a hub that does not answer is given up within twice the time.
    pub patience: Duration,
}

impl HubConfig {
    /// Hugging Face's own hub, without a token.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: "https://huggingface.co".into(),
            cache: cache.into(),
            token: None,
            offline: false,
            proxy: None,
            retry_delay: Duration::from_millis(500),
            patience: Duration::from_secs(15),
        }
    }
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "(secret)"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// How far the download of one file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubProgress<'a> {
    /// The file's name in its repository.
    pub file: &'a str,
    /// Bytes on this disk.
    pub done: u64,
    /// Bytes in all, if the hub has said so.
    pub total: Option<u64>,
}

/// What happens between requests and answers, for one who waits.
#[derive(Clone, Copy, Debug)]
pub enum HubEvent<'a> {
    /// The hub is asked for a model.
    Asking {
        /// The address.
        url: &'a str,
    },
    /// A request failed in passing and is made again.
    Retrying {
        /// Why it failed.
        error: &'a HubError,
        /// After how long.
        wait: Duration,
    },
}

/// A model on this disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What a checkpoint opens: a .gguf file, or the directory of config.json and safetensors.
    pub path: PathBuf,
    /// The commit that the files belong to.
    pub commit: String,
    /// Bytes that came over the network just now.
    pub downloaded: u64,
}

/// Finds and fetches models.
pub struct Hub {
    config: HubConfig,
    client: Client,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hub").field(&self.config).finish() // not the client, which holds the token
    }
}

impl Hub {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// If the address of the proxy is none.
    pub fn new(config: HubConfig) -> Result<Self, HubError> {
        let client = Client::new(&config)?;
        Ok(Self { config, client })
    }

    /// Calls `tell` with what happens meanwhile.
    pub fn with_events(mut self, tell: impl Fn(HubEvent<'_>) + Send + Sync + 'static) -> Self {
        self.client.tell = Box::new(tell);
        self
    }

    /// The files of a model: from the cache, without asking the network, if a whole model is there; else downloaded.
    pub fn resolve(
        &self,
        id: &HubId,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<Resolved, HubError> {
        let repo = Repo::new(&self.config.cache, id);
        if let Some(found) = cached(&repo, id) {
            return Ok(found);
        }
        if self.config.offline {
            return Err(HubError::Offline { id: Box::new(id.clone()), cache: repo.root().into() });
        }
        self.download(&repo, id, progress).map_err(|error| error.with_place(id, repo.root()))
    }

    fn download(
        &self,
        repo: &Repo,
        id: &HubId,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<Resolved, HubError> {
        let listing = self.client.listing(id)?;
        let mut fetch =
            Fetch { hub: self, repo, id, commit: &listing.commit, downloaded: 0, progress };
        let choice = choice::choose(id, &listing.files)?;
        // Weights come last, so that a model whose weights are there is whole.
        choice.beside_weights.iter().try_for_each(|file| fetch.file(file))?;
        match &choice.weights {
            Weights::File(file) => fetch.file(file)?,
            Weights::Index(index) => {
                fetch.file(index)?;
                let shards = choice::shards(&repo.file(&listing.commit, index))?;
                shards.iter().try_for_each(|shard| fetch.file(shard))?;
            }
        }
        let downloaded = fetch.downloaded;
        repo.set_commit(&id.revision, &listing.commit)?;
        Ok(Resolved {
            path: path(repo, &listing.commit, &choice),
            commit: listing.commit,
            downloaded,
        })
    }
}

/// What a checkpoint is opened with.
fn path(repo: &Repo, commit: &str, choice: &Choice) -> PathBuf {
    match (&choice.weights, choice.whole_directory) {
        (Weights::File(file), false) => repo.file(commit, file),
        _ => repo.snapshot(commit),
    }
}

/// The model as the cache has it, if nothing of it is missing.
fn cached(repo: &Repo, id: &HubId) -> Option<Resolved> {
    let commit = repo.commit(&id.revision)?;
    let choice = choice::choose(id, &repo.files(&commit)).ok()?;
    if let Weights::Index(index) = &choice.weights {
        let shards = choice::shards(&repo.file(&commit, index)).ok()?;
        shards.iter().all(|shard| repo.file(&commit, shard).is_file()).then_some(())?;
    }
    Some(Resolved { path: path(repo, &commit, &choice), commit, downloaded: 0 })
}

/// The downloads of one model.
struct Fetch<'a> {
    hub: &'a Hub,
    repo: &'a Repo,
    id: &'a HubId,
    commit: &'a str,
    downloaded: u64,
    progress: &'a mut dyn FnMut(HubProgress<'_>),
}

impl Fetch<'_> {
    fn file(&mut self, file: &str) -> Result<(), HubError> {
        if self.repo.file(self.commit, file).is_file() {
            return Ok(());
        }
        let remote = self.hub.client.remote(self.id, self.commit, file)?;
        let blob = self.repo.blob(&remote.etag);
        let _lock = self.repo.lock(&remote.etag)?; // another process may want the same file
        if !blob.is_file() {
            let partial = self.repo.partial(&remote.etag);
            self.downloaded += self.hub.client.fetch(&remote, &partial, self.progress)?;
            std::fs::rename(&partial, &blob).map_err(HubError::io(&blob))?;
        }
        self.repo.link(self.commit, file, &remote.etag)
    }
}

#[cfg(test)]
mod tests;
