//! The one loop of byte-pair encoding: join the best pair of neighbours until no pair can be joined.
//!
//! What "best" means is the caller's: merge rank (`bpe`) or token score (`sentencepiece`).
//! A heap of candidates makes it O(n log n), so that a word of a million characters is no trap.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

const NONE: u32 = u32::MAX;

/// A run of the text that is one token, or one that no token matches yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// The token; meaningless in symbols that the caller marks as unknown.
    pub(super) id: u32,
    /// Where its text starts, in bytes.
    pub(super) start: u32,
    /// Its length in bytes; 0 once it has been joined to its left neighbour.
    pub(super) len: u32,
    prev: u32,
    next: u32,
}

/// A pair that may be joined; the smallest (priority, left) goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    priority: u32,
    left: u32,
    right: u32,
    /// A symbol's start never changes, so its length tells whether it is still what it was.
    lens: (u32, u32),
    id: u32,
}

/// Symbols and candidates of one word, kept so that the next word needs no allocation.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends a symbol; `len` is at least 1.
    pub(super) fn push(&mut self, id: u32, start: u32, len: u32) {
        let at = self.symbols.len() as u32;
        let prev = at.checked_sub(1).unwrap_or(NONE);
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        self.symbols.push(Symbol { id, start, len, prev, next: NONE });
    }

    /// Joins pairs while `join(left, right)` gives a priority (smaller first; then leftmost first) and the joined token.
    pub(super) fn run(
        &mut self,
        join: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>,
    ) -> impl Iterator<Item = &Symbol> {
        for left in 1..self.symbols.len() as u32 {
            self.offer(left - 1, left, &join);
        }
        while let Some(Reverse(best)) = self.queue.pop() {
            let (left, right) =
                (self.symbols[best.left as usize], self.symbols[best.right as usize]);
            if (left.len, right.len) != best.lens {
                continue;
            }
            self.symbols[best.right as usize].len = 0;
            let joined = &mut self.symbols[best.left as usize];
            (joined.id, joined.len, joined.next) = (best.id, left.len + right.len, right.next);
            if right.next != NONE {
                self.symbols[right.next as usize].prev = best.left;
                self.offer(best.left, right.next, &join);
            }
            if left.prev != NONE {
                self.offer(left.prev, best.left, &join);
            }
        }
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn offer(
        &mut self,
        left: u32,
        right: u32,
        join: &impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>,
    ) {
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((priority, id)) = join(l, r) {
            self.queue.push(Reverse(Candidate { priority, left, right, lens: (l.len, r.len), id }));
        }
    }
}
