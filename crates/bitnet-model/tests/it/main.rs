//! What crosses module borders: whole models against the reference's numbers.

mod golden;
mod reference;
