//! Reading packed weights: header, sections and sums, all checked.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bitnet_kernels::{memory::Lines, stored::Stored};
use bytes::Bytes;

use super::{
    BLOCK, Header, MAGIC, MAX_HEADER, PREFIX, Refused, Section, VERSION, sections_start, sum::sum,
    write::hex,
};
use crate::{format::mmap::Mapping, parallel};

/// Where the bytes of packed weights are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file, mapped: shared with all processes that have it mapped, and read when they are needed.
    File,
    /// In memory of the process's own, in large pages.
    Memory,
    /// In the file, mapped, with at most so many layers in memory, not counting embedding and head.
    Layers(usize),
}

/// A file of packed weights whose sums fit.
///
/// Where it is mapped, its bytes hold a shared lock on it, so that others can tell that it is in use.
#[derive(Debug)]
pub struct PackedFile {
    pub(super) sections: BTreeMap<String, Section>,
    pub(super) bytes: Bytes,
    /// The whole file, if it is mapped, and where in it the sections begin.
    mapping: Option<(Mapping, usize)>,
}

impl PackedFile {
    /// Opens the file at `path`, which must have been written with the same `key`, and compares all sums with `threads` threads.
    pub fn open(path: &Path, key: &str, place: Place, threads: usize) -> Result<Self, Refused> {
        let file = open_regular(path)?;
        let (header, start, end) = read_header(&file)?;
        if header.key != key {
            let (what, expected) = ("what it was made of", key.to_owned());
            return Err(Refused::Other { what, found: header.key, expected });
        }
        let too_large = |_| Refused::Damaged("it is larger than memory".into());
        let total = usize::try_from(end - start).map_err(too_large)?;
        if header.sums.len() != total.div_ceil(BLOCK) {
            let (sums, blocks) = (header.sums.len(), total.div_ceil(BLOCK));
            return Err(Refused::Damaged(format!("{sums} check sums for {blocks} blocks")));
        }
        let (bytes, mapping) = match place {
            Place::Memory => (read(&file, start, total, &header.sums, threads)?, None),
            Place::File | Place::Layers(_) => {
                let mapping = Mapping::new(&file)?;
                if place == Place::File {
                    mapping.prefer_large_pages();
                }
                // Without a lock it may be deleted meanwhile, which does not harm who has mapped it.
                let _ = file.try_lock_shared();
                let held = Held { mapping: mapping.clone(), _lock: file };
                let bytes = Bytes::from_owner(held);
                let bytes = check_mapped(&mapping, bytes, start..end, place, &header, threads)?;
                (bytes, Some((mapping, start as usize)))
            }
        };
        let sections = header.sections.into_iter().map(|section| (section.name.clone(), section));
        Ok(Self { sections: sections.collect(), bytes, mapping })
    }

    /// A matrix by its name.
    pub fn get(&self, name: &str) -> Option<Stored> {
        let section = self.sections.get(name)?;
        let part = |part: super::Part| Some(self.bytes.slice(part.range(self.bytes.len())?));
        Some(Stored {
            form: section.form.clone(),
            panels: part(section.panels)?,
            scales: part(section.scales)?,
        })
    }
}

impl PackedFile {
    /// The mapping that the sections lie in, if they do.
    pub fn mapping(&self) -> Option<&Mapping> {
        self.mapping.as_ref().map(|(mapping, _)| mapping)
    }

    /// Where the panels of a matrix lie in the mapping.
    pub fn place_of(&self, name: &str) -> Option<Range<usize>> {
        let (_, start) = self.mapping.as_ref()?;
        let panels = self.sections.get(name)?.panels.range(self.bytes.len())?;
        Some(start + panels.start..start + panels.end)
    }
}

/// The path of the model that a file was made of, and its key.
pub fn origin(path: &Path) -> Result<(PathBuf, String), Refused> {
    let header = read_header(&open_regular(path)?)?.0;
    Ok((header.source.into(), header.key))
}

