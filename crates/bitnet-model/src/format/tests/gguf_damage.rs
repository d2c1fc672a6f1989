//! Damaged and hostile GGUF files: a golden file, changed in one place, and the whole message that this gives.

use std::path::Path;

use super::gguf_parts::{Gguf, check, check_bytes, check_llama, check_loads, golden, load, retype};
use crate::format::{Checkpoint, OpenOptions};

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = golden("bitnet-tiny-I2_S");
    let header = 11_300;
    for len in
        (0..header).step_by(7).chain((header..bytes.len()).step_by(9973)).chain([bytes.len() - 1])
    {
        assert!(load(bytes[..len].to_vec()).is_err(), "{len} bytes");
    }
}

#[test]
fn a_changed_header_byte_gives_a_model_or_an_error() {
    let bytes = golden("bitnet-tiny-I2_S");
    for at in 0..11_240 {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8) | 0x80;
        let _ = Checkpoint::from_gguf(Path::new("m.gguf"), bytes.into(), &OpenOptions::default());
    }
}

#[test]
fn other_files_are_refused() {
    check_bytes(vec![], "the GGUF header needs 4 bytes from byte 0 on, but the file has 0");
    check(
        |f| f.magic = *b"PK\x03\x04",
        "the magic number is \"PK\\x03\\x04\", but it should be \"GGUF\"",
    );
    check(
        |f| f.magic = *b"FUGG",
        "a big-endian GGUF file is not supported: all layouts here are little-endian",
    );
    check(
        |f| f.version = 1,
        "GGUF version 1 is not supported: its lengths have 32 bits, and nothing has written it since 2023",
    );
    check(|f| f.version = 99, "GGUF version 99 is not supported: versions 2 and 3 are known");
    check(
        |f| f.version = 3_u32.swap_bytes(),
        "a big-endian GGUF file is not supported: all layouts here are little-endian",
    );
}

#[test]
fn counts_beyond_the_file_are_refused() {
    check(
        |f| f.tensor_count = Some(1 << 60),
        "the number of tensors is 1152921504606846976, but it should be at most 21436, as the file has 514496 bytes",
    );
    check(
        |f| f.pair_count = Some(u64::MAX),
        "the number of metadata pairs is 18446744073709551615, but it should be at most 39574, as the file has 514496 bytes",
    );
    check(
        |f| f.pair("general.name").2[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes()),
        "the value of `general.name` needs 1152921504606846976 bytes from byte 108 on, but the file has 514496",
    );
    check(
        |f| f.pair("tokenizer.ggml.tokens").2[4..12].copy_from_slice(&(1_u64 << 60).to_le_bytes()),
        "the value of `tokenizer.ggml.tokens` is 1152921504606846976, but it should be at most 64223, as the file has 514496 bytes",
    );
}

#[test]
fn a_file_of_nothing_but_array_elements_is_refused() {
    check(
        |f| {
            let len = (1_u64 << 24) + 1;
            let head = [0_u32.to_le_bytes().as_slice(), &len.to_le_bytes()].concat();
            let value = [head, vec![0; len as usize]].concat();
            f.pairs.push((b"x".to_vec(), 9, value));
        },
        "the value of `x` is an array of 16777217, but it should be so short that all arrays together stay below 16777216 elements",
    );
}

#[test]
fn values_that_are_none_are_refused() {
    check(
        |f| f.pair("general.name").1 = 13,
        "the value of `general.name` is of type 13, but it should be of a type from 0 to 12",
    );
    check(
        |f| f.pair("tokenizer.ggml.tokens").2[..4].copy_from_slice(&9_u32.to_le_bytes()),
        "the value of `tokenizer.ggml.tokens` is an array of arrays, but it should be a flat array",
    );
    check(
        |f| f.pair("tokenizer.ggml.add_bos_token").2 = vec![7],
        "the value of `tokenizer.ggml.add_bos_token` is the truth value 7, but it should be 0 or 1",
    );
    check(
        |f| f.set_text("general.name", b"bit\xffnet"),
        "the value of `general.name` is not UTF-8 from byte 3 on, but it should be UTF-8 text",
    );
    check(
        |f| f.pairs[3].0 = vec![0xc3],
        "metadata key 3 is not UTF-8 from byte 0 on, but it should be UTF-8 text",
    );
    check(
        |f| f.tensors[1].name = b"\x1b[2J".to_vec(),
        "the name of tensor 1 is one with control characters, but it should be a printable name",
    );
    check(
        |f| f.pairs[3].0 = vec![b'a'; 65536],
        "metadata key 3 is 65536 bytes long, but it should be at most 65535 bytes",
    );
    check(
        |f| f.tensors[1].name = vec![b'a', 0x80],
        "the name of tensor 1 is not UTF-8 from byte 1 on, but it should be UTF-8 text",
    );
}

