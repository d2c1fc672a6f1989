//! Writing packed weights.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    BLOCK, Header, MAGIC, Named, PAGE, PREFIX, Part, Section, VERSION, sections_start, sum::sum,
};

/// The ending of files that are being written.
pub const UNFINISHED: &str = "unfinished";

/// Writes the matrices to a file beside `path` and, when it is complete, puts it there. Returns its length in bytes.
///
/// So nobody ever sees half a file, and of several processes that write at once, each writes its own and the last one's stays;
/// those that have mapped an earlier one keep that.
pub fn write(path: &Path, key: &str, source: &Path, matrices: &[Named<'_>]) -> io::Result<u64> {
    let (header, bytes) = Header::plan(key, source, matrices)?;
    let unfinished = Unfinished::create(path)?;
    let len = write_all(&unfinished.file, header, bytes, matrices)?;
    unfinished.publish(path)?;
    Ok(len)
}

/// The length of the file that [`write()`] would write.
pub fn length(key: &str, source: &Path, matrices: &[Named<'_>]) -> io::Result<u64> {
    let (header, bytes) = Header::plan(key, source, matrices)?;
    Ok(header.sections_start()? + bytes)
}

impl Header {
    /// The header but for the sums, and the bytes of all sections.
    fn plan(key: &str, source: &Path, matrices: &[Named<'_>]) -> io::Result<(Self, u64)> {
        let mut end = 0_u64;
        let mut part = |bytes: &[u8]| {
            let start = end.next_multiple_of(PAGE);
            end = start + bytes.len() as u64;
            Part { start, len: bytes.len() as u64 }
        };
        let sections = matrices.iter().map(|(name, matrix)| Section {
            name: name.clone(),
            form: matrix.form.clone(),
            panels: part(matrix.panels),
            scales: part(&matrix.scales),
        });
        let sections = sections.collect();
        let bytes = end.next_multiple_of(PAGE);
        let sums = vec![hex(0); bytes.div_ceil(BLOCK as u64) as usize];
        let source = source.to_str().unwrap_or_default().to_owned();
        Ok((Self { key: key.to_owned(), source, sections, sums }, bytes))
    }

    fn sections_start(&self) -> io::Result<u64> {
        Ok(sections_start(serde_json::to_vec(self)?.len()))
    }
}

pub(super) fn hex(sum: u64) -> String {
    format!("{sum:016x}")
}

fn write_all(
    mut file: &File,
    mut header: Header,
    bytes: u64,
    matrices: &[Named<'_>],
) -> io::Result<u64> {
    let start = header.sections_start()?;
    file.seek(SeekFrom::Start(start))?;
    let mut blocks = Blocks { file, buffer: Vec::with_capacity(BLOCK), at: 0, sums: Vec::new() };
    for (section, (_, matrix)) in header.sections.iter().zip(matrices) {
        blocks.put(section.panels, matrix.panels)?;
        blocks.put(section.scales, &matrix.scales)?;
    }
    blocks.zeros_to(bytes)?;
    blocks.flush()?;
    header.sums = blocks.sums;
    let json = serde_json::to_vec(&header)?;
    let mut prefix = [0; PREFIX];
    prefix[..8].copy_from_slice(&MAGIC);
    prefix[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let json_len = u32::try_from(json.len()).map_err(io::Error::other)?;
    prefix[12..16].copy_from_slice(&json_len.to_le_bytes());
    prefix[16..24].copy_from_slice(&(start + bytes).to_le_bytes());
    prefix[24..32].copy_from_slice(&sum(&json).to_le_bytes());
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&prefix)?;
    file.write_all(&json)?;
    Ok(start + bytes)
}

/// Collects what is written into whole blocks, which begin at multiples of a large page of the file: the system's cache then
/// holds them in large pages.
struct Blocks<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Bytes so far.
    at: u64,
    sums: Vec<String>,
}

impl Blocks<'_> {
    fn put(&mut self, part: Part, bytes: &[u8]) -> io::Result<()> {
        self.zeros_to(part.start)?;
        self.append(bytes)
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BLOCK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn zeros_to(&mut self, end: u64) -> io::Result<()> {
        const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
        let gap = end - self.at; // parts begin at the next page
        self.append(&ZEROS[..gap as usize])
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.sums.push(hex(sum(&self.buffer)));
            self.file.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// A file that goes away unless it is published.
struct Unfinished {
    file: File,
    path: PathBuf,
}

impl Unfinished {
    fn create(target: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".{}-{number}.{UNFINISHED}", process::id()));
        let path = PathBuf::from(name);
        // What a process of the same number left behind is in nobody's use any more.
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        let _ = file.try_lock(); // where there are locks, others see that it is being written
        Ok(Self { file, path })
    }

    fn publish(self, target: &Path) -> io::Result<()> {
        let _ = self.file.unlock(); // from here on it is for readers
        fs::rename(&self.path, target)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Published, it is not there any more under this name.
        let _ = fs::remove_file(&self.path);
    }
}
