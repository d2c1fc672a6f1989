//! Channels, threads and shared numbers between an engine and those who use it: the usual ones, or, with the feature `shuttle`,
//! such whose schedule a test decides (`tests/schedules.rs`).

#[cfg(not(feature = "shuttle"))]
pub(crate) use usual::*;

#[cfg(not(feature = "shuttle"))]
mod usual {
    pub use async_channel as channel;
    pub use std::sync::{atomic, mpsc};
    pub use std::thread;
}

#[cfg(feature = "shuttle")]
pub mod channel;

#[cfg(feature = "shuttle")]
pub(crate) use shuttle::{
    sync::{atomic, mpsc},
    thread,
};
