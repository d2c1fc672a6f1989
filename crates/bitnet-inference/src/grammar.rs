//! Grammars: which tokens may come next in a text that has to keep to one. The grammars themselves are `llguidance`'s.
//!
//! A grammar is text that somebody sent, so it is read within limits on its size and on the work that it makes, and on a thread
//! of its own, whose stack has room for chains of rules as long as the limits let them be. While answering, the same limits hold
//! for each token; a grammar that goes beyond them fails its request and no other.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use bitnet_model::tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie, TokenizerEnv,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

use crate::constraint::{Constraint, Rules, TokenMask};
use crate::format::{FormatError, ResponseFormat};
use crate::sampler::SampleError;

/// Bytes that the text of a grammar may have.
const MAX_BYTES: usize = 128 << 10;
/// Bytes of stack for reading a grammar.
const STACK: usize = 256 << 20;
/// Bytes that a token may have to be searched, about what the trie has room for; longer ones are never drawn under a grammar.
const MAX_TOKEN: usize = 1000;
/// Bytes that all tokens may have together: nodes that the trie has room for.
const MAX_TOKENS: usize = (1 << 22) - 1;
/// States of a grammar's lexer, of 1 to 2 kB each.
const MAX_LEXER_STATES: usize = 25_000;
/// White space from one part of a JSON text to the next: one space, or a new line with its indentation. Any amount of it is valid,
/// but small models then go on with white space for ever.
const JSON_SPACE: &str = r"\x20|\x0A[\x20\x09]{0,20}";

/// The tokens of a tokenizer, arranged for grammars. Made once for a tokenizer and shared.
pub struct Vocabulary {
    parsers: ParserFactory,
    /// Tokens that stand for text.
    texts: Arc<SimpleVob>,
    /// Stands for the end of the text; no token has this id.
    end: u32,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("tokens", &self.end).finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// Arranges the tokens of a tokenizer, which takes about a second for a hundred thousand of them.
    ///
    /// # Errors
    /// If they have more bytes than can be searched.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, FormatError> {
        let end = tokenizer.vocab_size() as u32; // less than 2^22
        let mut words: Vec<Vec<u8>> = (0..end).map(|id| text_of(tokenizer, id)).collect();
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes > MAX_TOKENS {
            let message = format!("its tokens have {bytes} bytes, but {MAX_TOKENS} is the most");
            return Err(FormatError::Vocabulary { message });
        }
        words.push(Vec::new());
        let arrange = || {
            let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
            let tokens: Arc<dyn TokenizerEnv + Sync> = Arc::new(ApproximateTokEnv::new(trie));
            let slices = SlicedBiasComputer::general_slices();
            ParserFactory::new(&tokens, InferenceCapabilities::default(), &slices)
        };
        let found = catch_unwind(AssertUnwindSafe(arrange));
        let mut parsers = match found {
            Ok(Ok(parsers)) => parsers,
            Ok(Err(error)) => {
                return Err(FormatError::Vocabulary { message: error.to_string() });
            }
            Err(_) => {
                return Err(FormatError::Vocabulary { message: "its tokens are odd".into() });
            }
        };
        parsers.quiet();
        let limits = parsers.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        let mut texts = parsers.tok_env().tok_trie().alloc_token_set();
        let is_text = (0..end).filter(|&id| !words[id as usize].is_empty());
        is_text.for_each(|id| texts.allow_token(id));
        Ok(Self { parsers, texts: Arc::new(texts), end })
    }

    /// Reads a grammar; none for any text. Takes milliseconds, and seconds for one that goes to the limits; never call it where
    /// others wait for the thread.
    ///
    /// # Errors
    /// If it is malformed, asks for what cannot be kept to, or goes beyond the limits.
    pub fn read(&self, format: &ResponseFormat) -> Result<Option<Constraint>, FormatError> {
        let name = format.name();
        let invalid = |message: String| FormatError::Invalid { format: name, message };
        let Some(grammar) = grammar(format)? else { return Ok(None) };
        let read = || {
            let mut matcher = Matcher::new(self.parsers.create_parser(grammar));
            if let Some(error) = matcher.get_error() {
                return Err(invalid(shortened(&error)));
            }
            let is_over = |_| invalid("it allows no text, or none but the empty one".into());
            let _ = matcher.is_accepting(); // what this finds out is kept
            Constraint::new(Box::new(Text::new(matcher, self))).map_err(is_over)
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("bitnet-grammar".into()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, read).map_err(|error| FormatError::Thread {
                format: name,
                message: error.to_string(),
            })?;
            thread.join().map_err(|_| invalid("reading it failed".into()))?.map(Some)
        })
    }
}

