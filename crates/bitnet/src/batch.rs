//! Many prompts whose answers are wanted all together.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bitnet_inference::{EngineError, GenerationConfig, Output, RequestOptions, ResponseFormat};
use futures_core::Stream;

use crate::error::{Error, invalid};
use crate::model::BitNetModel;
use crate::prompt::Prompt;
use crate::stream::GenerationStream;

/// How a list of prompts is worked off.
///
/// ```
/// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
/// # let model = bitnet::BitNetModel::demo().await?;
/// # let config = bitnet::GenerationConfig { max_new_tokens: 4, ..Default::default() };
/// use bitnet::{BatchConfig, PaddingStrategy};
///
/// let batch_config = BatchConfig {
///     max_batch_size: 16,
///
///     // Pad sequences to same length
///     padding_strategy: PaddingStrategy::Longest,
///
///     // Sort by length for efficiency
///     sort_by_length: true,
///
///     ..Default::default()
/// };
///
/// // Process multiple prompts
/// let prompts = vec!["Hello", "How are you?", "Tell me a story"];
/// let outputs = model.generate_batch(&prompts, &config).await?;
/// # assert_eq!(outputs.len(), 3);
///
/// // The same with this configuration, and with an error for each prompt that has one
/// let batch = model.generate_batch_with(&prompts, &config, &batch_config).await?;
/// for output in batch.outputs {
///     println!("{}", output?);
/// }
/// # assert!(batch.padding_tokens > 0);
/// # Ok::<(), bitnet::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchConfig {
    /// Prompts that are worked on at the same time at most; as soon as one is done, the next one of a longer list begins.
    pub max_batch_size: usize,
    /// To which length prompts count as padded.
    pub padding_strategy: PaddingStrategy,
    /// Begin with the longest prompts, so that those in work at the same time have similar lengths and the last ones are short.
    /// Answers come in the order of the prompts in any case.
    pub sort_by_length: bool,
}

/// To which length prompts count as padded.
///
/// Nothing is ever computed for padding, and answers are as without: batches here need not be rectangular. What
/// rectangular ones would cost is told as [`BatchOutput::padding_tokens`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PaddingStrategy {
    /// Not at all.
    #[default]
    None,
    /// To the longest prompt of those that begin together.
    Longest,
    /// To so many tokens; a prompt with more fails.
    MaxLength(usize),
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { max_batch_size: 16, padding_strategy: PaddingStrategy::None, sort_by_length: false }
    }
}

/// The answers to a list of prompts.
#[derive(Debug)]
pub struct BatchOutput {
    /// An answer or an error for each prompt, in the order of the prompts.
    pub outputs: Vec<Result<Output, Error>>,
    /// Tokens of padding that rectangular batches of these prompts would have, by the [`PaddingStrategy`]. None were computed.
    pub padding_tokens: usize,
}

/// A prompt and its place in the list.
struct Item {
    index: usize,
    prompt: Prompt,
    ids: Vec<u32>,
}

/// Answers that are under way, and what is still to begin.
struct Work<'a> {
    model: &'a BitNetModel,
    config: &'a GenerationConfig,
    most: usize,
    waiting: VecDeque<Item>,
    running: Vec<(usize, GenerationStream)>,
    outputs: Vec<Option<Result<Output, Error>>>,
}

impl BitNetModel {
    /// Answers all prompts, as many as [`BatchConfig::default`] says at the same time, and gives the answers in their order.
    ///
    /// # Errors
    /// The first error, if any prompt has one; [`generate_batch_with`](Self::generate_batch_with) gives the other answers too.
    pub async fn generate_batch<P: AsRef<str>>(
        &self,
        prompts: &[P],
        config: &GenerationConfig,
    ) -> Result<Vec<Output>, Error> {
        let batch = self.generate_batch_with(prompts, config, &BatchConfig::default()).await?;
        batch.outputs.into_iter().collect()
    }

