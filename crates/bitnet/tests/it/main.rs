//! The library as its users see it.

mod generate;
mod load;
mod perplexity;
mod support;
