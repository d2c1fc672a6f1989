//! The pieces of an answer as they come, with an eye on Ctrl-C.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use bitnet::{Error, GenerationStream, Piece};
use futures_core::Stream;

use crate::interrupt::Watch;

/// How long Ctrl-C may go unnoticed while a long prompt is being read.
const LOOK: Duration = Duration::from_millis(50);

/// What came next.
pub enum Next {
    Piece(Piece),
    End,
    /// Ctrl-C was pressed.
    Interrupted,
}

/// Waits for the next piece.
pub fn next(stream: &mut Pin<Box<GenerationStream>>, watch: &Watch) -> Result<Next, Error> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if watch.pressed() {
            return Ok(Next::Interrupted);
        }
        match stream.as_mut().poll_next(&mut context) {
            Poll::Ready(Some(piece)) => return Ok(Next::Piece(piece?)),
            Poll::Ready(None) => return Ok(Next::End),
            Poll::Pending => std::thread::park_timeout(LOOK),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
