//! Memory that is read once per step: weights and the key-value cache.
//!
//! Reading is at its fastest from large pages (on a virtual Zen 4 29.6 GB/s with one thread against 21.6 from pages of
//! 4 KiB), and the system gives those where it is asked and where 2 MiB of address space lie together. So matrices share
//! mappings, each in its own range; a mapping goes back to the system with the last of its ranges.
#![expect(unsafe_code, reason = "ranges of one mapping are lent to owners of their own")]

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};

/// A line of the processor's cache: 64 bytes, aligned to as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Line(pub(crate) [u8; 64]);

/// The size of a large page on x86-64 and, with pages of 4 KiB, on aarch64.
pub const LARGE_PAGE: usize = 2 << 20;

/// How much address space a mapping of an [`Arena`] takes at least. What is not written to costs nothing.
const CHUNK: usize = 32 << 20;

/// Gives out zeroed memory, many pieces from one mapping.
#[derive(Debug, Default)]
pub struct Arena {
    /// The mapping that is being given out, and what is left of it.
    rest: Mutex<Option<(Arc<MmapRaw>, Range<usize>)>>,
}

impl Arena {
    /// `count` zeroed lines. Like any allocation, it ends the process if the system has no more memory.
    pub fn lines(&self, count: usize) -> Lines {
        let len = count.checked_mul(size_of::<Line>()).expect("fits into the address space");
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((mapping, range)) = rest.as_mut()
            && range.len() >= len
        {
            let lines = Lines::new(mapping, range.start, len);
            range.start += len;
            return lines;
        }
        let (mapping, range) = map(len.max(CHUNK));
        let lines = Lines::new(&mapping, range.start, len);
        let left = range.start + len..range.end;
        // What has more left is the better one to go on with.
        if rest.as_ref().is_none_or(|(_, old)| old.len() < left.len()) {
            *rest = Some((mapping, left));
        }
        lines
    }
}

/// A mapping of zeroed memory, and a range of it that is `len` long and begins at a large page if it could fill one.
fn map(len: usize) -> (Arc<MmapRaw>, Range<usize>) {
    let slack = if len < LARGE_PAGE { 0 } else { LARGE_PAGE };
    let mapped = MmapOptions::new().len((len + slack).max(1)).map_anon();
    let mapping = mapped.map(MmapRaw::from).unwrap_or_else(|error| {
        tracing::error!(%error, bytes = len, "the system has no memory");
        let layout = std::alloc::Layout::from_size_align(len, 64).expect("a size that fits");
        std::alloc::handle_alloc_error(layout)
    });
    let start = if slack == 0 { 0 } else { mapping.as_ptr().align_offset(LARGE_PAGE) };
    #[cfg(target_os = "linux")]
    if slack > 0
        && let Err(error) = mapping.advise(memmap2::Advice::HugePage)
    {
        tracing::debug!(%error, "the system has no large pages");
    }
    (Arc::new(mapping), start..start + len)
}

/// Lines of memory with one owner: a `Box<[Line]>` that lies in a mapping with others, or in bytes that are shared.
pub struct Lines {
    memory: Memory,
    start: usize,
    len: usize,
}

enum Memory {
    /// A range that nobody else has.
    Own(Arc<MmapRaw>),
    /// A view, as of a mapped file; never written to.
    Shared(Bytes),
}

impl Lines {
    /// `count` zeroed lines in a mapping of their own.
    pub fn zeroed(count: usize) -> Self {
        let len = count.checked_mul(size_of::<Line>()).expect("fits into the address space");
        let (mapping, range) = map(len);
        Self::new(&mapping, range.start, len)
    }

    fn new(mapping: &Arc<MmapRaw>, start: usize, len: usize) -> Self {
        assert!(start.is_multiple_of(64) && len.is_multiple_of(64));
        assert!(mapping.as_ptr().addr().is_multiple_of(64));
        assert!(start.checked_add(len).is_some_and(|end| end <= mapping.len()));
        Self { memory: Memory::Own(Arc::clone(mapping)), start, len }
    }

