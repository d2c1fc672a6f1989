//! Packed weights that are kept in a file, so that later loads take them from there.

mod folder;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_kernels::backend::Backend;
use bitnet_kernels::head::HeadType;

use super::load::{self, LINEARS, LoadOptions, LoadProgress, Weights};
use super::residency::Residency;
use super::{Model, Place};
use crate::config::ArchConfig;
use crate::error::LoadError;
use crate::format::Checkpoint;
use crate::format::packed::{self, Named, PackedFile, Refused};

pub use folder::{CachedFile, CachedKind, CachedOrigin, PackedCache};

/// Changes whenever the same model file gives other weights than before, as when a decoder was wrong.
const READING: u32 = 1;

/// What a load had of a [`PackedCache`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// Nothing: there is no cache, the model is small or in no file, or its weights could not be kept, which the log tells.
    None,
    /// The weights come from this file.
    Read(PathBuf),
    /// The weights were packed, and the next load finds them here.
    Written {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
}

impl PackedCache {
    /// The file for a model, and what is to be in it; none for one that is not kept.
    fn entry<B: Backend>(
        &self,
        checkpoint: &Checkpoint,
        backend: &B,
        head: HeadType,
        min_bytes: u64,
    ) -> Result<Option<Entry>, LoadError> {
        let config = checkpoint.config();
        if packed_bytes(config, head) < min_bytes {
            return Ok(None);
        }
        let Some(identity) = checkpoint.identity()? else { return Ok(None) };
        let layout = backend.layout(head);
        let version = env!("CARGO_PKG_VERSION");
        let key = format!("{layout}; {version}, {READING}; {identity}");
        let source = checkpoint.path();
        let source = fs::canonicalize(source).unwrap_or_else(|_| source.to_owned());
        Ok(Some(Entry { path: self.place(&source, &layout), key, source }))
    }
}

/// Memory of packed weights, about: two bits for each ternary weight, and the head.
fn packed_bytes(config: &ArchConfig, head: HeadType) -> u64 {
    let linears = (0..LINEARS.len()).map(|linear| {
        let (rows, cols) = load::shape(config, linear);
        (rows as u64).saturating_mul(cols as u64) / 4
    });
    let layer = linears.fold(0, u64::saturating_add);
    let head = match head {
        HeadType::TwoStage => &[HeadType::Int8, HeadType::TwoStage][..], // it has the rows of both
        HeadType::Int8 | HeadType::File => &[head],
    };
    let bytes = |head: &HeadType| head.bytes(config.vocab_size, config.hidden_size, 0);
    let head = head.iter().map(bytes).fold(0, u64::saturating_add);
    layer.saturating_mul(config.num_hidden_layers as u64).saturating_add(head)
}

/// A file of a cache.
struct Entry {
    path: PathBuf,
    key: String,
    source: PathBuf,
}

impl<B: Backend> Model<B> {
    /// [`Self::load`] by way of a cache, if `options` has one: the weights are taken from there, or put there for the next
    /// load. Says which of these happened.
    ///
    /// # Errors
    /// As of [`Self::load`]. What goes wrong with the cache is logged, and the model is loaded without it.
    pub fn load_with(
        checkpoint: &Checkpoint,
        backend: Arc<B>,
        options: &LoadOptions<'_>,
        progress: &(dyn Fn(LoadProgress) + Sync),
    ) -> Result<(Self, CacheUse), LoadError> {
        // With a bound on the layers in memory there is no other way.
        let needed = matches!(options.place, Place::Layers(_));
        let entry = match options.cache {
            Some(cache) => {
                let min_bytes = if needed { 0 } else { cache.min_bytes };
                cache.entry(checkpoint, &*backend, options.head, min_bytes)?
            }
            None => None,
        };
        let (Some(cache), Some(entry)) = (options.cache, entry) else {
            if needed {
                return Err(not_lazy(checkpoint, "there is no file for packed weights".to_owned()));
            }
            return Ok((
                Self::load_packing(checkpoint, backend, options, progress)?,
                CacheUse::None,
            ));
        };
        match Self::restore(checkpoint, &backend, options, &entry)? {
            Ok(model) => {
                let total = checkpoint.config().num_hidden_layers * LINEARS.len();
                progress(LoadProgress { done: total, total });
                return Ok((model, CacheUse::Read(entry.path)));
            }
            Err(refused) => {
                tracing::debug!(path = %entry.path.display(), %refused, "packed weights are not taken from the cache");
            }
        }
        let model = Self::load_packing(checkpoint, Arc::clone(&backend), options, progress)?;
        let bytes = match cache.keep(&entry, &model) {
            Ok(bytes) => bytes,
            Err(error) if needed => {
                let reason = format!("{} cannot be written: {error}", entry.path.display());
                return Err(not_lazy(checkpoint, reason));
            }
            Err(error) => {
                tracing::warn!(path = %entry.path.display(), %error, "packed weights could not be kept for the next load");
                return Ok((model, CacheUse::None));
            }
        };
        // From here on as every later load, with what was just written and compared.
        let model = match Self::restore(checkpoint, &backend, options, &entry)? {
            Ok(restored) => restored,
            Err(refused) if needed => {
                return Err(not_lazy(checkpoint, format!("{}: {refused}", entry.path.display())));
            }
            Err(refused) => {
                tracing::warn!(path = %entry.path.display(), %refused, "packed weights that were just written are not taken");
                model
            }
        };
        Ok((model, CacheUse::Written { path: entry.path, bytes }))
    }

