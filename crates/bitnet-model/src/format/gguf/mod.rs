//! The GGUF container, versions 2 and 3, little-endian: metadata, a table of tensors, their data.
//!
//! Source: ggml's `gguf.md`. Every length and count is compared with the file's size before it is believed.

mod reader;
mod types;
pub mod write;

use std::{collections::HashSet, path::Path};

use self::{reader::Reader, types::Extent};
use super::{Tensor, metadata::Metadata, source::Source};
use crate::error::LoadError;

/// What a GGUF file announces.
pub(super) struct Header {
    pub metadata: Metadata,
    pub tensors: Vec<Tensor>,
}

/// A tensor as the table lists it, its data not yet located.
struct Entry {
    name: String,
    /// As ggml counts them: fastest first.
    dims: Vec<u64>,
    type_id: u32,
    offset: u64,
}

pub(super) fn parse(path: &Path, source: &Source) -> Result<Header, LoadError> {
    let size = source.len();
    source
        .parse(|inner| parse_header(&mut Reader::new(inner, path, size)))
        .map_err(|source| LoadError::Io { path: path.into(), source })?
}

/// The metadata of a GGUF file, whether or not it holds a model; some hold only a vocabulary.
pub fn read_metadata(path: &Path) -> Result<Metadata, LoadError> {
    parse(path, &Source::open(path, true)?).map(|header| header.metadata)
}

fn parse_header(reader: &mut Reader<'_>) -> Result<Header, LoadError> {
    reader.magic_and_version()?;
    // The smallest possible entries bound both counts.
    let tensor_count = reader.count("the number of tensors", 4 + 8 + 4 + 8)?;
    let pair_count = reader.count("the number of metadata pairs", 8 + 4 + 1)?;
    let metadata = reader.metadata(pair_count)?;
    refuse_whole_files(reader.path(), &metadata)?;
    let entries = read_entries(reader, tensor_count)?;
    let alignment = alignment(reader.path(), &metadata)?;
    let data_start = reader.offset().next_multiple_of(alignment);
    let tensors = locate(reader, entries, data_start, alignment)?;
    Ok(Header { metadata, tensors })
}

/// Files that would load and then compute nonsense.
fn refuse_whole_files(path: &Path, metadata: &Metadata) -> Result<(), LoadError> {
    let unsupported = |what: &str, reason: &str, help: &str| LoadError::Unsupported {
        path: path.into(),
        what: what.into(),
        reason: reason.into(),
        help: help.into(),
    };
    if let Some(key) = metadata.0.keys().find(|key| key.starts_with("prism.hadamard.")) {
        return Err(unsupported(
            &format!("`{key}`"),
            "the weights are stored in a rotated basis, and without rotating the activations the output is fluent nonsense",
            "run this model with PrismML's fork of llama.cpp",
        ));
    }
    if metadata.u64("split.count").is_some_and(|count| count > 1) {
        return Err(unsupported(
            "a GGUF split into several files",
            "one file has to hold the whole model",
            "join the parts with `llama-gguf-split --merge`",
        ));
    }
    Ok(())
}

