//! The OpenAI-compatible HTTP face of a [`BitNetModel`](bitnet::BitNetModel).
//!
//! [`BitNetServer`] is the server, [`ServerConfig`] how it behaves; `docs/serving.md` of the repository describes the paths, the
//! fields and the limits. It runs on tokio, in which nothing here ever computes: models have threads of their own, and what
//! takes long beside them (reading JSON, templates, tokenizing) is done on tokio's threads for blocking work.
//!
//! The way of a request: `connection` → `front` (keys, ids, the log) → `routes` (a module for each path) →
//! `translate` (fields and headers to the library's settings) → the engine → `answers` → `sse` or `json`.

mod answers;
mod auth;
mod body;
mod config;
mod connection;
mod cors;
mod counts;
mod error;
mod fields;
mod format;
mod front;
mod generate;
mod json;
mod logprobs;
mod messages;
mod routes;
mod server;
mod sse;
mod state;
mod translate;
mod unsupported;

pub use auth::ApiKey;
pub use config::ServerConfig;
pub use server::{BitNetServer, BitNetServerBuilder, serve};
