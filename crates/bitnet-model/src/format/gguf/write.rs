//! Writes GGUF files of version 3, a tensor at a time: data never has to be in memory as a whole.

use std::io::{self, Write};

use bitnet_kernels::dense::DenseType;

use super::types;
use crate::format::metadata::{Metadata, Value};

/// A tensor type to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// Floats, plain or in blocks.
    Dense(DenseType),
    /// microsoft/BitNet's ternary type, see [`i2s`](crate::format::ternary::i2s).
    I2S,
    /// Ternary blocks of base-3 digits, see [`tq`](crate::format::ternary::tq).
    Tq1_0,
    /// Ternary blocks of two-bit codes, see [`tq`](crate::format::ternary::tq).
    Tq2_0,
}

impl TensorType {
    fn id(self) -> u32 {
        match self {
            Self::Dense(dtype) => types::dense_id(dtype),
            Self::I2S => types::I2_S,
            Self::Tq1_0 => types::TQ1_0,
            Self::Tq2_0 => types::TQ2_0,
        }
    }
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// GGUF's name; [`gguf_name`](crate::format::gguf_name) translates.
    pub name: String,
    /// Slowest dimension first: `[rows, cols]` or `[len]`.
    pub shape: Vec<usize>,
    /// Its type.
    pub kind: TensorType,
}

impl TensorSpec {
    /// Bytes of its data, if the shape makes whole blocks and fits a file.
    pub fn bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim as u64))?;
        if elements == 0 || elements > 1 << 60 {
            return None;
        }
        types::extent(self.kind.id(), &self.dims(), 0, 1).ok().map(|extent| extent.bytes)
    }

    /// As GGUF counts them: fastest first.
    fn dims(&self) -> Vec<u64> {
        self.shape.iter().rev().map(|&dim| dim as u64).collect()
    }
}

