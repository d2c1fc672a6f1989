//! The library as its users see it.

mod generate;
#[cfg(feature = "grammar")]
mod grammar;
mod idle;
mod load;
mod metrics;
mod perplexity;
mod response_cache;
mod sampling;
#[cfg(feature = "grammar")]
mod schemas;
mod serving;
mod support;
