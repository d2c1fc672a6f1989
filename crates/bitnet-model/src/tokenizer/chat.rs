//! Chat templates: conversations as the text, and then the tokens, that a model was trained on.
//!
//! Templates are Jinja, with the settings and functions that transformers gives them.
//! What users type must not become control tokens, yet a template may trim, cut and join it in any way. So, while the
//! template runs, one character of each control token (the bar of `<|eot_id|>`) is replaced in all messages by a
//! private-use character that occurs nowhere else. No control token can then be made from a message, and the
//! stand-ins turn back once the template's own control tokens have been cut out.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::str::FromStr;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context, machinery};

use super::added::AddedToken;
use super::chat_budget::{self, Budget};
use super::chat_functions;
use super::chat_program::Program;
use super::error::TokenizerError;

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool that the model called.
    Tool,
}

impl Role {
    /// The name that chat templates use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl FromStr for Role {
    type Err = ChatError;

    /// The OpenAI API's names; its `developer` is the same as `system`.
    fn from_str(name: &str) -> Result<Self, ChatError> {
        match name {
            "system" | "developer" => Ok(Self::System),
            "user" => Ok(Self::User),
            "assistant" => Ok(Self::Assistant),
            "tool" => Ok(Self::Tool),
            _ => Err(ChatError::Role { name: name.into() }),
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said. Control tokens in it are ordinary text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// Why a conversation could not be turned into tokens.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model's files have no template.
    #[error("this model has no chat template")]
    NoTemplate,

    /// The template is not Jinja, or uses what is not known here.
    #[error("the chat template of {origin} cannot be read: {problem}")]
    Syntax {
        /// The file or key it comes from.
        origin: String,
        /// What is wrong, with the line.
        problem: String,
    },

    /// The template refused the conversation (`raise_exception`), or failed.
    #[error("the chat template refuses this conversation: {reason}")]
    Render {
        /// What the template says.
        reason: String,
    },

    /// The template ran or wrote far more than any conversation needs.
    #[error("the chat template does not come to an end")]
    Endless,

    /// A role that no template knows.
    #[error("no role is called `{name}`; there are system, user, assistant and tool")]
    Role {
        /// The name given.
        name: String,
    },

    /// The messages use every private-use character, so that none is left to stand in.
    #[error("the messages use all private-use characters of Unicode")]
    NoStandIn,

    /// The rendered text cannot be tokenized.
    #[error(transparent)]
    Tokenize(#[from] TokenizerError),
}

impl ChatError {
    /// What to try next.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NoTemplate => Some("use plain text completion, or a model tuned for chat"),
            Self::Syntax { .. } => Some("plain text completion works without the template"),
            Self::Tokenize(error) => error.help(),
            Self::Render { .. } | Self::Endless | Self::Role { .. } | Self::NoStandIn => None,
        }
    }
}

/// The template of a model, if it has one.
#[derive(Debug)]
pub(super) enum Chat {
    Missing,
    /// Kept until someone wants to chat: the model is of use without.
    Broken {
        origin: String,
        problem: String,
    },
    Template(Box<ChatTemplate>),
}

impl Chat {
    pub(super) fn new(origin: impl Into<String>, source: &str) -> Self {
        let origin = origin.into();
        match ChatTemplate::new(source) {
            Ok(template) => Self::Template(template.into()),
            Err(problem) => Self::broken(origin, problem),
        }
    }

    fn broken(origin: String, problem: String) -> Self {
        tracing::warn!("the chat template of {origin} cannot be read: {problem}");
        Self::Broken { origin, problem }
    }

    /// The file `chat_template.jinja` goes before `chat_template` of tokenizer_config.json, which is one template or
    /// a list of named ones.
    pub(super) fn from_files(dir: &Path, file: Option<String>, config: &serde_json::Value) -> Self {
        let origin = |name: &str| dir.join(name).display().to_string();
        let in_config = || origin("tokenizer_config.json");
        match (file, config) {
            (Some(source), _) => Self::new(origin("chat_template.jinja"), &source),
            (None, serde_json::Value::Null) => Self::Missing,
            (None, serde_json::Value::String(source)) => Self::new(in_config(), source),
            (None, list) => {
                let named =
                    |wanted: &str| list.as_array()?.iter().find(|item| item["name"] == wanted);
                match named("default").and_then(|item| item["template"].as_str()) {
                    Some(source) => Self::new(in_config(), source),
                    None => Self::broken(
                        in_config(),
                        "it is neither a text nor a list with a `default`".into(),
                    ),
                }
            }
        }
    }

    pub(super) fn template(&self) -> Result<&ChatTemplate, ChatError> {
        match self {
            Self::Missing => Err(ChatError::NoTemplate),
            Self::Broken { origin, problem } => {
                Err(ChatError::Syntax { origin: origin.clone(), problem: problem.clone() })
            }
            Self::Template(template) => Ok(template),
        }
    }
}

/// A chat template that compiles.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    syntax: SyntaxConfig,
    source: String,
    /// What is compiled: the source without `{% generation %}`.
    program: String,
}

const NAME: &str = "chat";

/// Longest template in bytes. The longest published ones have 30,000.
const MAX_SOURCE: usize = 1 << 17;

/// Stack to compile on. The parser recurses once for each operator of a chain such as `a + a + …`, so at most once for each
/// byte of [`MAX_SOURCE`], with frames of less than 2 KiB. Only what is used of it takes memory.
const COMPILER_STACK: usize = MAX_SOURCE << 11;