    /// Answers all prompts. One that fails does not keep the others from being answered.
    ///
    /// # Errors
    /// If a setting has a value that it cannot have.
    pub async fn generate_batch_with<P: AsRef<str>>(
        &self,
        prompts: &[P],
        config: &GenerationConfig,
        batch: &BatchConfig,
    ) -> Result<BatchOutput, Error> {
        config.sampling()?;
        if batch.max_batch_size == 0 {
            return Err(invalid("max_batch_size", 0, "at least 1"));
        }
        let mut outputs: Vec<_> = prompts.iter().map(|_| None).collect();
        let mut items = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let prompt = Prompt::from(prompt.as_ref());
            match self.encode(&prompt).and_then(|ids| batch.check(ids)) {
                Ok(ids) => items.push(Item { index, prompt, ids }),
                Err(error) => outputs[index] = Some(Err(error)),
            }
        }
        if batch.sort_by_length {
            items.sort_by_key(|item| Reverse(item.ids.len()));
        }
        let lengths: Vec<usize> = items.iter().map(|item| item.ids.len()).collect();
        let padding_tokens = batch.padding(&lengths);
        let (most, waiting) = (batch.max_batch_size, items.into());
        let mut work = Work { model: self, config, most, waiting, running: Vec::new(), outputs };
        std::future::poll_fn(|context| work.poll(context)).await;
        let done = |output: Option<_>| output.expect("every prompt has been worked on");
        Ok(BatchOutput { outputs: work.outputs.into_iter().map(done).collect(), padding_tokens })
    }
}

impl BatchConfig {
    fn check(&self, ids: Vec<u32>) -> Result<Vec<u32>, Error> {
        match self.padding_strategy {
            PaddingStrategy::MaxLength(most) if ids.len() > most => {
                let expected = format!("at least {}, the tokens of this prompt", ids.len());
                Err(invalid("padding_strategy", format!("MaxLength({most})"), expected))
            }
            _ => Ok(ids),
        }
    }

    /// What is missing to full length for prompts in this order.
    fn padding(&self, lengths: &[usize]) -> usize {
        let to = |length: usize, batch: &[usize]| batch.iter().map(|l| length - l).sum::<usize>();
        let longest = |batch: &[usize]| batch.iter().copied().max().unwrap_or(0);
        match self.padding_strategy {
            PaddingStrategy::None => 0,
            PaddingStrategy::MaxLength(length) => to(length, lengths),
            PaddingStrategy::Longest => {
                lengths.chunks(self.max_batch_size).map(|batch| to(longest(batch), batch)).sum()
            }
        }
    }
}

impl Work<'_> {
    /// Begins what may begin, and takes what is done.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            self.begin();
            let before = self.running.len();
            let (running, outputs) = (&mut self.running, &mut self.outputs);
            running.retain_mut(|(index, stream)| match advance(stream, context) {
                Poll::Pending => true,
                Poll::Ready(output) => {
                    outputs[*index] = Some(output);
                    false
                }
            });
            if self.running.is_empty() && self.waiting.is_empty() {
                return Poll::Ready(());
            }
            if self.running.len() == before {
                return Poll::Pending;
            }
        }
    }

    fn begin(&mut self) {
        while self.running.len() < self.most
            && let Some(Item { index, prompt, ids }) = self.waiting.pop_front()
        {
            let options = RequestOptions::default();
            match self.model.start(
                &prompt,
                ids.clone(),
                self.config,
                options,
                None,
                &ResponseFormat::Text,
            ) {
                Ok(stream) => self.running.push((index, stream)),
                // There will be room when one of these is done.
                Err(Error::Engine(
                    EngineError::QueueFull { .. } | EngineError::QueueTokens { .. },
                )) if !self.running.is_empty() => {
                    self.waiting.push_front(Item { index, prompt, ids });
                    return;
                }
                Err(error) => self.outputs[index] = Some(Err(error)),
            }
        }
    }
}

/// Takes pieces as long as there are any; ready when the answer is complete.
fn advance(
    stream: &mut GenerationStream,
    context: &mut Context<'_>,
) -> Poll<Result<Output, Error>> {
    loop {
        match Pin::new(&mut *stream).poll_next(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
            Poll::Ready(None) => {
                let output = stream.output().expect("without an error, the end has a reason");
                return Poll::Ready(Ok(output));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(padding_strategy: PaddingStrategy, lengths: &[usize], expected: usize) {
        let config = BatchConfig { max_batch_size: 2, padding_strategy, ..Default::default() };
        assert_eq!(config.padding(lengths), expected);
    }

    #[test]
    fn padding_is_what_is_missing_to_a_rectangle() {
        check(PaddingStrategy::None, &[1, 5, 2, 6], 0);
        check(PaddingStrategy::Longest, &[1, 5, 2, 6, 3], 4 + 4);
        check(PaddingStrategy::Longest, &[6, 5, 3, 2, 1], 1 + 1);
        check(PaddingStrategy::MaxLength(6), &[1, 5, 2, 6], 5 + 1 + 4);
    }
}
