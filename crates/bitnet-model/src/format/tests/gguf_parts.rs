//! A GGUF file taken apart, so that tests can change one thing and put it together again.

use std::path::Path;

use super::{chain, testdata};
use crate::{
    error::LoadError,
    format::{Checkpoint, OpenOptions},
};

/// A GGUF file in parts, all of which may be given any value.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    /// Overrides of the counts in the header.
    pub tensor_count: Option<u64>,
    pub pair_count: Option<u64>,
    /// Key, type and bytes of the value.
    pub pairs: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub tensors: Vec<Entry>,
    pub alignment: usize,
    pub data: Vec<u8>,
}

#[derive(Clone)]
pub struct Entry {
    pub name: Vec<u8>,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

/// Reads from a well-formed file.
struct Cursor<'a>(&'a [u8], usize);

impl Cursor<'_> {
    fn take(&mut self, len: usize) -> Vec<u8> {
        self.1 += len;
        self.0[self.1 - len..self.1].to_vec()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> Vec<u8> {
        let len = self.u64();
        self.take(len as usize)
    }

    fn skip_value(&mut self, kind: u32) {
        match kind {
            8 => drop(self.text()),
            9 => {
                let (kind, len) = (self.u32(), self.u64());
                (0..len).for_each(|_| self.skip_value(kind));
            }
            0 | 1 | 7 => self.1 += 1,
            2 | 3 => self.1 += 2,
            10..=12 => self.1 += 8,
            _ => self.1 += 4,
        }
    }
}

impl Gguf {
    pub fn parse(bytes: &[u8]) -> Self {
        let mut at = Cursor(bytes, 4);
        let (version, tensor_count, pair_count) = (at.u32(), at.u64(), at.u64());
        let pair = |_| {
            let (key, kind) = (at.text(), at.u32());
            let start = at.1;
            at.skip_value(kind);
            (key, kind, bytes[start..at.1].to_vec())
        };
        let pairs = (0..pair_count).map(pair).collect();
        let entry = |_| {
            let name = at.text();
            let dims = (0..at.u32()).map(|_| at.u64()).collect();
            Entry { name, dims, kind: at.u32(), offset: at.u64() }
        };
        let tensors = (0..tensor_count).map(entry).collect();
        let data = bytes[at.1.next_multiple_of(32)..].to_vec();
        let magic = *b"GGUF";
        Self {
            magic,
            version,
            tensor_count: None,
            pair_count: None,
            pairs,
            tensors,
            alignment: 32,
            data,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        let text = |out: &mut Vec<u8>, text: &[u8]| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text);
        };
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.pairs {
            text(&mut out, key);
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for entry in &self.tensors {
            text(&mut out, &entry.name);
            out.extend((entry.dims.len() as u32).to_le_bytes());
            entry.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(entry.kind.to_le_bytes());
            out.extend(entry.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }

    pub fn pair(&mut self, key: &str) -> &mut (Vec<u8>, u32, Vec<u8>) {
        self.pairs.iter_mut().find(|pair| pair.0 == key.as_bytes()).unwrap()
    }

    pub fn set_u32(&mut self, key: &str, value: u32) {
        *self.pair(key) = (key.into(), 4, value.to_le_bytes().to_vec());
    }

    pub fn set_f32(&mut self, key: &str, value: f32) {
        *self.pair(key) = (key.into(), 6, value.to_le_bytes().to_vec());
    }

    pub fn set_text(&mut self, key: &str, text: &[u8]) {
        *self.pair(key) = (key.into(), 8, [&(text.len() as u64).to_le_bytes(), text].concat());
    }

    pub fn add(&mut self, key: &str) {
        self.pairs.push((key.into(), 4, vec![0; 4]));
    }

    pub fn remove(&mut self, key: &str) {
        self.pairs.retain(|pair| pair.0 != key.as_bytes());
    }

    pub fn tensor(&mut self, name: &str) -> &mut Entry {
        self.tensors.iter_mut().find(|entry| entry.name == name.as_bytes()).unwrap()
    }
}

/// Gives a tensor another type and moves it to the end, where there is room.
pub fn retype(f: &mut Gguf, name: &str, kind: u32, bytes: usize) {
    let offset = f.data.len() as u64;
    f.data.resize(f.data.len() + bytes, 0);
    let entry = f.tensor(name);
    (entry.kind, entry.offset) = (kind, offset);
}

pub fn golden(name: &str) -> Vec<u8> {
    std::fs::read(testdata(&format!("golden/gguf/{name}.gguf"))).unwrap()
}

/// Opens and reads everything.
pub fn load(bytes: Vec<u8>) -> Result<Checkpoint, LoadError> {
    let checkpoint =
        Checkpoint::from_gguf(Path::new("m.gguf"), bytes.into(), &OpenOptions::default())?;
    checkpoint.verify()?;
    Ok(checkpoint)
}

/// bitnet-tiny in I2_S with a change that leaves it a model.
#[track_caller]
pub fn check_loads(change: impl FnOnce(&mut Gguf)) -> Checkpoint {
    let mut file = Gguf::parse(&golden("bitnet-tiny-I2_S"));
    change(&mut file);
    load(file.bytes()).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

#[track_caller]
pub fn check_bytes(bytes: Vec<u8>, message: &str) {
    let error = load(bytes).expect_err("the file is damaged");
    let found = chain(&error);
    assert!(found.starts_with("m.gguf: "), "{found}");
    assert_eq!(found["m.gguf: ".len()..], *message);
    assert!(!error.help().is_empty());
}

/// What loading says of bitnet-tiny in I2_S after a change.
#[track_caller]
pub fn check(change: impl FnOnce(&mut Gguf), message: &str) {
    let mut file = Gguf::parse(&golden("bitnet-tiny-I2_S"));
    change(&mut file);
    check_bytes(file.bytes(), message);
}

/// The same for llama158-tiny in TQ1_0.
#[track_caller]
pub fn check_llama(change: impl FnOnce(&mut Gguf), message: &str) {
    let mut file = Gguf::parse(&golden("llama158-tiny-TQ1_0"));
    change(&mut file);
    check_bytes(file.bytes(), message);
}

#[test]
fn taking_apart_and_putting_together_changes_nothing() {
    for name in ["bitnet-tiny-I2_S", "llama158-tiny-TQ1_0"] {
        let bytes = golden(name);
        assert!(Gguf::parse(&bytes).bytes() == bytes, "{name}");
    }
}
