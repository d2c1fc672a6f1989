//! A model's configuration from the metadata of a GGUF file.

use std::path::Path;

use super::{
    ArchConfig, HiddenAct, RopeConfig, RopeScaling,
    keys::{Keys, Rest, Scalar, Sizes},
};
use crate::{
    error::LoadError,
    format::metadata::{Metadata, Value},
};

/// Architectures whose rows and norms are known.
const SUPPORTED: [&str; 4] = ["bitnet-b1.58", "bitnet-25", "bitnet", "llama"];

/// GGUF's keys for Hugging Face's, below the architecture's name.
const RENAMED: [(&str, &str); 16] = [
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("value_dim", "attention.value_length"),
    ("rotary_dim", "rope.dimension_count"),
    ("vocab_size", "vocab_size"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("hidden_act", "hidden_activation"),
    ("rope_theta", "rope.freq_base"),
    ("rope_type", "rope.scaling.type"),
    ("rope_factor", "rope.scaling.factor"),
    ("rope_factor_old", "rope.scale_linear"),
];

/// `has_head`: whether the file has an output head apart from the embedding.
pub fn from_metadata(
    path: &Path,
    metadata: &Metadata,
    has_head: bool,
    hidden_act: Option<HiddenAct>,
) -> Result<ArchConfig, LoadError> {
    let architecture = architecture(path, metadata)?;
    let rename = |key: &str| match RENAMED.iter().find(|(ours, _)| *ours == key) {
        Some((_, theirs)) => format!("{architecture}.{theirs}"),
        None => key.to_owned(),
    };
    let lookup = |key: &str| metadata.get(key).map(scalar);
    let keys = Keys { path, rename: &rename, lookup: &lookup };
    let tokens = metadata.strings("tokenizer.ggml.tokens");
    let sizes = Sizes::read(&keys, tokens.map(<[String]>::len))?;
    check_head_dims(&keys, sizes.head_dim)?;
    check_vocabulary(&keys, sizes.vocab_size, tokens)?;
    let rest = Rest {
        rope: rope(&keys)?,
        hidden_act: match (hidden_act, keys.hidden_act("hidden_act")?) {
            (Some(act), _) | (None, Some(act)) => act,
            (None, None) => usual_hidden_act(architecture, metadata, sizes.vocab_size),
        },
        sub_norms: architecture != "llama",
        tie_word_embeddings: !has_head,
        bos_token_id: keys.optional_token("tokenizer.ggml.bos_token_id", sizes.vocab_size)?,
        eos_token_ids: eos_token_ids(&keys, metadata, sizes.vocab_size)?,
        architecture: architecture.to_owned(),
    };
    Ok(sizes.into_config(rest))
}

fn scalar(value: &Value) -> Scalar {
    match value {
        Value::Int(value) => Scalar::Int(*value),
        Value::Float(value) => Scalar::Float(*value),
        Value::Bool(value) => Scalar::Bool(*value),
        Value::String(text) => Scalar::Text(text.clone()),
        other => Scalar::Other(other.to_string()),
    }
}

fn architecture<'a>(path: &Path, metadata: &'a Metadata) -> Result<&'a str, LoadError> {
    const KEY: &str = "general.architecture";
    let supported = || format!("one of {SUPPORTED:?}");
    match metadata.get(KEY) {
        None => {
            Err(LoadError::MissingKey { path: path.into(), key: KEY.into(), expected: supported() })
        }
        Some(Value::String(name)) if SUPPORTED.contains(&name.as_str()) => Ok(name),
        Some(Value::String(name)) => Err(LoadError::Unsupported {
            path: path.into(),
            what: format!("architecture `{}`", name.escape_debug()),
            reason: format!("the engine runs {}", SUPPORTED.join(", ")),
            help: "use a BitNet b1.58 model, or a Llama or Falcon3 one with ternary weights".into(),
        }),
        Some(other) => Err(LoadError::Key {
            path: path.into(),
            key: KEY.into(),
            found: other.to_string(),
            expected: supported(),
        }),
    }
}

/// Heads whose values have another width, or that turn in part only, are another attention.
fn check_head_dims(keys: &Keys<'_>, head_dim: usize) -> Result<(), LoadError> {
    for key in ["value_dim", "rotary_dim"] {
        if let Some(found) = keys.optional_size(key, usize::MAX >> 1)?
            && found != head_dim
        {
            return Err(keys.wrong(key, found, format!("the head size {head_dim}")));
        }
    }
    Ok(())
}

fn check_vocabulary(
    keys: &Keys<'_>,
    size: usize,
    tokens: Option<&[String]>,
) -> Result<(), LoadError> {
    match tokens.map(<[String]>::len) {
        Some(found) if found != size => {
            let expected = format!("as many texts as the vocabulary's size {size}");
            Err(keys.wrong("tokenizer.ggml.tokens", format!("an array of {found} texts"), expected))
        }
        _ => Ok(()),
    }
}

fn rope(keys: &Keys<'_>) -> Result<RopeConfig, LoadError> {
    let theta = keys.optional_positive("rope_theta")?.unwrap_or(10_000.0);
    let factor = match keys.optional_positive("rope_factor")? {
        Some(factor) => Some(factor),
        None => keys.optional_positive("rope_factor_old")?,
    };
    let scaling = match (keys.text("rope_type")?.as_deref(), factor) {
        (None | Some("none"), None) | (Some("none"), Some(_)) => RopeScaling::Default,
        (None | Some("linear"), Some(factor)) => RopeScaling::Linear { factor },
        (Some("linear"), None) => {
            return Err(keys.missing("rope_factor", "the factor of linear scaling"));
        }
        (Some(other), _) => {
            return Err(keys.unsupported(
                format!("rotary scaling `{}`", other.escape_debug()),
                "in GGUF files, none and linear are known",
                "take the model's safetensors files, or a model without it",
            ));
        }
    };
    Ok(RopeConfig { theta, scaling, factors: Vec::new() })
}

/// What architectures mean where the file does not say. Converters wrote `bitnet-b1.58` for 1bitLLM's models too, which
/// have SiLU and, unlike Microsoft's, a SentencePiece vocabulary of 32002.
fn usual_hidden_act(architecture: &str, metadata: &Metadata, vocab_size: usize) -> HiddenAct {
    let sentence_piece = metadata.string("tokenizer.ggml.model") == Some("llama");
    match architecture {
        "bitnet-25" => HiddenAct::Relu2,
        "bitnet-b1.58" if !sentence_piece && vocab_size != 32002 => HiddenAct::Relu2,
        _ => HiddenAct::Silu,
    }
}

/// The declared ones, and control tokens that end a turn: Microsoft's own file does not declare its `<|eot_id|>`.
fn eos_token_ids(
    keys: &Keys<'_>,
    metadata: &Metadata,
    vocab_size: usize,
) -> Result<Vec<u32>, LoadError> {
    const CONTROL: i128 = 3;
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ids.extend(keys.optional_token(key, vocab_size)?);
    }
    let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap_or_default();
    let types = metadata.ints("tokenizer.ggml.token_type").unwrap_or_default();
    for (id, (token, &kind)) in tokens.iter().zip(types).enumerate() {
        if kind == CONTROL && matches!(token.as_str(), "<|eot_id|>" | "<|im_end|>") {
            ids.push(id as u32);
        }
    }
    super::dedup(&mut ids);
    Ok(ids)
}
