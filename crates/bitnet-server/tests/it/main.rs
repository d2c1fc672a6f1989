//! The server as its clients see it, on the demo model.

mod chat;
mod client;
mod completions;
mod errors;
mod gateway;
mod likely;
mod sharing;
mod sockets;
