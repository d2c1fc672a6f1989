//! What lies in a model directory (config, weights, tokenizer, chat template), turned into an immutable model with a `forward`.

pub mod config;
pub mod error;
pub mod format;
pub mod quantize;
pub mod tokenizer;