/// Opening a pipe would wait for someone to write to it, so its kind is asked first.
fn open_regular(path: &Path) -> io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    File::open(path)
}

/// The header, and where sections begin and end.
fn read_header(mut file: &File) -> Result<(Header, u64, u64), Refused> {
    let len = file.metadata()?.len();
    let mut prefix = [0; PREFIX];
    file.read_exact(&mut prefix)?;
    let (magic, numbers) = prefix.split_at(8);
    if magic != MAGIC {
        return Err(Refused::Damaged("it does not begin as such a file does".into()));
    }
    let small = |at: usize| u32::from_le_bytes(numbers[at..][..4].try_into().expect("four bytes"));
    let large = |at: usize| u64::from_le_bytes(numbers[at..][..8].try_into().expect("eight bytes"));
    let (version, header_len) = (small(0), small(4));
    let (announced, header_sum) = (large(8), large(16));
    if version != VERSION {
        let (found, expected) = (version.to_string(), VERSION.to_string());
        return Err(Refused::Other { what: "its version", found, expected });
    }
    if announced != len {
        return Err(Refused::Damaged(format!("it has {len} bytes and should have {announced}")));
    }
    let start = sections_start(header_len as usize);
    if u64::from(header_len) > MAX_HEADER || start > len {
        return Err(Refused::Damaged(format!("a header of {header_len} bytes")));
    }
    let mut json = vec![0; header_len as usize];
    file.read_exact(&mut json)?;
    if sum(&json) != header_sum {
        return Err(Refused::Damaged("the header's check sum is another".into()));
    }
    let header = serde_json::from_slice(&json);
    let header = header.map_err(|error| Refused::Damaged(format!("header: {error}")))?;
    Ok((header, start, len))
}

fn wrong_block(block: usize) -> Refused {
    Refused::Damaged(format!("the check sum of block {block} is another"))
}

/// A mapped file with its lock.
struct Held {
    mapping: Mapping,
    _lock: File,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.mapping.as_ref()
    }
}

/// The sections in place, out of the bytes of `all`. Comparing sums brings their pages in.
fn check_mapped(
    mapping: &Mapping,
    all: Bytes,
    range: Range<u64>,
    place: Place,
    header: &Header,
    threads: usize,
) -> Result<Bytes, Refused> {
    let sums = &header.sums;
    // Its length was compared with that of the file, but that was before it was mapped.
    let (start, end) = (range.start as usize, range.end as usize);
    if end > all.len() {
        return Err(Refused::Damaged(format!("it has shrunk to {} bytes", all.len())));
    }
    let bytes = all.slice(start..end);
    let next = AtomicUsize::new(0);
    parallel::share(threads, || {
        loop {
            let block = next.fetch_add(1, Ordering::Relaxed);
            let Some(expected) = sums.get(block) else { return Ok(()) };
            let block_range = block * BLOCK..bytes.len().min((block + 1) * BLOCK);
            let found = sum(&bytes[block_range.clone()]);
            if place != Place::File {
                mapping.release(start + block_range.start..start + block_range.end);
            }
            if hex(found) != *expected {
                next.store(sums.len(), Ordering::Relaxed);
                return Err(wrong_block(block));
            }
        }
    })?;
    Ok(bytes)
}

/// The sections in memory of our own.
fn read(
    file: &File,
    start: u64,
    total: usize,
    sums: &[String],
    threads: usize,
) -> Result<Bytes, Refused> {
    let mut lines = Lines::zeroed(total.div_ceil(64));
    let blocks = Mutex::new(lines.bytes_mut()[..total].chunks_mut(BLOCK).enumerate());
    parallel::share(threads, || {
        loop {
            let next = blocks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((block, bytes)) = next else { return Ok(()) };
            read_at(file, bytes, start + (block * BLOCK) as u64)?;
            if hex(sum(bytes)) != sums[block] {
                return Err(wrong_block(block));
            }
        }
    })?;
    Ok(Bytes::from_owner(lines).slice(..total))
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}