    /// The model with weights out of a file.
    fn restore(
        checkpoint: &Checkpoint,
        backend: &Arc<B>,
        options: &LoadOptions<'_>,
        entry: &Entry,
    ) -> Result<Result<Self, Refused>, LoadError> {
        let found = PackedFile::open(&entry.path, &entry.key, options.place, options.threads)
            .and_then(|file| {
                let weights = Weights::restored(&file, checkpoint, &**backend, options.head)?;
                Ok((file, weights))
            });
        let (file, (linears, lm_head)) = match found {
            Ok(found) => found,
            Err(refused) => return Ok(Err(refused)),
        };
        let lm_head = match lm_head {
            Some(head) => head,
            None => load::load_head(checkpoint, &**backend, options.head)?,
        };
        folder::mark_used(&entry.path);
        let weights = Weights { linears, lm_head };
        let residency = match options.place {
            Place::Layers(most) => residency(&file, checkpoint.config().num_hidden_layers, most),
            Place::File | Place::Memory => None,
        };
        Self::assemble(checkpoint, Arc::clone(backend), weights, residency).map(Ok)
    }
}

/// Bounds the layers of a mapped file that are in memory.
fn residency(file: &PackedFile, layers: usize, most: usize) -> Option<Residency> {
    let layer = |index| {
        let matrices = index * LINEARS.len()..(index + 1) * LINEARS.len();
        let mut places = matrices.map(|matrix| file.place_of(&load::linear_name(matrix)));
        let first = places.next()??;
        let last = places.next_back()??;
        Some(first.start..last.end) // written one after another
    };
    let layers = (0..layers).map(layer).collect::<Option<_>>()?;
    Some(Residency::new(file.mapping()?.clone(), layers, most))
}

/// Why the number of layers in memory cannot be bounded.
fn not_lazy(checkpoint: &Checkpoint, reason: String) -> LoadError {
    LoadError::Unsupported {
        path: checkpoint.path().into(),
        what: "a bound on the layers in memory".into(),
        reason,
        help: "load the model from a file, and give a folder for packed weights that can be written to".into(),
    }
}

/// All ternary matrices, and the head unless it is used as it is in the model's file.
type Restored<B> = (Vec<<B as Backend>::Ternary>, Option<<B as Backend>::Head>);

impl<B: Backend> Weights<B> {
    /// What is in a file of packed weights.
    fn restored(
        file: &PackedFile,
        checkpoint: &Checkpoint,
        backend: &B,
        head: HeadType,
    ) -> Result<Restored<B>, Refused> {
        let config = checkpoint.config();
        let missing = |name: &str| Refused::Damaged(format!("it has no {name} of this shape"));
        let linears = (0..config.num_hidden_layers * LINEARS.len()).map(|index| {
            let name = load::linear_name(index);
            let (rows, cols) = load::shape(config, index % LINEARS.len());
            let restored = file.get(&name).and_then(|s| backend.restore_ternary(rows, cols, &s));
            restored.ok_or_else(|| missing(&name))
        });
        let linears = linears.collect::<Result<_, _>>()?;
        let head = match head {
            HeadType::File => None,
            HeadType::Int8 | HeadType::TwoStage => {
                let stored: Vec<_> = (0..).map_while(|part| file.get(&head_name(part))).collect();
                let head = backend.restore_head(config.vocab_size, config.hidden_size, &stored);
                Some(head.ok_or_else(|| missing("head"))?)
            }
        };
        Ok((linears, head))
    }
}

/// The names of the head's matrices in the file.
fn head_name(part: usize) -> String {
    format!("lm_head.{part}")
}

impl PackedCache {
    /// Writes a model's weights. Returns the bytes of the file.
    fn keep<B: Backend>(&self, entry: &Entry, model: &Model<B>) -> io::Result<u64> {
        fs::create_dir_all(&self.folder)?;
        self.clean();
        let parts = &*model.parts;
        let mut matrices: Vec<Named<'_>> = parts
            .layers
            .iter()
            .flat_map(|layer| layer.linears())
            .enumerate()
            .map(|(index, linear)| (load::linear_name(index), model.backend.store_ternary(linear)))
            .collect();
        let head = model.backend.store_head(&parts.lm_head).into_iter().enumerate();
        matrices.extend(head.map(|(part, stored)| (head_name(part), stored)));
        let needed = packed::length(&entry.key, &entry.source, &matrices)?;
        self.make_room(&entry.path, needed)?;
        if let Some(free) = free_bytes(&self.folder)
            && needed > free / 2
        {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("it would take {needed} of {free} free bytes, more than half"),
            ));
        }
        packed::write(&entry.path, &entry.key, &entry.source, &matrices)
    }
}

/// Free bytes of the disk that has this folder, where the system tells.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        disk.f_bavail.checked_mul(disk.f_frsize)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = folder;
        None
    }
}
