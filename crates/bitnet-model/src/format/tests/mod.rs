//! Whole files: the golden models in every format, and what happens when they are damaged.

mod gguf_damage;
mod gguf_parts;
mod gguf_variants;
mod golden;
mod hugging_face;
mod hugging_face_damage;
mod seeds;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use bitnet_kernels::dense;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::error::LoadError;

use super::{Checkpoint, Encoding, OpenOptions, Tensor, safetensors, source::Source};

/// A file or directory below `testdata/`.
pub fn testdata(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

pub fn open(path: &str) -> Checkpoint {
    let path = testdata(path);
    Checkpoint::open(&path, &OpenOptions::default())
        .unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// An error and its causes in one line, as a user sees them.
pub fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// The arrays of a safetensors file.
pub struct Arrays(BTreeMap<String, (Encoding, Bytes)>);

impl Arrays {
    pub fn open(path: &str) -> Self {
        let path = testdata(path);
        let source = Source::open(&path, true).unwrap();
        let tensors = safetensors::parse(&path, &source, 0).unwrap();
        let entry = |tensor: Tensor| {
            (tensor.own_name, (tensor.encoding, source.read(tensor.range).unwrap()))
        };
        Self(tensors.into_iter().map(entry).collect())
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.0[name].1
    }

    pub fn i8s(&self, name: &str) -> Vec<i8> {
        self.bytes(name).iter().map(|&byte| byte as i8).collect()
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        let (encoding, data) = &self.0[name];
        let dtype = encoding.plain_float().unwrap();
        let mut values = vec![0.0; data.len() / dtype.block().1];
        dense::dequantize(dtype, data, &mut values);
        values
    }
}

/// A Hugging Face checkpoint in parts, all of which may be given any value.
pub struct HuggingFace {
    pub config: Map<String, Value>,
    pub tensors: Map<String, Value>,
    pub data: Vec<u8>,
}

impl HuggingFace {
    /// One of the golden models.
    pub fn golden(name: &str) -> Self {
        let read = |file| std::fs::read(testdata(&format!("golden/{name}/{file}"))).unwrap();
        let file = read("model.safetensors");
        let (len, rest) = file.split_at(8);
        let (table, data) = rest.split_at(u64::from_le_bytes(len.try_into().unwrap()) as usize);
        Self {
            config: serde_json::from_slice(&read("config.json")).unwrap(),
            tensors: serde_json::from_slice(table).unwrap(),
            data: data.to_vec(),
        }
    }

    /// The file with this text as its table.
    pub fn weights_with(&self, table: &[u8]) -> Vec<u8> {
        [&(table.len() as u64).to_le_bytes(), table, &self.data].concat()
    }

    pub fn weights(&self) -> Vec<u8> {
        self.weights_with(&serde_json::to_vec(&self.tensors).unwrap())
    }

    pub fn config_text(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).unwrap()
    }

    /// Opens it and reads everything.
    pub fn load_with(&self, options: &OpenOptions) -> Result<Checkpoint, LoadError> {
        load_parts(&self.config_text(), self.weights(), options)
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        let entry = self.tensors.remove(from).unwrap();
        self.tensors.insert(to.into(), entry);
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.data[self.range(name)]
    }

    pub fn bytes_mut(&mut self, name: &str) -> &mut [u8] {
        let range = self.range(name);
        &mut self.data[range]
    }

    fn range(&self, name: &str) -> std::ops::Range<usize> {
        let offset = |i: usize| self.tensors[name]["data_offsets"][i].as_u64().unwrap() as usize;
        offset(0)..offset(1)
    }

    /// Gives a tensor another type and shape, and bytes at the end. What it had before becomes a tensor that is ignored.
    pub fn replace(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        if let Some(mut old) = self.tensors.remove(name) {
            let range = &old["data_offsets"];
            let len = range[1].as_u64().unwrap() - range[0].as_u64().unwrap();
            (old["dtype"], old["shape"]) = ("U8".into(), vec![len].into());
            self.tensors.insert(format!("{name}.rotary_emb.inv_freq"), old);
        }
        let offsets = [self.data.len(), self.data.len() + bytes.len()];
        self.data.extend(bytes);
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        self.tensors.insert(name.into(), entry);
    }
}

/// Opens a checkpoint in memory and reads everything.
pub fn load_parts(
    config: &[u8],
    weights: Vec<u8>,
    options: &OpenOptions,
) -> Result<Checkpoint, LoadError> {
    let checkpoint = Checkpoint::from_safetensors(Path::new("m"), config, weights.into(), options)?;
    checkpoint.verify()?;
    Ok(checkpoint)
}
