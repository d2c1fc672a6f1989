//! Hugging Face checkpoints as repositories have them: shards, packed and unpacked weights, 1bitLLM's names.

use std::{fs, path::Path};

use bitnet_kernels::ternary::{TernaryMatrix, WeightScale};
use serde_json::{Map, Value, json};

use super::{HuggingFace, chain, open, testdata};
use crate::{
    config::{ArchConfig, HiddenAct, RopeScaling},
    error::LoadError,
    format::{
        Checkpoint, OpenOptions, PackedLayout, TokenizerSource,
        ternary::{hf, wf_msb},
    },
};

fn open_at(path: &Path) -> Result<Checkpoint, LoadError> {
    Checkpoint::open(path, &OpenOptions::default())
}

#[track_caller]
fn load(model: &HuggingFace) -> Checkpoint {
    model.load_with(&OpenOptions::default()).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

#[track_caller]
fn check_refused(opened: Result<Checkpoint, LoadError>, message: &str) {
    let found = chain(&opened.expect_err("the directory is no model"));
    assert!(found.ends_with(message), "{found}");
}

const UP: &str = "model.layers.1.mlp.up_proj";

fn up(checkpoint: &Checkpoint) -> TernaryMatrix {
    checkpoint.ternary(UP, 512, 256).unwrap()
}

#[test]
fn a_model_is_what_its_config_says() {
    let golden = open("golden/bitnet-tiny");
    let expected = ArchConfig {
        architecture: "BitNetForCausalLM".into(),
        hidden_size: 256,
        intermediate_size: 512,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        vocab_size: 384,
        max_position_embeddings: 512,
        rms_norm_eps: 1e-5,
        rope: crate::config::RopeConfig {
            theta: 500_000.0,
            scaling: RopeScaling::Default,
            factors: Vec::new(),
        },
        hidden_act: HiddenAct::Relu2,
        sub_norms: true,
        tie_word_embeddings: true,
        bos_token_id: Some(376),
        eos_token_ids: vec![377, 382], // the second from generation_config.json
    };
    assert_eq!(golden.config(), &expected);
    let masters = open("golden/bitnet-tiny-bf16"); // with rope_parameters
    assert_eq!(masters.config(), &expected);
    let gguf = open("golden/gguf/bitnet-tiny-I2_S.gguf");
    let eos_token_ids = gguf.config().eos_token_ids.clone();
    let architecture = gguf.config().architecture.clone();
    assert_eq!(gguf.config(), &ArchConfig { architecture, eos_token_ids, ..expected });
}

#[test]
fn llama_has_a_head_and_no_sub_norms() {
    for (path, architecture) in [
        ("golden/llama158-tiny", "LlamaForCausalLM"),
        ("golden/gguf/llama158-tiny-TQ1_0.gguf", "llama"),
    ] {
        let checkpoint = open(path);
        let config = checkpoint.config();
        assert_eq!(config.architecture, architecture);
        assert_eq!((config.sub_norms, config.tie_word_embeddings), (false, false));
        assert_eq!((config.hidden_act, config.rope.theta), (HiddenAct::Silu, 1_000_042.0));
        assert_eq!(checkpoint.dense("lm_head", 384, 256).unwrap().rows(), 384);
        assert!(!checkpoint.contains("model.layers.0.self_attn.attn_sub_norm"));
    }
}

#[test]
fn scales_multiply_or_divide_by_the_config() {
    let stored = |name: &str| {
        let model = HuggingFace::golden(name);
        let bytes = model.bytes(&format!("{UP}.weight_scale"));
        half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    };
    let read = |name: &str| up(&open(&format!("golden/{name}"))).scale().clone();
    assert_eq!(read("bitnet-tiny"), WeightScale::Tensor(stored("bitnet-tiny")));
    assert_eq!(read("llama158-tiny"), WeightScale::Tensor(1.0 / stored("llama158-tiny")));
}

#[test]
fn files_mapped_and_read_are_the_same() {
    for path in ["golden/bitnet-tiny", "golden/gguf/bitnet-tiny-I2_S.gguf"] {
        let mapped = open(path);
        let options = OpenOptions { mmap: false, ..OpenOptions::default() };
        let read = Checkpoint::open(&testdata(path), &options).unwrap();
        assert_eq!(up(&mapped), up(&read));
        let embedding = |from: &Checkpoint| from.dense("model.embed_tokens", 384, 256).unwrap();
        assert_eq!(embedding(&mapped).bytes(), embedding(&read).bytes());
        assert_eq!(mapped.size_bytes(), read.size_bytes());
    }
}

#[test]
fn released_tensors_can_be_read_again() {
    let checkpoint = open("demo-model/gguf/demo-i2_s.gguf");
    let embedding = checkpoint.dense("model.embed_tokens", 4096, 256).unwrap();
    let before = embedding.bytes().to_vec();
    checkpoint.release("model.embed_tokens");
    checkpoint.release("model.layers.0.self_attn.q_proj");
    checkpoint.release("no such tensor");
    assert!(embedding.bytes() == &before);
}

#[test]
fn tensors_are_listed_with_both_names() {
    let checkpoint = open("golden/gguf/bitnet-tiny-I2_S.gguf");
    assert_eq!(checkpoint.tensors().count(), 24);
    let info = checkpoint.tensors().find(|info| info.file_name == "blk.1.ffn_up.weight").unwrap();
    assert_eq!(info.name, "model.layers.1.mlp.up_proj.weight");
    assert_eq!((info.shape, info.encoding, info.bytes), (vec![512, 256], "I2_S", 32800));
    assert_eq!(checkpoint.metadata().string("general.name"), Some("bitnet-tiny"));
    assert!(matches!(checkpoint.tokenizer_source(), TokenizerSource::Gguf(..)));
    let directory = open("golden/bitnet-tiny");
    assert!(
        matches!(directory.tokenizer_source(), TokenizerSource::Directory(path) if path.ends_with("bitnet-tiny"))
    );
}

#[test]
fn names_of_1bitllm_and_its_missing_quantization_config_are_read() {
    let mut model = HuggingFace::golden("bitnet-tiny-bf16");
    let expected = up(&load(&model));
    model.config["architectures"] = json!(["BitnetForCausalLM"]);
    model.config.remove("quantization_config");
    for layer in 0..2 {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        model.rename(&name("self_attn.attn_sub_norm"), &name("self_attn.inner_attn_ln"));
        model.rename(&name("mlp.ffn_sub_norm"), &name("mlp.ffn_layernorm"));
    }
    model.config["hidden_act"] = "silu".into();
    let checkpoint = load(&model);
    assert_eq!(up(&checkpoint), expected);
    assert_eq!(checkpoint.config().hidden_act, HiddenAct::Silu);
    assert!(checkpoint.config().sub_norms);
}

#[test]
fn masters_in_other_floats_are_the_same() {
    let mut model = HuggingFace::golden("bitnet-tiny-bf16");
    let expected = up(&load(&model));
    let bytes = model.bytes(&format!("{UP}.weight"));
    let floats =
        bytes.as_chunks::<2>().0.iter().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32());
    let bytes: Vec<u8> = floats.flat_map(|value| value.to_le_bytes()).collect();
    model.replace(&format!("{UP}.weight"), "F32", &[512, 256], &bytes);
    assert_eq!(up(&load(&model)), expected);
}

