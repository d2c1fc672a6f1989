//! The library as its users see it.

mod generate;
mod idle;
mod load;
mod metrics;
mod perplexity;
mod response_cache;
mod sampling;
mod serving;
mod support;
