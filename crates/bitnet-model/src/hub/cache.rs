//! The cache's layout, which is that of Python's `huggingface_hub`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    HubError, HubId,
    id::{check_file, is_commit},
};

/// One repository's folder in the cache.
pub struct Repo {
    root: PathBuf,
    locks: PathBuf,
}

impl Repo {
    pub fn new(cache: &Path, id: &HubId) -> Self {
        let name = format!("models--{}--{}", id.owner, id.name);
        Self { root: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The commit of a revision, as it was when it was last downloaded.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_parent(&path)?;
        fs::write(&path, commit).map_err(HubError::io(&path))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub fn file(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot(commit).join(file)
    }

    /// All files of a snapshot whose contents are there, by their names in the repository.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let mut files = Vec::new();
        list(&self.snapshot(commit), "", &mut files);
        files.sort();
        files
    }

    /// A file's contents.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// A file's contents as far as they have come.
    pub fn partial(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Waits until no other process downloads the same contents. The lock ends with the value.
    pub fn lock(&self, etag: &str) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        create_parent(&self.blob(etag))?;
        let file = File::create(&path).map_err(HubError::io(&path))?;
        match file.lock() {
            // Some network drives have no locks; then two downloads at once are not found out.
            Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                Err(HubError::Io { path, source: error })
            }
            _ => Ok(file),
        }
    }

    /// Gives contents a name in a snapshot.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.file(commit, file);
        create_parent(&path)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(HubError::Io { path, source: error });
            }
            _ => {} // a link to contents that someone has deleted
        }
        link(&path, file, &self.blob(etag)).map_err(HubError::io(&path))
    }
}

/// A relative link, so that the cache may be moved.
#[cfg(unix)]
fn link(path: &Path, file: &str, blob: &Path) -> io::Result<()> {
    let up = "../".repeat(2 + file.matches('/').count());
    let name = blob.file_name().expect("a blob has its hash as its name");
    std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(name), path)
}

/// Links need a privilege on Windows: there, as `huggingface_hub` does, the contents move to the name.
#[cfg(not(unix))]
fn link(path: &Path, _file: &str, blob: &Path) -> io::Result<()> {
    fs::rename(blob, path)
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().expect("files of the cache have parents");
    fs::create_dir_all(parent).map_err(HubError::io(parent))
}

fn list(directory: &Path, prefix: &str, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = format!("{prefix}{name}");
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir()); // not through links
        if is_directory {
            list(&entry.path(), &format!("{name}/"), files);
        } else if entry.path().is_file() && check_file(&name).is_ok() {
            files.push(name);
        }
    }
}
