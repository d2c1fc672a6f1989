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
fn masters_become_the_packed_weights() {
    for model in
        ["golden/bitnet-tiny-bf16 golden/bitnet-tiny", "demo-model/master-bf16 demo-model/packed"]
    {
        let (master, packed) = model.split_once(' ').unwrap();
        check_equal(master, packed, 1.0 / 256.0);
        for ((name, master), (_, packed)) in
            linears(&open(master)).iter().zip(linears(&open(packed)))
        {
            let (WeightScale::Tensor(mean), WeightScale::Tensor(stored)) =
                (master.scale(), packed.scale())
            else {
                panic!("{name} has more than one scale");
            };
            // The packed scale is the mean rounded to bf16; with it, everything is equal bit for bit.
            assert_eq!(half::bf16::from_f32(*mean).to_f32(), *stored, "{name}");
        }
    }
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

#[test]
fn an_embedding_in_q8_0_is_close_to_the_same_in_f16() {
    let read = |name: &str| {
        let checkpoint = open(&format!("demo-model/gguf/demo-{name}.gguf"));
        let table = checkpoint.dense("model.embed_tokens", 4096, 256).unwrap();
        let mut row = vec![0.0; 256];
        table.dequantize_row(1234, &mut row);
        row
    };
    let (q8_0, f16) = (read("tq2_0"), read("i2_s"));
    let largest = f16.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    // Half a step, and what f16 takes from a block's scale.
    let tolerance = largest / 127.0 * 0.6;
    assert!(q8_0.iter().zip(&f16).all(|(a, b)| (a - b).abs() <= tolerance));
    assert_ne!(q8_0, f16);
}

#[test]
fn norms_are_the_same_in_every_format() {
    for (a, b) in [
        ("golden/gguf/bitnet-tiny-I2_S.gguf", "golden/bitnet-tiny"),
        ("golden/gguf/llama158-tiny-TQ1_0.gguf", "golden/llama158-tiny"),
    ] {
        let (a, b) = (open(a), open(b));
        for (name, role, shape) in names::expected(a.config()) {
            if role == Role::Norm {
                let read = |from: &Checkpoint| from.vector(&name, shape[0]).unwrap();
                assert_eq!(read(&a), read(&b), "{name}");
            }
        }
    }
}

#[test]
fn a_checkpoint_is_read_from_any_thread() {
    fn check<T: Send + Sync>() {}
    check::<Checkpoint>();
}
