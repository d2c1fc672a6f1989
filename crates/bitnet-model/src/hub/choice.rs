//! Which files of a repository make a model.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use super::{HubError, HubId, id::check_file};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What may lie beside safetensors and says how to use them.
const BESIDE: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// The files of a model.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    pub beside_weights: Vec<String>,
    pub weights: Weights,
    /// Whether the model is the directory and not one file of it.
    pub whole_directory: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Weights {
    File(String),
    /// The index names further files.
    Index(String),
}

/// The named file; else the only GGUF file, or the one in I2_S; else safetensors with what belongs to them.
pub fn choose(id: &HubId, files: &[String]) -> Result<Choice, HubError> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let file = |name: &str| Choice {
        beside_weights: Vec::new(),
        weights: Weights::File(name.into()),
        whole_directory: false,
    };
    if let Some(name) = &id.file {
        return match has(name) {
            true => Ok(file(name)),
            false => Err(HubError::NoSuchFile { id: Box::new(id.clone()), files: files.into() }),
        };
    }
    let ends_with = |ending: &str, file: &str| file.to_ascii_lowercase().ends_with(ending);
    let gguf: Vec<&String> = files.iter().filter(|file| ends_with(".gguf", file)).collect();
    let i2s: Vec<&String> =
        gguf.iter().copied().filter(|file| file.to_ascii_lowercase().contains("i2_s")).collect();
    let weights = match (&gguf[..], &i2s[..]) {
        ([only], _) | (_, [only]) => return Ok(file(only)),
        _ if has(CONFIG) && has(SINGLE) => Weights::File(SINGLE.into()),
        _ if has(CONFIG) && has(INDEX) => Weights::Index(INDEX.into()),
        ([], _) => return Err(HubError::NoModel { id: Box::new(id.clone()), files: files.into() }),
        _ => {
            let files = gguf.into_iter().cloned().collect();
            return Err(HubError::SeveralModels { id: Box::new(id.clone()), files });
        }
    };
    let beside = BESIDE.into_iter().filter(|name| has(name)).chain([CONFIG]);
    let beside_weights = beside.map(str::to_owned).collect();
    Ok(Choice { beside_weights, weights, whole_directory: true })
}

/// The files that an index on this disk names.
pub fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    let wrong = |found: String| HubError::Answer {
        url: index.display().to_string(),
        found,
        expected: "an index whose `weight_map` names safetensors files".into(),
    };
    let text = std::fs::read(index).map_err(HubError::io(index))?;
    let json: Value = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let names = map.ok_or_else(|| wrong("no `weight_map`".into()))?.values();
    names
        .map(|name| match name.as_str() {
            Some(name) if check_file(name).is_ok() && !name.contains('/') => Ok(name.to_owned()),
            _ => Err(wrong(format!("the file name {name}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(id: &str, files: &[&str]) -> Result<Choice, HubError> {
        let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
        super::choose(&id.parse().unwrap(), &files)
    }

    #[track_caller]
    fn check(id: &str, files: &[&str], expected: &str) {
        assert_eq!(choose(id, files).unwrap().weights, Weights::File(expected.into()));
    }

    #[test]
    fn one_gguf_file_is_the_model() {
        check("hf:a/b", &["README.md", "x.gguf", "config.json", "model.safetensors"], "x.gguf");
        check("hf:a/b", &["q8.gguf", "m-I2_S.gguf", "f16.gguf"], "m-I2_S.gguf");
        check("hf:a/b/f16.gguf", &["q8.gguf", "m-i2_s.gguf", "f16.gguf"], "f16.gguf");
    }

    #[test]
    fn several_gguf_files_are_listed() {
        let error = choose("hf:a/b", &["x.gguf", "y.gguf", "z.txt"]).unwrap_err();
        assert_eq!(error.to_string(), "hf:a/b has several GGUF files: x.gguf, y.gguf");
        let error = choose("hf:a/b/c.gguf", &["x.gguf"]).unwrap_err();
        assert_eq!(error.to_string(), "hf:a/b/c.gguf: there is no such file; there are x.gguf");
        let error = choose("hf:a/b", &["pytorch_model.bin"]).unwrap_err();
        assert!(matches!(error, HubError::NoModel { .. }), "{error}");
    }

    #[test]
    fn safetensors_come_with_what_belongs_to_them() {
        let files =
            ["tokenizer.json", "model.safetensors", "config.json", "x.png", "onnx/config.json"];
        let choice = choose("hf:a/b", &files).unwrap();
        assert_eq!(choice.weights, Weights::File("model.safetensors".into()));
        assert_eq!(choice.beside_weights, ["tokenizer.json", "config.json"]);
        let choice = choose("hf:a/b", &["model.safetensors.index.json", "config.json"]).unwrap();
        assert_eq!(choice.weights, Weights::Index("model.safetensors.index.json".into()));
    }
}
