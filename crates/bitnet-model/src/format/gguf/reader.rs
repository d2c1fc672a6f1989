//! Reads the values of a GGUF header one after another, and knows where it is.

use std::{collections::BTreeMap, fmt::Display, io::Read, path::Path};

use crate::{
    error::LoadError,
    format::{
        impostor,
        metadata::{Metadata, Value},
    },
};

/// Elements that all arrays of a file may have together. The largest vocabularies have a million tokens and merges in
/// all; 2^24 of them keep a hostile file below half a gigabyte of memory.
const MAX_ELEMENTS: u64 = 1 << 24;

/// Bytes that all texts of a file may have together. The tokens and merges of the largest vocabularies have ten million;
/// a file can claim as much as it is long, and a sparse one is long for nothing.
const MAX_TEXT: u64 = 1 << 28;

pub struct Reader<'a> {
    inner: &'a mut dyn Read,
    path: &'a Path,
    size: u64,
    offset: u64,
    elements: u64,
    text: u64,
}

impl<'a> Reader<'a> {
    /// `size`: bytes that `inner` has.
    pub fn new(inner: &'a mut dyn Read, path: &'a Path, size: u64) -> Self {
        Self { inner, path, size, offset: 0, elements: 0, text: 0 }
    }

    pub fn path(&self) -> &'a Path {
        self.path
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn malformed(
        &self,
        place: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> LoadError {
        LoadError::Malformed {
            path: self.path.into(),
            place: place.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// Fails unless `needed` more bytes are in the file.
    fn need(&self, needed: u64, what: &str) -> Result<(), LoadError> {
        if needed <= self.size - self.offset {
            return Ok(());
        }
        let (path, offset, size) = (self.path.into(), self.offset, self.size);
        Err(LoadError::Truncated { path, what: what.into(), offset, needed, size })
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<(), LoadError> {
        self.need(buffer.len() as u64, what)?;
        self.inner
            .read_exact(buffer)
            .map_err(|source| LoadError::Io { path: self.path.into(), source })?;
        self.offset += buffer.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], LoadError> {
        let mut buffer = [0; N];
        self.fill(&mut buffer, what)?;
        Ok(buffer)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, LoadError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, LoadError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `smallest` bytes each.
    pub fn count(&mut self, what: &str, smallest: u64) -> Result<u64, LoadError> {
        let count = self.u64(what)?;
        let most = (self.size - self.offset) / smallest;
        if count > most {
            let expected = format!("at most {most}, as the file has {} bytes", self.size);
            return Err(self.malformed(what, count, expected));
        }
        Ok(count)
    }

    pub fn string(&mut self, what: &str) -> Result<String, LoadError> {
        let len = self.u64(what)?;
        self.need(len, what)?;
        self.text = self.text.saturating_add(len);
        if self.text > MAX_TEXT {
            let expected = format!("so short that all texts together stay below {MAX_TEXT} bytes");
            return Err(self.malformed(what, format!("a text of {len} bytes"), expected));
        }
        let mut bytes = vec![0; len as usize]; // `need` has compared it with the file
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|error| {
            let found = format!("not UTF-8 from byte {} on", error.utf8_error().valid_up_to());
            self.malformed(what, found, "UTF-8 text")
        })
    }

    /// A key or a tensor's name. They appear in messages, so they must not steer a terminal.
    pub fn name(&mut self, what: &str) -> Result<String, LoadError> {
        const LONGEST: usize = 65535;
        let name = self.string(what)?;
        if name.len() > LONGEST {
            let expected = format!("at most {LONGEST} bytes");
            return Err(self.malformed(what, format!("{} bytes long", name.len()), expected));
        }
        if name.chars().any(char::is_control) {
            return Err(self.malformed(what, "one with control characters", "a printable name"));
        }
        Ok(name)
    }

    pub fn magic_and_version(&mut self) -> Result<(), LoadError> {
        let magic: [u8; 4] = self.array("the GGUF header")?;
        if &magic != b"GGUF" {
            return Err(self.wrong_magic(magic));
        }
        let version = self.u32("the GGUF header")?;
        let reason = match version {
            2 | 3 => return Ok(()),
            1 => "its lengths have 32 bits, and nothing has written it since 2023".to_owned(),
            _ if (1..=0xffff).contains(&version.swap_bytes()) => {
                return Err(self.big_endian());
            }
            _ => "versions 2 and 3 are known".to_owned(),
        };
        Err(self.unsupported(
            format!("GGUF version {version}"),
            reason,
            "convert the model again with current tools",
        ))
    }

    /// What the file is instead, if that can be told.
    fn wrong_magic(&mut self, magic: [u8; 4]) -> LoadError {
        if &magic == b"FUGG" {
            return self.big_endian();
        }
        let mut head = magic.to_vec();
        let rest = (impostor::HEAD - head.len()) as u64;
        let _ = (&mut *self.inner).take(rest).read_to_end(&mut head); // what cannot be read tells nothing
        let safetensors = impostor::begins_as_safetensors(&head).then_some(impostor::SAFETENSORS);
        match impostor::recognize(&head).or(safetensors) {
            Some(impostor) => LoadError::impostor(self.path, impostor, "a GGUF file"),
            None => {
                let found = format!("\"{}\"", magic.escape_ascii());
                self.malformed("the magic number", found, "\"GGUF\"")
            }
        }
    }

    fn big_endian(&self) -> LoadError {
        self.unsupported(
            "a big-endian GGUF file".into(),
            "all layouts here are little-endian".into(),
            "take the ordinary, little-endian file",
        )
    }

    fn unsupported(&self, what: String, reason: String, help: &str) -> LoadError {
        LoadError::Unsupported { path: self.path.into(), what, reason, help: help.into() }
    }

    pub fn metadata(&mut self, pairs: u64) -> Result<Metadata, LoadError> {
        let mut all = BTreeMap::new();
        for index in 0..pairs {
            let key = self.name(&format!("metadata key {index}"))?;
            let what = format!("the value of `{key}`");
            let type_id = self.u32(&what)?;
            let value = self.value(type_id, &what)?;
            if all.contains_key(&key) {
                return Err(self.malformed(
                    format!("metadata key {index}"),
                    format!("`{key}`, which an earlier pair has"),
                    "a key of its own",
                ));
            }
            all.insert(key, value);
        }
        Ok(Metadata(all))
    }

    fn value(&mut self, type_id: u32, what: &str) -> Result<Value, LoadError> {
        Ok(match type_id {
            6 => Value::Float(f32::from_le_bytes(self.array(what)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array(what)?)),
            7 => Value::Bool(self.bool(what)?),
            8 => Value::String(self.string(what)?),
            9 => self.array_value(what)?,
            _ => Value::Int(self.int(type_id, what)?),
        })
    }

    fn int(&mut self, type_id: u32, what: &str) -> Result<i128, LoadError> {
        Ok(match type_id {
            0 => u8::from_le_bytes(self.array(what)?).into(),
            1 => i8::from_le_bytes(self.array(what)?).into(),
            2 => u16::from_le_bytes(self.array(what)?).into(),
            3 => i16::from_le_bytes(self.array(what)?).into(),
            4 => u32::from_le_bytes(self.array(what)?).into(),
            5 => i32::from_le_bytes(self.array(what)?).into(),
            10 => u64::from_le_bytes(self.array(what)?).into(),
            11 => i64::from_le_bytes(self.array(what)?).into(),
            _ => {
                return Err(self.malformed(
                    what,
                    format!("of type {type_id}"),
                    "of a type from 0 to 12",
                ));
            }
        })
    }

    fn bool(&mut self, what: &str) -> Result<bool, LoadError> {
        match self.array(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.malformed(what, format!("the truth value {other}"), "0 or 1")),
        }
    }

    fn array_value(&mut self, what: &str) -> Result<Value, LoadError> {
        let type_id = self.u32(what)?;
        let smallest = match type_id {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err(self.malformed(what, "an array of arrays", "a flat array")),
            _ => {
                return Err(self.malformed(
                    what,
                    format!("an array of type {type_id}"),
                    "of a type from 0 to 12",
                ));
            }
        };
        let count = self.count(what, smallest)?;
        self.elements += count;
        if self.elements > MAX_ELEMENTS {
            let expected =
                format!("so short that all arrays together stay below {MAX_ELEMENTS} elements");
            return Err(self.malformed(what, format!("an array of {count}"), expected));
        }
        Ok(match type_id {
            6 | 12 => Value::Floats(self.elements(count, |reader| match type_id {
                6 => Ok(f32::from_le_bytes(reader.array(what)?).into()),
                _ => Ok(f64::from_le_bytes(reader.array(what)?)),
            })?),
            7 => Value::Bools(self.elements(count, |reader| reader.bool(what))?),
            8 => Value::Strings(self.elements(count, |reader| reader.string(what))?),
            _ => Value::Ints(self.elements(count, |reader| reader.int(type_id, what))?),
        })
    }

    fn elements<T>(
        &mut self,
        count: u64,
        read: impl Fn(&mut Self) -> Result<T, LoadError>,
    ) -> Result<Vec<T>, LoadError> {
        (0..count).map(|_| read(self)).collect()
    }
}
