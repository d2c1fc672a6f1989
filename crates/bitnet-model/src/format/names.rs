//! One table of tensor names: Hugging Face's, which the engine uses, 1bitLLM's, and GGUF's.

use crate::config::ArchConfig;

/// What a tensor is for, which decides how it may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A ternary linear layer, `[outputs, inputs]`.
    Linear,
    /// The embedding table or the output head, `[vocabulary, hidden]`.
    Table,
    /// A norm's weights.
    Norm,
}

struct Row {
    ours: &'static str,
    alias: &'static str, // 1bitLLM's name
    gguf: &'static str,
}

const fn row(ours: &'static str, gguf: &'static str) -> Row {
    Row { ours, alias: ours, gguf }
}

const GLOBAL: [Row; 3] = [
    row("model.embed_tokens", "token_embd"),
    row("model.norm", "output_norm"),
    row("lm_head", "output"),
];

const LAYER: [Row; 11] = [
    row("input_layernorm", "attn_norm"),
    row("self_attn.q_proj", "attn_q"),
    row("self_attn.k_proj", "attn_k"),
    row("self_attn.v_proj", "attn_v"),
    row("self_attn.o_proj", "attn_output"),
    Row {
        ours: "self_attn.attn_sub_norm",
        alias: "self_attn.inner_attn_ln",
        gguf: "attn_sub_norm",
    },
    row("post_attention_layernorm", "ffn_norm"),
    row("mlp.gate_proj", "ffn_gate"),
    row("mlp.up_proj", "ffn_up"),
    row("mlp.down_proj", "ffn_down"),
    Row { ours: "mlp.ffn_sub_norm", alias: "mlp.ffn_layernorm", gguf: "ffn_sub_norm" },
];

/// The canonical name, `….weight` or `….weight_scale`, of a tensor of a Hugging Face checkpoint.
pub fn from_hugging_face(name: &str) -> Option<String> {
    let (stem, suffix) = [".weight", ".weight_scale"]
        .into_iter()
        .find_map(|suffix| Some((name.strip_suffix(suffix)?, suffix)))?;
    if GLOBAL.iter().any(|row| row.ours == stem) {
        return Some(name.to_owned());
    }
    let (layer, part) = layer_and_rest(stem.strip_prefix("model.layers.")?)?;
    let row = LAYER.iter().find(|row| row.ours == part || row.alias == part)?;
    Some(format!("model.layers.{layer}.{}{suffix}", row.ours))
}

/// The canonical name of a tensor of a GGUF file.
pub fn from_gguf(name: &str) -> Option<String> {
    let (stem, suffix) = [(".weight", ".weight"), (".scale", ".weight_scale")]
        .into_iter()
        .find_map(|(theirs, ours)| Some((name.strip_suffix(theirs)?, ours)))?;
    if let Some(row) = GLOBAL.iter().find(|row| row.gguf == stem) {
        return Some(format!("{}{suffix}", row.ours));
    }
    let (layer, part) = layer_and_rest(stem.strip_prefix("blk.")?)?;
    let row = LAYER.iter().find(|row| row.gguf == part)?;
    Some(format!("model.layers.{layer}.{}{suffix}", row.ours))
}

/// What a GGUF file calls a canonical name (with its suffix), for messages and for writing.
pub fn to_gguf(name: &str) -> Option<String> {
    let (stem, suffix) = [(".weight_scale", ".scale"), (".weight", ".weight")]
        .into_iter()
        .find_map(|(ours, theirs)| Some((name.strip_suffix(ours)?, theirs)))?;
    if let Some(row) = GLOBAL.iter().find(|row| row.ours == stem) {
        return Some(format!("{}{suffix}", row.gguf));
    }
    let (layer, part) = layer_and_rest(stem.strip_prefix("model.layers.")?)?;
    let row = LAYER.iter().find(|row| row.ours == part)?;
    Some(format!("blk.{layer}.{}{suffix}", row.gguf))
}

