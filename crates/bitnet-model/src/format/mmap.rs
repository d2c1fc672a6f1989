//! The one memory mapping of files.
#![expect(unsafe_code, reason = "a mapping is a promise that nobody changes the file")]

use std::{fs::File, io, ops::Range, sync::Arc};

use bytes::Bytes;
use memmap2::Mmap;

/// A file mapped for reading. Views of it keep it alive.
#[derive(Clone, Debug)]
pub struct Mapping(Arc<Mmap>);

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Mapping {
    /// Maps the whole file. Another process that shortens the file later makes this one fail with a bus error when it reads there.
    pub fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is private and read-only, and any bytes are valid `u8`. That nobody rewrites a model file
        // while it is in use is the same assumption that every loader makes; `OpenOptions::mmap` turns mapping off.
        Ok(Self(Arc::new(unsafe { Mmap::map(file) }?)))
    }

    /// All bytes, shared.
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// Asks the system to hold this file in large pages where it can. Nothing depends on it but speed.
    pub fn prefer_large_pages(&self) {
        #[cfg(target_os = "linux")]
        if let Err(error) = self.0.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "a mapped file has small pages");
        }
    }

    /// Has the pages of `range` read from the disk, and does not wait for it. Nothing depends on it but speed.
    pub fn fetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Err(error) = self.0.advise_range(memmap2::Advice::WillNeed, range.start, range.len())
        {
            tracing::debug!(%error, "pages of a mapped file are not fetched ahead");
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Tells the system that the pages inside `range` will not be read soon. They are fetched from the file again if they are.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            // Only whole pages, so that no neighbour's are dropped and read again. Where pages are larger, some are.
            const PAGE: usize = 4096;
            let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
            if start < end && end <= self.0.len() {
                let (advice, len) = (memmap2::UncheckedAdvice::DontNeed, end - start);
                // SAFETY: the mapping is file-backed and never written, so dropped pages come back with the same bytes.
                if let Err(error) = unsafe { self.0.unchecked_advise_range(advice, start, len) } {
                    tracing::debug!(%error, "pages of the model file stay in memory");
                }
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
