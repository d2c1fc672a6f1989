//! Which pages of the cache are free, which are held, and which are kept for what is in them. Ids only; the bytes are in
//! `KvCache`.
//!
//! A page that is full is filed under its tokens and the page before it. A sequence that begins with the same tokens then
//! shares the page and does not compute it again (automatic prefix caching: Kwon et al. 2023, vLLM). Tokens are compared and
//! not hashes of them, so no two texts are ever mixed up. What nobody holds stays filed until its page is needed.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use bitnet_model::kv::PageLayout;
use serde::{Deserialize, Serialize};

use crate::growth::Growth;

/// Which of the filed pages that nobody holds is given to others first. Pages of one text go from its end on in any case; there is
/// no sliding window, because what is kept of a text after a gap is never found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvictionStrategy {
    /// The one that was last used the longest ago.
    #[default]
    #[serde(alias = "LRU")]
    Lru,
    /// The one that fewest sequences have shared; of equals as `Lru`.
    #[serde(alias = "LFU")]
    Lfu,
    /// One of the text that was filed first.
    #[serde(alias = "FIFO")]
    Fifo,
}

/// The names as abbreviations are often written.
///
/// ```
/// use bitnet_inference::EvictionStrategy;
///
/// assert_eq!(EvictionStrategy::LRU, EvictionStrategy::Lru);
/// ```
impl EvictionStrategy {
    /// [`Lru`](Self::Lru).
    pub const LRU: Self = Self::Lru;
    /// [`Lfu`](Self::Lfu).
    pub const LFU: Self = Self::Lfu;
    /// [`Fifo`](Self::Fifo).
    pub const FIFO: Self = Self::Fifo;
}

/// What comes before a page: nothing, or a filed page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chain {
    /// The page's number; 0 for nothing.
    number: u64,
    /// The number of the first page of its text.
    first: u64,
}

/// What a page is filed under.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Content {
    before: Chain,
    /// Of a first page: whose it is, if it is not everybody's.
    salt: Option<Arc<str>>,
    tokens: Box<[u32]>,
}

/// A page with its content.
#[derive(Debug)]
struct Filed {
    /// With its number, which no other page ever gets.
    chain: Chain,
    content: Arc<Content>,
    /// Sequences that found it.
    uses: u64,
    /// When it was last given back.
    released: u64,
}

#[derive(Debug, Default)]
struct Page {
    holders: u32,
    filed: Option<Filed>,
}

/// How often beginnings of sequences were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixStats {
    /// Pages that sequences did not compute because they were there.
    pub shared: u64,
    /// Filed pages that were given to others, or back to the system.
    pub evicted: u64,
}

/// The pages of one cache.
#[derive(Debug)]
pub struct BlockPool {
    pages: Vec<Page>,
    /// The page freed last comes first, so that memory which has been used is used again before any that has not.
    free: Vec<u32>,
    filed: HashMap<Arc<Content>, u32>,
    /// Filed pages that nobody holds, those to be given away first in front.
    unheld: BTreeSet<(Rank, u32)>,
    strategy: EvictionStrategy,
    /// Pages given back so far, which is the time here.
    releases: u64,
    filings: u64,
    stats: PrefixStats,
    growth: Growth,
}

/// Smaller is given away first.
type Rank = (u64, u64);

impl BlockPool {
    /// A pool of `pages` free pages.
    pub fn new(pages: usize, strategy: EvictionStrategy, layout: PageLayout) -> Self {
        let mut pool = Self {
            pages: (0..pages).map(|_| Page::default()).collect(),
            free: Vec::new(),
            filed: HashMap::new(),
            unheld: BTreeSet::new(),
            strategy,
            releases: 0,
            filings: 0,
            stats: PrefixStats::default(),
            growth: Growth::new(layout, pages),
        };
        pool.clear();
        pool
    }

    /// Takes all pages from their holders, and forgets what is in them.
    pub fn clear(&mut self) {
        self.pages.fill_with(Page::default);
        self.filed.clear();
        self.unheld.clear();
        let count = u32::try_from(self.pages.len());
        self.free = (0..count.expect("a cache has fewer pages than u32 can count")).collect();
        self.sort_free();
    }

    /// Those come first that have their memory, and of the others those with the smaller numbers.
    fn sort_free(&mut self) {
        let Self { free, growth, .. } = self;
        free.sort_unstable_by_key(|&page| Reverse((!growth.has(page), page)));
    }

