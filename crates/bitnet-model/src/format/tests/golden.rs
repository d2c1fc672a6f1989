//! The golden models, whose numbers come from transformers, llama.cpp and microsoft/BitNet.

use bitnet_kernels::ternary::{TernaryMatrix, WeightScale};

use super::{chain, open};
use crate::format::{
    Checkpoint,
    names::{self, Role},
};

/// The seven matrices of every layer, with their names.
fn linears(checkpoint: &Checkpoint) -> Vec<(String, TernaryMatrix)> {
    names::expected(checkpoint.config())
        .filter(|(_, role, _)| *role == Role::Linear)
        .map(|(name, _, shape)| {
            let matrix = checkpoint.ternary(&name, shape[0], shape[1]);
            let matrix = matrix.unwrap_or_else(|error| panic!("{}", chain(&error)));
            (name, matrix)
        })
        .collect()
}

/// Codes of two checkpoints are equal, and their scales within `tolerance`, relative.
#[track_caller]
fn check_equal(a: &str, b: &str, tolerance: f32) {
    for ((name, a), (_, b)) in linears(&open(a)).into_iter().zip(linears(&open(b))) {
        let rows = a.rows();
        assert!((0..rows).all(|row| a.row(row) == b.row(row)), "codes of {name}");
        let (WeightScale::Tensor(a), WeightScale::Tensor(b)) = (a.scale(), b.scale()) else {
            panic!("{name} has more than one scale");
        };
        assert!((a - b).abs() <= tolerance * b, "{name}: {a} and {b}");
    }
}

#[test]
fn i2_s_equals_packed() {
    check_equal("golden/gguf/bitnet-tiny-I2_S.gguf", "golden/bitnet-tiny", 0.0);
}

#[test]
fn masters_become_the_packed_codes() {
    // The packed scale went through bf16, which has 8 bits.
    check_equal("golden/bitnet-tiny-bf16", "golden/bitnet-tiny", 1.0 / 256.0);
    check_equal("demo-model/master-bf16", "demo-model/packed", 1.0 / 256.0);
}

#[test]
fn tq1_0_of_llama_equals_packed_with_its_rows_in_place() {
    // TQ1_0 scales went through f16, which has 11 bits.
    check_equal("golden/gguf/llama158-tiny-TQ1_0.gguf", "golden/llama158-tiny", 1.0 / 2048.0);
}

#[test]
fn the_demo_model_is_one_model_in_every_format() {
    check_equal("demo-model/gguf/demo-i2_s.gguf", "demo-model/packed", 0.0);
    check_equal("demo-model/gguf/demo-tq1_0.gguf", "demo-model/packed", 1.0 / 2048.0);
    check_equal("demo-model/gguf/demo-tq2_0.gguf", "demo-model/packed", 1.0 / 2048.0);
}
