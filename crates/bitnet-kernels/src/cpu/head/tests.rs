//! The int8 head against its definition, on every kernel.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::cpu::isa::Isa;
use crate::cpu::pool::{Stripe, ThreadPool};
use crate::dense::DenseType;
use crate::scalar::int8;

type Run = Box<dyn Fn(&Int8Product<'_>, &mut Stripe<'_>)>;

/// Each kernel under its name: the available tiers, and those that only tests can reach here.
fn kernels() -> Vec<(&'static str, Run)> {
    let mut kernels: Vec<(_, Run)> = Vec::new();
    for &isa in Isa::available() {
        kernels.push((isa.name(), Box::new(move |product, out| isa.int8_logits(product, out))));
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = crate::cpu::x86::Evex256::detect() {
        kernels.push(("avx-vnni, EVEX", Box::new(move |product, out| product.run(kernel, out))));
    }
    kernels
}

fn dense(rows: usize, cols: usize, values: &[f32]) -> DenseMatrix {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    DenseMatrix::new(rows, cols, DenseType::F32, Bytes::from(bytes)).unwrap()
}

fn pack(weights: &DenseMatrix, isa: Isa, threads: usize) -> Result<Int8Head, InvalidHead> {
    Int8Head::pack(weights, isa, &ThreadPool::new(threads).unwrap(), &|_| {})
}

/// `[tokens, rows]` by definition.
fn expected(weights: &[f32], x: &[f32], cols: usize) -> Vec<f32> {
    let of_token = |x| weights.chunks(cols).map(move |w| int8::logit(w, x));
    x.chunks(cols).flat_map(of_token).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[track_caller]
fn check(weights: &[f32], x: &[f32], cols: usize) {
    let (rows, tokens) = (weights.len() / cols, x.len() / cols);
    let expected = expected(weights, x, cols);
    let head = pack(&dense(rows, cols, weights), Isa::Scalar, 1).unwrap();
    let x = SplitRows::from_floats(x, cols);
    for (name, run) in kernels() {
        for columns in [rows, 32] {
            let mut out = vec![f32::NAN; tokens * rows];
            for mut stripe in stripes(&mut out, rows, columns).all() {
                run(&Int8Product { head: &head, x: &x, tokens: 0..tokens }, &mut stripe);
            }
            assert_eq!(
                bits(&out),
                bits(&expected),
                "{name}: {tokens} × [{rows}, {cols}] in stripes of {columns}"
            );
        }
    }
}

/// Deterministic floats in -1..1.
fn floats(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn odd_shapes_are_exact_for_1_to_17_tokens() {
    for (rows, cols) in [(1, 1), (17, 3), (33, 20), (100, 16), (131, 77), (48, 320)] {
        for tokens in 1..=17 {
            check(&floats(1, rows * cols), &floats(2, tokens * cols), cols);
        }
    }
}

#[test]
fn shapes_of_real_models_are_exact() {
    for tokens in [1, 2, 5, 11] {
        check(&floats(3, 160 * 2560), &floats(4, tokens * 2560), 2560);
    }
}

/// Where sums are largest, and where 16 bits are nearest to overflow; up to the widest head there is.
#[test]
fn extreme_values_do_not_overflow() {
    let pattern = |kind: usize, k: usize| match kind % 5 {
        0 => 1.0,
        1 => -1.0,
        2 => 1.0 - 2.0 * (k % 2) as f32,
        3 => 1.0 - 2.0 * (k / 2 % 2) as f32,
        _ => 0.0,
    };
    for (cols, tokens) in [(64, 7), (2561, 5), (int8::MAX_COLS, 5)] {
        let values = |rows: usize| -> Vec<f32> {
            (0..rows * cols).map(|i| pattern(i / cols, i % cols)).collect()
        };
        check(&values(16), &values(tokens), cols);
    }
}

#[test]
fn an_input_that_is_no_number_has_logits_that_are_none() {
    let cols = 20;
    let head = pack(&dense(3, cols, &floats(1, 3 * cols)), Isa::Scalar, 1).unwrap();
    let mut x = floats(2, 2 * cols);
    x[cols + 7] = f32::NAN;
    for (name, run) in kernels() {
        let mut out = vec![0.0; 2 * 3];
        let split = SplitRows::from_floats(&x, cols);
        let mut stripe = stripes(&mut out, 3, 16).all().next().unwrap();
        run(&Int8Product { head: &head, x: &split, tokens: 0..2 }, &mut stripe);
        let numbers: Vec<_> = out.iter().map(|y| y.is_finite()).collect();
        assert_eq!(numbers, [true, true, true, false, false, false], "{name}");
    }
}

#[test]
fn packing_is_the_same_on_every_tier_and_thread_count() {
    let (rows, cols) = (4500, 36);
    let weights = dense(rows, cols, &floats(5, rows * cols));
    let expected = pack(&weights, Isa::Scalar, 1).unwrap();
    let panels = 0..rows.div_ceil(16);
    for &isa in Isa::available() {
        for threads in [1, 3] {
            let found = pack(&weights, isa, threads).unwrap();
            for panel in panels.clone() {
                assert_eq!(found.panel(panel), expected.panel(panel), "{isa}");
                assert_eq!(found.scales(panel), expected.scales(panel), "{isa}");
            }
        }
    }
}

#[test]
fn every_row_is_reported_once_as_taken() {
    let rows = 9000;
    let taken = std::sync::Mutex::new(vec![0; rows]);
    let weights = dense(rows, 4, &floats(6, rows * 4));
    let pool = ThreadPool::new(2).unwrap();
    Int8Head::pack(&weights, Isa::Scalar, &pool, &|rows| {
        taken.lock().unwrap()[rows].iter_mut().for_each(|count| *count += 1);
    })
    .unwrap();
    assert_eq!(taken.into_inner().unwrap(), vec![1; rows]);
}

#[test]
fn a_weight_that_is_no_number_is_refused_with_its_row() {
    let mut values = floats(7, 6000 * 4);
    (values[5000 * 4 + 1], values[5900 * 4]) = (f32::NAN, f32::INFINITY);
    for threads in [1, 2] {
        let found = pack(&dense(6000, 4, &values), Isa::best(), threads).unwrap_err();
        assert_eq!(found, InvalidHead::NotFinite { row: 5000 });
    }
}

#[test]
fn a_head_too_wide_for_32_bits_is_refused() {
    let cols = int8::MAX_COLS + 1;
    let found = pack(&dense(1, cols, &vec![0.0; cols]), Isa::Scalar, 1).unwrap_err();
    assert_eq!(found, InvalidHead::TooWide { cols });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn logits_do_not_depend_on_kernel_or_batch(seed in 0u32..1000, rows in 1usize..100, cols in 1usize..300, tokens in 1usize..20) {
        check(&floats(seed, rows * cols), &floats(seed + 1, tokens * cols), cols);
    }
}
