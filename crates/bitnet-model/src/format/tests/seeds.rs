//! The seeds of the fuzz targets: tiny models, replayed here as the targets would.

use std::{fs, path::Path, path::PathBuf};

use bytes::Bytes;

use super::super::{Checkpoint, I2sLayout, OpenOptions, PackedLayout};

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

/// All files of a target's corpus, by name.
fn files(target: &str) -> Vec<(String, Bytes)> {
    let entries = fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| {
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap().into())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn seed(path: &str) -> Bytes {
    fs::read(corpus("").join(path)).unwrap().into()
}

const CONFIGS: [&str; 3] = ["bitnet.json", "llama.json", "master.json"];

#[test]
fn every_gguf_seed_is_a_model_or_an_error() {
    for (name, data) in files("gguf") {
        let load = |i2s_layout| {
            let options = OpenOptions { i2s_layout, ..OpenOptions::default() };
            Checkpoint::from_gguf(Path::new("fuzz"), data.clone(), &options)?.verify()
        };
        let loaded = [load(I2sLayout::Block128), load(I2sLayout::Block64)];
        // Files named `*.gguf` are well-formed; the others are what fuzzing has found.
        assert!(!name.ends_with(".gguf") || loaded[0].is_ok(), "{name}: {loaded:?}");
    }
}

#[test]
fn every_safetensors_seed_is_a_model_or_an_error() {
    for (name, data) in files("safetensors") {
        let mut fits = false;
        for config in CONFIGS {
            let config = seed(&format!("config/{config}"));
            for packed_layout in [PackedLayout::HfRows, PackedLayout::WfMsb] {
                let options = OpenOptions { packed_layout, ..OpenOptions::default() };
                let opened = Checkpoint::from_safetensors(
                    Path::new("fuzz"),
                    &config,
                    data.clone(),
                    &options,
                );
                fits |= opened.and_then(|checkpoint| checkpoint.verify()).is_ok();
            }
        }
        assert!(!name.ends_with(".safetensors") || fits, "{name} fits no configuration");
    }
}

#[test]
fn every_config_seed_is_a_model_or_an_error() {
    for (name, config) in files("config") {
        let fits = files("safetensors").into_iter().any(|(_, data)| {
            Checkpoint::from_safetensors(Path::new("fuzz"), &config, data, &OpenOptions::default())
                .is_ok()
        });
        assert!(!name.ends_with(".json") || fits, "{name} fits no weights");
    }
}
