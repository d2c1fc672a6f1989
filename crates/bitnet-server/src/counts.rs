//! Requests counted by path and status.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Requests by path and status; there are as many of both as the server knows, and no more.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<(&'static str, u16), u64>>);

impl Counts {
    /// One more.
    pub fn count(&self, path: &'static str, status: u16) {
        *self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry((path, status))
            .or_default() += 1;
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