/// The bytes of a token, or nothing for one that must not be a part of a text.
fn text_of(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    // No text has the byte 0xff, which begins control tokens in `llguidance`.
    let is_odd = bytes.len() > MAX_TOKEN || bytes.first() == Some(&0xff);
    if is_odd || tokenizer.eos_ids().contains(&id) { Vec::new() } else { bytes }
}

/// What `llguidance` takes for a format; nothing for any text.
fn grammar(format: &ResponseFormat) -> Result<Option<TopLevelGrammar>, FormatError> {
    let fits = |text: &str| match text.len() {
        found if found > MAX_BYTES => {
            let (format, limit) = (format.name(), MAX_BYTES);
            Err(FormatError::TooLarge { format, unit: "bytes", found, limit })
        }
        _ => Ok(()),
    };
    Ok(Some(match format {
        ResponseFormat::Text => return Ok(None),
        ResponseFormat::JsonObject => schema(json!({ "type": "object" }), format)?,
        ResponseFormat::JsonSchema(text) => {
            fits(text)?;
            let value = serde_json::from_str(text).map_err(|error| FormatError::Invalid {
                format: format.name(),
                message: error.to_string(),
            })?;
            schema(value, format)?
        }
        ResponseFormat::Regex(text) => {
            fits(text)?;
            TopLevelGrammar::from_regex(text)
        }
        ResponseFormat::Lark(text) => {
            fits(text)?;
            TopLevelGrammar::from_lark(text.clone())
        }
    }))
}

fn schema(value: Value, format: &ResponseFormat) -> Result<TopLevelGrammar, FormatError> {
    const OPTIONS: &str = "x-guidance"; // where `llguidance` looks for options
    let invalid =
        |message: &str| FormatError::Invalid { format: format.name(), message: message.to_owned() };
    let mut schema = match value {
        Value::Object(schema) => schema,
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => return Err(invalid("nothing is valid by it")),
        _ => return Err(invalid("it is no JSON object")),
    };
    if schema.contains_key(OPTIONS) {
        return Err(invalid("Unimplemented keys: [\"x-guidance\"]"));
    }
    schema.insert(OPTIONS.into(), json!({ "whitespace_pattern": JSON_SPACE }));
    Ok(TopLevelGrammar::from_json_schema(Value::Object(schema)))
}

/// The beginning of a message that may be long.
fn shortened(message: &str) -> String {
    let message = message.replace("\n<non-verbose/>", "");
    match message.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message,
    }
}

/// A text of a grammar on its way.
struct Text {
    matcher: Matcher,
    texts: Arc<SimpleVob>,
    end: u32,
}

impl Text {
    fn new(matcher: Matcher, vocabulary: &Vocabulary) -> Self {
        Self { matcher, texts: Arc::clone(&vocabulary.texts), end: vocabulary.end }
    }

    fn failed(&self) -> SampleError {
        let error = self.matcher.get_error();
        tracing::debug!(error, "a grammar cannot be followed");
        SampleError::Grammar
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Text").finish_non_exhaustive()
    }
}

impl Rules for Text {
    fn allowed(&mut self) -> Result<TokenMask, SampleError> {
        let mut mask = self.matcher.compute_mask().map_err(|_| self.failed())?;
        let may_end = mask.is_allowed(self.end);
        mask.and(&self.texts);
        match may_end || !mask.is_zero() {
            true => Ok(TokenMask { words: mask.into(), may_end }),
            false => Err(SampleError::Grammar),
        }
    }

    fn advance(&mut self, token: u32) -> Result<bool, SampleError> {
        self.matcher.consume_token(token).map_err(|_| self.failed())?;
        match self.matcher.is_stopped() {
            true if !self.matcher.stop_reason().is_ok() => Err(self.failed()),
            is_stopped => Ok(is_stopped),
        }
    }

    fn fitting(&mut self, tokens: &[u32]) -> usize {
        self.matcher.validate_tokens(tokens).unwrap_or(0)
    }

    fn boxed_clone(&self) -> Box<dyn Rules> {
        let (matcher, texts) = (self.matcher.deep_clone(), Arc::clone(&self.texts));
        Box::new(Self { matcher, texts, end: self.end })
    }
}
