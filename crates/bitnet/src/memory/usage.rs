//! Memory in use, by what it is for.

use std::ops::Range;

use crate::model::BitNetModel;
use crate::process::{self, Present};
use crate::response_cache;

/// Bytes of what is called GB here and in the guides: 1024³.
pub(crate) const GB: f64 = (1u64 << 30) as f64;

/// Bytes of memory that a process has in use, by what they are for, of all its models together. There is no other device than
/// the processor, and nothing in another device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// All that the process has in memory (resident set), if the system tells.
    pub resident: Option<u64>,
    /// Weights that lie in mapped files, as far as they are in memory. The system can take these back, and read them again.
    pub weights_mapped: u64,
    /// Weights in memory of the process's own.
    pub weights_owned: u64,
    /// Keys and values, with those that are only kept.
    pub kv_cache: u64,
    /// Working memory of steps: activations, logits.
    pub activations: u64,
    /// Tokenizers, about.
    pub tokenizer: u64,
    /// Answers in response caches, about.
    pub response_caches: u64,
    /// The rest of `resident`: the program itself, its other data, and what the allocator keeps.
    pub other: u64,
}

impl MemoryUsage {
    /// All bytes: `resident`, or, where the system does not tell, the sum of the others.
    pub fn total(&self) -> u64 {
        self.resident.unwrap_or_else(|| self.known() + self.other)
    }

    /// [`total`](Self::total) in GB of 1024³ bytes, as the guides have it for `8 * 1024 * 1024 * 1024`.
    pub fn total_gb(&self) -> f64 {
        self.total() as f64 / GB
    }

    /// Bytes of which it is known what they are for.
    pub fn known(&self) -> u64 {
        let weights = self.weights_mapped + self.weights_owned;
        let small = self.activations + self.tokenizer + self.response_caches;
        weights + self.kv_cache + small
    }

    pub(super) fn of(models: &[BitNetModel]) -> Self {
        // Several engines may share weights.
        let weights = merged(models.iter().flat_map(|model| model.weights().memory()).collect());
        let kv: Vec<_> =
            models.iter().flat_map(|model| model.engine().kv_memory()).cloned().collect();
        let all = |ranges: &[Range<usize>]| ranges.iter().map(|range| range.len() as u64).sum();
        let stats: Vec<_> = models.iter().map(BitNetModel::stats).collect();
        let weights =
            process::present(&weights).unwrap_or(Present { mapped: 0, own: all(&weights) });
        let kv_cache = match process::present(&kv) {
            Some(Present { own, .. }) => own,
            None => stats.iter().map(|stats| stats.kv_bytes as u64).sum(),
        };
        let resident = process::resident();
        let known = Self {
            resident,
            weights_mapped: weights.mapped,
            weights_owned: weights.own,
            kv_cache,
            activations: stats.iter().map(|stats| stats.scratch_bytes as u64).sum(),
            tokenizer: tokenizers(models),
            response_caches: response_cache::totals().bytes,
            other: 0,
        };
        Self { other: resident.unwrap_or(0).saturating_sub(known.known()), ..known }
    }
}

/// Bytes of all tokenizers, of which several engines may share one.
fn tokenizers(models: &[BitNetModel]) -> u64 {
    let mut tokenizers: Vec<_> = models.iter().map(BitNetModel::tokenizer).collect();
    tokenizers.sort_unstable_by_key(|&tokenizer| std::ptr::from_ref(tokenizer).addr());
    tokenizers.dedup_by(|a, b| std::ptr::eq(*a, *b));
    tokenizers.iter().map(|tokenizer| tokenizer.heap_bytes() as u64).sum()
}

/// The same addresses, each in one range.
fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gb_is_a_power_of_two() {
        let usage = MemoryUsage { resident: Some(3 << 29), other: 7, ..Default::default() };
        assert_eq!((usage.total_gb(), format!("{:.2}", usage.total_gb())), (1.5, "1.50".into()));
        let unknown = MemoryUsage { resident: None, kv_cache: 1 << 30, ..usage };
        assert_eq!(unknown.total(), (1 << 30) + 7);
    }

    #[test]
    fn what_is_shared_counts_once() {
        assert_eq!(merged(vec![5..9, 0..3, 8..12, 5..6, 12..13, 20..21]), [0..3, 5..13, 20..21]);
        assert_eq!(merged(vec![]), [0..0; 0]);
    }
}
