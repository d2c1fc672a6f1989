//! How an answer's pieces are handed out: in which portions, and for how long a token may be waited for.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_io::Timer;
use futures_core::Stream;

use crate::error::{EngineError, InvalidConfig};
use crate::options::RequestOptions;
use crate::stream::{Generation, Piece};

/// How an answer's pieces are handed out. It has these five fields and will not get others, so a literal can name all.
///
/// ```
/// use bitnet_inference::StreamingConfig;
///
/// let streaming_config = StreamingConfig {
///     // Buffer size affects latency vs throughput
///     buffer_size: 4, // Smaller = lower latency
///     flush_interval_ms: 25, // Faster flushing for low latency
///     max_retries: 1, // Fewer retries for speed
///     token_timeout_ms: 1000, // 1 second timeout
///     cancellable: true, // Enable cancellation for responsiveness
/// };
/// # streaming_config.check().unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamingConfig {
    /// Tokens that are handed out together: so many are gathered at most. At least 1.
    pub buffer_size: usize,
    /// Milliseconds after which what has been gathered is handed out though it is less; 0: as soon as there is anything.
    pub flush_interval_ms: u64,
    /// How often the request is computed anew when a step breaks off, before it fails. What has been generated stands.
    pub max_retries: u32,
    /// Milliseconds that may pass from one token to the next before the stream ends with an error; at least 1. The first token
    /// may take longer, since it needs the whole prompt: [`RequestOptions::deadline`] bounds that.
    pub token_timeout_ms: u64,
    /// Whether dropping the stream, or cancelling it, ends the work within one step. If not, it goes on unheard.
    pub cancellable: bool,
}

impl Default for StreamingConfig {
    /// Each token by itself, with a minute for each.
    fn default() -> Self {
        Self {
            buffer_size: 1,
            flush_interval_ms: 0,
            max_retries: 0,
            token_timeout_ms: 60_000,
            cancellable: true,
        }
    }
}

impl StreamingConfig {
    /// Whether all fields have values that they can have.
    ///
    /// # Errors
    /// Names the first field that has not.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        if self.buffer_size == 0 {
            return Err(InvalidConfig::new("buffer_size", 0, "at least 1"));
        }
        if self.token_timeout_ms == 0 {
            return Err(InvalidConfig::new("token_timeout_ms", 0, "at least 1"));
        }
        Ok(())
    }

    /// What of this is the engine's part.
    pub fn apply(&self, options: RequestOptions) -> RequestOptions {
        let (max_retries, detached) = (self.max_retries, !self.cancellable);
        RequestOptions { max_retries, detached, ..options }
    }
}

/// A stream of pieces in the portions that a [`StreamingConfig`] asks for. Works with any async runtime, and with none.
#[derive(Debug)]
pub struct Portions<S> {
    stream: S,
    config: StreamingConfig,
    gathered: Piece,
    /// When what is gathered goes out.
    flush: Option<Timer>,
    /// When the next token is too late.
    late: Option<Timer>,
    /// How the stream ended, to be told after what is gathered.
    error: Option<EngineError>,
    over: bool,
}

impl<S> Portions<S> {
    /// The pieces of a stream in portions.
    ///
    /// # Errors
    /// If a setting has a value that it cannot have.
    pub fn new(stream: S, config: StreamingConfig) -> Result<Self, InvalidConfig> {
        config.check()?;
        let (gathered, error, over) = (Piece::default(), None, false);
        Ok(Self { stream, config, gathered, flush: None, late: None, error, over })
    }

    /// The stream itself.
    pub fn inner(&self) -> &S {
        &self.stream
    }

    fn gather(&mut self, piece: Piece) {
        if self.gathered == Piece::default() {
            let interval = Duration::from_millis(self.config.flush_interval_ms);
            self.flush = Some(Timer::after(interval));
        }
        if !piece.ids.is_empty() {
            self.late = Some(Timer::after(Duration::from_millis(self.config.token_timeout_ms)));
        }
        self.gathered.text.push_str(&piece.text);
        self.gathered.ids.extend(piece.ids);
        self.gathered.logprobs.extend(piece.logprobs);
    }

    /// What is gathered, if that is anything.
    fn take(&mut self) -> Option<Piece> {
        self.flush = None;
        let gathered = std::mem::take(&mut self.gathered);
        (gathered != Piece::default()).then_some(gathered)
    }

    fn end(&mut self, error: Option<EngineError>) {
        (self.over, self.error) = (true, error);
        (self.flush, self.late) = (None, None);
    }
}

impl Portions<Generation> {
    /// Waits for the next portion; none after the end.
    pub fn next_blocking(&mut self) -> Option<Result<Piece, EngineError>> {
        let mut portions = Pin::new(self);
        async_io::block_on(std::future::poll_fn(|context| portions.as_mut().poll_next(context)))
    }

    /// Ends the generation; the text so far is its result, of which the last portion is still to come.
    pub fn cancel(&mut self) {
        self.stream.cancel();
    }
}

fn is_due(timer: &mut Option<Timer>, context: &mut Context<'_>) -> bool {
    timer.as_mut().is_some_and(|timer| Pin::new(timer).poll(context).is_ready())
}

