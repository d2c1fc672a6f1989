//! The operations as a whole against their definitions, on every tier and with several threads.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::dense::DenseType;
use crate::kv::{BLOCK, KvType, PAGE};
use crate::logits::LogitRow;
use crate::scalar::elementwise::{Activation, activate};
use crate::scalar::head::peak;
use crate::scalar::kv::{read_keys, read_values, store_row};
use crate::scalar::norm;
use crate::scalar::rope::{RopeTable, rotate};
use crate::ternary::WeightScale;
use packed::Packing;

/// Deterministic floats in -1..1.
fn floats(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn ternary(seed: u32, rows: usize, cols: usize, scale: WeightScale) -> TernaryMatrix {
    let values: Vec<i8> =
        floats(seed, rows * cols).iter().map(|x| (x * 1.49).round() as i8).collect();
    TernaryMatrix::from_values(rows, cols, &values, scale)
}

fn matrix(cols: usize, data: Vec<f32>) -> Matrix {
    Matrix { cols, data }
}

fn backends() -> impl Iterator<Item = CpuBackend> {
    let variants = [
        (1, Packing::TwoBits, true),
        (2, Packing::FiveTrits, true),
        (3, Packing::TwoBits, true),
        (3, Packing::FiveTrits, true),
        (3, Packing::TwoBits, false),
    ];
    Isa::available().iter().flat_map(move |&isa| {
        variants.map(|(threads, packing, fused)| {
            let backend = CpuBackend::with_pool(isa, ThreadPool::new(threads).unwrap())
                .with_packing(PackingChoice::Fixed(packing));
            if fused { backend } else { backend.unfused() }
        })
    })
}

/// `W · q(x)` by definition, in f64 from the int8 values on.
fn bit_linear(w: &TernaryMatrix, x: &[f32]) -> Vec<f64> {
    let mut q = vec![0; w.cols()];
    let (s, _) = norm::quantize(x, &mut q);
    let scale_at = |row: usize, col: usize| match w.scale() {
        WeightScale::Tensor(scale) => *scale,
        WeightScale::Rows(scales) => scales[row],
        WeightScale::Groups { size, scales } => scales[row * w.cols().div_ceil(*size) + col / size],
    };
    let term = |row, col: usize| {
        f64::from(w.value(row, col)) * f64::from(q[col]) * f64::from(scale_at(row, col))
    };
    (0..w.rows())
        .map(|row| (0..w.cols()).map(|col| term(row, col)).sum::<f64>() / f64::from(s))
        .collect()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(*found) - expected).abs() <= 1e-5 * expected.abs().max(1.0),
            "{what}: {found}, not {expected}"
        );
    }
}

fn scales(kind: usize, rows: usize, cols: usize) -> WeightScale {
    match kind {
        0 => WeightScale::Tensor(0.37),
        1 => WeightScale::Rows(floats(5, rows)),
        // Five trits a byte suit groups of 80 columns and not of 32.
        kind => {
            let size = if kind == 2 { 32 } else { 80 };
            WeightScale::Groups { size, scales: floats(6, rows * cols.div_ceil(size)) }
        }
    }
}

#[test]
fn a_bitlinear_is_its_definition_for_every_kind_of_scale() {
    for (rows, cols, tokens) in [(1, 1, 1), (17, 100, 3), (33, 64, 50), (300, 160, 2)] {
        for kind in 0..4 {
            let w = ternary(rows as u32, rows, cols, scales(kind, rows, cols));
            let x = floats(9, tokens * cols);
            let expected: Vec<f64> = x.chunks(cols).flat_map(|x| bit_linear(&w, x)).collect();
            for backend in backends() {
                let found = backend.linear(&backend.upload_ternary(w.clone()), &x);
                assert_close(
                    &found,
                    &expected,
                    &format!("[{rows}, {cols}] × {tokens}, scale {kind}, {}", backend.isa().name()),
                );
            }
        }
    }
}

#[test]
fn queries_keys_and_values_are_products_turned_and_stored_in_their_slots() {
    // Heads that end within a panel and heads that do not; few tokens, which each thread quantizes for itself, and many.
    for (dim, kv_heads, tokens) in [(12, 3, 1), (20, 5, 9), (16, 2, 40), (64, 3, 2)] {
        check_projections(dim, kv_heads, tokens);
    }
}