#[test]
fn unpacked_weights_are_read() {
    let mut model = HuggingFace::golden("bitnet-tiny");
    let expected = up(&load(&model));
    let cells = (0..512 * 256).map(|i| f32::from(expected.value(i / 256, i % 256)));
    let bytes: Vec<u8> =
        cells.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect();
    model.replace(&format!("{UP}.weight"), "BF16", &[512, 256], &bytes);
    assert_eq!(up(&load(&model)), expected);
}

#[test]
fn the_other_packing_is_read_by_option() {
    let mut model = HuggingFace::golden("llama158-tiny");
    let original = load(&model);
    let packed: Vec<String> = model
        .tensors
        .keys()
        .filter_map(|name| name.strip_suffix("_scale"))
        .map(String::from)
        .collect();
    for name in packed {
        let [rows, cols] =
            [0, 1].map(|i| model.tensors[&name]["shape"][i].as_u64().unwrap() as usize);
        let matrix = hf::decode(rows * 4, cols, model.bytes(&name), 1.0).unwrap();
        let bytes = wf_msb::encode(&matrix).unwrap();
        model.bytes_mut(&name).copy_from_slice(&bytes);
        model.tensors[&name]["shape"] = json!([rows * 4, cols / 4]);
    }
    let options = OpenOptions { packed_layout: PackedLayout::WfMsb, ..OpenOptions::default() };
    let repacked = model.load_with(&options).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(up(&repacked), up(&original));
    assert!(model.load_with(&OpenOptions::default()).is_err());
}

