//! The library as its users see it.

mod generate;
mod idle;
mod load;
mod perplexity;
mod serving;
mod support;
