//! A model's files, opened and checked: every tensor that the architecture needs is there once, in its shape and readable.

mod check;
mod finite;
mod identity;
mod read;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use bitnet_kernels::{
    dense::DenseMatrix,
    head::{HeadType, InvalidHead},
    ternary::TernaryMatrix,
};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::{
    Encoding, OpenOptions, Tensor, TensorInfo, TokenizerSource,
    directory::{self, Shards},
    gguf, json,
    metadata::Metadata,
    names::{self, Role},
    source::Source,
};
use crate::{
    config::{self, ArchConfig, LinearForm},
    error::LoadError,
};

/// A model on disk. Tensors are read when they are asked for, independently of each other and from any thread.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file or directory that was opened.
    path: PathBuf,
    options: OpenOptions,
    config: ArchConfig,
    kind: Kind,
    files: Vec<PathBuf>,
    sources: Vec<Source>,
    /// By canonical name with suffix.
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug)]
enum Kind {
    Gguf(Metadata),
    HuggingFace(LinearForm),
}

/// What a directory's metadata is.
static NO_METADATA: Metadata = Metadata(BTreeMap::new());

impl Checkpoint {
    /// Opens a .gguf file, a directory with config.json and safetensors (or with a single .gguf file), or a .safetensors file in such a directory.
    ///
    /// All headers and shapes are checked here; the weights themselves when they are read.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, LoadError> {
        let metadata = std::fs::metadata(path)
            .map_err(|source| LoadError::Io { path: path.into(), source })?;
        if metadata.is_dir() {
            return match directory::only_gguf(path) {
                Some(file) => Self::open_gguf(&file, options),
                None => Self::open_directory(path, options),
            };
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                Self::open_directory(parent.unwrap_or(Path::new(".")), options)
            }
            Some("json") => {
                Err(LoadError::NoModel { path: path.into(), found: "this is a JSON file".into() })
            }
            _ => Self::open_gguf(path, options),
        }
    }

    fn open_gguf(path: &Path, options: &OpenOptions) -> Result<Self, LoadError> {
        Self::gguf(path, Source::open(path, options.mmap)?, options)
    }

    /// A GGUF file that is in memory already; `name` stands for it in messages.
    pub fn from_gguf(name: &Path, data: Bytes, options: &OpenOptions) -> Result<Self, LoadError> {
        Self::gguf(name, Source::Memory(data), options)
    }

    fn gguf(path: &Path, source: Source, options: &OpenOptions) -> Result<Self, LoadError> {
        let gguf::Header { metadata, tensors } = gguf::parse(path, &source)?;
        let has_head = tensors.iter().any(|tensor| tensor.own_name == "output.weight");
        let config = config::from_metadata(path, &metadata, has_head, options.hidden_act)?;
        let checkpoint = Self {
            path: path.into(),
            options: options.clone(),
            config,
            kind: Kind::Gguf(metadata),
            files: vec![path.into()],
            sources: vec![source],
            tensors: BTreeMap::new(),
        };
        checkpoint.with_tensors(tensors)
    }

    fn open_directory(path: &Path, options: &OpenOptions) -> Result<Self, LoadError> {
        // Weights first: without any, the directory is no model, whatever else is in it.
        let shards = Shards::open(path, options.mmap)?;
        let config_path = path.join(directory::CONFIG);
        let config = directory::read_json(&config_path)?;
        let generation_path = path.join(directory::GENERATION);
        let generation = match generation_path.exists() {
            true => Some(directory::read_json(&generation_path)?),
            false => None,
        };
        let generation = generation.as_ref().map(|map| (generation_path.as_path(), map));
        Self::hugging_face(path, (&config_path, &config), generation, shards, options)
    }

    /// A Hugging Face checkpoint in one file that is in memory already: the texts of `config.json` and the bytes of `model.safetensors`.
    pub fn from_safetensors(
        name: &Path,
        config: &[u8],
        weights: Bytes,
        options: &OpenOptions,
    ) -> Result<Self, LoadError> {
        let config_path = name.join(directory::CONFIG);
        let config = json::parse(&config_path, config)?;
        let shards = Shards::from_bytes(&name.join("model.safetensors"), weights)?;
        Self::hugging_face(name, (&config_path, &config), None, shards, options)
    }

    fn hugging_face(
        path: &Path,
        (config_path, config): (&Path, &Map<String, Value>),
        generation: Option<(&Path, &Map<String, Value>)>,
        shards: Shards,
        options: &OpenOptions,
    ) -> Result<Self, LoadError> {
        let has_head = shards.tensors.iter().any(|tensor| tensor.own_name == "lm_head.weight");
        let (config, form) =
            config::from_json(config_path, config, generation, has_head, options.hidden_act)?;
        let checkpoint = Self {
            path: path.into(),
            options: options.clone(),
            config,
            kind: Kind::HuggingFace(form),
            files: shards.files,
            sources: shards.sources,
            tensors: BTreeMap::new(),
        };
        checkpoint.with_tensors(shards.tensors)
    }

    /// The file or directory that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the model is.
    pub fn config(&self) -> &ArchConfig {
        &self.config
    }

    /// The key-value pairs of a GGUF file; none for a directory.
    pub fn metadata(&self) -> &Metadata {
        match &self.kind {
            Kind::Gguf(metadata) => metadata,
            Kind::HuggingFace(_) => &NO_METADATA,
        }
    }

    /// Where the tokenizer is described.
    pub fn tokenizer_source(&self) -> TokenizerSource<'_> {
        match &self.kind {
            Kind::Gguf(metadata) => TokenizerSource::Gguf(&self.path, metadata),
            Kind::HuggingFace(_) => TokenizerSource::Directory(self.path.clone()),
        }
    }

    /// The weight files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Length of all weight files in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.sources.iter().map(Source::len).sum()
    }

    /// All tensors that the model uses, by canonical name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo> {
        self.tensors.iter().map(|(name, tensor)| TensorInfo {
            file_name: tensor.own_name.clone(),
            name: name.clone(),
            file: tensor.file,
            shape: tensor.shape.clone(),
            encoding: tensor.encoding.name(),
            bytes: tensor.range.end - tensor.range.start,
        })
    }

    /// Whether there is a weight of this name (without `.weight`).
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(&format!("{name}.weight"))
    }

    /// The ternary matrix `[rows, cols]` of a linear layer, named without `.weight`: `model.layers.0.self_attn.q_proj`.
    pub fn ternary(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<TernaryMatrix, LoadError> {
        let tensor = self.find(name, Role::Linear, &[rows, cols])?;
        let scale = self.weight_scale(name)?;
        let data = self.read(tensor)?;
        self.decode(tensor, &data, rows, cols, scale)
            .map(|matrix| self.rotate_half_order(name, matrix))
            .map_err(|source| LoadError::Weights {
                path: self.file_of(tensor).into(),
                name: tensor.own_name.clone(),
                source,
            })
    }

    /// The embedding table or output head `[rows, cols]`, as it is stored; with a mapped file, in place. Ternary ones become floats.
    pub fn dense(&self, name: &str, rows: usize, cols: usize) -> Result<DenseMatrix, LoadError> {
        let tensor = self.find(name, Role::Table, &[rows, cols])?;
        let Encoding::Dense(dtype) = tensor.encoding else {
            return self.ternary_table(tensor, rows, cols);
        };
        let data = self.read(tensor)?;
        Ok(DenseMatrix::new(rows, cols, dtype, data)
            .expect("the container gave it the size of its shape"))
    }

    /// A norm's `len` weights.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.find(name, Role::Norm, &[len])?;
        let values = self.floats(tensor)?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => Err(LoadError::Malformed {
                path: self.file_of(tensor).into(),
                place: format!("element {index} of tensor `{}`", tensor.own_name),
                found: values[index].to_string(),
                expected: "a finite number".into(),
            }),
        }
    }

    /// Reads a tensor's pages of a mapped file with `threads` threads, so that its first use does not wait for the disk.
    pub fn bring_in(&self, name: &str, threads: usize) {
        if let Some(tensor) = self.tensors.get(&format!("{name}.weight")) {
            self.sources[tensor.file].bring_in(tensor.range.clone(), threads);
        }
    }

    /// Gives the memory behind a tensor's file pages back, once it has been copied. Its views stay valid.
    pub fn release(&self, name: &str) {
        if let Some(tensor) = self.tensors.get(&format!("{name}.weight")) {
            self.sources[tensor.file].release(tensor.range.clone());
        }
    }

    /// [`Self::release`] for some rows of a matrix that is stored row by row.
    pub fn release_rows(&self, name: &str, rows: Range<usize>) {
        let Some(tensor) = self.tensors.get(&format!("{name}.weight")) else { return };
        let all = tensor.shape.first().copied().unwrap_or(0).max(1) as u64;
        let bytes = (tensor.range.end - tensor.range.start) / all;
        let start = tensor.range.start + rows.start as u64 * bytes;
        let end = tensor.range.start + (rows.end as u64).min(all) * bytes;
        self.sources[tensor.file].release(start..end);
    }

    /// What to say of a head that a backend refused.
    pub(crate) fn invalid_head(
        &self,
        name: &str,
        form: HeadType,
        invalid: &InvalidHead,
    ) -> LoadError {
        let tensor = self.tensors.get(&format!("{name}.weight"));
        let path = tensor.map_or(self.path.as_path(), |tensor| self.file_of(tensor));
        let name = tensor.map_or(name, |tensor| &tensor.own_name);
        match invalid {
            InvalidHead::NotFinite { row } => self
                .name_not_finite(tensor, *row)
                .err()
                .unwrap_or_else(|| not_finite(path, *row, name)),
            InvalidHead::TooWide { .. } => LoadError::Unsupported {
                path: path.into(),
                what: format!("an output head of {form} from tensor `{name}`"),
                reason: invalid.to_string(),
                help: format!("use the head as it is in the file: {}", HeadType::File),
            },
        }
    }

    /// The error for a row of a table that is not finite, with its column; none if all of it is.
    fn name_not_finite(&self, tensor: Option<&Tensor>, row: usize) -> Result<(), LoadError> {
        let Some(tensor) = tensor else { return Ok(()) };
        let (Encoding::Dense(dtype), &[_, cols]) = (tensor.encoding, &tensor.shape[..]) else {
            return Ok(());
        };
        self.name_first(tensor, dtype, cols, row as u64..row as u64 + 1)
    }

    /// Reads every weight once, so that damage anywhere shows.
    pub fn verify(&self) -> Result<(), LoadError> {
        self.check_tables(None, 1)?;
        for (name, role, shape) in names::expected(&self.config) {
            match (role, shape.as_slice()) {
                (Role::Linear, &[rows, cols]) => drop(self.ternary(&name, rows, cols)?),
                (Role::Table, &[rows, cols]) => drop(self.dense(&name, rows, cols)?),
                (_, shape) => drop(self.vector(&name, shape[0])?),
            }
            self.release(&name);
        }
        Ok(())
    }
}

fn not_finite(path: &Path, row: usize, name: &str) -> LoadError {
    LoadError::Malformed {
        path: path.into(),
        place: format!("row {row} of tensor `{name}`"),
        found: "not all finite".into(),
        expected: "finite numbers".into(),
    }
}
