//! What GGUF files may have and still be models: other versions, types, layouts, activations and rotary settings.

use std::path::Path;

use bitnet_kernels::{
    dense::DenseType,
    ternary::{TernaryMatrix, WeightScale},
};

use super::gguf_parts::{Entry, Gguf, check, check_bytes, check_loads, golden, load, retype};
use crate::{
    config::{HiddenAct, RopeScaling},
    format::{Checkpoint, I2sLayout, OpenOptions, ternary::i2s},
};

#[test]
fn version_2_is_read() {
    check_loads(|f| f.version = 2);
}

#[test]
fn ternary_floats_in_gguf_are_read() {
    let from_file = check_loads(|_| {});
    let codes = from_file.ternary("model.layers.0.self_attn.v_proj", 128, 256).unwrap();
    let floats = |value: f32| {
        move |f: &mut Gguf| {
            let cells = (0..128 * 256).map(|i| value * f32::from(codes.value(i / 256, i % 256)));
            let data: Vec<u8> =
                cells.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect();
            retype(f, "blk.0.attn_v.weight", 30, data.len());
            let start = f.data.len() - data.len();
            f.data[start..].copy_from_slice(&data);
        }
    };
    let scale = |f: &mut Gguf| {
        let offset = f.data.len() as u64;
        f.data.extend(2.5_f32.to_le_bytes());
        f.tensors.push(Entry {
            name: b"blk.0.attn_v.scale".into(),
            dims: vec![1],
            kind: 0,
            offset,
        });
    };
    let expected = from_file.ternary("model.layers.0.self_attn.v_proj", 128, 256).unwrap();
    let read = |checkpoint: Checkpoint| {
        checkpoint.ternary("model.layers.0.self_attn.v_proj", 128, 256).unwrap()
    };
    let plain = read(check_loads(floats.clone()(0.5)));
    assert_eq!(plain.scale(), &WeightScale::Tensor(0.5));
    let scaled = read(check_loads(|f| {
        floats(1.0)(f);
        scale(f);
    }));
    assert_eq!(scaled.scale(), &WeightScale::Tensor(2.5));
    assert!(
        (0..128)
            .all(|row| plain.row(row) == expected.row(row) && scaled.row(row) == expected.row(row))
    );
}

#[test]
fn activations_follow_the_file() {
    use HiddenAct::{Relu2, Silu};
    let act = |change: &dyn Fn(&mut Gguf)| check_loads(|f| change(f)).config().hidden_act;
    let rename = |f: &mut Gguf, name: &str| {
        f.set_text("general.architecture", name.as_bytes());
        for pair in &mut f.pairs {
            if let Some(rest) = pair.0.strip_prefix(b"bitnet-b1.58.") {
                pair.0 = [name.as_bytes(), b".", rest].concat();
            }
        }
    };
    assert_eq!(act(&|_| {}), Relu2);
    assert_eq!(act(&|f| rename(f, "bitnet-25")), Relu2);
    assert_eq!(act(&|f| rename(f, "bitnet")), Silu);
    assert_eq!(act(&|f| f.set_text("tokenizer.ggml.model", b"llama")), Silu);
    assert_eq!(
        act(&|f| {
            rename(f, "bitnet");
            f.add("bitnet.hidden_activation");
            f.set_text("bitnet.hidden_activation", b"relu2");
        }),
        Relu2
    );
    let options = OpenOptions { hidden_act: Some(Silu), ..OpenOptions::default() };
    let bytes = golden("bitnet-tiny-I2_S").into();
    let overridden = Checkpoint::from_gguf(Path::new("m.gguf"), bytes, &options).unwrap();
    assert_eq!(overridden.config().hidden_act, Silu);
    check(
        |f| {
            f.add("bitnet-b1.58.hidden_activation");
            f.set_text("bitnet-b1.58.hidden_activation", b"gelu");
        },
        "`bitnet-b1.58.hidden_activation` is \"gelu\", but it should be \"relu2\" or \"silu\"",
    );
}

