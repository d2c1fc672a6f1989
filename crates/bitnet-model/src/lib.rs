//! What lies in a model directory (config, weights, tokenizer, chat template), turned into an immutable model with a `forward`.

pub mod batch;
pub mod config;
pub mod decoder;
pub mod error;
pub mod format;
#[cfg(feature = "hub")]
pub mod hub;
pub mod kv;
mod parallel;
pub mod quantize;
pub mod tokenizer;