/// Writes a file. `data(i, out)` writes the bytes of `tensors[i]`, as many as [`TensorSpec::bytes`] says, and is called in order.
///
/// Integers are written as u32 or i32 where they fit and in 64 bits else, floats as f32. Alignment is `general.alignment`, else 32.
/// Returns the length of the file.
pub fn write(
    out: &mut dyn Write,
    metadata: &Metadata,
    tensors: &[TensorSpec],
    mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> io::Result<u64> {
    let alignment = metadata.u64("general.alignment").unwrap_or(32);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(invalid(format!(
            "`general.alignment` is {alignment}, not a power of two up to 1048576"
        )));
    }
    let mut out = Counting { inner: out, written: 0 };
    out.write_all(&header(metadata, tensors, alignment)?)?;
    out.pad(alignment)?;
    for (index, tensor) in tensors.iter().enumerate() {
        let start = out.written;
        data(index, &mut out)?;
        let (found, expected) = (out.written - start, bytes_of(tensor)?);
        if found != expected {
            let name = &tensor.name;
            return Err(invalid(format!(
                "{found} bytes written for tensor `{name}`, which has {expected}"
            )));
        }
        out.pad(alignment)?;
    }
    out.flush()?;
    Ok(out.written)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn bytes_of(tensor: &TensorSpec) -> io::Result<u64> {
    let TensorSpec { name, shape, kind } = tensor;
    tensor.bytes().ok_or_else(|| {
        invalid(format!("tensor `{name}` of shape {shape:?} cannot be stored as {kind:?}"))
    })
}

fn header(metadata: &Metadata, tensors: &[TensorSpec], alignment: u64) -> io::Result<Vec<u8>> {
    let mut header = b"GGUF".to_vec();
    header.extend(3_u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.0.len() as u64).to_le_bytes());
    for (key, value) in &metadata.0 {
        push_text(&mut header, key);
        push_value(&mut header, value)
            .ok_or_else(|| invalid(format!("`{key}` is {value}, which has no GGUF type")))?;
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        push_text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.dims().iter().for_each(|dim| header.extend(dim.to_le_bytes()));
        header.extend(tensor.kind.id().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += bytes_of(tensor)?.next_multiple_of(alignment);
    }
    Ok(header)
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A type's number, then the value. Nothing for an integer beyond 64 bits.
fn push_value(out: &mut Vec<u8>, value: &Value) -> Option<()> {
    match value {
        Value::Int(value) => {
            let kind = IntType::of(&[*value])?;
            out.extend(kind.id().to_le_bytes());
            kind.push(out, *value);
        }
        Value::Float(value) => {
            out.extend(6_u32.to_le_bytes());
            out.extend((*value as f32).to_le_bytes());
        }
        Value::Bool(value) => {
            out.extend(7_u32.to_le_bytes());
            out.push((*value).into());
        }
        Value::String(text) => {
            out.extend(8_u32.to_le_bytes());
            push_text(out, text);
        }
        Value::Ints(values) => {
            let kind = IntType::of(values)?;
            push_array_head(out, kind.id(), values.len());
            values.iter().for_each(|&value| kind.push(out, value));
        }
        Value::Floats(values) => {
            push_array_head(out, 6, values.len());
            values.iter().for_each(|&value| out.extend((value as f32).to_le_bytes()));
        }
        Value::Bools(values) => {
            push_array_head(out, 7, values.len());
            out.extend(values.iter().map(|&value| u8::from(value)));
        }
        Value::Strings(texts) => {
            push_array_head(out, 8, texts.len());
            texts.iter().for_each(|text| push_text(out, text));
        }
    }
    Some(())
}

fn push_array_head(out: &mut Vec<u8>, type_id: u32, len: usize) {
    out.extend(9_u32.to_le_bytes());
    out.extend(type_id.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

/// Integer types, in the order in which they are tried.
#[derive(Clone, Copy)]
enum IntType {
    U32,
    I32,
    U64,
    I64,
}

impl IntType {
    fn of(values: &[i128]) -> Option<Self> {
        let all = |low: i128, high: i128| values.iter().all(|value| (low..=high).contains(value));
        let candidates = [
            (Self::U32, all(0, u32::MAX.into())),
            (Self::I32, all(i32::MIN.into(), i32::MAX.into())),
            (Self::U64, all(0, u64::MAX.into())),
            (Self::I64, all(i64::MIN.into(), i64::MAX.into())),
        ];
        candidates.into_iter().find_map(|(kind, fits)| fits.then_some(kind))
    }

    fn id(self) -> u32 {
        match self {
            Self::U32 => 4,
            Self::I32 => 5,
            Self::U64 => 10,
            Self::I64 => 11,
        }
    }

    fn push(self, out: &mut Vec<u8>, value: i128) {
        match self {
            Self::U32 | Self::I32 => out.extend((value as u32).to_le_bytes()),
            Self::U64 | Self::I64 => out.extend((value as u64).to_le_bytes()),
        }
    }
}

struct Counting<'a> {
    inner: &'a mut dyn Write,
    written: u64,
}

impl Counting<'_> {
    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        let missing = self.written.next_multiple_of(alignment) - self.written;
        self.write_all(&vec![0; missing as usize])
    }
}

impl Write for Counting<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::format::source::Source;

    fn metadata() -> Metadata {
        let pairs = [
            ("int", Value::Int(7)),
            ("negative", Value::Int(-7)),
            ("large", Value::Int(1 << 40)),
            ("float", Value::Float(0.25)),
            ("bool", Value::Bool(true)),
            ("text", Value::String("Ġ".into())),
            ("ints", Value::Ints(vec![-1, 3])),
            ("floats", Value::Floats(vec![1.5])),
            ("bools", Value::Bools(vec![false, true])),
            ("texts", Value::Strings(vec!["a".into(), String::new()])),
        ];
        Metadata(pairs.map(|(key, value)| (key.to_owned(), value)).into())
    }

    fn spec(name: &str, shape: &[usize], kind: TensorType) -> TensorSpec {
        TensorSpec { name: name.into(), shape: shape.into(), kind }
    }

    #[test]
    fn what_is_written_is_read() {
        for alignment in [None, Some(64)] {
            let mut metadata = metadata();
            metadata.0.extend(alignment.map(|a| ("general.alignment".into(), Value::Int(a))));
            let tensors = [
                spec("a", &[3], TensorType::Dense(DenseType::F32)),
                spec("b", &[2, 256], TensorType::Tq1_0),
                spec("c", &[4, 32], TensorType::I2S),
            ];
            let mut file = Vec::new();
            let data = |i: usize, out: &mut dyn Write| {
                out.write_all(&vec![i as u8 + 1; tensors[i].bytes().unwrap() as usize])
            };
            assert_eq!(write(&mut file, &metadata, &tensors, data).unwrap(), file.len() as u64);
            let source = Source::Memory(file.clone().into());
            let header = super::super::parse(Path::new("written"), &source).unwrap();
            assert_eq!(header.metadata, metadata);
            for (i, (found, spec)) in header.tensors.iter().zip(&tensors).enumerate() {
                assert_eq!((&found.own_name, &found.shape), (&spec.name, &spec.shape));
                let bytes = source.read(found.range.clone()).unwrap();
                assert_eq!(bytes, vec![i as u8 + 1; spec.bytes().unwrap() as usize]);
            }
        }
    }

    #[test]
    fn a_tensor_written_in_part_is_an_error() {
        let tensors = [spec("a", &[3], TensorType::Dense(DenseType::F32))];
        let error = write(&mut Vec::new(), &metadata(), &tensors, |_, out| out.write_all(&[0; 8]));
        assert_eq!(error.unwrap_err().to_string(), "8 bytes written for tensor `a`, which has 12");
    }

    #[test]
    fn a_shape_without_whole_blocks_is_an_error() {
        let tensors = [spec("a", &[2, 255], TensorType::Tq2_0)];
        let error = write(&mut Vec::new(), &metadata(), &tensors, |_, _| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "tensor `a` of shape [2, 255] cannot be stored as Tq2_0");
    }
}
