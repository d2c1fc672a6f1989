//! What crosses module borders: whole models against the reference's numbers, and what fuzzing found.

mod cache;
mod golden;
mod reference;
mod seeds;
