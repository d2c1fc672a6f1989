//! Damaged and hostile Hugging Face checkpoints: a golden one, changed in one place.

use serde_json::{Value, json};

use super::{HuggingFace, chain, load_parts};
use crate::{error::LoadError, format::OpenOptions};

#[track_caller]
fn check_error(result: Result<impl Sized, LoadError>, message: &str) {
    let Err(error) = result else { panic!("the checkpoint is damaged") };
    assert_eq!(chain(&error), message);
    assert!(!error.help().is_empty());
}

/// What loading a golden model says after a change.
#[track_caller]
fn check(model: &str, change: impl FnOnce(&mut HuggingFace), message: &str) {
    let mut model = HuggingFace::golden(model);
    change(&mut model);
    check_error(model.load_with(&OpenOptions::default()), message);
}

/// What loading bitnet-tiny says after a key of config.json was changed (or removed, with null).
#[track_caller]
fn check_key(key: &str, value: Value, message: &str) {
    check(
        "bitnet-tiny",
        |m| drop(m.config.insert(key.into(), value)),
        &format!("m/config.json: {message}"),
    );
}

/// The same for config.json as a text.
#[track_caller]
fn check_config(change: impl FnOnce(String) -> String, message: &str) {
    let model = HuggingFace::golden("bitnet-tiny");
    let text = change(String::from_utf8(model.config_text()).unwrap());
    let loaded = load_parts(text.as_bytes(), model.weights(), &OpenOptions::default());
    check_error(loaded, &format!("m/config.json: {message}"));
}

/// The same for the table of model.safetensors as a text.
#[track_caller]
fn check_table(change: impl FnOnce(String) -> String, message: &str) {
    let model = HuggingFace::golden("bitnet-tiny");
    let table = change(serde_json::to_string(&model.tensors).unwrap());
    check_file(model.weights_with(table.as_bytes()), message);
}

/// The same for the bytes of model.safetensors.
#[track_caller]
fn check_file(weights: Vec<u8>, message: &str) {
    let config = HuggingFace::golden("bitnet-tiny").config_text();
    let loaded = load_parts(&config, weights, &OpenOptions::default());
    check_error(loaded, &format!("m/model.safetensors: {message}"));
}

/// The same for the entry of `model.norm.weight` in the table.
#[track_caller]
fn check_entry(key: &str, value: Value, message: &str) {
    let message = format!("m/model.safetensors: {message}");
    check("bitnet-tiny", |m| m.tensors["model.norm.weight"][key] = value, &message);
}

#[test]
fn config_that_is_no_json_is_refused() {
    check_config(|_| "<!DOCTYPE html>".into(), "this is a web page, but JSON is needed");
    check_config(
        |_| "<".into(),
        "not the JSON that it should be: expected value at line 1 column 1",
    );
    check_config(|_| "[1]".into(), "the JSON value is a list, but it should be an object");
    check_config(
        |_| "{\"hidden_size\": 256, \"hidden_size\": 256}".into(),
        "not the JSON that it should be: key `hidden_size` occurs twice at line 1 column 40",
    );
    check_config(
        |text| text.replacen("{", "{\"rope_theta\":NaN,", 1),
        "not the JSON that it should be: expected value at line 1 column 15",
    );
    let nested = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
    check_config(
        |_| nested,
        "not the JSON that it should be: recursion limit exceeded at line 1 column 128",
    );
}

#[test]
fn config_without_a_key_is_refused() {
    let missing = |key: &str, expected: &str| {
        check_key(key, Value::Null, &format!("`{key}` is missing; it should be {expected}"));
    };
    missing("hidden_size", "a whole number from 1 to 1048576");
    missing("intermediate_size", "a whole number from 1 to 1048576");
    missing("num_hidden_layers", "a whole number from 1 to 4096");
    missing("num_attention_heads", "a whole number from 1 to 1048576");
    missing("vocab_size", "the number of tokens");
    missing("max_position_embeddings", "a whole number from 1 to 2147483647");
    missing("rms_norm_eps", "a finite number above zero");
    missing("rope_theta", "the base of the rotary frequencies");
    missing("hidden_act", "\"relu2\" or \"silu\"");
}

