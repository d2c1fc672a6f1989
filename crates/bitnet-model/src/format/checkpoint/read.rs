//! How a tensor's bytes become weights.

use std::{ops::Range, path::Path};

use bitnet_kernels::{
    dense::{self, DenseMatrix, DenseType},
    ternary::{TernaryMatrix, WeightScale},
};
use bytes::Bytes;
use half::f16;

use super::{Checkpoint, Kind};
use crate::{
    config::LinearForm,
    error::LoadError,
    format::{
        Encoding, PackedLayout, Tensor,
        ternary::{TernaryError, float, hf, i2s, tq, wf_msb},
    },
    quantize,
};

impl Checkpoint {
    pub(super) fn file_of(&self, tensor: &Tensor) -> &Path {
        &self.files[tensor.file]
    }

    pub(super) fn read(&self, tensor: &Tensor) -> Result<Bytes, LoadError> {
        self.read_part(tensor, tensor.range.clone())
    }

    /// The bytes of `range`, which lies in the tensor's.
    pub(super) fn read_part(&self, tensor: &Tensor, range: Range<u64>) -> Result<Bytes, LoadError> {
        self.sources[tensor.file]
            .read(range)
            .map_err(|source| LoadError::Io { path: self.file_of(tensor).into(), source })
    }

    /// All elements of a tensor of plain floats.
    pub(super) fn floats(&self, tensor: &Tensor) -> Result<Vec<f32>, LoadError> {
        let Some(dtype) = tensor.encoding.plain_float() else {
            return Err(self.wrong_encoding(tensor, "F32, F16 or BF16"));
        };
        let data = self.read(tensor)?;
        let mut values = vec![0.0; data.len() / dtype.block().1];
        dense::dequantize(dtype, &data, &mut values);
        Ok(values)
    }

    /// What a linear layer's products are multiplied by, out of the tensor beside it; nothing if there is none.
    pub(super) fn weight_scale(&self, name: &str) -> Result<Option<f32>, LoadError> {
        let Some(tensor) = self.tensors.get(&format!("{name}.weight_scale")) else {
            return Ok(None);
        };
        if tensor.shape.iter().product::<usize>() != 1 {
            return Err(self.wrong_shape(tensor, vec![1]));
        }
        let stored = self.floats(tensor)?[0];
        let divides = matches!(self.kind, Kind::HuggingFace(LinearForm::Divide));
        let scale = if divides { 1.0 / stored } else { stored };
        if !(scale.is_finite() && scale > 0.0) {
            return Err(LoadError::Malformed {
                path: self.file_of(tensor).into(),
                place: format!("tensor `{}`", tensor.own_name),
                found: stored.to_string(),
                expected: "a finite number above zero".into(),
            });
        }
        if divides && stored < 1.0 {
            tracing::warn!(
                tensor = tensor.own_name,
                stored,
                "this model's config.json says that scales divide, but a scale below 1 looks like one that multiplies"
            );
        }
        Ok(Some(scale))
    }

    pub(super) fn decode(
        &self,
        tensor: &Tensor,
        data: &Bytes,
        rows: usize,
        cols: usize,
        scale: Option<f32>,
    ) -> Result<TernaryMatrix, TernaryError> {
        let factor = scale.unwrap_or(1.0);
        let matrix = match (tensor.encoding, &self.kind) {
            (Encoding::PackedU8, _) => {
                return match self.options.packed_layout {
                    PackedLayout::HfRows => hf::decode(rows, cols, data, factor),
                    PackedLayout::WfMsb => wf_msb::decode(rows, cols, data, factor),
                };
            }
            (Encoding::Dense(dtype), kind) => {
                let floats = DenseMatrix::new(rows, cols, dtype, data.clone());
                let floats = floats.expect("the container gave it the size of its shape");
                match kind {
                    Kind::HuggingFace(LinearForm::Master) => return quantize::absmean(&floats),
                    Kind::HuggingFace(_) => return float::decode_units(&floats, factor),
                    Kind::Gguf(_) => float::decode(&floats)?,
                }
            }
            (Encoding::I2S, _) => i2s::decode(rows, cols, data, self.options.i2s_layout)?,
            (Encoding::Tq1_0, _) => tq::decode_tq1(rows, cols, data)?,
            (Encoding::Tq2_0, _) => tq::decode_tq2(rows, cols, data)?,
            (Encoding::Other(_), _) => unreachable!("opening has refused it"),
        };
        match scale {
            Some(factor) => Ok(matrix.scaled(factor)?),
            None => Ok(matrix),
        }
    }

    /// An embedding table that was quantized like a linear layer, as floats of the same values.
    pub(super) fn ternary_table(
        &self,
        tensor: &Tensor,
        rows: usize,
        cols: usize,
    ) -> Result<DenseMatrix, LoadError> {
        tracing::warn!(
            tensor = tensor.own_name,
            encoding = tensor.encoding.name(),
            "this embedding was quantized like a linear layer, which damages the model; convert it again with `--token-embedding-type f16`"
        );
        let data = self.read(tensor)?;
        let matrix = self.decode(tensor, &data, rows, cols, None).map_err(|source| {
            let path = self.file_of(tensor).into();
            LoadError::Weights { path, name: tensor.own_name.clone(), source }
        })?;
        self.sources[tensor.file].release(tensor.range.clone());
        // The scales of TQ1_0 and TQ2_0 are f16; the one of I2_S need not be.
        let scales = match matrix.scale() {
            WeightScale::Tensor(scale) => std::slice::from_ref(scale),
            WeightScale::Rows(scales) | WeightScale::Groups { scales, .. } => scales,
        };
        let (dtype, bytes) = match scales.iter().all(|&s| f16::from_f32(s).to_f32() == s) {
            true => (DenseType::F16, elements(&matrix, |x| f16::from_f32(x).to_le_bytes())),
            false => (DenseType::F32, elements(&matrix, f32::to_le_bytes)),
        };
        Ok(DenseMatrix::new(rows, cols, dtype, bytes.into()).expect("as many as elements"))
    }

    /// Undoes the row order that GGUF's `llama` has for queries and keys.
    ///
    /// There, the two elements of a rotated pair are neighbours: row `2·i + j` of a head is Hugging Face's row `j·d/2 + i`.
    /// The engine rotates halves, as Hugging Face does, so every source must have rows in that order.
    pub(super) fn rotate_half_order(&self, name: &str, matrix: TernaryMatrix) -> TernaryMatrix {
        let interleaved = matches!(self.kind, Kind::Gguf(_)) && self.config.architecture == "llama";
        let rotated = name.ends_with(".self_attn.q_proj") || name.ends_with(".self_attn.k_proj");
        if !(interleaved && rotated) {
            return matrix;
        }
        let head_dim = self.config.head_dim;
        matrix.permute_rows(|row| {
            let (head, within) = (row / head_dim, row % head_dim);
            let (half, index) = (within / (head_dim / 2), within % (head_dim / 2));
            head * head_dim + 2 * index + half
        })
    }
}

/// All elements of a ternary matrix, row after row.
fn elements<const N: usize>(matrix: &TernaryMatrix, bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut out = Vec::with_capacity(rows * cols * N);
    for row in 0..rows {
        for col in 0..cols {
            let scale = match matrix.scale() {
                WeightScale::Tensor(scale) => *scale,
                WeightScale::Rows(scales) => scales[row],
                WeightScale::Groups { size, scales } => {
                    scales[row * cols.div_ceil(*size) + col / size]
                }
            };
            out.extend(bytes(f32::from(matrix.value(row, col)) * scale));
        }
    }
    out
}
