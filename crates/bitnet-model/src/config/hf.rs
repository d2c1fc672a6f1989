//! A model's configuration from `config.json` and `generation_config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use super::{
    ArchConfig, HiddenAct, RopeConfig, RopeScaling,
    keys::{Keys, Rest, Scalar, Sizes},
};
use crate::error::LoadError;

/// How the linear layers of a Hugging Face checkpoint are stored, which their tensors alone do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearForm {
    /// Ternary codes, and a scale that products are multiplied by.
    Multiply,
    /// Ternary codes, and a scale that products are divided by.
    Divide,
    /// Float weights that are made ternary while loading.
    Master,
}

/// A checkpoint's configuration and how its linear layers are stored. `has_head`: whether there is an `lm_head.weight`.
pub fn from_json(
    path: &Path,
    config: &Map<String, Value>,
    generation: Option<(&Path, &Map<String, Value>)>,
    has_head: bool,
    hidden_act: Option<HiddenAct>,
) -> Result<(ArchConfig, LinearForm), LoadError> {
    let rename = |key: &str| key.to_owned();
    let lookup = |key: &str| scalar(find(config, key)?);
    let keys = Keys { path, rename: &rename, lookup: &lookup };
    let family = family(&keys, config)?;
    let form = linear_form(&keys, config, &family)?;
    for key in ["attention_bias", "mlp_bias"] {
        if keys.bool(key)? == Some(true) {
            let help = "no published BitNet model has biases; use one without";
            return Err(keys.unsupported(
                format!("`{key}`"),
                "linear layers have no biases here",
                help,
            ));
        }
    }
    let tied = keys.bool("tie_word_embeddings")?;
    if tied == Some(true) && has_head {
        tracing::warn!(
            "`tie_word_embeddings` is true, so `lm_head.weight` is not used and the embedding is the output head"
        );
    }
    let sizes = Sizes::read(&keys, None)?;
    let rest = Rest {
        rope: rope(&keys, config)?,
        hidden_act: match (hidden_act, keys.hidden_act("hidden_act")?) {
            (Some(act), _) | (None, Some(act)) => act,
            (None, None) => return Err(keys.missing("hidden_act", "\"relu2\" or \"silu\"")),
        },
        sub_norms: family.sub_norms,
        tie_word_embeddings: tied.unwrap_or(!has_head),
        bos_token_id: token_ids(&keys, config, "bos_token_id", sizes.vocab_size)?.first().copied(),
        eos_token_ids: eos_token_ids(&keys, config, generation, sizes.vocab_size)?,
        architecture: family.architecture,
    };
    Ok((sizes.into_config(rest), form))
}

/// The value of a key, or of a dotted path of keys.
fn find<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    match map.get(key) {
        Some(value) => Some(value),
        None => {
            let (outer, inner) = key.split_once('.')?;
            map.get(outer)?.as_object()?.get(inner)
        }
    }
}

fn scalar(value: &Value) -> Option<Scalar> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => Scalar::Bool(*value),
        Value::String(text) => Scalar::Text(text.clone()),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), ..) => Scalar::Int(value.into()),
            (_, Some(value), _) => Scalar::Int(value.into()),
            (.., Some(value)) => Scalar::Float(value),
            _ => Scalar::Other(number.to_string()),
        },
        Value::Array(values) => Scalar::Other(format!("a list of {} values", values.len())),
        Value::Object(_) => Scalar::Other("an object".into()),
    })
}

struct Family {
    architecture: String,
    sub_norms: bool,
    /// 1bitLLM's models are masters without saying so.
    one_bit_llm: bool,
}

fn family(keys: &Keys<'_>, config: &Map<String, Value>) -> Result<Family, LoadError> {
    let listed =
        config.get("architectures").and_then(Value::as_array).and_then(|list| list.first());
    let model_type = keys.text("model_type")?;
    let architecture = match (listed, model_type.as_deref()) {
        (Some(Value::String(name)), _) => name.clone(),
        (Some(other), _) => {
            return Err(keys.wrong("architectures", other, "a list with the name of a class"));
        }
        (None, Some("bitnet")) => "BitNetForCausalLM".to_owned(),
        (None, Some("llama")) => "LlamaForCausalLM".to_owned(),
        (None, Some(other)) => other.to_owned(),
        (None, None) => {
            return Err(
                keys.missing("architectures", "[\"BitNetForCausalLM\"] or [\"LlamaForCausalLM\"]")
            );
        }
    };
    let sub_norms = match architecture.as_str() {
        "BitNetForCausalLM" | "BitnetForCausalLM" => true,
        "LlamaForCausalLM" => false,
        _ => {
            return Err(keys.unsupported(
                format!("architecture `{}`", architecture.escape_debug()),
                "the engine runs BitNetForCausalLM, BitnetForCausalLM and LlamaForCausalLM",
                "use a BitNet b1.58 model, or a Llama or Falcon3 one with ternary weights",
            ));
        }
    };
    let one_bit_llm = architecture == "BitnetForCausalLM";
    Ok(Family { architecture, sub_norms, one_bit_llm })
}

