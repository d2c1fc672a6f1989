//! Every kernel against the oracle, exactly.

use proptest::prelude::*;

use super::*;
use crate::cpu::isa::Isa;
use crate::cpu::packed::MAX_COLS;
use crate::cpu::selftest::{expected, mixed_matrix, mixed_rows};
use crate::scalar;
use crate::ternary::{TernaryMatrix, WeightScale};

type Run = Box<dyn Fn(&Product<'_>, &mut [i32])>;

/// Each kernel under its name: the available tiers, and those that only tests can reach here.
fn kernels() -> Vec<(&'static str, Run)> {
    let mut kernels: Vec<(_, Run)> = Vec::new();
    for &isa in Isa::available() {
        kernels.push((isa.name(), Box::new(move |product, out| product.run_on(isa, out))));
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = crate::cpu::x86::Avx512Vnni::detect().map(|isa| isa.without_vbmi()) {
        kernels.push((
            "avx512-vnni without VBMI",
            Box::new(move |product, out| product.run(kernel, out)),
        ));
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = crate::cpu::x86::Evex256::detect() {
        kernels.push(("avx-vnni, EVEX", Box::new(move |product, out| product.run(kernel, out))));
    }
    kernels
}

#[track_caller]
fn check_tokens(
    w: &PackedTernary,
    x: &QuantizedRows,
    blocks: &Range<usize>,
    tokens: Range<usize>,
    expected: &[i32],
) {
    for (name, run) in kernels() {
        let product =
            Product { blocks: blocks.clone(), tokens: tokens.clone(), ..Product::whole(w, x) };
        let mut out = vec![i32::MIN; product.len()];
        run(&product, &mut out);
        let stride = w.panels() * PANEL_ROWS;
        for (i, token) in tokens.clone().enumerate() {
            let (found, padding) = out[i * stride..][..stride].split_at(w.rows());
            assert_eq!(
                found,
                &expected[token * w.rows()..][..w.rows()],
                "{name}, {}: token {token} of {tokens:?}, blocks {blocks:?} of [{}, {}]",
                w.packing(),
                w.rows(),
                w.cols()
            );
            assert!(padding.iter().all(|&y| y == 0), "{name}: padding rows are zero");
        }
    }
}

#[track_caller]
fn check(matrix: &TernaryMatrix, x: &QuantizedRows) {
    for packing in Packing::ALL {
        let w = PackedTernary::pack_as(packing, matrix);
        let blocks = 0..w.blocks_per_panel();
        let expected = expected(matrix, x, blocks.clone(), packing);
        check_tokens(&w, x, &blocks, 0..x.rows(), &expected);
    }
}

fn check_shapes(rows: &[usize], columns: &[usize]) {
    for &cols in columns {
        let x = mixed_rows(25, cols);
        for &rows in rows {
            let matrix = mixed_matrix(rows, cols);
            for w in Packing::ALL.map(|packing| PackedTernary::pack_as(packing, &matrix)) {
                let blocks = 0..w.blocks_per_panel();
                let expected = expected(&matrix, &x, blocks.clone(), w.packing());
                for tokens in 1..=25 {
                    check_tokens(&w, &x, &blocks, 25 - tokens..25, &expected);
                }
            }
        }
    }
}

#[test]
fn small_shapes_are_exact_for_1_to_25_tokens() {
    check_shapes(&[1, 5, 16, 17, 48, 100], &[1, 16, 19, 20, 21, 64, 96, 100, 320]);
}

#[test]
fn shapes_of_real_models_are_exact_for_1_to_25_tokens() {
    check_shapes(&[16, 48], &[2560, 6912, 8640]);
    check_shapes(&[640], &[320, 2560]);
}

fn matrix_of(rows: usize, cols: usize, value: impl Fn(usize, usize) -> i8) -> TernaryMatrix {
    let values: Vec<i8> = (0..rows * cols).map(|i| value(i / cols, i % cols)).collect();
    TernaryMatrix::from_values(rows, cols, &values, WeightScale::Tensor(1.0))
}

fn rows_of(rows: usize, cols: usize, value: impl Fn(usize, usize) -> i8) -> QuantizedRows {
    let values: Vec<i8> = (0..rows * cols).map(|i| value(i / cols, i % cols)).collect();
    QuantizedRows::from_values(rows, cols, &values, vec![1.0; rows])
}

/// Rows whose sums are as large as they get, with as many columns as blocks are added up in 16 bits, and around that.
#[test]
fn extreme_rows_do_not_wrap_at_any_flush_boundary() {
    let two_bits = [8, 16, 32, 64, 128].map(|blocks| 16 * blocks);
    let five_trits = [12, 24, 25, 50].map(|blocks| 20 * blocks);
    let around = |flush: usize| [flush - 16, flush - 1, flush, flush + 1, flush + 20];
    for cols in [&two_bits[..], &five_trits].concat().into_iter().flat_map(around) {
        let sign = |k: usize| if k.is_multiple_of(2) { 1 } else { -1 };
        let matrix = matrix_of(16, cols, |row, k| match row % 6 {
            0 => 1,
            1 => -1,
            2 => sign(k),
            3 => -sign(k),
            4 => sign(k / 4),
            _ => 0,
        });
        let x = rows_of(7, cols, |token, k| match token {
            0 => 127,
            1 => -127,
            2 => 127 * sign(k),
            3 => 127 * sign(k / 4),
            4 => 127 * i8::from(k == cols - 1),
            5 => -127 * i8::from(k == cols / 2),
            _ => 0,
        });
        check(&matrix, &x);
        for token in 0..x.rows() {
            let one = QuantizedRows::from_values(1, cols, &x.row(token)[..cols], vec![1.0]);
            check(&matrix, &one);
        }
    }
}

#[test]
fn the_widest_matrix_does_not_wrap() {
    let cols = MAX_COLS;
    check(&matrix_of(2, cols, |row, _| 1 - 2 * row as i8), &rows_of(2, cols, |_, _| 127));
    check(&matrix_of(2, cols, |row, _| 1 - 2 * row as i8), &rows_of(1, cols, |_, _| -127));
}

#[test]
fn each_column_meets_its_own_weight() {
    let matrix = mixed_matrix(16, 80);
    for col in 0..80 {
        check(&matrix, &rows_of(1, 80, |_, k| i8::from(k == col)));
        check(&matrix, &rows_of(6, 80, |token, k| token as i8 * i8::from(k == col)));
    }
}

#[test]
fn all_values_of_a_byte_are_five_trits() {
    // Every value in a row with every other value beneath it in its neighbour's place: where 16 bits are divided at
    // once, bytes must not disturb each other.
    let trits = |value: usize| (0..5).map(move |j| (value / 3_usize.pow(j) % 3) as i8 - 1);
    let values: Vec<[usize; 4]> = (0..243).map(|v| [v, (v * 2 + 1) % 243, 242 - v, 242]).collect();
    let matrix = matrix_of(243, 20, |row, k| trits(values[row][k % 4]).nth(k / 4).unwrap());
    for k in 0..20 {
        check(&matrix, &rows_of(1, 20, |_, col| i8::from(col == k)));
        check(&matrix, &rows_of(5, 20, |token, col| token as i8 * i8::from(col == k)));
    }
}

#[test]
fn slices_of_columns_are_exact() {
    let (matrix, x) = (mixed_matrix(48, 1000), mixed_rows(14, 1000));
    for w in Packing::ALL.map(|packing| PackedTernary::pack_as(packing, &matrix)) {
        let end = w.blocks_per_panel();
        for blocks in [0..0, 0..1, 0..8, 8..16, 3..40, 16..end, end - 1..end, end..end] {
            let expected = expected(&matrix, &x, blocks.clone(), w.packing());
            for tokens in [0..1, 13..14, 2..5, 0..14] {
                check_tokens(&w, &x, &blocks, tokens, &expected);
            }
        }
    }
}

#[test]
fn some_panels_give_the_same_as_all() {
    let (w, x) = (PackedTernary::pack(&mixed_matrix(700, 64)), mixed_rows(9, 64));
    for (name, run) in kernels() {
        let mut all = vec![0; 9 * w.panels() * PANEL_ROWS];
        run(&Product::whole(&w, &x), &mut all);
        for panels in [0..1, 5..22, 20..41, 43..44, 7..7] {
            let product = Product { panels: panels.clone(), ..Product::whole(&w, &x) };
            let mut some = vec![i32::MIN; product.len()];
            run(&product, &mut some);
            let stride = (panels.len() * PANEL_ROWS).max(1);
            for (all, some) in all.chunks(w.panels() * PANEL_ROWS).zip(some.chunks(stride)) {
                assert_eq!(
                    &all[panels.start * PANEL_ROWS..][..some.len()],
                    some,
                    "{name} {panels:?}"
                );
            }
        }
    }
}

#[test]
#[should_panic(expected = "the output has a place for each product")]
fn an_output_of_another_size_is_refused() {
    let (w, x) = (PackedTernary::pack(&mixed_matrix(16, 16)), mixed_rows(2, 16));
    Product::whole(&w, &x).run(scalar::ternary::Portable, &mut [0; 31]);
}

#[test]
#[should_panic(expected = "weights and activations have the same columns")]
fn activations_of_another_width_are_refused() {
    let (w, x) = (PackedTernary::pack(&mixed_matrix(16, 16)), mixed_rows(1, 15));
    Product::whole(&w, &x).run(scalar::ternary::Portable, &mut [0; 16]);
}

prop_compose! {
    fn operands()(rows in 1..70_usize, cols in 1..700_usize, tokens in 1..20_usize)(
        weights in prop::collection::vec(-1..=1_i8, rows * cols),
        values in prop::collection::vec(-127..=127_i8, tokens * cols),
        rows in Just(rows), cols in Just(cols), tokens in Just(tokens),
    ) -> (TernaryMatrix, QuantizedRows) {
        (
            TernaryMatrix::from_values(rows, cols, &weights, WeightScale::Tensor(1.0)),
            QuantizedRows::from_values(tokens, cols, &values, vec![1.0; tokens]),
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_shape_is_exact((matrix, x) in operands()) {
        check(&matrix, &x);
    }
}