#[test]
fn repeated_names_are_refused() {
    check(
        |f| f.pairs[2].0 = f.pairs[1].0.clone(),
        "metadata key 2 is `general.name`, which an earlier pair has, but it should be a key of its own",
    );
    check(
        |f| f.tensors[5].name = f.tensors[2].name.clone(),
        "the name of tensor 5 is `blk.0.attn_q.weight`, which an earlier tensor has, but it should be a name of its own",
    );
}

#[test]
fn impossible_shapes_are_refused() {
    let shape = |dims: &[u64], message: &str| check(|f| f.tensors[2].dims = dims.into(), message);
    shape(&[], "the rank of tensor `blk.0.attn_q.weight` is 0, but it should be 1 to 4");
    shape(&[1; 5], "the rank of tensor `blk.0.attn_q.weight` is 5, but it should be 1 to 4");
    for dims in [[256, 0], [1 << 33, 1 << 33], [u64::MAX, 2]] {
        let message = format!(
            "the shape of tensor `blk.0.attn_q.weight` is {dims:?}, but it should be dimensions from 1 on whose product fits a file"
        );
        shape(&dims, &message);
    }
    shape(
        &[1 << 30, 1 << 30],
        "tensor `blk.0.attn_q.weight` (I2_S [1073741824, 1073741824]) needs 288230376151711776 bytes from byte 208896 on, but the file has 514496",
    );
    shape(
        &[256, 128],
        "tensor `blk.0.attn_q.weight` is [128, 256], but bitnet-b1.58 needs [256, 256]",
    );
    shape(
        &[255, 3],
        "the shape of tensor `blk.0.attn_q.weight` is 765 elements in I2_S, but it should be a multiple of 4",
    );
    check_llama(
        |f| f.tensor("blk.0.ffn_up.weight").dims = vec![128, 1024],
        "the shape of tensor `blk.0.ffn_up.weight` is 128 elements in TQ1_0, but it should be a multiple of 256",
    );
}

#[test]
fn misplaced_data_is_refused() {
    let offset = |offset: u64, message: &str| check(|f| f.tensors[2].offset = offset, message);
    offset(
        197_633,
        "the offset of tensor `blk.0.attn_q.weight` is 197633, but it should be a multiple of the alignment 32",
    );
    offset(
        1 << 60,
        "the offset of tensor `blk.0.attn_q.weight` is 1152921504606846976, but it should be within the 514496 bytes of the file",
    );
    offset(
        u64::MAX - 31,
        "the offset of tensor `blk.0.attn_q.weight` is 18446744073709551584, but it should be within the 514496 bytes of the file",
    );
    offset(
        503_232,
        "tensor `blk.0.attn_q.weight` (I2_S [256, 256]) needs 16416 bytes from byte 514496 on, but the file has 514496",
    );
    offset(
        214_048,
        "the offset of tensor `blk.0.attn_q.weight` is byte 225312 of the file, but it should be past the end of tensor `blk.0.attn_k.weight` at byte 233536",
    );
    offset(
        0,
        "the offset of tensor `token_embd.weight` is byte 11264 of the file, but it should be past the end of tensor `blk.0.attn_q.weight` at byte 27680",
    );
}

#[test]
fn alignment_is_obeyed_and_checked() {
    let align = |f: &mut Gguf, alignment: u32| {
        f.add("general.alignment");
        f.set_u32("general.alignment", alignment);
    };
    check_loads(|f| {
        align(f, 16);
        f.alignment = 16;
    });
    for wrong in [0, 48, 1 << 21] {
        let message = format!(
            "`general.alignment` is {wrong}, but it should be a power of two up to 1048576"
        );
        check(|f| align(f, wrong), &message);
    }
}