#[test]
fn config_with_values_that_no_model_has_is_refused() {
    check_key(
        "hidden_size",
        json!(0),
        "`hidden_size` is 0, but it should be a whole number from 1 to 1048576",
    );
    check_key(
        "hidden_size",
        json!(1e300),
        "`hidden_size` is 1e300, but it should be a whole number from 1 to 1048576",
    );
    check_key(
        "hidden_size",
        json!(-256),
        "`hidden_size` is -256, but it should be a whole number from 1 to 1048576",
    );
    check_key(
        "hidden_size",
        json!("256"),
        "`hidden_size` is \"256\", but it should be a whole number from 1 to 1048576",
    );
    check_key(
        "num_hidden_layers",
        json!(1_u64 << 60),
        "`num_hidden_layers` is 1152921504606846976, but it should be a whole number from 1 to 4096",
    );
    check_key(
        "num_key_value_heads",
        json!(3),
        "`num_key_value_heads` is 3, but it should be a divisor of the 4 query heads",
    );
    check_key(
        "head_dim",
        json!(65),
        "`head_dim` is 65, but it should be even, as rotary embedding turns pairs",
    );
    check_key(
        "rms_norm_eps",
        json!(0.0),
        "`rms_norm_eps` is 0.0, but it should be a finite number above zero",
    );
    check_key(
        "rope_theta",
        json!(1e200),
        "`rope_theta` is 1e200, but it should be a finite number above zero",
    );
    check_key(
        "hidden_act",
        json!("gelu"),
        "`hidden_act` is \"gelu\", but it should be \"relu2\" or \"silu\"",
    );
    check_key(
        "eos_token_id",
        json!([377, 384]),
        "`eos_token_id` is 384, but it should be a token id below the vocabulary's size 384",
    );
    check_key(
        "eos_token_id",
        json!("</s>"),
        "`eos_token_id` is \"</s>\", but it should be a token id, or a list of them",
    );
    check_key(
        "quantization_config",
        json!(7),
        "`quantization_config` is 7, but it should be an object",
    );
}

#[test]
fn what_the_engine_does_not_do_is_refused_by_name() {
    let bias = |key: &str| {
        check_key(
            key,
            json!(true),
            &format!("`{key}` is not supported: linear layers have no biases here"),
        );
    };
    bias("attention_bias");
    bias("mlp_bias");
    check_key(
        "architectures",
        json!(["Qwen3ForCausalLM"]),
        "architecture `Qwen3ForCausalLM` is not supported: the engine runs BitNetForCausalLM, BitnetForCausalLM and LlamaForCausalLM",
    );
    check_key(
        "rope_scaling",
        json!({ "rope_type": "yarn", "factor": 4.0 }),
        "rotary scaling `yarn` is not supported: default, linear and llama3 are known",
    );
    check_key(
        "quantization_config",
        json!({ "quant_method": "gptq" }),
        "quant_method \"gptq\" is not supported: `bitnet` alone is ternary",
    );
    check_key(
        "quantization_config",
        json!({ "quant_method": "bitnet", "linear_class": "autobitlinear", "use_rms_norm": true }),
        "`use_rms_norm: true` is not supported: it puts a norm of its own before each linear layer, which the engine does not have",
    );
    check(
        "llama158-tiny",
        |m| drop(m.config.remove("quantization_config")),
        "m/config.json: `LlamaForCausalLM` without `quantization_config` is not supported: its weights are ordinary floats, and made ternary they would be another model",
    );
}