fn check_projections(dim: usize, kv_heads: usize, tokens: usize) {
    let (cols, each) = (48, 2);
    let shape = KvShape { pages: 9, kv_heads, head_dim: dim, dtype: KvType::F32 };
    let weights =
        [each, 1, 1].map(|each| ternary(1, each * kv_heads * dim, cols, WeightScale::Tensor(0.37)));
    let (x, g) = (floats(3, tokens * cols), Norm { weight: floats(4, cols), eps: 1e-5 });
    let slots: Vec<u32> = (0..tokens as u32).map(|i| i * 37 % (9 * PAGE as u32)).collect();
    let mut rope = RopeTable::default();
    rope.fill(&floats(5, dim / 2), &slots);
    let products = weights.each_ref().map(|w| -> Vec<f64> {
        x.chunks(cols).flat_map(|x| bit_linear(w, &normed(x, &g))).collect()
    });
    let turned = |x: &[f64], width: usize| -> Vec<f64> {
        let mut x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        for (row, x) in x.chunks_mut(width).enumerate() {
            rotate(rope.row(row).0, rope.row(row).1, x);
        }
        x.into_iter().map(f64::from).collect()
    };
    let width = kv_heads * dim;
    let expected =
        [turned(&products[0], each * width), turned(&products[1], width), products[2].clone()];
    let mut bits = None;
    for backend in backends() {
        let [wq, k, v] = &weights.clone().map(|w| backend.upload_ternary(w));
        let projection = Projection { q: wq, k, v, rope: &rope, slots: &slots };
        let (mut q, mut kv) = (Matrix::default(), backend.kv_layer(shape));
        backend.project(
            &mut backend.scratch(),
            &matrix(cols, x.clone()),
            &g,
            projection,
            &mut q,
            &mut kv,
        );
        let found = [q.data, stored(&kv, &slots, true), stored(&kv, &slots, false)];
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(found, expected, backend.isa().name());
        }
        assert!(*bits.get_or_insert(found.clone()) == found, "other bits on {}", backend.isa());
    }
}

/// The keys or the values in some slots of a cache of f32, `[slots, kv_heads · head_dim]`.
fn stored(kv: &KvLayer, slots: &[u32], keys: bool) -> Vec<f32> {
    let KvShape { kv_heads, head_dim: dim, .. } = kv.shape();
    let mut found = Vec::new();
    for slot in slots.iter().map(|&slot| slot as usize) {
        for head in 0..kv_heads {
            let (part, at) = (kv.part(slot / PAGE, head), slot % PAGE);
            let mut page = vec![0.0; PAGE * dim];
            match keys {
                true => read_keys(part, PAGE / BLOCK, &mut page),
                false => read_values(part, PAGE, dim, &mut page),
            }
            let element = |i: usize| match keys {
                true => page[(at / BLOCK * dim + i) * BLOCK + at % BLOCK],
                false => page[at * dim + i],
            };
            found.extend((0..dim).map(element));
        }
    }
    found
}

fn normed(x: &[f32], norm: &Norm<Vec<f32>>) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    norm::rms_norm(x, &norm.weight, norm.eps, &mut y);
    y
}

#[test]
fn the_gate_is_activated_and_multiplies_up() {
    let (rows, cols, tokens) = (50, 32, 40);
    let (gate, up) = (
        ternary(1, rows, cols, scales(0, rows, cols)),
        ternary(2, rows, cols, scales(0, rows, cols)),
    );
    let (x, g) = (floats(3, tokens * cols), Norm { weight: floats(4, cols), eps: 1e-5 });
    for activation in [Activation::Relu2, Activation::Silu] {
        let expected: Vec<f64> = x
            .chunks(cols)
            .flat_map(|x| {
                let x = normed(x, &g);
                let gate = bit_linear(&gate, &x)
                    .into_iter()
                    .map(|g| f64::from(activate(activation, g as f32)));
                gate.zip(bit_linear(&up, &x)).map(|(g, u)| g * u).collect::<Vec<_>>()
            })
            .collect();
        for backend in backends() {
            let (gate, up) =
                (backend.upload_ternary(gate.clone()), backend.upload_ternary(up.clone()));
            let mut out = Matrix::default();
            backend.gated(
                &mut backend.scratch(),
                &matrix(cols, x.clone()),
                &g,
                Gated { gate: &gate, up: &up, activation },
                &mut out,
            );
            assert_close(
                &out.data,
                &expected,
                &format!("{activation:?} on {}", backend.isa().name()),
            );
        }
    }
}

