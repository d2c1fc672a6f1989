//! The parts of the report.

use std::collections::BTreeMap;

use bitnet::bench::TokenBytes;
use bitnet::{ArchConfig, Checkpoint, HeadType, Isa, KvType, Packing};
use bitnet_model::config::{RopeConfig, RopeScaling};
use bitnet_model::format::metadata::{Metadata, Value};
use serde_json::json;

use crate::cmd::info::Section;
use crate::report::{Align, Table, bytes};

/// Elements of a long array that are shown.
const SHOWN: usize = 3;

pub fn architecture(checkpoint: &Checkpoint) -> Section {
    let it = checkpoint.config();
    let mut table = Table::facts();
    let mut row = |name: &str, value: String| table.row([name, &value]);
    row("hidden size", it.hidden_size.to_string());
    row("feed-forward", format!("{} ({:?})", it.intermediate_size, it.hidden_act));
    row("layers", it.num_hidden_layers.to_string());
    let (heads, kv) = (it.num_attention_heads, it.num_key_value_heads);
    row("heads", format!("{heads} of width {}, {kv} for keys and values", it.head_dim));
    row("sub-norms", if it.sub_norms { "yes" } else { "no" }.into());
    row("output head", if it.tie_word_embeddings { "the embedding" } else { "its own" }.into());
    row("rotary", format!("theta {}, {}", it.rope.theta, scaling(&it.rope)));
    row("norm epsilon", format!("{:e}", it.rms_norm_eps));
    row("context", format!("{} tokens", it.max_position_embeddings));
    row("begin of text", it.bos_token_id.map_or("none".into(), |id| id.to_string()));
    row("ends of text", format!("{:?}", it.eos_token_ids));
    Section {
        title: "Architecture",
        text: table.render("  "),
        json: ("architecture", architecture_json(it)),
    }
}

fn scaling(rope: &RopeConfig) -> String {
    let least = rope.factors.iter().copied().reduce(f32::min);
    let most = rope.factors.iter().copied().reduce(f32::max);
    if let (Some(least), Some(most), RopeScaling::Default) = (least, most, &rope.scaling) {
        return format!("stretched {least} to {most} times, pair by pair");
    }
    match &rope.scaling {
        RopeScaling::Default => "not stretched".into(),
        RopeScaling::Linear { factor } => format!("stretched {factor} times"),
        RopeScaling::Llama3 { factor, .. } => {
            format!("stretched up to {factor} times as in Llama 3")
        }
    }
}

fn architecture_json(it: &ArchConfig) -> serde_json::Value {
    json!({
        "architecture": it.architecture, "hidden_size": it.hidden_size,
        "intermediate_size": it.intermediate_size, "hidden_act": format!("{:?}", it.hidden_act).to_lowercase(),
        "num_hidden_layers": it.num_hidden_layers, "num_attention_heads": it.num_attention_heads,
        "num_key_value_heads": it.num_key_value_heads, "head_dim": it.head_dim, "vocab_size": it.vocab_size,
        "max_position_embeddings": it.max_position_embeddings, "rms_norm_eps": it.rms_norm_eps,
        "rope_theta": it.rope.theta, "rope_scaling": scaling(&it.rope), "rope_factors": it.rope.factors, "sub_norms": it.sub_norms,
        "tie_word_embeddings": it.tie_word_embeddings, "bos_token_id": it.bos_token_id,
        "eos_token_ids": it.eos_token_ids,
    })
}

/// What each encoding becomes, and what computes with it.
pub fn kernels(checkpoint: &Checkpoint) -> Section {
    let (level, head) = (Isa::best().name(), head_kernel(Isa::best(), HeadType::default()));
    let packings = Packing::ALL.map(Packing::name).join(" or ");
    let mut uses: BTreeMap<(&'static str, &'static str), usize> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        *uses.entry((part(checkpoint, &tensor.name), tensor.encoding)).or_default() += 1;
    }
    let mut table = Table::new(&[Align::Left, Align::Left, Align::Right, Align::Left]);
    let mut list = Vec::new();
    for ((part, encoding), count) in uses {
        let kernel = match part {
            "linear layer" => format!("packed as {packings}, int8 products ({level})"),
            "norm" => format!("f32 ({level})"),
            "embedding" => EMBEDDING.to_owned(),
            "embedding and head" => format!("{EMBEDDING}; as head {head}"),
            _ => head.clone(),
        };
        table.row([part, encoding, &count.to_string(), &kernel]);
        list.push(
            json!({ "part": part, "encoding": encoding, "tensors": count, "kernel": kernel }),
        );
    }
    Section { title: "Kernels", text: table.render("  "), json: ("kernels", list.into()) }
}

const EMBEDDING: &str = "one row per token, made f32";

