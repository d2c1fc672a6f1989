//! Engines with whole models.

mod engine;
mod faulty;
mod golden;
#[cfg(feature = "grammar")]
mod grammar;
mod service;
mod stress;
mod support;
