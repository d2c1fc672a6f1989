//! Text to token ids and back, for the tokenizers of Hugging Face checkpoints and of GGUF files.
//!
//! Encoding goes in four steps, a file each: `added` cuts control tokens out of the text, `words` normalizes the rest and
//! `split` cuts it into words, and `bpe` or `sentencepiece` turns each word into tokens with the loop in `merge`.
//! `decode` goes back, and `chat` renders conversations with templates that `chat_program` compiles and `chat_budget` keeps
//! within bounds. `hf` and `gguf` only fill in a [`Tokenizer`].

mod added;
mod bpe;
mod chat;
mod chat_budget;
mod chat_functions;
mod chat_program;
mod decode;
mod error;
mod fold_hash;
mod gguf;
mod hf;
mod json;
mod merge;
mod sentencepiece;
mod split;
mod table;
mod words;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use added::{AddedTokens, Piece};
use bpe::Bpe;
use chat::{Chat, StandIns};
use merge::Merger;
use sentencepiece::SentencePiece;
use table::{Kind, TokenTable};
use words::Words;

use crate::format::TokenizerSource;

pub use chat::{ChatError, ChatTemplate, Message, Role};
pub use decode::IncrementalDecoder;
pub use error::TokenizerError;

/// Whether a text may contain control tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// What a user typed: `<|eot_id|>` in it is eight characters of text.
    Text,
    /// What a program wrote: `<|eot_id|>` in it is that token.
    Template,
}

/// Turns text into token ids and back. Immutable; share it in an [`Arc`].
#[derive(Debug)]
pub struct Tokenizer {
    table: Arc<TokenTable>,
    added: AddedTokens,
    model: Model,
    bos: Option<u32>,
    /// What is put before a text: the BOS token, or nothing if this tokenizer puts none.
    prefix: Vec<u32>,
    /// Sorted.
    eos: Vec<u32>,
    /// `bos_token` and so on, as chat templates call them.
    special_names: Vec<(&'static str, String)>,
    chat: Chat,
}

#[derive(Debug)]
enum Model {
    Bpe { words: Box<Words>, bpe: Bpe },
    SentencePiece(SentencePiece),
}

impl Tokenizer {
    /// Loads the tokenizer of a checkpoint.
    pub fn from_source(source: &TokenizerSource<'_>) -> Result<Self, TokenizerError> {
        match source {
            TokenizerSource::Gguf(path, metadata) => {
                Self::from_gguf(metadata).map_err(|error| error.in_file(path))
            }
            TokenizerSource::Directory(dir) => Self::from_directory(dir),
        }
    }

    /// One more than the largest token id. The model may have more rows than this (padding), and must not have fewer.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// Bytes of memory that its vocabulary takes, about: what lies in tables, with what the system's allocator adds to each.
    pub fn heap_bytes(&self) -> usize {
        let model = match &self.model {
            Model::Bpe { bpe, .. } => bpe.heap_bytes(),
            Model::SentencePiece(model) => model.heap_bytes(),
        };
        self.table.heap_bytes() + model
    }

    /// The ids of `text`, after the BOS token if `add_bos` and the tokenizer has its texts start with one.
    ///
    /// # Errors
    /// If the vocabulary has no token for a character, or the tokenizer's regular expression gives up.
    pub fn encode(
        &self,
        text: &str,
        special: Special,
        add_bos: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = if add_bos { self.prefix.clone() } else { Vec::new() };
        let mut first = true;
        self.encode_pieces(text, special, &mut first, &mut ids)?;
        Ok(ids)
    }

    /// The text of `ids`; with `skip_special`, without control tokens.
    ///
    /// Bytes that are no UTF-8 become U+FFFD, and ids outside the vocabulary nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        IncrementalDecoder::new(self.table.clone(), skip_special).all(ids)
    }

    /// A decoder for one stream of tokens, without its control tokens.
    pub fn decoder(&self) -> IncrementalDecoder {
        IncrementalDecoder::new(self.table.clone(), true)
    }

    /// The id of a token as the vocabulary writes it (`Ġthe`, `▁the`, `<|eot_id|>`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.added.id(token).or_else(|| match &self.model {
            Model::Bpe { bpe, .. } => bpe.id(token),
            Model::SentencePiece(model) => model.id(token),
        })
    }

    /// The token as the vocabulary writes it.
    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        self.table.text(id)
    }

    /// Whether this is a control token, which `decode` can skip.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.kind(id) == Kind::Special
    }

    /// The token that starts a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// All tokens that end a generation: end of text, end of a chat turn.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The chat template, if the model has one that can be read.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.template().ok()
    }

    /// The conversation as the model's chat template writes it.
    ///
    /// For people to read: encoding this text would give control tokens that were typed by the user their power.
    pub fn render_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        self.chat.template()?.render(messages, add_generation_prompt, &self.special_names)
    }

    /// The ids of a conversation. Control tokens come from the chat template alone, whatever the messages contain.
    ///
    /// BOS is there if the template writes it. `add_generation_prompt` begins the answer.
    pub fn encode_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, ChatError> {
        let template = self.chat.template()?;
        let stand_ins = StandIns::new(self.added.specials(), template.source(), messages)?;
        let text = template.render(
            &stand_ins.hide(messages),
            add_generation_prompt,
            &self.special_names,
        )?;
        let (mut ids, mut first) = (Vec::new(), true);
        for piece in self.added.split(&text, Special::Template) {
            match piece {
                Piece::Token(id) => ids.push(id),
                Piece::Text(text) => {
                    self.encode_pieces(
                        &stand_ins.reveal(text),
                        Special::Text,
                        &mut first,
                        &mut ids,
                    )?;
                }
            }
            first = false;
        }
        Ok(ids)
    }

    fn encode_pieces(
        &self,
        text: &str,
        special: Special,
        first: &mut bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if u32::try_from(text.len()).is_err() {
            return Err(TokenizerError::encode("it is longer than 4 GiB"));
        }
        let mut merger = Merger::default();
        for piece in self.added.split(text, special) {
            match (piece, &self.model) {
                (Piece::Token(id), _) => ids.push(id),
                (Piece::Text(text), Model::SentencePiece(model)) => {
                    model.encode(text, &mut merger, ids)?
                }
                (Piece::Text(text), Model::Bpe { words, bpe }) => {
                    words.for_each(text, *first, |word| bpe.encode(word, &mut merger, ids))?;
                }
            }
            *first = false;
        }
        Ok(())
    }
}

/// Names that end a turn or a text in the models this engine runs, and in their relatives.
fn stop_names() -> impl Iterator<Item = &'static str> {
    [
        "<|eot_id|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|end|>",
        "<end_of_turn>",
    ]
    .into_iter()
}