fn read_entries(reader: &mut Reader<'_>, count: u64) -> Result<Vec<Entry>, LoadError> {
    let mut seen = HashSet::new();
    let mut entries = Vec::new();
    for index in 0..count {
        let entry = read_entry(reader, index)?;
        if !seen.insert(entry.name.clone()) {
            return Err(reader.malformed(
                format!("the name of tensor {index}"),
                format!("`{}`, which an earlier tensor has", entry.name),
                "a name of its own",
            ));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn read_entry(reader: &mut Reader<'_>, index: u64) -> Result<Entry, LoadError> {
    let name = reader.name(&format!("the name of tensor {index}"))?;
    let what = |part: &str| format!("the {part} of tensor `{name}`");
    let rank = reader.u32(&what("rank"))?;
    if !(1..=4).contains(&rank) {
        return Err(reader.malformed(what("rank"), rank, "1 to 4"));
    }
    let dims = (0..rank).map(|_| reader.u64(&what("shape"))).collect::<Result<Vec<_>, _>>()?;
    let elements = dims.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
    if !elements.is_some_and(|elements| (1..=1 << 60).contains(&elements)) {
        return Err(reader.malformed(
            what("shape"),
            format!("{dims:?}"),
            "dimensions from 1 on whose product fits a file",
        ));
    }
    let type_id = reader.u32(&what("type"))?;
    let offset = reader.u64(&what("offset"))?;
    Ok(Entry { name, dims, type_id, offset })
}

fn alignment(path: &Path, metadata: &Metadata) -> Result<u64, LoadError> {
    const KEY: &str = "general.alignment";
    let Some(found) = metadata.get(KEY) else { return Ok(32) };
    match metadata.u64(KEY) {
        Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => Ok(alignment),
        _ => Err(LoadError::Key {
            path: path.into(),
            key: KEY.into(),
            found: found.to_string(),
            expected: "a power of two up to 1048576".into(),
        }),
    }
}

/// Finds the bytes of every tensor: inside the file, and none shared by two.
fn locate(
    reader: &Reader<'_>,
    entries: Vec<Entry>,
    data_start: u64,
    alignment: u64,
) -> Result<Vec<Tensor>, LoadError> {
    let mut starts = Vec::with_capacity(entries.len());
    for entry in &entries {
        let place = || format!("the offset of tensor `{}`", entry.name);
        if !entry.offset.is_multiple_of(alignment) {
            let expected = format!("a multiple of the alignment {alignment}");
            return Err(reader.malformed(place(), entry.offset, expected));
        }
        let Some(start) = data_start.checked_add(entry.offset).filter(|&s| s <= reader.size())
        else {
            let expected = format!("within the {} bytes of the file", reader.size());
            return Err(reader.malformed(place(), entry.offset, expected));
        };
        starts.push(start);
    }
    let mut sorted = starts.clone();
    sorted.sort_unstable();
    let mut tensors = Vec::with_capacity(entries.len());
    for (entry, start) in entries.into_iter().zip(starts) {
        let next = sorted.partition_point(|&other| other <= start);
        let end = sorted.get(next).copied().unwrap_or(reader.size());
        tensors.push(locate_one(reader, entry, start, end - start, alignment)?);
    }
    refuse_overlaps(reader, &tensors)?;
    Ok(tensors)
}

fn locate_one(
    reader: &Reader<'_>,
    entry: Entry,
    start: u64,
    room: u64,
    alignment: u64,
) -> Result<Tensor, LoadError> {
    let Entry { name, dims, type_id, .. } = entry;
    let Extent { encoding, bytes } = types::extent(type_id, &dims, room, alignment)
        .map_err(|refusal| refusal.into_error(reader.path(), &name))?;
    if bytes > reader.size() - start {
        return Err(LoadError::Truncated {
            path: reader.path().into(),
            what: format!("tensor `{name}` ({} {dims:?})", encoding.name()),
            offset: start,
            needed: bytes,
            size: reader.size(),
        });
    }
    let shape = dims.iter().rev().map(|&dim| usize::try_from(dim)).collect::<Result<_, _>>();
    let shape = shape.map_err(|_| {
        reader.malformed(
            format!("the shape of tensor `{name}`"),
            format!("{dims:?}"),
            "representable on this machine",
        )
    })?;
    Ok(Tensor { own_name: name, file: 0, shape, encoding, range: start..start + bytes })
}

fn refuse_overlaps(reader: &Reader<'_>, tensors: &[Tensor]) -> Result<(), LoadError> {
    let mut order: Vec<&Tensor> = tensors.iter().collect();
    order.sort_unstable_by_key(|tensor| (tensor.range.start, tensor.range.end));
    for pair in order.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            return Err(reader.malformed(
                format!("the offset of tensor `{}`", pair[1].own_name),
                format!("byte {} of the file", pair[1].range.start),
                format!(
                    "past the end of tensor `{}` at byte {}",
                    pair[0].own_name, pair[0].range.end
                ),
            ));
        }
    }
    Ok(())
}
