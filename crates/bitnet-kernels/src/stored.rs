//! Weights in a device's own layout as plain bytes: what a file keeps so that they need not be rearranged again.

use std::borrow::Cow;

use bytes::Bytes;

/// Bytes of a matrix that were stored before, to be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// What kind of matrix it is, in the backend's words.
    pub form: String,
    /// Its panels. They begin at a multiple of 64 in memory.
    pub panels: Bytes,
    /// Its scales.
    pub scales: Bytes,
}

/// Bytes of a matrix that are to be stored; see [`Stored`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredParts<'a> {
    /// What kind of matrix it is, in the backend's words.
    pub form: String,
    /// Its panels.
    pub panels: &'a [u8],
    /// Its scales.
    pub scales: Cow<'a, [u8]>,
}
