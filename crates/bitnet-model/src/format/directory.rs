//! A Hugging Face model directory: which files it has and what lies in which.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{
    Tensor, json, safetensors,
    source::{Source, read_small},
};
use crate::error::LoadError;

pub(super) const CONFIG: &str = "config.json";
pub(super) const GENERATION: &str = "generation_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Largest JSON file read. An index of a model with 10^5 tensors has 10 MB. As general values, a list of small numbers takes
/// twenty times its length, so this bounds memory too.
const MAX_JSON: u64 = 16 << 20;

/// Names of files that an error lists.
const SHOWN: usize = 12;

/// All weight files of a checkpoint.
pub(super) struct Shards {
    pub files: Vec<PathBuf>,
    pub sources: Vec<Source>,
    pub tensors: Vec<Tensor>,
}

impl Shards {
    pub fn open(directory: &Path, mmap: bool) -> Result<Self, LoadError> {
        let single = directory.join(SINGLE);
        if is_there(&single)? {
            let source = Source::open(&single, mmap)?;
            return Self::one(single, source);
        }
        let index = directory.join(INDEX);
        if is_there(&index)? {
            return Self::indexed(directory, &index, mmap);
        }
        // A folder that may not be listed is not an empty one.
        std::fs::read_dir(directory)
            .map_err(|source| LoadError::Io { path: directory.into(), source })?;
        Err(LoadError::NoModel { path: directory.into(), found: what_is_there(directory) })
    }

    /// A single file that is in memory already.
    pub fn from_bytes(name: &Path, bytes: Bytes) -> Result<Self, LoadError> {
        Self::one(name.into(), Source::Memory(bytes))
    }

    fn one(path: PathBuf, source: Source) -> Result<Self, LoadError> {
        let tensors = safetensors::parse(&path, &source, 0)?;
        Ok(Self { files: vec![path], sources: vec![source], tensors })
    }

    fn indexed(directory: &Path, index: &Path, mmap: bool) -> Result<Self, LoadError> {
        let map = weight_map(index)?;
        let names: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let mut shards = Self { files: Vec::new(), sources: Vec::new(), tensors: Vec::new() };
        for (number, name) in names.into_iter().enumerate() {
            let path = directory.join(name);
            let source = Source::open(&path, mmap)?;
            let tensors = safetensors::parse(&path, &source, number)?;
            check_against_index(index, &map, name, &tensors)?;
            shards.tensors.extend(tensors);
            shards.files.push(path);
            shards.sources.push(source);
        }
        let found: BTreeSet<&str> =
            shards.tensors.iter().map(|tensor| tensor.own_name.as_str()).collect();
        match map.iter().find(|(tensor, _)| !found.contains(tensor.as_str())) {
            None => Ok(shards),
            Some((tensor, file)) => Err(LoadError::Malformed {
                path: index.into(),
                place: format!("the file of tensor `{tensor}`"),
                found: format!("`{file}`, which does not have it"),
                expected: "the file that has it".into(),
            }),
        }
    }
}

/// Tensor name → file name, from the index of a checkpoint in several files.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>, LoadError> {
    let wrong = |place: &str, found: String, expected: &str| LoadError::Malformed {
        path: index.into(),
        place: place.into(),
        found,
        expected: expected.into(),
    };
    let text = read_json(index)?;
    let Some(map) = text.get("weight_map").and_then(Value::as_object) else {
        let found = text.get("weight_map").map_or("missing", json::kind);
        return Err(wrong("`weight_map`", found.into(), "an object from tensor to file names"));
    };
    map.iter()
        .map(|(tensor, file)| match file.as_str() {
            // A name with a path in it could reach files outside the model's directory.
            Some(file) if Path::new(file).file_name() == Some(file.as_ref()) => {
                Ok((tensor.clone(), file.to_owned()))
            }
            _ => Err(wrong(
                &format!("the file of tensor `{tensor}`"),
                file.to_string(),
                "the name of a file beside the index",
            )),
        })
        .collect()
}

/// Every tensor of a shard has to be listed for it; this also excludes a tensor in two shards.
fn check_against_index(
    index: &Path,
    map: &BTreeMap<String, String>,
    file: &str,
    tensors: &[Tensor],
) -> Result<(), LoadError> {
    for tensor in tensors {
        let listed = map.get(&tensor.own_name);
        if listed.is_none_or(|listed| listed != file) {
            return Err(LoadError::Malformed {
                path: index.into(),
                place: format!("the file of tensor `{}`", tensor.own_name),
                found: listed.map_or("not listed".into(), |listed| format!("`{listed}`")),
                expected: format!("`{file}`, which has it"),
            });
        }
    }
    Ok(())
}

/// Reads a JSON file of reasonable size.
pub(super) fn read_json(path: &Path) -> Result<Map<String, Value>, LoadError> {
    let text =
        read_small(path, MAX_JSON).map_err(|source| LoadError::Io { path: path.into(), source })?;
    if text.len() as u64 > MAX_JSON {
        return Err(LoadError::Malformed {
            path: path.into(),
            place: "the length of the file".into(),
            found: format!("more than {MAX_JSON} bytes"),
            expected: "that of a configuration".into(),
        });
    }
    json::parse(path, &text)
}

/// Whether there is such a file; an error where the system does not say.
fn is_there(path: &Path) -> Result<bool, LoadError> {
    match path.metadata() {
        Err(source) if source.kind() == ErrorKind::PermissionDenied => {
            Err(LoadError::Io { path: path.into(), source })
        }
        found => Ok(found.is_ok_and(|found| found.is_file())),
    }
}

/// A directory's only GGUF file, if it has one and no safetensors.
pub(super) fn only_gguf(directory: &Path) -> Option<PathBuf> {
    if directory.join(SINGLE).is_file() || directory.join(INDEX).is_file() {
        return None;
    }
    let mut files = files_with(directory, "gguf").into_iter();
    files.next().filter(|_| files.next().is_none())
}

fn files_with(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// What a directory without weights holds instead.
fn what_is_there(directory: &Path) -> String {
    let gguf = files_with(directory, "gguf");
    if !gguf.is_empty() {
        let names = gguf.iter().filter_map(|path| path.file_name()).take(SHOWN);
        let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
        let more = match gguf.len() - names.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let (count, names) = (gguf.len(), names.join(", "));
        return format!("there are {count} .gguf files ({names}{more}) and none is named");
    }
    if !files_with(directory, "bin").is_empty() || !files_with(directory, "pth").is_empty() {
        return "there are PyTorch files and no safetensors".into();
    }
    match files_with(directory, "safetensors").first() {
        Some(file) => format!("{} is neither {SINGLE} nor listed in {INDEX}", file.display()),
        None => format!("there is no {SINGLE}, no {INDEX} and no .gguf file"),
    }
}
