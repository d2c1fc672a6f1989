//! What has been said, and what of it still fits the context.

use std::fmt;

use bitnet::{GenerationConfig, Message, Role};
use serde_json::json;

use crate::args::SamplingArgs;
use crate::failure::Failure;

/// A conversation.
pub struct Session {
    system: Option<String>,
    /// User and assistant in turn.
    turns: Vec<Message>,
    /// How tokens are chosen; `/set` changes it.
    pub sampling: SamplingArgs,
    /// Answers made so far, taken back or not.
    answers: u64,
}

/// A turn that does not fit the context even alone.
#[derive(Debug)]
pub struct TooLong {
    tokens: usize,
    room: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this turn takes {} tokens with the system message, but the context has room for {}",
            self.tokens, self.room
        )
    }
}

impl Session {
    pub fn new(system: Option<String>, sampling: SamplingArgs) -> Self {
        Self { system, turns: Vec::new(), sampling, answers: 0 }
    }

    /// The system message and all turns.
    pub fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new(Role::System, text.clone()));
        system.chain(self.turns.iter().cloned()).collect()
    }

    pub fn exchanges(&self) -> usize {
        self.turns.len() / 2
    }

    pub fn ask(&mut self, text: String) {
        self.turns.push(Message::new(Role::User, text));
    }

    pub fn answered(&mut self, text: String) {
        self.turns.push(Message::new(Role::Assistant, text));
    }

    /// For a question that could not be answered.
    pub fn take_back_question(&mut self) {
        if self.turns.last().is_some_and(|turn| turn.role == Role::User) {
            self.turns.pop();
        }
    }

    /// Drops the oldest exchanges until the rest leaves room for an answer: all of it, or a quarter of the context if that is
    /// less. Gives how many were dropped. `count` is the number of tokens of messages.
    pub fn make_room<E: From<Failure>>(
        &mut self,
        context: usize,
        count: impl Fn(&[Message]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let room = context - self.sampling.max_tokens.min(context / 4);
        let mut dropped = 0;
        loop {
            let tokens = count(&self.messages())?;
            if tokens <= room {
                return Ok(dropped);
            }
            if self.turns.len() < 3 {
                return Err(Failure::from(TooLong { tokens, room }).into());
            }
            self.turns.drain(..2);
            dropped += 1;
        }
    }

    /// Each answer draws from another seed, so that `/regen` gives another one; the first from the seed given.
    pub fn next_config(&mut self) -> GenerationConfig {
        let mut config = self.sampling.config();
        config.seed = config.seed.map(|seed| seed.wrapping_add(self.answers));
        self.answers += 1;
        config
    }

    pub fn clear(&mut self) {
        self.turns.clear();
    }

    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    pub fn set_system(&mut self, text: String) {
        self.system = Some(text);
    }

    /// Whether there was an exchange to take back.
    pub fn undo(&mut self) -> bool {
        let there = self.turns.len() >= 2;
        self.turns.truncate(self.turns.len().saturating_sub(2));
        there
    }

    /// Whether there was an answer to forget.
    pub fn forget_answer(&mut self) -> bool {
        let there = self.turns.last().is_some_and(|turn| turn.role == Role::Assistant);
        if there {
            self.turns.pop();
        }
        there
    }

    /// For people.
    pub fn transcript(&self) -> String {
        let turn = |message: &Message| format!("{}: {}\n", name(message.role), message.content);
        self.messages().iter().map(turn).collect::<Vec<_>>().join("\n")
    }

    /// As OpenAI's API writes messages.
    pub fn json(&self) -> String {
        let messages = self.messages();
        let messages =
            messages.iter().map(|m| json!({ "role": name(m.role), "content": m.content }));
        format!("{:#}\n", json!({ "messages": messages.collect::<Vec<_>>() }))
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

#[cfg(test)]
mod tests;
