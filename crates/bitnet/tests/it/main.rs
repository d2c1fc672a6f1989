//! The library as its users see it.

mod generate;
mod idle;
mod kv_types;
mod load;
mod memory;
mod metrics;
mod perplexity;
mod response_cache;
mod serving;
mod support;
