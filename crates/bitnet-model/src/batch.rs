//! One step's tokens as plain vectors: a flat batch that may hold many sequences, each with one new token or many.

use bitnet_kernels::backend::Span;
use bitnet_kernels::kv::PAGE;
use bitnet_kernels::logits::Wanted;

/// New tokens of any number of sequences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Position of each token in its sequence.
    pub positions: Vec<u32>,
    /// Slot of each token in the cache: `page · PAGE + offset`.
    pub slots: Vec<u32>,
    /// The sequences.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted, in the order in which they are wanted, and which logits.
    pub outputs: Vec<(usize, Wanted)>,
    /// Lists of pages and of ids to be used again.
    pub spare: Vec<Vec<u32>>,
}

/// Which of a sequence's new tokens need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// None: more of the prompt follows.
    None,
    /// The last one's, to draw the next token from.
    Last,
    /// All, to score a text.
    All,
}

impl Batch {
    /// Adds new tokens of a sequence that has `start` tokens in the cache already. `pages` are the sequence's pages in order.
    ///
    /// # Panics
    /// If the pages do not reach to the last of the tokens, or there are none.
    pub fn push<'a>(
        &mut self,
        ids: impl IntoIterator<Item = &'a u32>,
        start: usize,
        pages: &[u32],
        outputs: Outputs,
    ) {
        let first = self.ids.len();
        self.ids.extend(ids);
        let rows = first..self.ids.len();
        let end = start + rows.len();
        assert!(end > start && pages.len() * PAGE >= end, "pages cover all positions");
        for position in start..end {
            self.positions.push(position as u32);
            self.slots.push(pages[position / PAGE] * PAGE as u32 + (position % PAGE) as u32);
        }
        match outputs {
            Outputs::None => {}
            Outputs::Last => self.outputs.push((rows.end - 1, Wanted::All)),
            Outputs::All => self.outputs.extend(rows.clone().map(|row| (row, Wanted::All))),
        }
        let mut own_pages = self.spare.pop().unwrap_or_default();
        own_pages.extend_from_slice(pages);
        self.spans.push(Span { rows, start, pages: own_pages });
    }

    /// Forgets all tokens and keeps the memory.
    pub fn clear(&mut self) {
        let Self { ids, positions, slots, spans, outputs, spare } = self;
        for list in [ids, positions, slots] {
            list.clear();
        }
        let ids = outputs.drain(..).filter_map(|(_, wanted)| match wanted {
            Wanted::Some { always, .. } => Some(always),
            Wanted::All => None,
        });
        let first = spare.len();
        spare.extend(ids.filter(|ids| ids.capacity() > 0));
        spare.extend(spans.drain(..).map(|span| span.pages));
        spare[first..].iter_mut().for_each(Vec::clear);
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_lie_one_after_another_with_their_own_slots_after_clearing_too() {
        let mut batch = Batch::default();
        batch.push(&[1; 2 * PAGE], 0, &[6, 7], Outputs::All);
        batch.clear();
        batch.push(&[7, 8, 9], PAGE - 1, &[4, 2], Outputs::Last);
        batch.push(&[5], 0, &[1], Outputs::All);
        let page = PAGE as u32;
        assert_eq!(batch.slots, [5 * page - 1, 2 * page, 2 * page + 1, page]);
        assert_eq!(batch.positions, [page - 1, page, page + 1, 0]);
        assert_eq!(batch.outputs, [(2, Wanted::All), (3, Wanted::All)]);
        assert_eq!(batch.spans[1], Span { rows: 3..4, start: 0, pages: vec![1] });
    }
}
