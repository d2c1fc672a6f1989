//! A bound on how many layers' weights are in memory at a time.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::format::packed::Mapping;

/// The layers of a mapped file, of which only those computed last stay in the process's memory.
///
/// What is given back is mapped again, and read again if the system has dropped it, when it is computed the next time: results are the same
/// and a model larger than memory runs, as fast as the disk is.
pub(super) struct Residency {
    mapping: Mapping,
    /// Where each layer lies in the mapping.
    layers: Vec<Range<usize>>,
    /// Layers in memory at most, at least 1.
    most: usize,
    /// Those that may be, the one computed last at the end.
    held: Mutex<VecDeque<usize>>,
}

impl Residency {
    pub fn new(mapping: Mapping, layers: Vec<Range<usize>>, most: usize) -> Self {
        let most = most.max(1);
        Self { mapping, layers, most, held: Mutex::new(VecDeque::with_capacity(most)) }
    }

    /// Before a layer is computed: makes room for it, and has the one after it fetched from the disk meanwhile.
    pub fn enter(&self, layer: usize) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|&other| other != layer);
        while held.len() >= self.most {
            let oldest = held.pop_front().expect("at least one is held");
            self.mapping.release(self.layers[oldest].clone());
        }
        held.push_back(layer);
        let next = (layer + 1) % self.layers.len();
        if !held.contains(&next) {
            self.mapping.fetch(self.layers[next].clone());
        }
    }

    /// Gives all layers back.
    pub fn release_all(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.drain(..).for_each(|layer| self.mapping.release(self.layers[layer].clone()));
    }
}