    /// The lines that these bytes are, without copying them; none if they do not begin at a multiple of 64 or are not whole
    /// lines.
    pub fn shared(bytes: Bytes) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::zeroed(0)); // an empty slice may begin anywhere
        }
        let whole = bytes.len().is_multiple_of(64) && bytes.as_ptr().addr().is_multiple_of(64);
        let len = bytes.len();
        whole.then_some(Self { memory: Memory::Shared(bytes), start: 0, len })
    }

    /// Gives the memory of a range of bytes back to the system, as far as it is whole pages. What is in the range then is of
    /// no use: zeros, or what was there before. It may be used again at once, and is taken from the system anew.
    ///
    /// # Panics
    /// If the range does not lie in the bytes.
    pub fn give_back(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len);
        #[cfg(target_os = "linux")]
        if let Memory::Own(mapping) = &self.memory {
            use rustix::mm::{Advice, madvise};

            let (page, base) = (rustix::param::page_size(), mapping.as_ptr().addr() + self.start);
            let begin = (base + range.start).next_multiple_of(page);
            let end = (base + range.end) / page * page;
            if begin >= end {
                return;
            }
            let first = mapping.as_mut_ptr().wrapping_add(begin - mapping.as_ptr().addr());
            // SAFETY: the pages lie in the range of bytes that only `self` has, which is borrowed to be written; of anonymous
            // memory the advice makes zeros.
            if let Err(error) = unsafe { madvise(first.cast(), end - begin, Advice::LinuxDontNeed) }
            {
                tracing::debug!(%error, "the system does not take memory back");
            }
        }
    }

    /// The lines as bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: `new` has checked that the range lies in the mapping, which `self.memory` keeps. No other `Lines`
            // has any of these bytes, because `Arena` hands out each part of a mapping once, and nothing else uses the
            // mapping; so they only change through `&mut self`. Anonymous memory is initialized, with zeros.
            Memory::Own(mapping) => unsafe {
                std::slice::from_raw_parts(mapping.as_ptr().add(self.start), self.len)
            },
            Memory::Shared(bytes) => bytes,
        }
    }

    /// The lines as bytes, to be written; shared ones are copied before.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        if let Memory::Shared(_) = self.memory {
            *self = self.clone();
        }
        match &self.memory {
            // SAFETY: as in `bytes`, and the mapping is writable.
            Memory::Own(mapping) => unsafe {
                std::slice::from_raw_parts_mut(mapping.as_mut_ptr().add(self.start), self.len)
            },
            Memory::Shared(_) => unreachable!("was replaced by a copy"),
        }
    }
}

impl std::ops::Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        let bytes = self.bytes();
        // SAFETY: `new` and `shared` have checked that the bytes begin at a multiple of 64 and are whole lines, and a `Line`
        // is 64 bytes of any value.
        unsafe {
            std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<Line>())
        }
    }
}

impl std::ops::DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        let bytes = self.bytes_mut();
        let count = bytes.len() / size_of::<Line>();
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), count) }
    }
}

