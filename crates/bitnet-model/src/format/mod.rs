//! Model files.

pub mod metadata;