/// What becomes of the output head in a form, and what computes with it.
fn head_kernel(isa: Isa, form: HeadType) -> String {
    let ((rows, tokens), level) = (isa.head_tile(), isa.name());
    match form {
        HeadType::Int8 | HeadType::TwoStage => {
            format!(
                "held as {form}, int8 products in tiles of {rows} rows x {tokens} tokens ({level})"
            )
        }
        HeadType::File => format!("read as stored, f32 products ({level})"),
    }
}

fn part(checkpoint: &Checkpoint, name: &str) -> &'static str {
    match name {
        "lm_head.weight" => "output head",
        "model.embed_tokens.weight" if checkpoint.config().tie_word_embeddings => {
            "embedding and head"
        }
        "model.embed_tokens.weight" => "embedding",
        name if name.ends_with("_proj.weight") => "linear layer",
        _ => "norm",
    }
}

/// What a generated token reads, at a few lengths of context.
pub fn bytes_per_token(checkpoint: &Checkpoint) -> Section {
    let mut table = Table::new(&[Align::Right; 6]);
    table.row(["earlier tokens", "ternary", "head in int8", "other", "KV in f16", "together"]);
    let most = checkpoint.config().max_position_embeddings;
    let mut contexts = vec![0, 512.min(most), most];
    contexts.dedup();
    let (mut list, head) = (Vec::new(), HeadType::default());
    for context in contexts {
        let read = TokenBytes::of_checkpoint(checkpoint, KvType::F16, head, context as f64);
        let parts = [read.ternary, read.head, read.other, read.kv, read.total()];
        table.row([context.to_string()].into_iter().chain(parts.map(bytes)));
        list.push(json!({
            "context": context, "ternary": read.ternary, "head": read.head, "other": read.other,
            "kv_f16": read.kv, "total": read.total(),
        }));
    }
    let json = ("bytes_per_token", list.into());
    Section { title: "Bytes read for one generated token", text: table.render("  "), json }
}

/// The key-value pairs of a GGUF file; nothing for a directory.
pub fn metadata(checkpoint: &Checkpoint) -> Option<Section> {
    let Metadata(pairs) = checkpoint.metadata();
    let mut table = Table::facts();
    pairs.iter().for_each(|(key, value)| table.row([key, &shown(value)]));
    let json = pairs.iter().map(|(key, value)| (key.clone(), short_json(value))).collect();
    (!pairs.is_empty()).then(|| Section {
        title: "Metadata",
        text: table.render("  "),
        json: ("metadata", json),
    })
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > 70 => {
            let start: String = text.chars().take(60).collect();
            format!("{start:?}… ({} bytes)", text.len())
        }
        Value::Ints(values) => elided(values, |v| v.to_string()),
        Value::Floats(values) => elided(values, |v| v.to_string()),
        Value::Bools(values) => elided(values, |v| v.to_string()),
        Value::Strings(values) => elided(values, |v| format!("{v:?}")),
        short => short.to_string(),
    }
}

fn elided<T>(values: &[T], show: impl Fn(&T) -> String) -> String {
    let start: Vec<_> = values.iter().take(SHOWN).map(show).collect();
    match values.len() {
        len if len > SHOWN => format!("[{}, … {len} in all]", start.join(", ")),
        _ => format!("[{}]", start.join(", ")),
    }
}

/// As JSON, with long arrays as their length and first elements.
fn short_json(value: &Value) -> serde_json::Value {
    fn array<T>(values: &[T], json: impl Fn(&T) -> serde_json::Value) -> serde_json::Value {
        let start: Vec<_> = values.iter().take(16).map(json).collect();
        match values.len() {
            len if len > 16 => json!({ "length": len, "first": start }),
            _ => start.into(),
        }
    }
    let int = |value: &i128| {
        i64::try_from(*value).map_or_else(|_| json!(value.to_string()), |v| json!(v))
    };
    match value {
        Value::Int(value) => int(value),
        Value::Float(value) => json!(value),
        Value::Bool(value) => json!(value),
        Value::String(text) => json!(text),
        Value::Ints(values) => array(values, int),
        Value::Floats(values) => array(values, |v| json!(v)),
        Value::Bools(values) => array(values, |v| json!(v)),
        Value::Strings(values) => array(values, |v| json!(v)),
    }
}

pub fn tensors(checkpoint: &Checkpoint) -> Section {
    let mut table =
        Table::new(&[Align::Left, Align::Left, Align::Right, Align::Right, Align::Left]);
    table.row(["name", "encoding", "shape", "size", "in the file"]);
    let mut list = Vec::new();
    for tensor in checkpoint.tensors() {
        let shape = format!("{:?}", tensor.shape);
        table.row([&tensor.name, tensor.encoding, &shape, &bytes(tensor.bytes), &tensor.file_name]);
        list.push(json!({
            "name": tensor.name, "file_name": tensor.file_name, "encoding": tensor.encoding,
            "shape": tensor.shape, "bytes": tensor.bytes, "file": checkpoint.files()[tensor.file],
        }));
    }
    Section { title: "Tensors", text: table.render("  "), json: ("tensors", list.into()) }
}
