//! Reads the reference's numbers: safetensors files written by `make_golden.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tensors by name, from one file or several; a name found in a later file hides an earlier one's.
pub struct Reference {
    files: Vec<File>,
}

struct File {
    header: BTreeMap<String, serde_json::Value>,
    data: Vec<u8>,
}

/// A folder of test data at the repository's root.
pub fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

impl Reference {
    pub fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        Self {
            files: vec![File {
                header: serde_json::from_slice(&bytes[8..8 + header]).unwrap(),
                data: bytes[8 + header..].to_vec(),
            }],
        }
    }

    /// Also the tensors of `other`, which come first.
    pub fn with_outputs(mut self, other: Self) -> Self {
        // What belongs to the scales before they were rounded is not for the model after that.
        self.files[0].header.retain(|name, _| name.ends_with("input_ids"));
        self.files.extend(other.files);
        self
    }

    pub fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.header.contains_key(name))
    }

    fn bytes(&self, name: &str, dtype: &str) -> &[u8] {
        let file = self
            .files
            .iter()
            .rfind(|file| file.header.contains_key(name))
            .unwrap_or_else(|| panic!("no tensor `{name}`"));
        let entry = &file.header[name];
        assert_eq!(entry["dtype"], dtype, "{name}");
        let offset = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
        &file.data[offset(0)..offset(1)]
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name, "F32").as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// A tensor that not every file has.
    pub fn find(&self, name: &str) -> Option<Vec<f32>> {
        self.has(name).then(|| self.floats(name))
    }

    pub fn int8(&self, name: &str) -> Vec<i8> {
        self.bytes(name, "I8").iter().map(|&b| b as i8).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.bytes(name, "I32")
            .as_chunks()
            .0
            .iter()
            .map(|b| i32::from_le_bytes(*b) as u32)
            .collect()
    }
}