impl<S> Stream for Portions<S>
where
    S: Stream<Item = Result<Piece, EngineError>> + Unpin,
{
    type Item = Result<Piece, EngineError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while !this.over && this.gathered.ids.len() < this.config.buffer_size {
            match Pin::new(&mut this.stream).poll_next(context) {
                Poll::Ready(Some(Ok(piece))) => this.gather(piece),
                Poll::Ready(Some(Err(error))) => this.end(Some(error)),
                Poll::Ready(None) => this.end(None),
                Poll::Pending if is_due(&mut this.late, context) => {
                    let timeout_ms = this.config.token_timeout_ms;
                    this.end(Some(EngineError::TokenTimeout { timeout_ms }));
                }
                Poll::Pending if is_due(&mut this.flush, context) => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        let gathered = this.take().map(Ok);
        Poll::Ready(gathered.or_else(|| this.error.take().map(Err)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use async_channel::{Receiver, Sender};
    use futures_lite::{StreamExt, future::block_on};

    use super::*;
    use crate::sampler::TokenLogprobs;

    const CONFIG: StreamingConfig = StreamingConfig {
        buffer_size: 4,
        flush_interval_ms: 60_000,
        max_retries: 0,
        token_timeout_ms: 60_000,
        cancellable: true,
    };

    type Item = Result<Piece, EngineError>;
    type Fed = Portions<Pin<Box<Receiver<Item>>>>;

    fn portions(config: StreamingConfig) -> (Sender<Item>, Fed) {
        let (sender, receiver) = async_channel::unbounded();
        (sender, Portions::new(Box::pin(receiver), config).unwrap())
    }

    fn send(sender: &Sender<Item>, tokens: std::ops::Range<u32>) {
        for id in tokens {
            let logprobs = vec![TokenLogprobs { id, ..Default::default() }];
            let piece = Piece { text: format!("{id} "), ids: vec![id], logprobs };
            sender.send_blocking(Ok(piece)).unwrap();
        }
    }

    fn ids(item: Option<Item>) -> Vec<u32> {
        item.unwrap().unwrap().ids
    }

    #[test]
    fn tokens_come_in_portions_and_none_is_lost() {
        let (sender, mut portions) = portions(CONFIG);
        send(&sender, 0..10);
        drop(sender);
        let next = |portions: &mut Portions<_>| block_on(portions.next());
        let first = next(&mut portions).unwrap().unwrap();
        assert_eq!(first.logprobs.iter().map(|l| l.id).collect::<Vec<_>>(), first.ids);
        assert_eq!((first.text.as_str(), first.ids), ("0 1 2 3 ", vec![0, 1, 2, 3]));
        assert_eq!(ids(next(&mut portions)), [4, 5, 6, 7]);
        assert_eq!(ids(next(&mut portions)), [8, 9]);
        assert_eq!(next(&mut portions), None);
    }

    #[test]
    fn a_part_of_a_portion_goes_out_after_the_interval() {
        let (sender, mut portions) = portions(StreamingConfig { flush_interval_ms: 25, ..CONFIG });
        let begin = Instant::now();
        send(&sender, 0..2);
        assert_eq!(ids(block_on(portions.next())), [0, 1]);
        let waited = begin.elapsed();
        assert!(waited >= Duration::from_millis(25) && waited < Duration::from_secs(20));
        send(&sender, 2..6); // a full portion does not wait
        assert_eq!(ids(block_on(portions.next())), [2, 3, 4, 5]);
    }

    #[test]
    fn without_an_interval_there_is_no_waiting_for_more() {
        let (sender, mut portions) = portions(StreamingConfig { flush_interval_ms: 0, ..CONFIG });
        send(&sender, 0..1);
        assert_eq!(ids(block_on(portions.next())), [0]);
    }

    #[test]
    fn a_late_token_ends_the_stream_after_what_there_was() {
        let config = StreamingConfig { token_timeout_ms: 40, ..CONFIG };
        let (sender, mut portions) = portions(config);
        send(&sender, 0..2);
        assert_eq!(ids(block_on(portions.next())), [0, 1]);
        let error = EngineError::TokenTimeout { timeout_ms: 40 };
        assert_eq!(block_on(portions.next()), Some(Err(error)));
        assert_eq!(block_on(portions.next()), None);
    }

    #[test]
    fn the_first_token_may_take_longer() {
        let (sender, mut portions) =
            portions(StreamingConfig { buffer_size: 1, token_timeout_ms: 20, ..CONFIG });
        let sending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            send(&sender, 0..1);
        });
        assert_eq!(ids(block_on(portions.next())), [0]);
        sending.join().unwrap();
        assert_eq!(block_on(portions.next()), None);
    }

    #[test]
    fn an_error_comes_after_what_there_was() {
        let (sender, mut portions) = portions(CONFIG);
        send(&sender, 0..1);
        sender.send_blocking(Err(EngineError::Stopped)).unwrap();
        assert_eq!(ids(block_on(portions.next())), [0]);
        assert_eq!(block_on(portions.next()), Some(Err(EngineError::Stopped)));
        assert_eq!(block_on(portions.next()), None);
    }

    #[test]
    fn the_engine_gets_its_part() {
        let config = StreamingConfig { max_retries: 3, cancellable: false, ..CONFIG };
        let options = config.apply(RequestOptions { priority: 2, ..Default::default() });
        let expected =
            RequestOptions { priority: 2, max_retries: 3, detached: true, ..Default::default() };
        assert_eq!(options, expected);
    }

    #[test]
    fn values_that_cannot_be_are_errors() {
        let check = |config: StreamingConfig| config.check().unwrap_err().to_string();
        assert_eq!(
            check(StreamingConfig { buffer_size: 0, ..CONFIG }),
            "`buffer_size` is 0; it should be at least 1"
        );
        assert_eq!(
            check(StreamingConfig { token_timeout_ms: 0, ..CONFIG }),
            "`token_timeout_ms` is 0; it should be at least 1"
        );
    }
}
