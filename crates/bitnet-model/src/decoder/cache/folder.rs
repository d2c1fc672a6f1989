//! The folder of a cache: which files there are ours, what they take, and which of them may go.

use std::fs::{self, DirEntry, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, SystemTime};

use crate::format::packed::{self, UNFINISHED, sum::sum};

/// The ending of files of packed weights.
const WEIGHTS: &str = "bitnet-packed";

/// The ending of files with an answer that was found by timing.
const NOTE: &str = "note";

/// Packing so many bytes takes some 50 ms, which is little beside what starting a program takes.
const WORTH_KEEPING: u64 = 64 << 20;

/// Room for some five to ten models of 2 to 3 billion weights; as much as sccache takes.
const ROOM: u64 = 10 << 30;

/// A file that nobody has finished in this time is left over from a process that was killed.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Where packed weights are kept between loads.
///
/// There is one file for each model, packing and form of the output head. A changed model's file is replaced, and those of
/// models that are gone are deleted when another is written. Where all together would take more than [`Self::max_bytes`],
/// those that were not used for the longest time go first. What a running program computes with stays, as far as the system
/// has locks for files, and so does all that is not the cache's. Deleting the folder is always safe. Nothing is written
/// where it would take more than half of what is free on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedCache {
    /// The folder; made when it is needed.
    pub folder: PathBuf,
    /// Models with fewer bytes of packed weights are packed each time.
    pub min_bytes: u64,
    /// Bytes that all files of packed weights may have together, 10 GiB by default. It is looked at when one is written, and
    /// one that is larger than this is not.
    pub max_bytes: u64,
}

/// A file in the folder of a [`PackedCache`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub kind: CachedKind,
    /// Its length.
    pub bytes: u64,
    /// When weights were last taken from it, or it was written.
    pub last_used: SystemTime,
}

/// What a file of a [`PackedCache`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachedKind {
    /// Packed weights of a model.
    Weights,
    /// The answer to a question that takes long, such as which packing is faster here.
    Note,
    /// Something that is being written, or was when its program ended.
    Unfinished,
}

/// What packed weights were made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedOrigin {
    /// The model's path.
    pub model: PathBuf,
    /// How they are packed, in the backend's words.
    pub layout: String,
}

impl PackedCache {
    /// A cache in a folder, for models that are worth it: with at least 64 MiB of packed weights. It may have 10 GiB.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), min_bytes: WORTH_KEEPING, max_bytes: ROOM }
    }

    /// The cache's files in the folder, the one used last at the end; none if there is no folder. Other files are not listed.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn files(&self) -> io::Result<Vec<CachedFile>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files: Vec<_> = entries.filter_map(|entry| CachedFile::of(&entry.ok()?)).collect();
        files.sort_by(|a, b| (a.last_used, &a.path).cmp(&(b.last_used, &b.path)));
        Ok(files)
    }

    /// Where the weights of this name are, for a model at `source` packed in this layout.
    pub(super) fn place(&self, source: &Path, layout: &str) -> PathBuf {
        let place = sum(format!("{}\n{layout}", source.display()).as_bytes());
        let stem = source.file_stem().map_or_else(Default::default, |stem| stem.to_string_lossy());
        let stem: String = stem.chars().take(64).collect();
        self.folder.join(format!("{stem}-{place:016x}.{WEIGHTS}"))
    }

    /// What [`remember`](Self::remember) was told.
    pub fn remembered(&self, what: &str) -> Option<String> {
        let text = fs::read_to_string(self.note(what)).ok()?;
        // The question is in the file too, so that two of the same sum are not mixed up.
        text.strip_prefix(what)?.strip_prefix(": ")?.strip_suffix('\n').map(str::to_owned)
    }

    /// Keeps a short answer that takes long to find, such as which packing is faster on this machine.
    pub fn remember(&self, what: &str, answer: &str) {
        let write = || -> io::Result<()> {
            fs::create_dir_all(&self.folder)?;
            let path = self.note(what);
            let unfinished = path.with_extension(format!("{}.{UNFINISHED}", process::id()));
            fs::write(&unfinished, format!("{what}: {answer}\n"))?;
            fs::rename(unfinished, path)
        };
        if let Err(error) = write() {
            tracing::debug!(%error, what, answer, "not kept for the next load");
        }
    }

    fn note(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{:016x}.{NOTE}", sum(what.as_bytes())))
    }

    /// Deletes files that are of no use any more: of models that are not there, and unfinished ones.
    pub(super) fn clean(&self) {
        for file in self.files().unwrap_or_default() {
            let useless = match file.kind {
                CachedKind::Weights => file.origin().is_some_and(|origin| is_gone(&origin.model)),
                CachedKind::Unfinished => {
                    let age = SystemTime::now().duration_since(file.last_used);
                    age.is_ok_and(|age| age > ABANDONED)
                }
                CachedKind::Note => false,
            };
            if useless {
                let deleted = file.delete();
                tracing::debug!(path = %file.path.display(), ?deleted, "file of packed weights is of no use");
            }
        }
    }

    /// Makes room for a file of `needed` bytes at `path`, which takes the place of what is there.
    ///
    /// # Errors
    /// If there is none to be had; then nothing was deleted.
    pub(super) fn make_room(&self, path: &Path, needed: u64) -> io::Result<()> {
        let full = |what: String| Err(io::Error::new(io::ErrorKind::StorageFull, what));
        let max = self.max_bytes;
        if needed > max {
            return full(format!("it would take {needed} bytes, and the cache may have {max}"));
        }
        let mut others = self.files()?;
        others.retain(|file| file.kind == CachedKind::Weights && file.path != path);
        let mut total = others.iter().fold(needed, |sum, file| sum.saturating_add(file.bytes));
        let mut victims = Vec::new();
        for file in &others {
            if total <= max {
                break;
            }
            if let Claim::Free(lock) = claim(&file.path) {
                total -= file.bytes;
                victims.push((file, lock));
            }
        }
        if total > max {
            let left = total - needed;
            return full(format!(
                "it would take {needed} bytes, the cache may have {max}, and {left} are in use"
            ));
        }
        for (file, _lock) in victims {
            let deleted = fs::remove_file(&file.path);
            tracing::info!(
                path = %file.path.display(), bytes = file.bytes, ?deleted,
                "packed weights that were not used for the longest time make room for others"
            );
        }
        Ok(())
    }
}

