//! The safetensors container: a length, a JSON table of tensors, their data without holes.
//!
//! Source: the format section of Hugging Face's `safetensors`.

use std::path::Path;

use bitnet_kernels::dense::DenseType;
use serde_json::{Map, Value};

use super::{Encoding, Tensor, impostor, json, source::Source};
use crate::error::LoadError;

/// Longest table accepted, enough for 10^5 tensors; those of published models have less than a megabyte. The format's own
/// library takes 100 MB, but a list of small numbers takes twenty times its length in memory.
const MAX_HEADER: u64 = 16 << 20;

/// The tensors of one file, in the order of their data; `file` becomes the number of the file in each.
pub(super) fn parse(path: &Path, source: &Source, file: usize) -> Result<Vec<Tensor>, LoadError> {
    let parser = Parser { path, size: source.len(), file };
    let io_error = |source| LoadError::Io { path: path.into(), source };
    parser.need(0, 8, "the length of the table")?;
    let len: [u8; 8] = source.read(0..8).map_err(io_error)?[..].try_into().expect("8 bytes");
    let len = u64::from_le_bytes(len);
    if len > MAX_HEADER {
        let head = source.read(0..source.len().min(impostor::HEAD as u64)).map_err(io_error)?;
        if let Some(impostor) = impostor::recognize(&head) {
            return Err(LoadError::impostor(path, impostor, "a safetensors file"));
        }
        if len.swap_bytes() <= MAX_HEADER && head.get(8) == Some(&b'{') {
            return Err(LoadError::Unsupported {
                path: path.into(),
                what: "a big-endian safetensors file".into(),
                reason: "the format's numbers are little-endian".into(),
                help: "write the file again with the `safetensors` library".into(),
            });
        }
        return Err(parser.malformed(
            "the length of the table",
            len.to_string(),
            format!("at most {MAX_HEADER}"),
        ));
    }
    parser.need(8, len, "the table of tensors")?;
    let text = source.read(8..8 + len).map_err(io_error)?;
    let table = json::parse(path, &text)?;
    let mut tensors = Vec::with_capacity(table.len());
    for (name, entry) in table.iter().filter(|(name, _)| *name != "__metadata__") {
        tensors.push(parser.tensor(name, entry, 8 + len)?);
    }
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    parser.check_coverage(&tensors, 8 + len)?;
    Ok(tensors)
}

struct Parser<'a> {
    path: &'a Path,
    size: u64,
    file: usize,
}

impl Parser<'_> {
    fn malformed(
        &self,
        place: impl Into<String>,
        found: String,
        expected: impl Into<String>,
    ) -> LoadError {
        LoadError::Malformed {
            path: self.path.into(),
            place: place.into(),
            found,
            expected: expected.into(),
        }
    }

    fn need(&self, offset: u64, needed: u64, what: &str) -> Result<(), LoadError> {
        if offset.checked_add(needed).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let (path, what, size) = (self.path.into(), what.into(), self.size);
        Err(LoadError::Truncated { path, what, offset, needed, size })
    }

    fn tensor(&self, name: &str, entry: &Value, data_start: u64) -> Result<Tensor, LoadError> {
        if name.chars().any(char::is_control) {
            let found = format!("\"{}\"", name.escape_debug());
            return Err(self.malformed("the name of a tensor", found, "a printable name"));
        }
        let what = |part: &str| format!("`{part}` of tensor `{name}`");
        let empty = Map::new();
        let entry = entry.as_object().unwrap_or(&empty);
        let numbers = |key: &str| -> Option<Vec<u64>> {
            entry.get(key)?.as_array()?.iter().map(Value::as_u64).collect()
        };
        let found = |key: &str| entry.get(key).map_or("missing", json::kind).to_owned();
        let Some(dtype) = entry.get("dtype").and_then(Value::as_str) else {
            return Err(self.malformed(what("dtype"), found("dtype"), "the name of a type"));
        };
        let Some((encoding, item)) = encoding(dtype) else {
            return Err(self.malformed(
                what("dtype"),
                format!("{dtype:?}"),
                "a type that safetensors defines",
            ));
        };
        let Some(dims) = numbers("shape") else {
            return Err(self.malformed(what("shape"), found("shape"), "a list of whole numbers"));
        };
        let bytes = dims.iter().try_fold(item, |product, &dim| product.checked_mul(dim));
        let shape = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<_>>>();
        let (Some(bytes), Some(shape)) = (bytes, shape) else {
            return Err(self.malformed(
                what("shape"),
                format!("{dims:?}"),
                "dimensions whose product fits a file",
            ));
        };
        let Some([start, end]) = numbers("data_offsets").and_then(|n| <[u64; 2]>::try_from(n).ok())
        else {
            return Err(self.malformed(
                what("data_offsets"),
                found("data_offsets"),
                "two whole numbers",
            ));
        };
        if start.checked_add(bytes) != Some(end) {
            let expected = format!("{bytes} apart, the bytes of {dtype} {dims:?}");
            return Err(self.malformed(
                what("data_offsets"),
                format!("[{start}, {end}]"),
                expected,
            ));
        }
        let start = start.saturating_add(data_start);
        self.need(start, bytes, &format!("tensor `{name}`"))?;
        Ok(Tensor {
            own_name: name.into(),
            file: self.file,
            shape,
            encoding,
            range: start..start + bytes,
        })
    }

    /// The format allows neither holes nor overlaps, so that nothing hides in a file.
    fn check_coverage(&self, tensors: &[Tensor], data_start: u64) -> Result<(), LoadError> {
        let mut end = data_start;
        for tensor in tensors {
            if tensor.range.start != end {
                return Err(self.malformed(
                    format!("`data_offsets` of tensor `{}`", tensor.own_name),
                    format!("starting at {}", tensor.range.start - data_start),
                    format!("starting at {}, where the tensor before it ends", end - data_start),
                ));
            }
            end = tensor.range.end;
        }
        if end != self.size {
            return Err(self.malformed(
                "the length of the file",
                self.size.to_string(),
                format!("{end}, where the last tensor ends"),
            ));
        }
        Ok(())
    }
}

/// A type's encoding and bytes per element.
fn encoding(dtype: &str) -> Option<(Encoding, u64)> {
    Some(match dtype {
        "F32" => (Encoding::Dense(DenseType::F32), 4),
        "F16" => (Encoding::Dense(DenseType::F16), 2),
        "BF16" => (Encoding::Dense(DenseType::BF16), 2),
        "U8" => (Encoding::PackedU8, 1),
        "BOOL" => (Encoding::Other("BOOL"), 1),
        "I8" => (Encoding::Other("I8"), 1),
        "F8_E4M3" => (Encoding::Other("F8_E4M3"), 1),
        "F8_E5M2" => (Encoding::Other("F8_E5M2"), 1),
        "F8_E8M0" => (Encoding::Other("F8_E8M0"), 1),
        "I16" => (Encoding::Other("I16"), 2),
        "U16" => (Encoding::Other("U16"), 2),
        "I32" => (Encoding::Other("I32"), 4),
        "U32" => (Encoding::Other("U32"), 4),
        "I64" => (Encoding::Other("I64"), 8),
        "U64" => (Encoding::Other("U64"), 8),
        "F64" => (Encoding::Other("F64"), 8),
        "C64" => (Encoding::Other("C64"), 8),
        _ => return None,
    })
}
