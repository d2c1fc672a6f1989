//! Which of a cache's memory the system has given so far, and how much more it may be asked for. Plain data.

use std::ops::Range;

use bitnet_model::kv::PageLayout;

/// The chunks of a cache's layers that have been written, and what is left to be.
#[derive(Debug)]
pub struct Growth {
    layout: PageLayout,
    /// By chunk.
    given: Vec<bool>,
    count: usize,
    /// Bytes that may still be written for the first time; none if that is without limit.
    left: Option<u64>,
}

impl Growth {
    /// Nothing of so many pages has been written, and all may be.
    pub fn new(layout: PageLayout, pages: usize) -> Self {
        let chunks = layout.chunks(0..pages.div_ceil(layout.group)).len();
        Self { layout, given: vec![false; chunks], count: 0, left: None }
    }

    /// Bytes that the system has given.
    pub fn bytes(&self) -> usize {
        self.layout.bytes(self.count)
    }

    /// Allows so many bytes more from now on.
    pub fn allow(&mut self, left: Option<u64>) {
        self.left = left;
    }

    /// Whether more is limited.
    pub fn is_limited(&self) -> bool {
        self.left.is_some()
    }

    /// Whether a page can be written without more memory.
    pub fn has(&self, page: u32) -> bool {
        self.chunks(page).all(|chunk| self.given[chunk])
    }

    /// Takes the memory for a page to be written. False if that is more than allowed.
    pub fn write(&mut self, page: u32) -> bool {
        let new = self.chunks(page).filter(|&chunk| !self.given[chunk]).count();
        let bytes = self.layout.bytes(new) as u64;
        match &mut self.left {
            Some(left) if *left < bytes => return false,
            Some(left) => *left -= bytes,
            None => {}
        }
        let chunks = self.chunks(page);
        self.given[chunks].fill(true);
        self.count += new;
        true
    }

    /// How many of these pages, the next one first, may be written.
    pub fn allowed(&self, pages: impl ExactSizeIterator<Item = u32>) -> usize {
        let Some(mut left) = self.left else { return pages.len() };
        let mut reached = None;
        let fits = |page: &u32| {
            // Pages come in ascending order where they have no memory, so that chunks of the one before are the last seen.
            let new = self.chunks(*page).filter(|&chunk| {
                !self.given[chunk] && reached.is_none_or(|reached| chunk > reached)
            });
            let new: Vec<usize> = new.collect();
            reached = reached.max(new.last().copied());
            match left.checked_sub(self.layout.bytes(new.len()) as u64) {
                Some(rest) => left = rest,
                None => return false,
            }
            true
        };
        pages.take_while(fits).count()
    }

    /// Gives back what only pages have that are free, by page. Returns all groups of such pages, as ranges of pages.
    pub fn give_back(&mut self, is_free: &[bool]) -> Vec<Range<usize>> {
        let free: Vec<bool> =
            is_free.chunks(self.layout.group).map(|group| group.iter().all(|&free| free)).collect();
        let mut in_use = vec![false; self.given.len()];
        for group in (0..free.len()).filter(|&group| !free[group]) {
            in_use[self.layout.chunks(group..group + 1)].fill(true);
        }
        for (given, in_use) in self.given.iter_mut().zip(in_use) {
            *given &= in_use;
        }
        self.count = self.given.iter().filter(|&&given| given).count();
        let (mut ranges, mut next) = (Vec::new(), 0);
        for run in free.chunk_by(|a, b| a == b) {
            let groups = next..next + run.len();
            next = groups.end;
            if run[0] {
                let pages = |group: usize| (group * self.layout.group).min(is_free.len());
                ranges.push(pages(groups.start)..pages(groups.end));
            }
        }
        ranges
    }

    fn chunks(&self, page: u32) -> Range<usize> {
        let group = page as usize / self.layout.group;
        self.layout.chunks(group..group + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups of two pages in chunks of one and a half: pages 0 and 1 are in chunk 0, 2 and 3 in 0 and 1, 4 and 5 in 1.
    fn growth(left: Option<u64>) -> Growth {
        let layout = PageLayout { layers: 10, group: 2, group_bytes: 2, chunk_bytes: 3 };
        let mut growth = Growth::new(layout, 11);
        growth.allow(left);
        growth
    }

    #[test]
    fn memory_is_what_written_pages_reach_into() {
        let mut growth = growth(None);
        assert_eq!((growth.given.len(), growth.bytes()), (4, 0));
        for (page, bytes) in [(0, 30), (1, 30), (3, 60), (5, 60), (10, 90)] {
            assert!(growth.write(page));
            assert_eq!(growth.bytes(), bytes, "page {page}");
        }
        assert!(growth.has(4) && !growth.has(6));
    }

    #[test]
    fn no_more_is_written_than_allowed() {
        let mut growth = growth(Some(59));
        assert_eq!(growth.allowed((0..11).collect::<Vec<_>>().into_iter()), 2);
        assert!(growth.write(0) && growth.write(1) && !growth.write(2));
        growth.allow(Some(60));
        assert_eq!(growth.allowed((2..11).collect::<Vec<_>>().into_iter()), 6);
        assert!((2..8).all(|page| growth.write(page)) && !growth.write(8));
        assert!(growth.write(5), "it has its memory");
    }

    #[test]
    fn chunks_go_back_that_only_free_pages_have() {
        let mut growth = growth(None);
        assert!((0..11).all(|page| growth.write(page)));
        let free = |held: &[usize]| (0..11).map(|page| !held.contains(&page)).collect::<Vec<_>>();
        assert_eq!(growth.give_back(&free(&[2])), [0..2, 4..11]);
        assert_eq!(growth.bytes(), 60, "chunks 0 and 1 are the held group's too");
        assert_eq!(growth.give_back(&free(&[])).first(), Some(&(0..11)));
        assert_eq!(growth.bytes(), 0);
        assert_eq!(growth.give_back(&[false; 11]), [0..0; 0]);
    }
}
