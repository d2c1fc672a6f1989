//! How likely tokens were, in the two forms that OpenAI's API has for it.

use std::cell::Cell;
use std::collections::BTreeMap;

use bitnet::{FinishReason, Output, Stop, TokenLogprobs, Tokenizer};
use serde::Serialize;

/// What stands for minus infinity, which JSON does not have; as with OpenAI.
const LEAST: f32 = -9999.0;

/// The form of chats: an object for each token.
#[derive(Serialize)]
pub struct Content {
    content: Vec<Token>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Token {
    #[serde(flatten)]
    token: Top,
    top_logprobs: Vec<Top>,
}

#[derive(Serialize)]
struct Top {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// The form of completions: lists with a place for each token.
#[derive(Default, Serialize)]
pub struct Lists {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Characters before each.
    text_offset: Vec<usize>,
}

/// The tokens of an answer's text: all but the one that ended it.
pub fn shown(output: &Output) -> &[TokenLogprobs] {
    match (&output.finish_reason, output.logprobs.split_last()) {
        (FinishReason::Stop(Stop::Token(id)), Some((last, text))) if last.id == *id => text,
        _ => &output.logprobs,
    }
}

fn text(tokenizer: &Tokenizer, id: u32) -> String {
    tokenizer.decode(&[id], false)
}

/// Tokens of a chat.
pub fn content(tokenizer: &Tokenizer, tokens: &[TokenLogprobs]) -> Content {
    let top = |id: u32, logprob: f32| Top {
        token: text(tokenizer, id),
        logprob: logprob.max(LEAST),
        bytes: tokenizer.token_bytes(id),
    };
    let token = |token: &TokenLogprobs| Token {
        token: top(token.id, token.logprob),
        top_logprobs: token.top.iter().map(|&(id, logprob)| top(id, logprob)).collect(),
    };
    Content { content: tokens.iter().map(token).collect(), refusal: None }
}

impl Lists {
    /// Adds a token, before which there are `offset` characters; the first of a prompt has no probability.
    pub fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: u32,
        likely: Option<&TokenLogprobs>,
        offset: &Cell<usize>,
    ) {
        self.tokens.push(text(tokenizer, id));
        self.token_logprobs.push(likely.map(|token| token.logprob.max(LEAST)));
        self.top_logprobs.push(likely.map(|token| {
            let least_likely_first = token.top.iter().rev(); // of several with the same text the likeliest stays
            least_likely_first.map(|&(id, p)| (text(tokenizer, id), p.max(LEAST))).collect()
        }));
        self.text_offset.push(offset.get());
        let begins = |byte: &u8| byte & 0xc0 != 0x80; // of a character
        let characters = tokenizer.token_bytes(id).iter().filter(|byte| begins(byte)).count();
        offset.set(offset.get() + characters);
    }

    /// Adds tokens of an answer.
    pub fn extend(
        &mut self,
        tokenizer: &Tokenizer,
        tokens: &[TokenLogprobs],
        offset: &Cell<usize>,
    ) {
        for token in tokens {
            self.push(tokenizer, token.id, Some(token), offset);
        }
    }
}