    /// Lets pages that have never been written take so many more bytes from the system from now on; none stands for any number.
    /// Pages that would take more cannot be had.
    pub fn allow(&mut self, bytes: Option<u64>) {
        self.growth.allow(bytes);
    }

    /// Whether pages are out of reach for want of memory.
    pub fn is_limited(&self) -> bool {
        self.growth.is_limited()
    }

    /// Bytes that the system has given for pages.
    pub fn bytes(&self) -> usize {
        self.growth.bytes()
    }

    /// Forgets what is only kept. Returns the pages whose memory may go back to the system, in ranges.
    pub fn give_back(&mut self) -> Vec<Range<usize>> {
        while let Some(page) = self.evict() {
            self.free.push(page);
        }
        let mut is_free = vec![false; self.pages.len()];
        self.free.iter().for_each(|&page| is_free[page as usize] = true);
        let ranges = self.growth.give_back(&is_free);
        self.sort_free();
        ranges
    }

    /// Pages that nobody holds.
    pub fn unheld(&self) -> usize {
        self.free.len() + self.unheld.len()
    }

    /// Pages that can be taken: those that are free, and those that are only kept.
    pub fn available(&self) -> usize {
        self.growth.allowed(self.free.iter().rev().copied()) + self.unheld.len()
    }

    /// Pages that nobody holds but that are kept for their content.
    pub fn kept(&self) -> usize {
        self.unheld.len()
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.pages.len()
    }

    /// What was found so far.
    pub fn stats(&self) -> PrefixStats {
        self.stats
    }

    /// A page whose content is of no more use, now held once.
    pub fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop_if(|page| self.growth.write(*page)) {
            Some(page) => page,
            None => self.evict()?,
        };
        self.pages[page as usize].holders = 1;
        Some(page)
    }

    fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.unheld.pop_first()?;
        let filed = self.pages[page as usize].filed.take().expect("kept pages are filed");
        self.filed.remove(&filed.content);
        self.stats.evicted += 1;
        Some(page)
    }

    /// The page that is filed under these tokens, and what comes before the next one. Texts are the same only with the same salt.
    pub fn find(
        &self,
        before: Chain,
        salt: Option<&Arc<str>>,
        tokens: &[u32],
    ) -> Option<(u32, Chain)> {
        let page = *self.filed.get(&content(before, salt, tokens))?;
        let filed = self.pages[page as usize].filed.as_ref().expect("it is filed");
        Some((page, filed.chain))
    }

    /// Whether nobody holds a page that was found.
    pub fn is_kept(&self, page: u32) -> bool {
        self.pages[page as usize].holders == 0
    }

    /// Adds a holder to a page that was found: a sequence with the same beginning as another one.
    ///
    /// # Panics
    /// If the page is free.
    pub fn share(&mut self, page: u32) {
        if self.is_kept(page) {
            let rank = self.rank(page).expect("only a page with content can be shared");
            assert!(self.unheld.remove(&(rank, page)), "a page that nobody holds is kept");
        }
        let Page { holders, filed } = &mut self.pages[page as usize];
        *holders += 1;
        if let Some(filed) = filed {
            filed.uses += 1;
            self.stats.shared += 1;
        }
    }

    /// Files a full page that is held. If another page is filed under the same tokens, that one is shared in its place and the
    /// given one released. Returns the page that the sequence now has, and what comes before its next one.
    pub fn file(
        &mut self,
        page: u32,
        before: Chain,
        salt: Option<&Arc<str>>,
        tokens: &[u32],
    ) -> (u32, Chain) {
        if let Some((same, chain)) = self.find(before, salt, tokens) {
            if same != page {
                self.share(same);
                self.release(page);
            }
            return (same, chain);
        }
        self.filings += 1;
        let content = Arc::new(content(before, salt, tokens));
        self.filed.insert(Arc::clone(&content), page);
        let first = if before == Chain::default() { self.filings } else { before.first };
        let chain = Chain { number: self.filings, first };
        self.pages[page as usize].filed = Some(Filed { chain, content, uses: 0, released: 0 });
        (page, chain)
    }

    /// Takes a holder from a page; when the last one is gone, the page is free, or kept if it is filed.
    ///
    /// # Panics
    /// If nobody holds it.
    pub fn release(&mut self, page: u32) {
        self.releases += 1;
        let Page { holders, filed } = &mut self.pages[page as usize];
        *holders = holders.checked_sub(1).expect("only a page that is held can be released");
        if *holders > 0 {
            return;
        }
        if let Some(filed) = filed {
            filed.released = self.releases;
        }
        match self.rank(page) {
            Some(rank) => assert!(self.unheld.insert((rank, page)), "it was held until now"),
            None => self.free.push(page),
        }
    }

    /// Where a filed page stands among those that nobody holds. A page comes before those that its text needs first: it was
    /// released before them, found no more often, and filed later.
    fn rank(&self, page: u32) -> Option<Rank> {
        let &Filed { chain, uses, released, .. } = self.pages[page as usize].filed.as_ref()?;
        Some(match self.strategy {
            EvictionStrategy::Lru => (released, 0),
            EvictionStrategy::Lfu => (uses, released),
            EvictionStrategy::Fifo => (chain.first, u64::MAX - chain.number),
        })
    }
}