#[test]
fn logits_are_the_normed_rows_times_the_head() {
    let (vocab, cols) = (131, 20);
    let values = floats(1, vocab * cols);
    let head = DenseMatrix::new(
        vocab,
        cols,
        DenseType::F32,
        Bytes::from_owner(values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()),
    )
    .unwrap();
    let (x, g) = (floats(2, 3 * cols), Norm { weight: floats(4, cols), eps: 1e-5 });
    let rows = [(2, Wanted::All), (0, Wanted::All)];
    let dot = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    let expected: Vec<f64> = rows
        .iter()
        .flat_map(|&(row, _)| values.chunks(cols).map(move |w| (row, w)))
        .map(|(row, w)| dot(&normed(&x[row * cols..][..cols], &g), w))
        .collect();
    for backend in backends() {
        // An int8 weight is off by up to 1/254 of the largest, 1 here, and the sum of 20 normed elements by less than 0.1.
        for (form, tolerance) in [(HeadType::File, 1e-5), (HeadType::Int8, 0.1)] {
            let mut out = Logits::default();
            backend.logits(
                &mut backend.scratch(),
                &matrix(cols, x.clone()),
                &rows,
                &g,
                &backend.upload_head(head.clone(), form, &|_| {}).unwrap(),
                &mut out,
            );
            for row in 0..out.len() {
                if let LogitRow::Peaked { logits, peaks, width } = out.row(row) {
                    assert_eq!(peaks, logits.chunks(width).map(peak).collect::<Vec<_>>());
                } else {
                    assert_eq!(form, HeadType::File);
                }
            }
            let out = out.whole();
            assert_eq!(out.len(), expected.len());
            for (found, expected) in out.iter().zip(&expected) {
                let off = (f64::from(*found) - expected).abs();
                assert!(
                    off <= tolerance * expected.abs().max(1.0),
                    "{form} on {}: {found}, not {expected}",
                    backend.isa()
                );
            }
        }
    }
}

#[test]
fn tokens_attend_to_their_own_sequence_and_not_to_what_follows() {
    let (heads, dim, tokens) = (2, 12, 5);
    let shape = KvShape { pages: 2, kv_heads: heads, head_dim: dim, dtype: KvType::F32 };
    let (q, v) = (floats(1, tokens * 2 * heads * dim), floats(3, tokens * heads * dim));
    // Rows 0..3 are one sequence in page 1, rows 3..5 another in page 0.
    let spans = [
        Span { rows: 0..3, start: 0, pages: vec![1] },
        Span { rows: 3..5, start: 0, pages: vec![0] },
    ];
    let slots = [PAGE as u32, PAGE as u32 + 1, PAGE as u32 + 2, 0, 1];
    for backend in backends() {
        let run = |k_seed: u32, change: Option<usize>| {
            let mut k = floats(k_seed, tokens * heads * dim);
            if let Some(row) = change {
                k[row * heads * dim..][..heads * dim].fill(9.0);
            }
            let mut kv = backend.kv_layer(shape);
            let mut rope = RopeTable::default();
            rope.fill(&vec![0.1; dim / 2], &[0, 1, 2, 0, 1]);
            let (mut q, mut out) = (matrix(2 * heads * dim, q.clone()), Matrix::default());
            for (row, &slot) in slots.iter().enumerate() {
                let ((cos, sin), width) = (rope.row(row), heads * dim);
                rotate(cos, sin, &mut q.data[2 * row * width..][..2 * width]);
                rotate(cos, sin, &mut k[row * width..][..width]);
                store_row(
                    &mut kv,
                    slot as usize,
                    &k[row * width..][..width],
                    &v[row * width..][..width],
                );
            }
            backend.attention(&mut backend.scratch(), &q, &kv, &spans, &mut out);
            out
        };
        let plain = run(2, None);
        // The first token of each sequence sees itself alone.
        for row in [0, 3] {
            for head in 0..2 * heads {
                let expected = &v[row * heads * dim + head / 2 * dim..][..dim];
                assert_close(
                    &plain.row(row)[head * dim..][..dim],
                    &expected.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(),
                    "first token",
                );
            }
        }
        let changed = run(2, Some(2));
        assert!(
            (0..5).all(|row| (plain.row(row) == changed.row(row)) == (row != 2)),
            "only the changed token's own row differs"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_token_gives_the_same_bits_alone_and_in_a_batch(seed in 0u32..1000, rows in 1usize..80, cols in 1usize..200, tokens in 1usize..60, kind in 0usize..4) {
        let w = ternary(seed, rows, cols, scales(kind, rows, cols));
        let x = floats(seed + 1, tokens * cols);
        let reference = CpuBackend::new(Isa::Scalar, 1).unwrap();
        let uploaded = reference.upload_ternary(w.clone());
        let expected: Vec<f32> = x.chunks(cols).flat_map(|x| reference.linear(&uploaded, x)).collect();
        for backend in backends() {
            prop_assert_eq!(&backend.linear(&backend.upload_ternary(w.clone()), &x), &expected, "{}", backend.isa().name());
        }
    }
}
