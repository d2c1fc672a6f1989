//! The library as its users see it.

mod generate;
mod idle;
mod kv_types;
mod load;
#[cfg(target_os = "linux")] // it asks the system
mod memory;
mod metrics;
mod perplexity;
mod response_cache;
mod serving;
mod support;
