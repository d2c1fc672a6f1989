//! What the system tells about this process.

use std::ops::Range;

/// Memory of this process in bytes, as far as the system tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessMemory {
    /// In memory now.
    pub resident: Option<u64>,
    /// Of that, what is in no file.
    pub anonymous: Option<u64>,
    /// The most that was, since the process began.
    pub peak: Option<u64>,
}

impl ProcessMemory {
    pub fn now() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Self { resident: field("VmRSS:"), anonymous: field("RssAnon:"), peak: field("VmHWM:") }
    }
}

/// Bytes that are in memory now, if the system tells.
pub(crate) fn resident() -> Option<u64> {
    // Much less to read than the status.
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    resident_pages(&statm)?.checked_mul(page_size()? as u64)
}

fn resident_pages(statm: &str) -> Option<u64> {
    statm.split(' ').nth(1)?.parse().ok()
}

fn page_size() -> Option<usize> {
    #[cfg(target_os = "linux")]
    return Some(rustix::param::page_size());
    #[cfg(not(target_os = "linux"))]
    return None;
}

/// Bytes of some addresses that are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Present {
    /// Of a file, or shared with other processes.
    pub mapped: u64,
    /// Of the process's own.
    pub own: u64,
}

impl Present {
    /// What an entry of the system's map says of so many bytes of a page.
    fn add(&mut self, entry: u64, bytes: usize) {
        let (is_present, is_mapped) = (entry >> 63 & 1 == 1, entry >> 61 & 1 == 1);
        match (is_present, is_mapped) {
            (true, true) => self.mapped += bytes as u64,
            (true, false) => self.own += bytes as u64,
            (false, _) => {}
        }
    }
}

/// What is in memory of these ranges of addresses, if the system tells.
#[cfg(unix)]
pub(crate) fn present(ranges: &[Range<usize>]) -> Option<Present> {
    use std::os::unix::fs::FileExt;

    /// Entries that are read at a time.
    const ENTRIES: usize = 8192;
    let (page, map) = (page_size()?, std::fs::File::open("/proc/self/pagemap").ok()?);
    let (mut found, mut entries) = (Present::default(), vec![0; 8 * ENTRIES]);
    for range in ranges {
        let pages = range.start / page..range.end.div_ceil(page);
        for first in pages.clone().step_by(ENTRIES) {
            let entries = &mut entries[..8 * ENTRIES.min(pages.end - first)];
            map.read_exact_at(entries, 8 * first as u64).ok()?;
            for (entry, number) in entries.as_chunks().0.iter().zip(first..) {
                let (start, end) = (number * page, (number + 1) * page);
                let bytes = end.min(range.end) - start.max(range.start);
                found.add(u64::from_ne_bytes(*entry), bytes);
            }
        }
    }
    Some(found)
}

/// There is no such map here.
#[cfg(not(unix))]
pub(crate) fn present(_: &[Range<usize>]) -> Option<Present> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_systems_map_say_whose_a_page_is() {
        let mut found = Present::default();
        for (entry, bytes) in [(1 << 63, 1), (1 << 63 | 1 << 61 | 5, 10), (1 << 61, 100), (0, 1000)]
        {
            found.add(entry, bytes);
        }
        assert_eq!(found, Present { mapped: 10, own: 1 });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_what_was_written_is_in_memory() {
        let mut bytes = vec![0_u8; 64 << 20];
        let start = bytes.as_ptr().addr();
        let range = start + 100..start + (64 << 20) - 100;
        let before = present(std::slice::from_ref(&range)).unwrap();
        bytes[10 << 20..40 << 20].fill(1);
        let after = present(&[range]).unwrap();
        assert!(before.own < 8 << 20, "{before:?}");
        let written = (30 << 20)..(36 << 20); // large pages may have more
        assert!(written.contains(&after.own) && after.mapped == 0, "{after:?}");
        assert_eq!(bytes[20 << 20], 1);
    }

    #[test]
    fn the_second_number_is_what_is_resident() {
        assert_eq!(resident_pages("1000 200 50 1 0 300 0\n"), Some(200));
        assert_eq!(resident_pages(""), None);
    }

    #[test]
    fn memory_is_what_the_system_says() {
        let found = ProcessMemory::parse(
            "Name:\tx\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nRssAnon:\t 100 kB\n",
        );
        let (resident, anonymous, peak) = (Some(200 << 10), Some(100 << 10), Some(300 << 10));
        let expected = ProcessMemory { resident, anonymous, peak };
        assert_eq!(found, expected);
        assert_eq!(ProcessMemory::parse("VmRSS: x"), ProcessMemory::default());
    }
}