/// Reads `quantization_config`; see `docs` of Hugging Face's `BitNetQuantConfig` for its defaults.
fn linear_form(
    keys: &Keys<'_>,
    config: &Map<String, Value>,
    family: &Family,
) -> Result<LinearForm, LoadError> {
    match config.get("quantization_config") {
        None | Some(Value::Null) if family.one_bit_llm => return Ok(LinearForm::Master),
        None | Some(Value::Null) => {
            return Err(keys.unsupported(
                format!("`{}` without `quantization_config`", family.architecture),
                "its weights are ordinary floats, and made ternary they would be another model",
                "use a model trained with ternary weights; its config.json has a quantization_config",
            ));
        }
        Some(Value::Object(_)) => {}
        Some(other) => return Err(keys.wrong("quantization_config", other, "an object")),
    }
    let text = |key: &str, default: &str| {
        Ok::<_, LoadError>(
            keys.text(&format!("quantization_config.{key}"))?.unwrap_or(default.into()),
        )
    };
    let method = text("quant_method", "")?;
    if method != "bitnet" {
        let help = "take the repository whose quant_method is bitnet";
        return Err(keys.unsupported(
            format!("quant_method {method:?}"),
            "`bitnet` alone is ternary",
            help,
        ));
    }
    if keys.bool("quantization_config.use_rms_norm")? == Some(true) {
        return Err(keys.unsupported(
            "`use_rms_norm: true`",
            "it puts a norm of its own before each linear layer, which the engine does not have",
            "use a model without it",
        ));
    }
    match (
        text("linear_class", "bitlinear")?.as_str(),
        text("quantization_mode", "offline")?.as_str(),
    ) {
        ("bitlinear", "offline" | "online") => Ok(LinearForm::Divide),
        ("autobitlinear", "offline") => Ok(LinearForm::Multiply),
        ("autobitlinear", "online") => Ok(LinearForm::Master),
        ("bitlinear" | "autobitlinear", mode) => Err(keys.wrong(
            "quantization_config.quantization_mode",
            format!("{mode:?}"),
            "\"offline\" or \"online\"",
        )),
        (class, _) => Err(keys.wrong(
            "quantization_config.linear_class",
            format!("{class:?}"),
            "\"bitlinear\" or \"autobitlinear\"",
        )),
    }
}

/// transformers 5 writes `rope_parameters`, which holds the base as well; older versions `rope_theta` and `rope_scaling`.
fn rope(keys: &Keys<'_>, config: &Map<String, Value>) -> Result<RopeConfig, LoadError> {
    let object = |key: &'static str| match config.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Object(_)) => Ok(true),
        Some(other) => Err(keys.wrong(key, other, "an object")),
    };
    let group = match (object("rope_parameters")?, object("rope_scaling")?) {
        (true, _) => "rope_parameters",
        (false, true) => "rope_scaling",
        (false, false) => "",
    };
    let of = |key: &str| format!("{group}.{key}");
    let outer = keys.optional_positive("rope_theta")?;
    let theta = match (keys.optional_positive(&of("rope_theta"))?, outer) {
        (Some(inner), Some(outer)) if inner != outer => {
            return Err(keys.wrong(
                &of("rope_theta"),
                inner,
                format!("the same as `rope_theta`, {outer}"),
            ));
        }
        (Some(theta), _) | (None, Some(theta)) => theta,
        (None, None) => {
            return Err(keys.missing("rope_theta", "the base of the rotary frequencies"));
        }
    };
    for key in ["partial_rotary_factor".to_owned(), of("partial_rotary_factor")] {
        if let Some(found) = keys.optional_positive(&key)?
            && found != 1.0
        {
            return Err(keys.wrong(&key, found, "1, as heads are turned as a whole"));
        }
    }
    Ok(RopeConfig { theta, scaling: rope_scaling(keys, &of)?, factors: Vec::new() })
}

fn rope_scaling(keys: &Keys<'_>, of: &dyn Fn(&str) -> String) -> Result<RopeScaling, LoadError> {
    let kind = match keys.text(&of("rope_type"))? {
        Some(kind) => Some(kind),
        None => keys.text(&of("type"))?,
    };
    match kind.as_deref() {
        None | Some("default") => Ok(RopeScaling::Default),
        Some("linear") => Ok(RopeScaling::Linear { factor: keys.positive(&of("factor"))? }),
        Some("llama3") => {
            let low_freq_factor = keys.positive(&of("low_freq_factor"))?;
            let high_freq_factor = keys.positive(&of("high_freq_factor"))?;
            if low_freq_factor >= high_freq_factor {
                let expected = format!("above `low_freq_factor`, {low_freq_factor}");
                return Err(keys.wrong(&of("high_freq_factor"), high_freq_factor, expected));
            }
            let key = of("original_max_position_embeddings");
            Ok(RopeScaling::Llama3 {
                factor: keys.positive(&of("factor"))?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: keys.size(&key, i32::MAX as usize)?,
            })
        }
        Some(other) => Err(keys.unsupported(
            format!("rotary scaling `{}`", other.escape_debug()),
            "default, linear and llama3 are known",
            "use a model without it",
        )),
    }
}

/// Those of `generation_config.json` first, then those of `config.json`: each ends a generation.
fn eos_token_ids(
    keys: &Keys<'_>,
    config: &Map<String, Value>,
    generation: Option<(&Path, &Map<String, Value>)>,
    vocab_size: usize,
) -> Result<Vec<u32>, LoadError> {
    const KEY: &str = "eos_token_id";
    let mut ids = Vec::new();
    if let Some((path, generation)) = generation {
        ids = token_ids(&Keys { path, ..*keys }, generation, KEY, vocab_size)?;
    }
    ids.extend(token_ids(keys, config, KEY, vocab_size)?);
    super::dedup(&mut ids);
    Ok(ids)
}

/// No, one or several token ids.
fn token_ids(
    keys: &Keys<'_>,
    map: &Map<String, Value>,
    key: &str,
    vocab_size: usize,
) -> Result<Vec<u32>, LoadError> {
    let values = match map.get(key) {
        None | Some(Value::Null) => &[],
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    let id = |value: &Value| match scalar(value) {
        Some(Scalar::Int(id)) => keys.token(key, id, vocab_size),
        _ => Err(keys.wrong(key, value, "a token id, or a list of them")),
    };
    values.iter().map(id).collect()
}