#[test]
fn missing_keys_are_named() {
    let missing = |key: &str, expected: &str| {
        check(|f| f.remove(key), &format!("`{key}` is missing; it should be {expected}"));
    };
    missing("general.architecture", r#"one of ["bitnet-b1.58", "bitnet-25", "bitnet", "llama"]"#);
    missing("bitnet-b1.58.embedding_length", "a whole number from 1 to 1048576");
    missing("bitnet-b1.58.block_count", "a whole number from 1 to 4096");
    missing("bitnet-b1.58.feed_forward_length", "a whole number from 1 to 1048576");
    missing("bitnet-b1.58.attention.head_count", "a whole number from 1 to 1048576");
    missing("bitnet-b1.58.context_length", "a whole number from 1 to 2147483647");
    missing("bitnet-b1.58.attention.layer_norm_rms_epsilon", "a finite number above zero");
}

#[test]
fn absurd_values_are_refused() {
    let number = |key: &str, value: u32, expected: &str| {
        let message = format!("`{key}` is {value}, but it should be {expected}");
        check(|f| f.set_u32(key, value), &message);
    };
    number("bitnet-b1.58.block_count", 0, "a whole number from 1 to 4096");
    number("bitnet-b1.58.block_count", u32::MAX, "a whole number from 1 to 4096");
    number("bitnet-b1.58.embedding_length", 1 << 21, "a whole number from 1 to 1048576");
    number("bitnet-b1.58.attention.head_count_kv", 3, "a divisor of the 4 query heads");
    number(
        "bitnet-b1.58.attention.head_count",
        3 * 2,
        "a divisor of the hidden size 256, as no head size is given",
    );
    number("bitnet-b1.58.rope.dimension_count", 32, "the head size 64");
    number("tokenizer.ggml.eos_token_id", 384, "a token id below the vocabulary's size 384");
    for eps in [f32::NAN, f32::INFINITY, 0.0, -1e-5] {
        let key = "bitnet-b1.58.attention.layer_norm_rms_epsilon";
        let message =
            format!("`{key}` is {:?}, but it should be a finite number above zero", f64::from(eps));
        check(|f| f.set_f32(key, eps), &message);
    }
    check(
        |f| f.set_text("bitnet-b1.58.block_count", b"two"),
        "`bitnet-b1.58.block_count` is \"two\", but it should be a whole number from 1 to 4096",
    );
    check_llama(
        |f| f.set_u32("llama.attention.key_length", 63),
        "`llama.attention.key_length` is 63, but it should be even, as rotary embedding turns pairs",
    );
    check_llama(
        |f| f.set_u32("llama.attention.key_length", 1 << 19),
        "`llama.attention.key_length` is 524288, but it should be so small that 4 heads have at most 1048576 values",
    );
}

#[test]
fn a_vocabulary_of_another_size_is_refused() {
    check(
        |f| f.set_u32("bitnet-b1.58.vocab_size", 385),
        "`tokenizer.ggml.tokens` is an array of 384 texts, but it should be as many texts as the vocabulary's size 385",
    );
    check(
        |f| {
            f.set_u32("bitnet-b1.58.vocab_size", 385);
            f.remove("tokenizer.ggml.tokens");
        },
        "tensor `token_embd.weight` is [384, 256], but bitnet-b1.58 needs [385, 256]",
    );
}

#[test]
fn other_architectures_are_refused() {
    check(
        |f| f.set_text("general.architecture", b"qwen3"),
        "architecture `qwen3` is not supported: the engine runs bitnet-b1.58, bitnet-25, bitnet, llama",
    );
    check(
        |f| f.add("prism.hadamard.version"),
        "`prism.hadamard.version` is not supported: the weights are stored in a rotated basis, and without rotating the activations the output is fluent nonsense",
    );
    check(
        |f| {
            f.add("split.count");
            f.set_u32("split.count", 2);
        },
        "a GGUF split into several files is not supported: one file has to hold the whole model",
    );
}

#[test]
fn missing_and_unknown_tensors_are_named() {
    check(
        |f| drop(f.tensors.remove(4)),
        "tensor `blk.0.attn_v.weight` is missing; bitnet-b1.58 needs it as [128, 256]",
    );
    check(
        |f| f.set_u32("bitnet-b1.58.block_count", 4096),
        "tensor `blk.2.attn_norm.weight` is missing; bitnet-b1.58 needs it as [256]",
    );
    check(
        |f| f.set_u32("bitnet-b1.58.block_count", 1),
        "tensor `blk.1.attn_norm.weight` is unexpected: bitnet-b1.58 has no such part",
    );
    let named = |name: &str, reason: &str| {
        let message = format!("tensor `{name}` is unexpected: {reason}");
        check(|f| f.tensors[4].name = name.into(), &message);
    };
    named("blk.0.attn_q.bias", "linear layers and norms have no biases here");
    named("blk.0.attn_q_norm.weight", "norms of queries and keys are not supported");
    named(
        "blk.0.attn_q_norm_in.weight",
        "a norm of its own before a linear layer is not supported",
    );
    named("blk.0.ffn_gate_exps.weight", "the supported architectures have no such weight");
}

/// The type of a query matrix of 65536 weights, and how many bytes it has until the next tensor.
#[track_caller]
fn check_type(kind: u32, room: usize, name: &str, reason: &str) {
    check(
        |f| {
            f.tensors[2].kind = kind;
            f.tensors[2].offset = f.data.len() as u64;
            f.data.resize(f.data.len() + room, 0);
        },
        &format!("tensor `blk.0.attn_q.weight` in {name} is not supported: {reason}"),
    );
}

#[test]
fn other_types_are_refused_by_name() {
    let tl = "its tiles depend on the kernel settings of the build that wrote it, which the file does not record";
    let groups = "these weights come in groups with a scale each and belong to models that the engine does not run";
    let dense = "neither ternary nor one of the types read for embedding and head";
    check_type(38, 65536 / 4 + 32, "TL1 (type 38)", tl);
    check_type(39, 256 * 256 / 4 + 32, "TL2 (type 39, told from MXFP4 by its size)", tl);
    check_type(39, 65536 / 32 * 17, "MXFP4 (type 39, told from TL2 by its size)", dense);
    check_type(
        39,
        64,
        "MXFP4 or TL2 (type 39)",
        "the number is used for both, and the size is that of neither",
    );
    check_type(
        42,
        65536 / 128 * 34,
        "PQ2_0 under its old number (type 42, told from Q2_0 by its size)",
        groups,
    );
    check_type(42, 65536 / 64 * 18, "Q2_0 (type 42)", groups);
    check_type(41, 65536 / 128 * 18, "Q1_0 (type 41)", groups);
    check_type(142, 65536 / 128 * 34, "PQ2_0 (type 142)", groups);
    check_type(143, 65536 / 128 * 28, "PTQ1_0 (type 143)", groups);
    check_type(10, 65536, "Q2_K (type 10)", dense);
    check_type(4000, 65536, "type 4000", "no such type is known");
}

#[test]
fn types_in_the_wrong_place_are_refused() {
    check(
        |f| retype(f, "blk.0.attn_q.weight", 8, 65536 / 32 * 34),
        "tensor `blk.0.attn_q.weight` is stored as Q8_0, but I2_S, TQ1_0, TQ2_0, or ternary weights as floats is needed",
    );
    check(
        |f| retype(f, "output_norm.weight", 8, 256 / 32 * 34),
        "tensor `output_norm.weight` is stored as Q8_0, but F32, F16 or BF16 is needed",
    );
    check(
        |f| retype(f, "token_embd.weight", 36, 384 * 256 / 4 + 32),
        "tensor `token_embd.weight` is stored as I2_S, but a head that is not ternary (ternary ones ruin the output: convert with `--token-embedding-type f16`) is needed",
    );
}

#[test]
fn damaged_weights_are_refused_with_their_place() {
    let q = 197_632; // the data of blk.0.attn_q
    check(
        |f| f.data[q + 40] |= 0x0c, // the second block, so columns 128 to 255 of row 0
        "tensor `blk.0.attn_q.weight` does not hold ternary weights: row 0, column 200 holds code 3, but ternary weights have codes 0, 1 and 2 only",
    );
    check(
        |f| f.data[q + 16384..][..4].copy_from_slice(&f32::NAN.to_le_bytes()),
        "tensor `blk.0.attn_q.weight` does not hold ternary weights: scale 0 is NaN, but a scale is a finite number",
    );
    check(
        |f| f.data[196_608..][..4].copy_from_slice(&f32::NAN.to_le_bytes()),
        "element 0 of tensor `output_norm.weight` is NaN, but it should be a finite number",
    );
    check(
        |f| f.data[256 * 2 * 3 + 2..][..2].copy_from_slice(&[0, 0x7c]),
        "row 3, column 1 of tensor `token_embd.weight` is inf, but it should be a finite number",
    );
    check_llama(
        |f| {
            let k = f.tensor("blk.0.attn_k.weight").offset as usize;
            f.data[k + 54 * 2 + 52..][..2].copy_from_slice(&[0xff, 0x7f]);
        },
        "tensor `blk.0.attn_k.weight` does not hold ternary weights: scale 2 is NaN, but a scale is a finite number",
    );
}

#[test]
fn floats_that_are_not_ternary_are_refused_in_gguf() {
    check(
        |f| {
            retype(f, "blk.0.attn_v.weight", 0, 128 * 256 * 4);
            let start = f.data.len() - 8;
            f.data[start..].copy_from_slice(&[0, 0, 0, 0x3f, 0, 0, 0x80, 0x3f]); // 0.5, 1.0
        },
        "tensor `blk.0.attn_v.weight` does not hold ternary weights: row 127, column 255 holds 1, but ternary weights here are 0 and ±0.5",
    );
}
