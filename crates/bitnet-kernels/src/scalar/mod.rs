//! Plain Rust reference of every operation: the definition, and the oracle of all tests.

pub mod ternary;
