//! Numbers out of a configuration, checked as they are read, whatever kind of file they come from.

use std::path::Path;

use super::{ArchConfig, HiddenAct, RopeConfig};
use crate::error::LoadError;

/// Widest layer accepted. Published models stay below 2^15; integer sums of a row are exact up to 2^24.
const MAX_WIDTH: usize = 1 << 20;
/// Most layers accepted, thirty times those of the deepest published models.
const MAX_LAYERS: usize = 1 << 12;
/// Largest vocabulary accepted, sixty times the largest published one.
const MAX_VOCAB: usize = 1 << 24;
/// Longest context accepted: positions are counted in 31 bits.
const MAX_POSITIONS: usize = i32::MAX as usize;

/// The value of a key.
#[derive(Clone, Debug)]
pub enum Scalar {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    /// Anything else, described.
    Other(String),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// The keys of one file.
pub struct Keys<'a> {
    pub path: &'a Path,
    /// The file's own key for one of Hugging Face's names.
    pub rename: &'a dyn Fn(&str) -> String,
    /// The value of one of the file's own keys; null counts as missing.
    pub lookup: &'a dyn Fn(&str) -> Option<Scalar>,
}

impl Keys<'_> {
    pub fn get(&self, key: &str) -> Option<Scalar> {
        (self.lookup)(&(self.rename)(key))
    }

    pub fn wrong(&self, key: &str, found: impl ToString, expected: impl Into<String>) -> LoadError {
        let mut found = found.to_string();
        if found.chars().count() > 80 {
            found = found.chars().take(80).chain("…".chars()).collect();
        }
        LoadError::Key {
            path: self.path.into(),
            key: (self.rename)(key),
            found,
            expected: expected.into(),
        }
    }

    pub fn missing(&self, key: &str, expected: impl Into<String>) -> LoadError {
        let (path, key) = (self.path.into(), (self.rename)(key));
        LoadError::MissingKey { path, key, expected: expected.into() }
    }

    pub fn unsupported(&self, what: impl Into<String>, reason: &str, help: &str) -> LoadError {
        LoadError::Unsupported {
            path: self.path.into(),
            what: what.into(),
            reason: reason.into(),
            help: help.into(),
        }
    }

    /// A whole number from 1 to `max`.
    pub fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>, LoadError> {
        let expected = || format!("a whole number from 1 to {max}");
        match self.get(key) {
            None => Ok(None),
            Some(Scalar::Int(value)) if (1..=max as i128).contains(&value) => {
                Ok(Some(value as usize))
            }
            Some(found) => Err(self.wrong(key, found, expected())),
        }
    }

    pub fn size(&self, key: &str, max: usize) -> Result<usize, LoadError> {
        self.optional_size(key, max)?
            .ok_or_else(|| self.missing(key, format!("a whole number from 1 to {max}")))
    }

    /// A finite number above zero that is still one as f32.
    pub fn optional_positive(&self, key: &str) -> Result<Option<f32>, LoadError> {
        let value = match self.get(key) {
            None => return Ok(None),
            Some(Scalar::Int(value)) => value as f64,
            Some(Scalar::Float(value)) => value,
            Some(found) => return Err(self.wrong(key, found, "a number above zero")),
        };
        if (value as f32).is_finite() && value as f32 > 0.0 {
            return Ok(Some(value as f32));
        }
        Err(self.wrong(key, format!("{value:?}"), "a finite number above zero"))
    }

    pub fn positive(&self, key: &str) -> Result<f32, LoadError> {
        self.optional_positive(key)?.ok_or_else(|| self.missing(key, "a finite number above zero"))
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Scalar::Bool(value)) => Ok(Some(value)),
            Some(found) => Err(self.wrong(key, found, "true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<String>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Scalar::Text(text)) => Ok(Some(text)),
            Some(found) => Err(self.wrong(key, found, "a text")),
        }
    }

    /// The name of an activation function.
    pub fn hidden_act(&self, key: &str) -> Result<Option<HiddenAct>, LoadError> {
        let Some(name) = self.text(key)? else { return Ok(None) };
        match name.as_str() {
            "relu2" => Ok(Some(HiddenAct::Relu2)),
            "silu" => Ok(Some(HiddenAct::Silu)),
            _ => Err(self.wrong(key, format!("{name:?}"), "\"relu2\" or \"silu\"")),
        }
    }

    /// A token id below `vocab_size`.
    pub fn token(&self, key: &str, found: i128, vocab_size: usize) -> Result<u32, LoadError> {
        if (0..vocab_size as i128).contains(&found) {
            return Ok(found as u32);
        }
        let expected = format!("a token id below the vocabulary's size {vocab_size}");
        Err(self.wrong(key, found, expected))
    }

    pub fn optional_token(&self, key: &str, vocab_size: usize) -> Result<Option<u32>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Scalar::Int(id)) => self.token(key, id, vocab_size).map(Some),
            Some(found) => Err(self.wrong(key, found, "a token id")),
        }
    }
}

