//! What is checked when a checkpoint is opened: names, shapes and encodings, against what the architecture needs.

use std::collections::BTreeSet;

use super::{Checkpoint, Kind};
use crate::{
    config::LinearForm,
    error::LoadError,
    format::{
        Encoding, PackedLayout, Tensor,
        names::{self, Role},
    },
};

impl Checkpoint {
    /// Sorts the files' tensors by canonical name and checks that they are the model's: all of them, and no others.
    pub(super) fn with_tensors(mut self, tensors: Vec<Tensor>) -> Result<Self, LoadError> {
        for tensor in tensors {
            let canonical = match self.kind {
                Kind::Gguf(_) => names::from_gguf(&tensor.own_name),
                Kind::HuggingFace(_) => names::from_hugging_face(&tensor.own_name),
            };
            match canonical {
                None if self.is_rope_factors(&tensor) => {
                    self.config.rope.factors = self.rope_factors(&tensor)?;
                }
                None => self.refuse_unless_harmless(&tensor)?,
                Some(name) => self.add(name, tensor)?,
            }
        }
        let mut wanted = BTreeSet::new();
        for (name, role, shape) in names::expected(&self.config) {
            self.find(&name, role, &shape)?;
            wanted.insert(format!("{name}.weight"));
            if role == Role::Linear {
                wanted.insert(format!("{name}.weight_scale"));
            }
        }
        if self.config.tie_word_embeddings {
            // Some tools store the head although it is the embedding; it is not used then.
            wanted.insert("lm_head.weight".into());
        }
        match self.tensors.iter().find(|(name, _)| !wanted.contains(*name)) {
            None => Ok(self),
            Some((_, tensor)) => {
                let reason = format!("{} has no such part", self.config.architecture);
                Err(self.unexpected(tensor, &reason))
            }
        }
    }

    fn add(&mut self, name: String, tensor: Tensor) -> Result<(), LoadError> {
        match self.tensors.get(&name) {
            None => {
                self.tensors.insert(name, tensor);
                Ok(())
            }
            Some(earlier) => {
                let reason = format!("`{}` is the same weight", earlier.own_name);
                Err(self.unexpected(&tensor, &reason))
            }
        }
    }

    fn unexpected(&self, tensor: &Tensor, reason: &str) -> LoadError {
        LoadError::UnexpectedTensor {
            path: self.file_of(tensor).into(),
            name: tensor.own_name.clone(),
            reason: reason.into(),
        }
    }

    /// Tensors that the engine has no name for are refused, but for those that change no result.
    fn refuse_unless_harmless(&self, tensor: &Tensor) -> Result<(), LoadError> {
        let name = tensor.own_name.as_str();
        if name.ends_with("rotary_emb.inv_freq") {
            return Ok(()); // follows from the configuration
        }
        let reason = if name.ends_with(".bias") {
            "linear layers and norms have no biases here"
        } else if name.ends_with(".rms_norm.weight")
            || name.ends_with("_norm_in.weight")
            || name.ends_with("_proj.norm.weight")
        {
            "a norm of its own before a linear layer is not supported"
        } else if name.contains("q_norm") || name.contains("k_norm") {
            "norms of queries and keys are not supported"
        } else {
            "the supported architectures have no such weight"
        };
        Err(self.unexpected(tensor, reason))
    }

    fn is_rope_factors(&self, tensor: &Tensor) -> bool {
        matches!(self.kind, Kind::Gguf(_)) && tensor.own_name == "rope_freqs.weight"
    }

    /// What the frequency of each rotated pair is divided by. The order of pairs is the same in all row orders.
    fn rope_factors(&self, tensor: &Tensor) -> Result<Vec<f32>, LoadError> {
        let expected = vec![self.config.head_dim / 2];
        if tensor.shape != expected {
            return Err(self.wrong_shape(tensor, expected));
        }
        let factors = self.floats(tensor)?;
        match factors.iter().position(|&factor| !(factor.is_finite() && factor > 0.0)) {
            None => Ok(factors),
            Some(index) => Err(LoadError::Malformed {
                path: self.file_of(tensor).into(),
                place: format!("element {index} of tensor `{}`", tensor.own_name),
                found: factors[index].to_string(),
                expected: "a finite number above zero".into(),
            }),
        }
    }

    /// A weight by its canonical name without suffix, checked for its place. `shape` is that of the matrix, not of its encoding.
    pub(super) fn find(
        &self,
        name: &str,
        role: Role,
        shape: &[usize],
    ) -> Result<&Tensor, LoadError> {
        let Some(tensor) = self.tensors.get(&format!("{name}.weight")) else {
            return Err(LoadError::MissingTensor {
                path: self.path.clone(),
                name: self.name_in_file(&format!("{name}.weight")),
                architecture: self.config.architecture.clone(),
                expected: shape.to_vec(),
            });
        };
        self.check_encoding(name, role, tensor)?;
        let expected = self.stored_shape(tensor, shape)?;
        if tensor.shape != expected {
            return Err(self.wrong_shape(tensor, expected));
        }
        Ok(tensor)
    }