impl CachedFile {
    /// Takes regular files with the names that we give, and no links.
    fn of(entry: &DirEntry) -> Option<Self> {
        let kind = CachedKind::of(entry.file_name().to_str()?)?;
        let metadata = entry.metadata().ok()?;
        metadata.is_file().then_some(())?;
        let last_used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Some(Self { path: entry.path(), kind, bytes: metadata.len(), last_used })
    }

    /// What its weights were made of, if it says so.
    pub fn origin(&self) -> Option<CachedOrigin> {
        if self.kind != CachedKind::Weights {
            return None;
        }
        let (model, key) = packed::origin(&self.path).ok()?;
        let layout = key.split(';').next().unwrap_or_default().to_owned();
        Some(CachedOrigin { model, layout })
    }

    /// Whether a running program has its weights in memory, or is writing it, as far as the system tells.
    pub fn is_in_use(&self) -> bool {
        matches!(claim(&self.path), Claim::InUse)
    }

    /// Deletes it, unless it is in use. Returns whether it is gone.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn delete(&self) -> io::Result<bool> {
        match claim(&self.path) {
            Claim::InUse => Ok(false),
            Claim::Free(_lock) => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(true),
            },
        }
    }
}

impl CachedKind {
    /// By the name of a file, none if it is none of ours: `STEM-SUM.bitnet-packed`, `SUM.note`, and what these two are
    /// called while they are written.
    fn of(name: &str) -> Option<Self> {
        let is_sum = |text: &str| {
            text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let (stem, ending) = name.rsplit_once('.')?;
        match ending {
            WEIGHTS => is_sum(stem.rsplit_once('-')?.1).then_some(Self::Weights),
            NOTE => is_sum(stem).then_some(Self::Note),
            UNFINISHED => {
                let (target, number) = stem.rsplit_once('.')?;
                let is_number = number.bytes().all(|b| b.is_ascii_digit() || b == b'-');
                let ours = is_sum(target) || Self::of(target) == Some(Self::Weights);
                (is_number && ours).then_some(Self::Unfinished)
            }
            _ => None,
        }
    }
}

/// Books that weights were taken from a file: what is deleted first is what has the oldest time of modification.
pub(super) fn mark_used(path: &Path) {
    let touched = File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(path = %path.display(), %error, "when these weights were used is not kept");
    }
}

enum Claim {
    /// Nobody uses it, as long as this is held, or the system does not tell.
    Free(Option<File>),
    InUse,
}

/// Asks whether a file may go. Who maps it holds a shared lock, see [`packed::PackedFile`]; who writes it, an exclusive one.
fn claim(path: &Path) -> Claim {
    let Ok(file) = File::open(path) else { return Claim::Free(None) };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Claim::InUse,
        Ok(()) | Err(TryLockError::Error(_)) => Claim::Free(Some(file)),
    }
}

/// Whether there is no such file; if only its disk is not there, its folder is not either.
fn is_gone(source: &Path) -> bool {
    let missing = |path: &Path| {
        fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    };
    missing(source) && source.parent().is_some_and(|folder| !missing(folder))
}

#[cfg(test)]
mod tests;