/// Widths, heads and counts.
pub struct Sizes {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
}

impl Sizes {
    /// Reads and checks them; `vocab_size` is used where the file has no key for it.
    pub fn read(keys: &Keys<'_>, vocab_size: Option<usize>) -> Result<Self, LoadError> {
        let hidden_size = keys.size("hidden_size", MAX_WIDTH)?;
        let num_attention_heads = keys.size("num_attention_heads", MAX_WIDTH)?;
        let num_key_value_heads =
            keys.optional_size("num_key_value_heads", MAX_WIDTH)?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of the {num_attention_heads} query heads");
            return Err(keys.wrong("num_key_value_heads", num_key_value_heads, expected));
        }
        Ok(Self {
            hidden_size,
            intermediate_size: keys.size("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers: keys.size("num_hidden_layers", MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim: head_dim(keys, hidden_size, num_attention_heads)?,
            vocab_size: match keys.optional_size("vocab_size", MAX_VOCAB)?.or(vocab_size) {
                Some(size) => size,
                None => return Err(keys.missing("vocab_size", "the number of tokens")),
            },
            max_position_embeddings: keys.size("max_position_embeddings", MAX_POSITIONS)?,
            rms_norm_eps: keys.positive("rms_norm_eps")?,
        })
    }

    /// Everything else that a configuration consists of is settled by the caller.
    pub fn into_config(self, rest: Rest) -> ArchConfig {
        ArchConfig {
            architecture: rest.architecture,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            vocab_size: self.vocab_size,
            max_position_embeddings: self.max_position_embeddings,
            rms_norm_eps: self.rms_norm_eps,
            rope: rest.rope,
            hidden_act: rest.hidden_act,
            sub_norms: rest.sub_norms,
            tie_word_embeddings: rest.tie_word_embeddings,
            bos_token_id: rest.bos_token_id,
            eos_token_ids: rest.eos_token_ids,
        }
    }
}

/// The part of a configuration that each kind of file writes in its own way.
pub struct Rest {
    pub architecture: String,
    pub rope: RopeConfig,
    pub hidden_act: HiddenAct,
    pub sub_norms: bool,
    pub tie_word_embeddings: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

fn head_dim(keys: &Keys<'_>, hidden_size: usize, heads: usize) -> Result<usize, LoadError> {
    let head_dim = match keys.optional_size("head_dim", MAX_WIDTH)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected =
                format!("a divisor of the hidden size {hidden_size}, as no head size is given");
            return Err(keys.wrong("num_attention_heads", heads, expected));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(keys.wrong("head_dim", head_dim, "even, as rotary embedding turns pairs"));
    }
    if heads * head_dim > MAX_WIDTH {
        let expected = format!("so small that {heads} heads have at most {MAX_WIDTH} values");
        return Err(keys.wrong("head_dim", head_dim, expected));
    }
    Ok(head_dim)
}
