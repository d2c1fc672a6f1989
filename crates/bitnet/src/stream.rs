//! A generation under way.

use std::pin::Pin;
use std::task::{Context, Poll};

use bitnet_inference::streaming::Portions;
use bitnet_inference::{EngineError, Generation, Output, Piece, StreamingConfig, Timings};
use futures_core::Stream;

use crate::error::Error;

/// The pieces of an answer as they are made: a [`Stream`] for async code of any runtime; [`blocking`](Self::blocking) makes an
/// iterator of it. Dropping it ends the work within one token, unless [`StreamingConfig::cancellable`] is off.
#[derive(Debug)]
pub struct GenerationStream(Pieces);

#[derive(Debug)]
enum Pieces {
    /// A piece for each token.
    Tokens(Box<Generation>),
    Portions(Box<Portions<Generation>>),
}

impl GenerationStream {
    /// The pieces of a generation as they are made, or in portions.
    pub(crate) fn new(
        generation: Generation,
        streaming: Option<StreamingConfig>,
    ) -> Result<Self, Error> {
        Ok(Self(match streaming {
            None => Pieces::Tokens(Box::new(generation)),
            Some(config) => Pieces::Portions(Box::new(Portions::new(generation, config)?)),
        }))
    }

    fn generation(&self) -> &Generation {
        match &self.0 {
            Pieces::Tokens(generation) => generation,
            Pieces::Portions(portions) => portions.inner(),
        }
    }

    /// An iterator that waits for each piece.
    pub fn blocking(self) -> BlockingGeneration {
        BlockingGeneration(self)
    }

    /// Ends the generation now; the text so far is its result.
    pub fn cancel(&mut self) {
        match &mut self.0 {
            Pieces::Tokens(generation) => generation.cancel(),
            Pieces::Portions(portions) => portions.cancel(),
        }
    }

    /// All of it, after the end.
    pub fn output(&self) -> Option<Output> {
        self.generation().output()
    }

    /// How long what has been done so far took.
    pub fn timings(&self) -> Timings {
        self.generation().timings()
    }

    fn next_blocking(&mut self) -> Option<Result<Piece, Error>> {
        let piece = match &mut self.0 {
            Pieces::Tokens(generation) => generation.next_blocking(),
            Pieces::Portions(portions) => portions.next_blocking().inspect(|piece| {
                if piece.is_err() {
                    portions.cancel(); // nothing more is handed out, so nothing more is to be done
                }
            }),
        };
        piece.map(|piece| piece.map_err(Error::from))
    }

    /// Waits for the end, and gives all of it.
    ///
    /// # Errors
    /// If the generation breaks off.
    pub async fn finish(mut self) -> Result<Output, Error> {
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
        let piece: Poll<Option<Result<Piece, EngineError>>> = match &mut self.0 {
            Pieces::Tokens(generation) => Pin::new(&mut **generation).poll_next(context),
            Pieces::Portions(portions) => {
                let piece = Pin::new(&mut **portions).poll_next(context);
                if matches!(piece, Poll::Ready(Some(Err(_)))) {
                    portions.cancel(); // nothing more is handed out, so nothing more is to be done
                }
                piece
            }
        };
        piece.map(|piece| piece.map(|piece| piece.map_err(Error::from)))
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
