//! A generation under way.

use std::pin::Pin;
use std::task::{Context, Poll};

use bitnet_inference::{Generation, Output, Piece, Timings};
use futures_core::Stream;

use crate::error::Error;

/// The pieces of an answer as they are made: a [`Stream`] for async code of any runtime; [`blocking`](Self::blocking) makes an
/// iterator of it. Dropping it ends the work within one token.
#[derive(Debug)]
pub struct GenerationStream(Generation);

impl GenerationStream {
    pub(crate) fn new(generation: Generation) -> Self {
        Self(generation)
    }

    /// An iterator that waits for each piece.
    pub fn blocking(self) -> BlockingGeneration {
        BlockingGeneration(self)
    }

    /// Ends the generation now; the text so far is its result.
    pub fn cancel(&mut self) {
        self.0.cancel();
    }

    /// All of it, after the end.
    pub fn output(&self) -> Option<Output> {
        self.0.output()
    }

    /// How long what has been done so far took.
    pub fn timings(&self) -> Timings {
        self.0.timings()
    }

    fn next_blocking(&mut self) -> Option<Result<Piece, Error>> {
        self.0.next_blocking().map(|piece| piece.map_err(Error::from))
    }

    /// Waits for the end.
    pub(crate) async fn finish(mut self) -> Result<Output, Error> {
        while let Some(piece) =
            std::future::poll_fn(|context| Pin::new(&mut self).poll_next(context)).await
        {
            piece?;
        }
        Ok(self.output().expect("without an error, the end has a reason"))
    }

    /// Waits for the end.
    pub(crate) fn finish_blocking(mut self) -> Result<Output, Error> {
        while let Some(piece) = self.next_blocking() {
            piece?;
        }
        Ok(self.output().expect("without an error, the end has a reason"))
    }
}

impl Stream for GenerationStream {
    type Item = Result<Piece, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_next(context).map(|piece| piece.map(|p| p.map_err(Error::from)))
    }
}

/// The pieces of an answer for plain threads.
#[derive(Debug)]
pub struct BlockingGeneration(GenerationStream);

impl BlockingGeneration {
    /// Ends the generation now; the text so far is its result.
    pub fn cancel(&mut self) {
        self.0.cancel();
    }

    /// All of it, after the end.
    pub fn output(&self) -> Option<Output> {
        self.0.output()
    }
}

impl Iterator for BlockingGeneration {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next_blocking()
    }
}
