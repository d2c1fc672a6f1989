//! x86 versions.
pub mod floats;