/// For [`Bytes::from_owner`]: many can then share parts of them.
impl AsRef<[u8]> for Lines {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Clone for Lines {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl PartialEq for Lines {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines", self.len())
    }
}

/// Asks the system to have bytes in memory soon. Of a mapped file it then reads all that was asked for at once, in place of one
/// part for each page fault, with neighbours that nobody wants.
pub fn will_need(bytes: &[u8]) {
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::{Advice, madvise};

        let page = rustix::param::page_size();
        let before = bytes.as_ptr().addr() % page;
        let first = bytes.as_ptr().wrapping_sub(before);
        let (first, len) = (first.cast_mut().cast(), before + bytes.len());
        // SAFETY: this advice changes nothing but when the system reads, wherever the range lies: pages that nobody has mapped
        // make it an error.
        if let Err(error) = unsafe { madvise(first, len, Advice::WillNeed) } {
            tracing::trace!(%error, "the system takes no advice");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes; // the system finds out by itself
}

/// Bytes that a vector has from the system, used or not.
pub(crate) fn heap_bytes<T>(vec: &Vec<T>) -> usize {
    vec.capacity() * size_of::<T>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the system has given of these bytes, which begin and end with pages.
    #[cfg(target_os = "linux")]
    fn given(bytes: &[u8]) -> usize {
        use std::os::unix::fs::FileExt;

        let page = rustix::param::page_size();
        let mut entries = vec![0; bytes.len() / page * 8];
        let map = std::fs::File::open("/proc/self/pagemap").unwrap();
        map.read_exact_at(&mut entries, (bytes.as_ptr().addr() / page * 8) as u64).unwrap();
        let entries = entries.as_chunks().0.iter().map(|&entry| u64::from_ne_bytes(entry));
        entries.filter(|entry| entry >> 63 == 1).count() * page
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_goes_back_to_the_system_and_its_neighbours_stay() {
        let mut lines = Lines::zeroed(4 * LARGE_PAGE / 64);
        lines.bytes_mut().fill(7);
        let (from, to) = (LARGE_PAGE / 2 + 100, 3 * LARGE_PAGE - 100);
        assert_eq!(given(lines.bytes()), 4 * LARGE_PAGE);
        lines.give_back(from..to);
        let page = rustix::param::page_size();
        let whole = to / page * page - from.next_multiple_of(page);
        assert_eq!(given(lines.bytes()), 4 * LARGE_PAGE - whole);
        assert!(lines.bytes()[..from].iter().chain(&lines.bytes()[to..]).all(|&byte| byte == 7));
        lines.bytes_mut()[LARGE_PAGE] = 9;
        assert_eq!(lines.bytes()[LARGE_PAGE..][..2], [9, 0]);
        lines.give_back(5..page + 4); // no whole page
        assert!(lines.bytes()[..page + 4].iter().all(|&byte| byte == 7));
    }

    #[test]
    fn nothing_is_given_back_of_shared_bytes() {
        let mut lines = Lines::shared(Bytes::from(vec![7; 8192])).unwrap_or(Lines::zeroed(128));
        let before = lines.bytes().to_vec();
        lines.give_back(0..8192);
        assert_eq!(lines.bytes(), before);
    }

    #[test]
    fn ranges_are_zeroed_aligned_and_apart() {
        let arena = Arena::default();
        let counts = [0, 1, 7, CHUNK / 64 - 8, 3, CHUNK / 64 + 1, 2];
        let mut pieces: Vec<Lines> = counts.iter().map(|&count| arena.lines(count)).collect();
        for (i, (piece, count)) in pieces.iter_mut().zip(counts).enumerate() {
            assert_eq!((piece.len(), piece.as_ptr().addr() % 64), (count, 0));
            assert!(piece.bytes().iter().all(|&byte| byte == 0), "piece {i}");
            piece.bytes_mut().fill(1 + i as u8);
        }
        for (i, piece) in pieces.iter().enumerate() {
            assert!(piece.iter().all(|line| line.0 == [1 + i as u8; 64]), "piece {i}");
        }
    }

    #[test]
    fn a_piece_outlives_its_arena_and_its_neighbours() {
        let arena = Arena::default();
        let (mut kept, dropped) = (arena.lines(5), arena.lines(5));
        kept.bytes_mut().fill(9);
        drop((arena, dropped));
        assert!(kept.bytes().iter().all(|&byte| byte == 9));
    }

    #[test]
    fn large_pieces_begin_at_a_large_page() {
        assert_eq!(Lines::zeroed(LARGE_PAGE / 64).as_ptr().addr() % LARGE_PAGE, 0);
        assert_eq!(Arena::default().lines(1).as_ptr().addr() % LARGE_PAGE, 0);
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_its_own_place() {
        let mut lines = Lines::zeroed(3);
        lines[1].0[5] = 7;
        let copy = lines.clone();
        assert!(copy == lines && copy.as_ptr() != lines.as_ptr());
        lines[1].0[5] = 8;
        assert!(copy != lines);
    }

    #[test]
    fn shared_lines_are_views_until_they_are_written() {
        let bytes = Bytes::from_owner(Lines::zeroed(4));
        let mut lines = Lines::shared(bytes.slice(64..192)).unwrap();
        assert_eq!((lines.len(), lines.as_ptr().addr()), (2, bytes.as_ptr().addr() + 64));
        lines[1].0[3] = 7;
        assert!(bytes.iter().all(|&byte| byte == 0) && lines.bytes()[67] == 7);
    }

    #[test]
    fn bytes_that_are_no_lines_are_refused() {
        let bytes = Bytes::from_owner(Lines::zeroed(4));
        assert!(Lines::shared(bytes.slice(1..65)).is_none());
        assert!(Lines::shared(bytes.slice(0..65)).is_none());
        assert_eq!(Lines::shared(bytes.slice(3..3)).unwrap().len(), 0);
    }
}
