//! Whole files: the golden models in every format, and what happens when they are damaged.

mod golden;

use std::path::PathBuf;

use super::{Checkpoint, OpenOptions};

/// A file or directory below `testdata/`.
pub fn testdata(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

pub fn open(path: &str) -> Checkpoint {
    let path = testdata(path);
    Checkpoint::open(&path, &OpenOptions::default())
        .unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// An error and its causes in one line, as a user sees them.
pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