#[test]
fn llama_3_scaling_is_read() {
    let mut model = HuggingFace::golden("llama158-tiny");
    model.config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(load(&model).config().rope.scaling, expected);
    model.config["rope_scaling"] = json!({ "type": "linear", "factor": 2 });
    assert_eq!(load(&model).config().rope.scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn a_stored_head_of_a_tied_model_is_left_alone() {
    let mut model = HuggingFace::golden("bitnet-tiny");
    let embedding = model.bytes("model.embed_tokens.weight").to_vec();
    model.replace("lm_head.weight", "BF16", &[384, 256], &embedding);
    assert!(load(&model).config().tie_word_embeddings);
    model.config.remove("tie_word_embeddings");
    assert!(!load(&model).config().tie_word_embeddings);
}

/// The golden packed model in two shards with an index, which `change` may spoil.
fn sharded(change: impl FnOnce(&mut Map<String, Value>)) -> tempfile::TempDir {
    let model = HuggingFace::golden("bitnet-tiny");
    let directory = tempfile::tempdir().unwrap();
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut map = Map::new();
    for (number, file) in names.iter().enumerate() {
        let mut shard = HuggingFace { config: Map::new(), tensors: Map::new(), data: Vec::new() };
        for (i, (name, entry)) in model.tensors.iter().enumerate() {
            if name == "__metadata__" || i % 2 != number {
                continue;
            }
            let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone()).unwrap();
            shard.replace(name, entry["dtype"].as_str().unwrap(), &shape, model.bytes(name));
            map.insert(name.clone(), (*file).into());
        }
        fs::write(directory.path().join(file), shard.weights()).unwrap();
    }
    change(&mut map);
    let index = json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(directory.path().join("model.safetensors.index.json"), index).unwrap();
    fs::write(directory.path().join("config.json"), model.config_text()).unwrap();
    directory
}

#[test]
fn shards_are_one_model() {
    let directory = sharded(|_| {});
    let checkpoint = open_at(directory.path()).unwrap();
    checkpoint.verify().unwrap();
    assert_eq!(up(&checkpoint), up(&open("golden/bitnet-tiny")));
    assert_eq!(checkpoint.files().len(), 2);
}

#[test]
fn an_index_that_lies_is_refused() {
    let check = |change: &dyn Fn(&mut Map<String, Value>), message: &str| {
        check_refused(open_at(sharded(change).path()), message);
    };
    check(
        &|map| drop(map.remove("model.norm.weight")),
        "the file of tensor `model.norm.weight` is not listed, but it should be `model-00001-of-00002.safetensors`, which has it",
    );
    check(
        &|map| map["model.norm.weight"] = "model-00002-of-00002.safetensors".into(),
        "the file of tensor `model.norm.weight` is `model-00002-of-00002.safetensors`, but it should be `model-00001-of-00002.safetensors`, which has it",
    );
    check(
        &|map| drop(map.insert("extra".into(), "model-00001-of-00002.safetensors".into())),
        "the file of tensor `extra` is `model-00001-of-00002.safetensors`, which does not have it, but it should be the file that has it",
    );
    for outside in ["../secret.safetensors", "/etc/passwd", "..", ""] {
        let message = format!(
            "the file of tensor `model.norm.weight` is \"{outside}\", but it should be the name of a file beside the index"
        );
        check(&|map| map["model.norm.weight"] = outside.into(), &message);
    }
    check(
        &|map| map["model.norm.weight"] = "absent.safetensors".into(),
        "No such file or directory (os error 2)",
    );
}

#[test]
fn directories_that_hold_no_model_say_what_they_hold() {
    let check = |files: &[&str], message: &str| {
        let directory = tempfile::tempdir().unwrap();
        files.iter().for_each(|file| fs::write(directory.path().join(file), "{}").unwrap());
        let expected =
            "but a model is a .gguf file or a directory with config.json and safetensors files";
        check_refused(open_at(directory.path()), &format!("{message}, {expected}"));
    };
    check(&[], "there is no model.safetensors, no model.safetensors.index.json and no .gguf file");
    check(&["config.json", "pytorch_model.bin"], "there are PyTorch files and no safetensors");
    check(&["a.gguf", "b.gguf"], "there are 2 .gguf files (a.gguf, b.gguf) and none is named");
}

#[test]
fn a_directory_with_one_gguf_file_is_that_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = testdata("golden/gguf/bitnet-tiny-I2_S.gguf");
    fs::copy(file, directory.path().join("model.gguf")).unwrap();
    assert_eq!(open_at(directory.path()).unwrap().config().architecture, "bitnet-b1.58");
}

#[test]
fn a_safetensors_file_stands_for_its_directory() {
    let file = testdata("golden/bitnet-tiny/model.safetensors");
    assert_eq!(open_at(&file).unwrap().config().architecture, "BitNetForCausalLM");
}

#[test]
fn paths_that_are_no_models_are_refused() {
    check_refused(
        open_at(Path::new("/no/such/model.gguf")),
        "No such file or directory (os error 2)",
    );
    check_refused(
        open_at(&testdata("golden/bitnet-tiny/config.json")),
        "this is a JSON file, but a model is a .gguf file or a directory with config.json and safetensors files",
    );
    #[cfg(unix)]
    check_refused(
        open_at(Path::new("/dev/zero")),
        "neither a file nor a directory, but a model is a .gguf file or a directory with config.json and safetensors files",
    );
}