impl ChatTemplate {
    fn new(source: &str) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err(format!(
                "it has {} bytes, and at most {MAX_SOURCE} are read",
                source.len()
            ));
        }
        std::thread::scope(|scope| {
            let compiler = std::thread::Builder::new().stack_size(COMPILER_STACK);
            let thread = compiler
                .spawn_scoped(scope, || Self::compile(source))
                .map_err(|error| format!("no thread to read it on: {error}"))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn compile(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_debug(false);
        chat_functions::add(&mut environment);
        // As transformers sets them.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|error| error.to_string())?;
        let program = chat_functions::ignore_generation_tags(source);
        let compile = || Program::compile(NAME, &program, &syntax).map(drop);
        on_deep_stack(compile)
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())?;
        Ok(Self { environment, syntax, source: source.into(), program })
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        special_names: &[(&'static str, String)],
    ) -> Result<String, ChatError> {
        let list: Vec<Value> = messages
            .iter()
            .map(|Message { role, content }| context! { role => role.as_str(), content })
            .collect();
        let mut variables = vec![
            ("messages", Value::from(list)),
            ("add_generation_prompt", add_generation_prompt.into()),
            // transformers passes both, and templates test them for none.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        variables
            .extend(special_names.iter().map(|(name, token)| (*name, Value::from(token.as_str()))));

        let content: usize = messages.iter().map(|message| message.content.len()).sum();
        let largest = MAX_OUTPUT.saturating_add(content.saturating_mul(16));
        let budget = Budget::new(MAX_DATA.saturating_add(content.saturating_mul(256)), largest);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages.len() as u64));
        chat_budget::add(&mut environment, &budget);

        let failed =
            |error: &dyn std::error::Error| ChatError::Render { reason: error.to_string() };
        match on_deep_stack(|| self.run(&environment, Value::from_pairs(variables))) {
            Err(error) => Err(failed(&error)),
            Ok(Ok(text)) if text.len() > largest => Err(ChatError::Endless),
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) if error.kind() == ErrorKind::OutOfFuel => Err(ChatError::Endless),
            Ok(Err(error)) => Err(ChatError::Render { reason: chat_functions::message(&error) }),
        }
    }

    fn run(&self, environment: &Environment<'_>, variables: Value) -> Result<String, Error> {
        let program = Program::compile(NAME, &self.program, &self.syntax)?;
        let mut text = String::new();
        let mut output = machinery::make_string_output(&mut text);
        let Program { main, blocks } = &program;
        machinery::eval(environment, main, variables, blocks, &mut output, AutoEscape::None)?;
        Ok(text)
    }
}

/// Instructions that a template may run, checks included. Qwen 3's, one of the longest, needs some 100 for each message
/// without them.
const FUEL: u64 = 100_000;
const FUEL_PER_MESSAGE: u64 = 5_000;

/// Bytes that a template may write, besides its messages, and that any list may take. Real ones write a few kilobytes.
const MAX_OUTPUT: usize = 1 << 20;

/// Bytes that all values together may take, besides the messages, in lists and texts that are freed again too.
const MAX_DATA: usize = 64 << 20;

/// Compiling and running a template recurse, 1000 levels at most, and may be called on a small stack.
const STACK: usize = 16 << 20;

fn on_deep_stack<T: Send>(run: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, run)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Characters that a control token needs, and what stands for them in messages.
pub(super) struct StandIns(Vec<(char, char)>);

impl StandIns {
    pub(super) fn new(
        specials: &[AddedToken],
        template: &str,
        messages: &[Message],
    ) -> Result<Self, ChatError> {
        let private = |c: &char| ('\u{F0000}'..='\u{10FFFD}').contains(c);
        let texts = messages.iter().map(|message| message.content.as_str());
        let texts = texts.chain([template]).chain(specials.iter().map(|token| token.text.as_str()));
        let taken: BTreeSet<char> = texts.flat_map(str::chars).filter(private).collect();
        let mut free = ('\u{F0000}'..='\u{FFFFD}').filter(|c| !taken.contains(c));

        let needed: BTreeSet<char> =
            specials.iter().filter_map(|token| needed_char(&token.text)).collect();
        let pairs = needed.into_iter().map(|c| Some((c, free.next()?))).collect::<Option<_>>();
        pairs.map(Self).ok_or(ChatError::NoStandIn)
    }

    pub(super) fn hide(&self, messages: &[Message]) -> Vec<Message> {
        let hide = |c| self.0.iter().find(|(from, _)| *from == c).map_or(c, |(_, to)| *to);
        messages
            .iter()
            .map(|message| {
                Message::new(message.role, message.content.chars().map(hide).collect::<String>())
            })
            .collect()
    }

    pub(super) fn reveal<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let find = |c| self.0.iter().find(|(_, to)| *to == c).map(|(from, _)| *from);
        match text.chars().any(|c| find(c).is_some()) {
            true => text.chars().map(|c| find(c).unwrap_or(c)).collect(),
            false => text.into(),
        }
    }
}

/// A character without which there is no such token. The bar is best, as templates look for `<think>` and the like in
/// messages, and for bars only in control tokens.
fn needed_char(token: &str) -> Option<char> {
    token
        .chars()
        .find(|c| matches!(c, '|' | '｜'))
        .or_else(|| token.chars().find(|c| !c.is_whitespace()))
}
