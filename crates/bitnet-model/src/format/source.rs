//! Where the bytes of a model file are.

use std::{
    convert::Infallible,
    fs::{File, Metadata},
    hint::black_box,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

use super::mmap::Mapping;
use crate::{error::LoadError, parallel};

/// Reads a small file whole, but no more than one byte past `limit`, so that the caller sees that it is longer.
///
/// Pipes and devices are refused before they are opened: one may never end, the other never begin.
pub(crate) fn read_small(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        let found = "it is a pipe or device, and no regular file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, found));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The bytes of one file: mapped, already in memory, or read when they are asked for.
#[derive(Debug)]
pub(super) enum Source {
    Mapped(Mapping, Metadata),
    Memory(Bytes),
    File(Mutex<File>, Metadata),
}

impl Source {
    pub fn open(path: &Path, mmap: bool) -> Result<Self, LoadError> {
        let io_error = |source| LoadError::Io { path: path.into(), source };
        // Opening a pipe would wait for someone to write to it, so its kind is asked first.
        if !std::fs::metadata(path).map_err(io_error)?.is_file() {
            let found = "neither a file nor a directory".to_owned();
            return Err(LoadError::NoModel { path: path.into(), found });
        }
        let file = File::open(path).map_err(io_error)?;
        let metadata = file.metadata().map_err(io_error)?;
        if mmap {
            Ok(Self::Mapped(Mapping::new(&file).map_err(io_error)?, metadata))
        } else {
            Ok(Self::File(Mutex::new(file), metadata))
        }
    }

    /// What the system said of the file when it was opened; nothing of bytes in memory.
    pub fn metadata(&self) -> Option<&Metadata> {
        match self {
            Self::Mapped(_, metadata) | Self::File(_, metadata) => Some(metadata),
            Self::Memory(_) => None,
        }
    }

    pub fn len(&self) -> u64 {
        match self {
            Self::Mapped(mapping, _) => mapping.as_ref().len() as u64,
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, metadata) => metadata.len(),
        }
    }

    /// The bytes of a range that lies in the file.
    pub fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        let too_large = |_| io::Error::from(io::ErrorKind::OutOfMemory);
        let start = usize::try_from(range.start).map_err(too_large)?;
        let end = usize::try_from(range.end).map_err(too_large)?;
        match self {
            Self::Mapped(mapping, _) => Ok(mapping.bytes().slice(start..end)),
            Self::Memory(bytes) => Ok(bytes.slice(start..end)),
            Self::File(file, _) => {
                let mut buffer = vec![0; end - start];
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(range.start))?;
                file.read_exact(&mut buffer)?;
                Ok(buffer.into())
            }
        }
    }

    /// Runs `parse` on a reader of the file from its start.
    pub fn parse<T>(&self, parse: impl FnOnce(&mut dyn Read) -> T) -> io::Result<T> {
        match self {
            Self::Mapped(mapping, _) => Ok(parse(&mut mapping.as_ref())),
            Self::Memory(bytes) => Ok(parse(&mut bytes.as_ref())),
            Self::File(file, _) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(0))?;
                Ok(parse(&mut io::BufReader::with_capacity(1 << 16, &mut *file)))
            }
        }
    }

    /// Touches every page of a range of a mapped file, with `threads` threads.
    pub fn bring_in(&self, range: Range<u64>, threads: usize) {
        // The smallest page there is, and pages that a thread touches at a time: 2 MiB of them.
        const PAGE: usize = 4096;
        const AT_ONCE: usize = 2 << 20;
        let (Self::Mapped(..), Ok(bytes)) = (self, self.read(range)) else { return };
        let pieces = Mutex::new(bytes.chunks(AT_ONCE));
        let touched = parallel::share(threads, || -> Result<(), Infallible> {
            loop {
                let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(piece) = next else { return Ok(()) };
                black_box(piece.iter().step_by(PAGE).fold(0, |all, byte| all ^ byte));
            }
        });
        touched.unwrap_or_else(|never| match never {});
    }

    /// Gives the memory behind a range back to the system where it can be had again.
    pub fn release(&self, range: Range<u64>) {
        if let (Self::Mapped(mapping, _), Ok(start), Ok(end)) =
            (self, range.start.try_into(), range.end.try_into())
        {
            mapping.release(start..end);
        }
    }
}