    fn name_in_file(&self, canonical: &str) -> String {
        match self.kind {
            Kind::Gguf(_) => names::to_gguf(canonical).unwrap_or_else(|| canonical.to_owned()),
            Kind::HuggingFace(_) => canonical.to_owned(),
        }
    }

    /// What a matrix of `shape` looks like in this tensor's encoding.
    fn stored_shape(&self, tensor: &Tensor, shape: &[usize]) -> Result<Vec<usize>, LoadError> {
        let (Encoding::PackedU8, &[rows, cols]) = (tensor.encoding, shape) else {
            return Ok(shape.to_vec());
        };
        let (stored, packed) = match self.options.packed_layout {
            PackedLayout::HfRows => (vec![rows / 4, cols], rows),
            PackedLayout::WfMsb => (vec![rows, cols / 4], cols),
        };
        if packed.is_multiple_of(4) {
            return Ok(stored);
        }
        Err(self.wrong_encoding(tensor, format!("floats, as {packed} is no multiple of 4")))
    }

    pub(super) fn wrong_shape(&self, tensor: &Tensor, expected: Vec<usize>) -> LoadError {
        LoadError::Shape {
            path: self.file_of(tensor).into(),
            name: tensor.own_name.clone(),
            architecture: self.config.architecture.clone(),
            found: tensor.shape.clone(),
            expected,
        }
    }

    pub(super) fn wrong_encoding(&self, tensor: &Tensor, expected: impl Into<String>) -> LoadError {
        LoadError::Encoding {
            path: self.file_of(tensor).into(),
            name: tensor.own_name.clone(),
            found: tensor.encoding.name().into(),
            expected: expected.into(),
        }
    }

    fn check_encoding(&self, name: &str, role: Role, tensor: &Tensor) -> Result<(), LoadError> {
        match role {
            Role::Norm if tensor.encoding.plain_float().is_some() => Ok(()),
            Role::Norm => Err(self.wrong_encoding(tensor, "F32, F16 or BF16")),
            Role::Table if matches!(tensor.encoding, Encoding::Dense(_)) => Ok(()),
            // bitnet.cpp's converter does this to models whose head is not the embedding.
            Role::Table
                if is_ternary(tensor.encoding)
                    && name == "model.embed_tokens"
                    && !self.config.tie_word_embeddings =>
            {
                Ok(())
            }
            Role::Table => Err(self.wrong_encoding(
                tensor,
                "a head that is not ternary (ternary ones ruin the output: convert with `--token-embedding-type f16`)",
            )),
            Role::Linear => self.check_linear(name, tensor),
        }
    }

    /// The tensors' types have to agree with what the configuration says of them.
    fn check_linear(&self, name: &str, tensor: &Tensor) -> Result<(), LoadError> {
        let float = tensor.encoding.plain_float().is_some();
        let packed = tensor.encoding == Encoding::PackedU8;
        let scaled = self.tensors.contains_key(&format!("{name}.weight_scale"));
        let form = match &self.kind {
            Kind::HuggingFace(form) => *form,
            Kind::Gguf(_) => {
                return if is_ternary(tensor.encoding) || float {
                    Ok(())
                } else {
                    Err(self
                        .wrong_encoding(tensor, "I2_S, TQ1_0, TQ2_0, or ternary weights as floats"))
                };
            }
        };
        match (form, scaled) {
            (LinearForm::Master, false) if float => Ok(()),
            (LinearForm::Master, true) => Err(self.wrong_encoding(
                tensor,
                "a float matrix without a weight_scale, as config.json says that weights become ternary while loading",
            )),
            (LinearForm::Master, false) => {
                Err(self.wrong_encoding(tensor, "F32, F16 or BF16 master weights, by config.json"))
            }
            (LinearForm::Multiply | LinearForm::Divide, true) if packed => Ok(()),
            (LinearForm::Multiply, true) if float => Ok(()),
            (_, true) => Err(self.wrong_encoding(tensor, "packed uint8, by config.json")),
            (_, false) if packed || float => Err(LoadError::MissingTensor {
                path: self.path.clone(),
                name: format!("{name}.weight_scale"),
                architecture: format!("a {} matrix of {}", tensor.encoding.name(), self.config.architecture),
                expected: vec![1],
            }),
            (_, false) => Err(self.wrong_encoding(tensor, "packed uint8 with a weight_scale, by config.json")),
        }
    }
}

/// Whether a GGUF file stores this as codes of ternary weights.
fn is_ternary(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::I2S | Encoding::Tq1_0 | Encoding::Tq2_0)
}