#[test]
fn rotary_scaling_is_read_or_refused() {
    let linear = check_loads(|f| {
        f.add("bitnet-b1.58.rope.scaling.factor");
        f.set_f32("bitnet-b1.58.rope.scaling.factor", 4.0);
    });
    assert_eq!(linear.config().rope.scaling, RopeScaling::Linear { factor: 4.0 });
    check(
        |f| {
            f.add("bitnet-b1.58.rope.scaling.type");
            f.set_text("bitnet-b1.58.rope.scaling.type", b"yarn");
        },
        "rotary scaling `yarn` is not supported: in GGUF files, none and linear are known",
    );
}

#[test]
fn rotary_factors_are_read_or_refused() {
    let factors = |count: usize, last: f32| {
        move |f: &mut Gguf| {
            let mut values = vec![1.0; count - 1];
            values.push(last);
            let offset = f.data.len() as u64;
            f.data.extend(values.iter().flat_map(|value: &f32| value.to_le_bytes()));
            f.tensors.push(Entry {
                name: b"rope_freqs.weight".into(),
                dims: vec![count as u64],
                kind: 0,
                offset,
            });
        }
    };
    let half = check_loads(|_| {}).config().head_dim / 2;
    let read = check_loads(factors(half, 8.0)).config().rope.factors.clone();
    assert_eq!((read.len(), read[0], read[half - 1]), (half, 1.0, 8.0));
    check(
        factors(2, 1.0),
        &format!("tensor `rope_freqs.weight` is [2], but bitnet-b1.58 needs [{half}]"),
    );
    for (bad, shown) in [(0.0, "0"), (-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let message = format!(
            "element {} of tensor `rope_freqs.weight` is {shown}, but it should be a finite number above zero",
            half - 1
        );
        check(factors(half, bad), &message);
    }
}

/// bitnet.cpp's converter quantizes the embedding of models with a head of their own.
#[test]
fn a_ternary_embedding_becomes_floats() {
    let value = |row: usize, col: usize| ((row * 7 + col * 3) % 5 % 3) as i8 - 1;
    let (rows, cols) = (384, 256);
    let values: Vec<i8> = (0..rows * cols).map(|i| value(i / cols, i % cols)).collect();
    for (scale, dtype) in [(0.1, DenseType::F32), (0.5, DenseType::F16)] {
        let matrix = TernaryMatrix::from_values(rows, cols, &values, WeightScale::Tensor(scale));
        let data = i2s::encode(&matrix, I2sLayout::Block128).unwrap();
        let mut file = Gguf::parse(&golden("llama158-tiny-TQ1_0"));
        retype(&mut file, "token_embd.weight", 36, data.len());
        let start = file.tensor("token_embd.weight").offset as usize;
        file.data[start..].copy_from_slice(&data);
        let table = load(file.bytes()).unwrap().dense("model.embed_tokens", rows, cols).unwrap();
        assert_eq!(table.dtype(), dtype);
        let mut found = vec![0.0; cols];
        for row in 0..rows {
            table.dequantize_row(row, &mut found);
            let expected = (0..cols).map(|col| f32::from(value(row, col)) * scale);
            assert!(found.iter().copied().eq(expected), "row {row}");
        }
        file.data[start] = 0xff;
        check_bytes(
            file.bytes(),
            "tensor `token_embd.weight` does not hold ternary weights: row 0, column 0 holds code 3, but ternary weights have codes 0, 1 and 2 only",
        );
    }
}

#[test]
fn a_64_block_file_is_read_by_option() {
    let (mut file, mut matrices) = (Gguf::parse(&golden("bitnet-tiny-I2_S")), Vec::new());
    let original = check_loads(|_| {});
    for info in original.tensors().filter(|info| info.encoding == "I2_S") {
        let name = info.name.strip_suffix(".weight").unwrap().to_owned();
        let matrix = original.ternary(&name, info.shape[0], info.shape[1]).unwrap();
        let data = i2s::encode(&matrix, I2sLayout::Block64).unwrap();
        let start = file.tensor(&info.file_name).offset as usize;
        file.data[start..][..data.len()].copy_from_slice(&data);
        matrices.push((name, matrix));
    }
    let options = OpenOptions { i2s_layout: I2sLayout::Block64, ..OpenOptions::default() };
    let arm = Checkpoint::from_gguf(Path::new("m.gguf"), file.bytes().into(), &options).unwrap();
    for (name, matrix) in matrices {
        assert_eq!(arm.ternary(&name, matrix.rows(), matrix.cols()).unwrap(), matrix, "{name}");
    }
}
