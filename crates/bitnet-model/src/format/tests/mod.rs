//! Whole files: the golden models in every format, and what happens when they are damaged.

mod golden;

use std::{collections::BTreeMap, path::PathBuf};

use bitnet_kernels::dense;
use bytes::Bytes;

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