/// `12.self_attn.q_proj` in two. Numbers with needless zeros are refused: they would name one layer twice.
fn layer_and_rest(text: &str) -> Option<(usize, &str)> {
    let (number, rest) = text.split_once('.')?;
    let layer: usize = number.parse().ok()?;
    (layer.to_string() == number).then_some((layer, rest))
}

/// Every weight that a model has: canonical name without `.weight`, role and shape `[rows, cols]` or `[len]`.
pub fn expected(config: &ArchConfig) -> impl Iterator<Item = (String, Role, Vec<usize>)> {
    let table = vec![config.vocab_size, config.hidden_size];
    let head =
        (!config.tie_word_embeddings).then(|| ("lm_head".to_owned(), Role::Table, table.clone()));
    [
        ("model.embed_tokens".to_owned(), Role::Table, table),
        ("model.norm".to_owned(), Role::Norm, vec![config.hidden_size]),
    ]
    .into_iter()
    .chain(head)
    .chain((0..config.num_hidden_layers).flat_map(move |layer| expected_in_layer(config, layer)))
}

fn expected_in_layer(config: &ArchConfig, layer: usize) -> Vec<(String, Role, Vec<usize>)> {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let sub_norms = config.sub_norms;
    let shape = |part: &str| match part {
        "self_attn.q_proj" => Some((Role::Linear, vec![queries, hidden])),
        "self_attn.k_proj" | "self_attn.v_proj" => Some((Role::Linear, vec![keys, hidden])),
        "self_attn.o_proj" => Some((Role::Linear, vec![hidden, queries])),
        "mlp.gate_proj" | "mlp.up_proj" => Some((Role::Linear, vec![ffn, hidden])),
        "mlp.down_proj" => Some((Role::Linear, vec![hidden, ffn])),
        "self_attn.attn_sub_norm" => sub_norms.then(|| (Role::Norm, vec![queries])),
        "mlp.ffn_sub_norm" => sub_norms.then(|| (Role::Norm, vec![ffn])),
        _ => Some((Role::Norm, vec![hidden])),
    };
    let parts = LAYER.iter().filter_map(|row| Some((row.ours, shape(row.ours)?)));
    parts
        .map(|(part, (role, shape))| (format!("model.layers.{layer}.{part}"), role, shape))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(gguf: &str, ours: &str) {
        assert_eq!(from_gguf(gguf).as_deref(), Some(ours));
        assert_eq!(to_gguf(ours).as_deref(), Some(gguf));
        assert_eq!(from_hugging_face(ours).as_deref(), Some(ours));
    }

    #[test]
    fn names_translate_both_ways() {
        check("token_embd.weight", "model.embed_tokens.weight");
        check("blk.17.attn_output.weight", "model.layers.17.self_attn.o_proj.weight");
        check("blk.0.attn_q.scale", "model.layers.0.self_attn.q_proj.weight_scale");
        check("blk.3.ffn_sub_norm.weight", "model.layers.3.mlp.ffn_sub_norm.weight");
    }

    #[test]
    fn names_of_1bitllm_are_understood() {
        for (theirs, ours) in [
            ("self_attn.inner_attn_ln", "self_attn.attn_sub_norm"),
            ("mlp.ffn_layernorm", "mlp.ffn_sub_norm"),
        ] {
            assert_eq!(
                from_hugging_face(&format!("model.layers.5.{theirs}.weight")),
                Some(format!("model.layers.5.{ours}.weight"))
            );
        }
    }

    #[test]
    fn strange_names_are_no_names() {
        for name in [
            "",
            ".weight",
            "model.layers.00.self_attn.q_proj.weight",
            "model.layers.+1.self_attn.q_proj.weight",
            "model.layers.1..weight",
            "model.layers.99999999999999999999.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "blk.0.attn_q_norm.weight",
        ] {
            assert_eq!(from_hugging_face(name), None, "{name}");
            assert_eq!(from_gguf(name), None, "{name}");
        }
    }
}
