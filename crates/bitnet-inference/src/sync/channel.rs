//! As much of `async_channel` as the engine uses, on locks whose schedule a test decides.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use shuttle::sync::{Arc, Condvar, Mutex};

/// A channel without a bound.
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), senders: 1, closed: false, wakers: Vec::new() };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    closed: bool,
    wakers: Vec<Waker>,
}

/// Nothing comes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl<T> Shared<T> {
    fn change<R>(&self, change: impl FnOnce(&mut State<T>) -> R) -> R {
        let mut state = self.state.lock().expect("nobody panics with it");
        let result = change(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
        result
    }
}

/// The end that things go into.
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Sends, if there is somebody to receive.
    pub fn try_send(&self, value: T) -> Result<(), Closed> {
        self.0.change(|state| match state.closed {
            true => Err(Closed),
            false => {
                state.queue.push_back(value);
                Ok(())
            }
        })
    }

    /// Whether nobody receives any more.
    pub fn is_closed(&self) -> bool {
        self.0.state.lock().expect("nobody panics with it").closed
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.change(|state| state.senders += 1);
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.change(|state| state.senders -= 1);
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

/// The end that things come out of.
pub struct Receiver<T>(Arc<Shared<T>>);

impl<T> Receiver<T> {
    /// Waits for the next.
    pub fn recv_blocking(&self) -> Result<T, Closed> {
        let mut state = self.0.state.lock().expect("nobody panics with it");
        loop {
            if let Some(value) = state.queue.pop_front() {
                return Ok(value);
            }
            if state.senders == 0 || state.closed {
                return Err(Closed);
            }
            state = self.0.changed.wait(state).expect("nobody panics with it");
        }
    }

    /// The next, if it is there.
    pub fn try_recv(&self) -> Result<T, Closed> {
        self.0.change(|state| state.queue.pop_front().ok_or(Closed))
    }

    /// Receives nothing any more.
    pub fn close(&self) {
        self.0.change(|state| state.closed = true);
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<T> Stream for Receiver<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.state.lock().expect("nobody panics with it");
        match state.queue.pop_front() {
            None if state.senders > 0 && !state.closed => {
                state.wakers.push(context.waker().clone());
                Poll::Pending
            }
            next => Poll::Ready(next),
        }
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver")
    }
}