#[test]
fn weights_that_contradict_the_config_are_refused() {
    let mode = |mode: &str| {
        let value = json!({ "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode });
        move |m: &mut HuggingFace| m.config["quantization_config"] = value
    };
    check(
        "bitnet-tiny",
        mode("online"),
        "m/model.safetensors: tensor `model.layers.0.self_attn.q_proj.weight` is stored as U8, but a float matrix without a weight_scale, as config.json says that weights become ternary while loading is needed",
    );
    check(
        "bitnet-tiny-bf16",
        mode("offline"),
        "m: tensor `model.layers.0.self_attn.q_proj.weight_scale` is missing; a BF16 matrix of BitNetForCausalLM needs it as [1]",
    );
    check(
        "bitnet-tiny",
        mode("sideways"),
        "m/config.json: `quantization_config.quantization_mode` is \"sideways\", but it should be \"offline\" or \"online\"",
    );
    check(
        "bitnet-tiny",
        |m| drop(m.config.insert("vocab_size".into(), json!(385))),
        "m/model.safetensors: tensor `model.embed_tokens.weight` is [384, 256], but BitNetForCausalLM needs [385, 256]",
    );
    check(
        "bitnet-tiny",
        |m| drop(m.config.insert("intermediate_size".into(), json!(510))),
        "m/model.safetensors: tensor `model.layers.0.mlp.gate_proj.weight` is stored as U8, but floats, as 510 is no multiple of 4 is needed",
    );
}

#[test]
fn missing_and_unknown_tensors_are_named() {
    let file = "m/model.safetensors:";
    check(
        "bitnet-tiny",
        |m| m.rename("model.norm.weight", "x.rotary_emb.inv_freq"),
        "m: tensor `model.norm.weight` is missing; BitNetForCausalLM needs it as [256]",
    );
    let named = |name: &str, reason: &str| {
        check(
            "bitnet-tiny",
            |m| m.replace(name, "F32", &[1], &[0; 4]),
            &format!("{file} tensor `{name}` is unexpected: {reason}"),
        );
    };
    named("model.layers.0.self_attn.q_proj.bias", "linear layers and norms have no biases here");
    named(
        "model.layers.0.self_attn.q_proj.rms_norm.weight",
        "a norm of its own before a linear layer is not supported",
    );
    named(
        "model.layers.0.mlp.up_proj.norm.weight",
        "a norm of its own before a linear layer is not supported",
    );
    named("model.layers.0.self_attn.q_norm.weight", "norms of queries and keys are not supported");
    named("model.layers.2.input_layernorm.weight", "BitNetForCausalLM has no such part");
    named("model.vision.weight", "the supported architectures have no such weight");
    named(
        "model.layers.0.mlp.ffn_layernorm.weight",
        "`model.layers.0.mlp.ffn_sub_norm.weight` is the same weight",
    );
}

#[test]
fn damaged_weights_are_refused_with_their_place() {
    const Q: &str = "model.layers.0.self_attn.q_proj.weight";
    check(
        "bitnet-tiny",
        |m| m.bytes_mut(Q)[3 * 256 + 7] |= 0x30, // stored row 3, third quarter of 256 rows
        &format!(
            "m/model.safetensors: tensor `{Q}` does not hold ternary weights: row 131, column 7 holds code 3, but ternary weights have codes 0, 1 and 2 only"
        ),
    );
    for (bits, value) in [(0x7fc0_u16, "NaN"), (0xbf80, "-1"), (0, "0"), (0x7f80, "inf")] {
        let message = format!(
            "m/model.safetensors: tensor `{Q}_scale` is {value}, but it should be a finite number above zero"
        );
        check(
            "bitnet-tiny",
            |m| m.bytes_mut(&format!("{Q}_scale")).copy_from_slice(&bits.to_le_bytes()),
            &message,
        );
    }
    check(
        "bitnet-tiny",
        |m| m.replace(&format!("{Q}_scale"), "F32", &[2], &[0; 8]),
        &format!("m/model.safetensors: tensor `{Q}_scale` is [2], but BitNetForCausalLM needs [1]"),
    );
    check(
        "bitnet-tiny-bf16",
        |m| m.bytes_mut(Q)[..2].copy_from_slice(&[0xc0, 0x7f]),
        "m/model.safetensors: tensor `model.layers.0.self_attn.q_proj.weight` does not hold ternary weights: row 0, column 0 holds NaN, but weights are finite",
    );
    check(
        "bitnet-tiny",
        |m| m.replace(Q, "I8", &[256, 256], &[0; 65536]),
        &format!(
            "m/model.safetensors: tensor `{Q}` is stored as I8, but packed uint8, by config.json is needed"
        ),
    );
}

#[test]
fn tables_that_lie_are_refused() {
    check_entry(
        "dtype",
        json!("F17"),
        "`dtype` of tensor `model.norm.weight` is \"F17\", but it should be a type that safetensors defines",
    );
    check_entry(
        "dtype",
        json!(32),
        "`dtype` of tensor `model.norm.weight` is a number, but it should be the name of a type",
    );
    check_entry(
        "shape",
        json!([-1]),
        "`shape` of tensor `model.norm.weight` is a list, but it should be a list of whole numbers",
    );
    check_entry(
        "shape",
        json!([1_u64 << 60, 1_u64 << 60]),
        "`shape` of tensor `model.norm.weight` is [1152921504606846976, 1152921504606846976], but it should be dimensions whose product fits a file",
    );
    check_entry(
        "data_offsets",
        json!([5]),
        "`data_offsets` of tensor `model.norm.weight` is a list, but it should be two whole numbers",
    );
    check_entry(
        "data_offsets",
        json!([8, 4]),
        "`data_offsets` of tensor `model.norm.weight` is [8, 4], but it should be 512 apart, the bytes of BF16 [256]",
    );
    check_entry(
        "data_offsets",
        json!([0, 512]),
        "`data_offsets` of tensor `model.embed_tokens.weight` is starting at 0, but it should be starting at 512, where the tensor before it ends",
    );
    let far = 1_u64 << 60;
    check_entry(
        "data_offsets",
        json!([far, far + 512]),
        "tensor `model.norm.weight` needs 512 bytes from byte 1152921504606850979 on, but the file has 501183",
    );
}

#[test]
fn files_that_are_no_safetensors_are_refused() {
    check_file(vec![], "the length of the table needs 8 bytes from byte 0 on, but the file has 0");
    check_file(
        vec![0xff; 64],
        "the length of the table is 18446744073709551615, but it should be at most 16777216",
    );
    check_file(
        [&2_u64.to_be_bytes()[..], b"{}"].concat(),
        "a big-endian safetensors file is not supported: the format's numbers are little-endian",
    );
    check_file(
        [&(1_u64 << 20).to_le_bytes()[..], b"{}"].concat(),
        "the table of tensors needs 1048576 bytes from byte 8 on, but the file has 10",
    );
    check_table(
        |table| table[..20].into(),
        "not the JSON that it should be: EOF while parsing a string at line 1 column 20",
    );
    check_table(
        |table| table.replacen("{", "{\"model.norm.weight\":{},", 1),
        "not the JSON that it should be: key `model.norm.weight` occurs twice at line 1 column 3992",
    );
    let mut longer = HuggingFace::golden("bitnet-tiny").weights();
    longer.push(0);
    check_file(
        longer,
        "the length of the file is 501158, but it should be 501157, where the last tensor ends",
    );
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let model = HuggingFace::golden("bitnet-tiny");
    let (config, weights) = (model.config_text(), model.weights());
    for len in (0..4000).step_by(3).chain((4000..weights.len()).step_by(9973)) {
        assert!(
            load_parts(&config, weights[..len].to_vec(), &OpenOptions::default()).is_err(),
            "{len} bytes"
        );
    }
}