fn content(before: Chain, salt: Option<&Arc<str>>, tokens: &[u32]) -> Content {
    // What comes later has the salt of what it comes after.
    let salt = salt.filter(|_| before == Chain::default()).cloned();
    Content { before, salt, tokens: tokens.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(pages: usize) -> BlockPool {
        pool_with(pages, EvictionStrategy::Lru)
    }

    /// A page takes two bytes from the system.
    fn pool_with(pages: usize, strategy: EvictionStrategy) -> BlockPool {
        let layout = PageLayout { layers: 2, group: 1, group_bytes: 1, chunk_bytes: 1 };
        BlockPool::new(pages, strategy, layout)
    }

    /// Files a text of pages that each have one token, and gives them back as a sequence does, the last one first.
    fn keep(pool: &mut BlockPool, text: &[u32]) -> Vec<u32> {
        let (mut before, mut pages) = (Chain::default(), Vec::new());
        for token in text {
            let taken = pool.take().unwrap();
            let (page, chain) = pool.file(taken, before, None, &[*token]);
            before = chain;
            pages.push(page);
        }
        pages.iter().rev().for_each(|&page| pool.release(page));
        pages
    }

    /// The pages of a text's beginning that are there.
    fn find(pool: &BlockPool, text: &[u32]) -> Vec<u32> {
        let (mut before, mut pages) = (Chain::default(), Vec::new());
        for token in text {
            let Some((page, chain)) = pool.find(before, None, &[*token]) else { break };
            before = chain;
            pages.push(page);
        }
        pages
    }

    #[test]
    fn each_page_is_given_out_once() {
        let mut pool = pool(3);
        let pages: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!((pages, pool.available()), (vec![0, 1, 2], 0));
    }

    #[test]
    fn the_page_freed_last_is_used_first() {
        let mut pool = pool(9);
        let (a, _) = (pool.take().unwrap(), pool.take().unwrap());
        pool.release(a);
        assert_eq!(pool.take(), Some(a));
    }

    #[test]
    fn a_text_is_found_as_far_as_it_is_the_same() {
        let mut pool = pool(9);
        let pages = keep(&mut pool, &[1, 2, 3]);
        assert_eq!(find(&pool, &[1, 2, 3, 4]), pages);
        assert_eq!(find(&pool, &[1, 2, 9]), pages[..2]);
        assert_eq!(find(&pool, &[2, 3]), [0; 0], "the same tokens after others are another text");
        assert_eq!((pool.available(), pool.kept()), (9, 3));
    }

    #[test]
    fn texts_with_different_salts_are_different() {
        let mut pool = pool(9);
        let (mine, yours): (Arc<str>, Arc<str>) = ("mine".into(), "yours".into());
        let page = pool.take().unwrap();
        let (_, chain) = pool.file(page, Chain::default(), Some(&mine), &[1]);
        assert_eq!(pool.find(Chain::default(), Some(&mine), &[1]), Some((page, chain)));
        assert_eq!(pool.find(Chain::default(), Some(&yours), &[1]), None);
        assert_eq!(pool.find(Chain::default(), None, &[1]), None);
    }

    #[test]
    fn a_shared_page_is_kept_when_its_last_holder_goes() {
        let mut pool = pool(1);
        let [page] = keep(&mut pool, &[1])[..] else { panic!() };
        pool.share(page);
        pool.share(page);
        pool.release(page);
        assert_eq!((pool.available(), pool.take()), (0, None));
        pool.release(page);
        assert_eq!((pool.available(), pool.kept()), (1, 1));
        assert_eq!(pool.stats(), PrefixStats { shared: 2, evicted: 0 });
    }

    #[test]
    fn the_same_text_computed_twice_takes_its_pages_once() {
        let mut pool = pool(4);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        let (_, chain) = pool.file(a, Chain::default(), None, &[7]);
        assert_eq!(pool.file(b, Chain::default(), None, &[7]), (a, chain));
        assert_eq!(pool.available(), 3, "the second page is free again");
        pool.release(a);
        assert_eq!(pool.kept(), 0, "the second sequence still holds the first page");
    }

    /// Texts 1-2 and 3-4 are kept, the first is used twice after that; then one page after the other is needed.
    #[track_caller]
    fn check_order(strategy: EvictionStrategy, uses: &[u32], expected: [u32; 4]) {
        let mut pool = pool_with(4, strategy);
        let names: Vec<u32> = [[1, 2], [3, 4]].iter().flat_map(|t| keep(&mut pool, t)).collect();
        for first in uses {
            let pages = find(&pool, &[*first, first + 1]);
            pages.iter().for_each(|&page| pool.share(page));
            pages.iter().rev().for_each(|&page| pool.release(page));
        }
        let order = std::iter::from_fn(|| pool.take())
            .map(|page| 1 + names.iter().position(|&name| name == page).unwrap() as u32);
        assert_eq!(order.collect::<Vec<_>>(), expected, "{strategy:?}");
        assert_eq!(pool.stats().evicted, 4);
        assert_eq!(find(&pool, &[1]), [0; 0]);
    }

    #[test]
    fn what_is_given_away_first_is_what_the_strategy_says_and_of_a_text_its_end() {
        check_order(EvictionStrategy::Lru, &[3, 3, 1], [4, 3, 2, 1]);
        check_order(EvictionStrategy::Lru, &[], [2, 1, 4, 3]);
        check_order(EvictionStrategy::Lfu, &[3, 3, 1], [2, 1, 4, 3]);
        check_order(EvictionStrategy::Lfu, &[3, 1], [4, 3, 2, 1]);
        check_order(EvictionStrategy::Fifo, &[1, 1], [2, 1, 4, 3]);
    }

    #[test]
    fn what_is_kept_is_given_away_before_more_memory_is_taken_than_allowed() {
        let mut pool = pool(9);
        pool.allow(Some(5));
        let kept = keep(&mut pool, &[1, 2]);
        assert_eq!((pool.bytes(), pool.available()), (4, 2), "one byte is no page");
        assert_eq!((pool.take(), pool.take(), pool.take()), (Some(kept[1]), Some(kept[0]), None));
        pool.allow(Some(2));
        assert_eq!((pool.available(), pool.take(), pool.take()), (1, Some(2), None));
        pool.allow(None);
        assert_eq!((pool.available(), pool.unheld()), (6, 6));
    }

    #[test]
    fn memory_of_what_nobody_holds_goes_back_and_is_taken_last() {
        let mut pool = pool(6);
        let held = [0; 3].map(|_| pool.take().unwrap());
        keep(&mut pool, &[1, 2]);
        pool.release(held[1]);
        assert_eq!((pool.bytes(), pool.kept()), (10, 2));
        assert_eq!(pool.give_back(), [1..2, 3..6]);
        assert_eq!((pool.bytes(), pool.kept(), pool.available()), (4, 0, 4));
        assert_eq!(find(&pool, &[1]), [0; 0]);
        pool.release(held[0]);
        assert_eq!([0; 5].map(|_| pool.take()), [0, 1, 3, 4, 5].map(Some));
    }

    #[test]
    fn a_pool_that_was_cleared_has_its_memory_and_begins_with_it() {
        let mut pool = pool(4);
        pool.take();
        keep(&mut pool, &[1, 2]);
        pool.clear();
        assert_eq!((pool.bytes(), pool.kept(), pool.available()), (6, 0, 4));
        pool.allow(Some(0));
        assert_eq!([0; 4].map(|_| pool.take()), [Some(0), Some(1), Some(2), None]);
    }

    #[test]
    #[should_panic(expected = "only a page that is held can be released")]
    fn releasing_twice_is_a_bug() {
        let mut pool = pool(1);
        let page = pool.take().unwrap();
        pool.release(page);
        pool.release(page);
    }
}
