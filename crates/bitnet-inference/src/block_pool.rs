//! Which pages of the cache are free, and how many sequences hold each of the others. Ids only; the bytes are in `KvCache`.

/// The pages of one cache.
#[derive(Debug)]
pub struct BlockPool {
    /// Holders of each page; 0 for free ones.
    holders: Vec<u32>,
    /// The page freed last comes first, so that memory which has been used is used again before any that has not.
    free: Vec<u32>,
}

impl BlockPool {
    /// A pool of `pages` free pages.
    pub fn new(pages: usize) -> Self {
        let pages = u32::try_from(pages).expect("a cache has fewer pages than u32 can count");
        Self { holders: vec![0; pages as usize], free: (0..pages).rev().collect() }
    }

    /// Pages that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// A free page, now held once.
    pub fn take(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// Adds a holder to a page that has one: two sequences with the same beginning.
    ///
    /// # Panics
    /// If nobody holds it.
    pub fn share(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        assert!(*holders > 0, "only a page that is held can be shared");
        *holders += 1;
    }

    /// Takes a holder from a page; the last one frees it.
    ///
    /// # Panics
    /// If nobody holds it.
    pub fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        *holders = holders.checked_sub(1).expect("only a page that is held can be released");
        if *holders == 0 {
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_given_out_once() {
        let mut pool = BlockPool::new(3);
        let pages: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(pages, [0, 1, 2]);
        assert_eq!(pool.free(), 0);
    }

    #[test]
    fn the_page_freed_last_is_used_first() {
        let mut pool = BlockPool::new(9);
        let (a, _) = (pool.take().unwrap(), pool.take().unwrap());
        pool.release(a);
        assert_eq!(pool.take(), Some(a));
    }

    #[test]
    fn a_shared_page_is_free_when_its_last_holder_goes() {
        let mut pool = BlockPool::new(1);
        let page = pool.take().unwrap();
        pool.share(page);
        pool.release(page);
        assert_eq!(pool.free(), 0);
        pool.release(page);
        assert_eq!(pool.free(), 1);
    }

    #[test]
    #[should_panic(expected = "only a page that is held can be released")]
    fn releasing_twice_is_a_bug() {
        let mut pool = BlockPool::new(1);
        let page = pool.take().unwrap();
        pool.release(page);
        pool.release(page);
    }
}
