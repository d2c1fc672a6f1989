//! Every encoding against bytes that other tools wrote, against its formula, and there and back.

use bitnet_kernels::{
    dense::{DenseMatrix, DenseType},
    ternary::{InvalidTernary, TernaryMatrix, WeightScale},
};
use half::f16;
use proptest::prelude::*;

use super::{TernaryError, float, hf, i2s, i2s::I2sLayout, tq, wf_msb};
use crate::format::tests::Arrays;

/// Weights of a shape, -1, 0 or 1 each, with runs of zeros, so that blocks without a scale occur.
fn values(rows: usize, cols: usize) -> impl Strategy<Value = Vec<i8>> {
    let runs = prop::collection::vec((any::<bool>(), -1..=1_i8), rows * cols / 64 + 1);
    let noise = prop::collection::vec(-1..=1_i8, rows * cols);
    (runs, noise).prop_map(|(runs, noise)| {
        let pick = |(i, &value): (usize, &i8)| if runs[i / 64].0 { value } else { 0 };
        noise.iter().enumerate().map(pick).collect()
    })
}

/// A matrix with sides that are multiples of these and up to `most` times as long, and one scale.
fn matrix(rows: usize, cols: usize, most: usize) -> impl Strategy<Value = TernaryMatrix> {
    let shape = (1..=most, 1..=most).prop_map(move |(r, c)| (r * rows, c * cols));
    shape.prop_flat_map(|(rows, cols)| {
        (values(rows, cols), 1..1000_i32).prop_map(move |(values, scale)| {
            let scale = WeightScale::Tensor(scale as f32 / 512.0); // exact as f16
            TernaryMatrix::from_values(rows, cols, &values, scale)
        })
    })
}

fn values_of(matrix: &TernaryMatrix) -> Vec<i8> {
    let cells = (0..matrix.rows()).flat_map(|r| (0..matrix.cols()).map(move |c| (r, c)));
    cells.map(|(r, c)| matrix.value(r, c)).collect()
}

fn scale_of(matrix: &TernaryMatrix) -> f32 {
    match matrix.scale() {
        WeightScale::Tensor(scale) => *scale,
        other => panic!("{other:?}"),
    }
}

/// TQ writes no scale into blocks of zeros, so a matrix of zeros comes back with scale 0.
fn check_tq(matrix: &TernaryMatrix, back: &TernaryMatrix) {
    assert_eq!(values_of(back), values_of(matrix));
    if values_of(matrix).iter().any(|&value| value != 0) {
        assert_eq!(back.scale(), matrix.scale());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn i2_s_128_comes_back(matrix in matrix(4, 32, 6)) {
        let data = i2s::encode(&matrix, I2sLayout::Block128).unwrap();
        prop_assert_eq!(&i2s::decode(matrix.rows(), matrix.cols(), &data, I2sLayout::Block128).unwrap(), &matrix);
        let code = |e: usize| data[e / 128 * 32 + e % 32] >> (6 - 2 * (e % 128 / 32)) & 3;
        prop_assert!(values_of(&matrix).iter().enumerate().all(|(e, &value)| code(e) as i8 - 1 == value));
    }

    #[test] // 5 · 4 columns: rows begin inside of words and of blocks
    fn i2_s_of_rows_that_are_no_words_comes_back(matrix in matrix(32, 20, 5)) {
        for layout in [I2sLayout::Block128, I2sLayout::Block64] {
            let data = i2s::encode(&matrix, layout).unwrap();
            prop_assert_eq!(&i2s::decode(matrix.rows(), matrix.cols(), &data, layout).unwrap(), &matrix);
        }
    }

    #[test]
    fn i2_s_64_comes_back(matrix in matrix(4, 16, 6)) {
        let data = i2s::encode(&matrix, I2sLayout::Block64).unwrap();
        prop_assert_eq!(&i2s::decode(matrix.rows(), matrix.cols(), &data, I2sLayout::Block64).unwrap(), &matrix);
        let code = |e: usize| data[e / 64 * 16 + e % 16] >> (6 - 2 * (e % 64 / 16)) & 3;
        prop_assert!(values_of(&matrix).iter().enumerate().all(|(e, &value)| code(e) as i8 - 1 == value));
    }

    #[test]
    fn hugging_face_packing_comes_back(matrix in matrix(4, 1, 50)) {
        let data = hf::encode(&matrix).unwrap();
        let back = hf::decode(matrix.rows(), matrix.cols(), &data, scale_of(&matrix)).unwrap();
        prop_assert_eq!(back, matrix);
    }

    #[test]
    fn wf_msb_comes_back(matrix in matrix(1, 4, 50)) {
        let data = wf_msb::encode(&matrix).unwrap();
        let back = wf_msb::decode(matrix.rows(), matrix.cols(), &data, scale_of(&matrix)).unwrap();
        prop_assert_eq!(&back, &matrix);
        let code = |e: usize| data[e / 4] >> (6 - 2 * (e % 4)) & 3;
        prop_assert!(values_of(&matrix).iter().enumerate().all(|(e, &value)| code(e) as i8 - 1 == value));
    }

    #[test]
    fn tq1_0_comes_back(matrix in matrix(1, 256, 4)) {
        let data = tq::encode_tq1(&matrix).unwrap();
        check_tq(&matrix, &tq::decode_tq1(matrix.rows(), matrix.cols(), &data).unwrap());
    }

    #[test]
    fn tq2_0_comes_back(matrix in matrix(1, 256, 4)) {
        let data = tq::encode_tq2(&matrix).unwrap();
        check_tq(&matrix, &tq::decode_tq2(matrix.rows(), matrix.cols(), &data).unwrap());
    }

    #[test]
    fn any_bytes_decode_or_fail(data in prop::collection::vec(any::<u8>(), 0..600), rows in 0..9_usize, cols in 0..600_usize) {
        for layout in [I2sLayout::Block128, I2sLayout::Block64] {
            let _ = i2s::decode(rows, cols, &data, layout);
        }
        let _ = (hf::decode(rows, cols, &data, 1.0), wf_msb::decode(rows, cols, &data, 1.0));
        let _ = (tq::decode_tq1(rows, cols, &data), tq::decode_tq2(rows, cols, &data));
    }
}

const GOLDEN: &str = "golden/formats/formats.safetensors";

/// The ternary rows of the golden file with a scale of its own for every 256 weights.
fn golden_with_groups(file: &Arrays) -> TernaryMatrix {
    let scales = file.f32s("d256");
    let scale = WeightScale::Groups { size: 256, scales };
    TernaryMatrix::from_values(2, 512, &file.i8s("ternary"), scale)
}

#[test]
fn tq_bytes_are_those_of_gguf_py() {
    let file = Arrays::open(GOLDEN);
    let matrix = golden_with_groups(&file);
    assert_eq!(tq::encode_tq1(&matrix).unwrap(), file.bytes("tq1_0.bytes"));
    assert_eq!(tq::encode_tq2(&matrix).unwrap(), file.bytes("tq2_0.bytes"));
    assert_eq!(tq::decode_tq1(2, 512, file.bytes("tq1_0.bytes")).unwrap(), matrix);
    assert_eq!(tq::decode_tq2(2, 512, file.bytes("tq2_0.bytes")).unwrap(), matrix);
}

#[test]
fn i2_s_bytes_are_those_of_microsofts_converter() {
    let file = Arrays::open(GOLDEN);
    let scale = WeightScale::Tensor(file.f32s("i2_s.scale")[0]);
    let matrix = TernaryMatrix::from_values(2, 512, &file.i8s("ternary"), scale);
    assert_eq!(i2s::encode(&matrix, I2sLayout::Block128).unwrap(), file.bytes("i2_s.bytes"));
    assert_eq!(i2s::decode(2, 512, file.bytes("i2_s.bytes"), I2sLayout::Block128).unwrap(), matrix);
}

#[test]
fn packed_bytes_are_those_of_transformers() {
    let file = Arrays::open(GOLDEN);
    let matrix =
        TernaryMatrix::from_values(8, 512, &file.i8s("hf.ternary"), WeightScale::Tensor(1.0));
    assert_eq!(hf::encode(&matrix).unwrap(), file.bytes("hf.packed"));
    assert_eq!(hf::decode(8, 512, file.bytes("hf.packed"), 1.0).unwrap(), matrix);
}

#[test]
fn the_byte_table_is_the_loop() {
    for byte in 0..=u8::MAX {
        let codes: Vec<u8> = (0..4).map(|i| byte >> (6 - 2 * i) & 3).collect();
        let expected = codes.iter().all(|&code| code < 3);
        let expected = expected.then(|| std::array::from_fn(|i| codes[i] as i8 - 1));
        assert_eq!(wf_msb::unpack(byte), expected, "{byte:#x}");
    }
}

/// One code 3 at row 1, column 37 of a 4 × 256 matrix.
#[track_caller]
fn check_code_3(decoded: Result<TernaryMatrix, TernaryError>) {
    assert_eq!(decoded, Err(InvalidTernary::Code { row: 1, col: 37 }.into()));
}

#[test]
fn code_3_is_refused_in_every_encoding() {
    let matrix = TernaryMatrix::from_values(4, 256, &[1; 1024], WeightScale::Tensor(1.0));
    let with = |mut data: Vec<u8>, byte: usize, shift: u32| {
        data[byte] |= 3 << shift;
        data
    };
    let e = 256 + 37; // the element counted over rows
    let data = with(i2s::encode(&matrix, I2sLayout::Block128).unwrap(), e / 128 * 32 + 5, 4);
    check_code_3(i2s::decode(4, 256, &data, I2sLayout::Block128));
    let data = with(i2s::encode(&matrix, I2sLayout::Block64).unwrap(), e / 64 * 16 + 5, 2);
    check_code_3(i2s::decode(4, 256, &data, I2sLayout::Block64));
    let data = with(hf::encode(&matrix).unwrap(), 37, 2);
    check_code_3(hf::decode(4, 256, &data, 1.0));
    let data = with(wf_msb::encode(&matrix).unwrap(), e / 4, 4);
    check_code_3(wf_msb::decode(4, 256, &data, 1.0));
    let data = with(tq::encode_tq2(&matrix).unwrap(), 66 + 5, 2);
    check_code_3(tq::decode_tq2(4, 256, &data));
}

/// TQ2_0 of two rows of two blocks, of ones or (where the scale is not given) of zeros.
#[track_caller]
fn check_scales(scales: [Option<f32>; 4], expected: WeightScale) {
    let mut data = Vec::new();
    for scale in scales {
        data.extend(if scale.is_some() { [0xaa; 64] } else { [0x55; 64] });
        data.extend(f16::from_f32(scale.unwrap_or(0.0)).to_le_bytes());
    }
    assert_eq!(tq::decode_tq2(2, 512, &data).unwrap().scale(), &expected);
}

#[test]
fn tq_scales_become_the_simplest_form() {
    let (one, two, three, zeros) = (Some(1.0), Some(2.0), Some(3.0), None);
    check_scales([two, two, two, two], WeightScale::Tensor(2.0));
    check_scales([two, zeros, zeros, two], WeightScale::Tensor(2.0));
    check_scales([zeros; 4], WeightScale::Tensor(0.0));
    check_scales([one, one, three, zeros], WeightScale::Rows(vec![1.0, 3.0]));
    check_scales(
        [one, two, three, zeros],
        WeightScale::Groups { size: 256, scales: vec![1.0, 2.0, 3.0, 0.0] },
    );
}

#[test]
fn scales_that_are_no_numbers_are_refused() {
    let mut data = vec![0x55; 66 * 4]; // a block of zeros must not hide it
    data[66 + 64..][..2].copy_from_slice(&f16::NAN.to_le_bytes());
    assert!(matches!(
        tq::decode_tq2(2, 512, &data),
        Err(TernaryError::Invalid(InvalidTernary::Scale { .. }))
    ));
    let matrix = TernaryMatrix::from_values(1, 128, &[0; 128], WeightScale::Tensor(1.0));
    let mut data = i2s::encode(&matrix, I2sLayout::Block128).unwrap();
    data[32..36].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let error = i2s::decode(1, 128, &data, I2sLayout::Block128).unwrap_err();
    assert_eq!(error, InvalidTernary::Scale { index: 0, found: f32::INFINITY }.into());
}

#[test]
fn i2_s_without_whole_blocks_is_refused() {
    let error = i2s::decode(1, 64, &[0; 48], I2sLayout::Block128).unwrap_err();
    assert_eq!(
        error,
        TernaryError::Multiple { what: "the number of weights", found: 64, multiple: 128 }
    );
    assert!(i2s::decode(1, 64, &[0; 48], I2sLayout::Block64).is_ok());
}

fn floats(rows: usize, cols: usize, values: &[f32]) -> DenseMatrix {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    DenseMatrix::new(rows, cols, DenseType::F32, data.into()).unwrap()
}

#[test]
fn ternary_floats_are_recognized() {
    for (values, scale) in [
        ([0.5, -0.5, 0.0, -0.0, 0.5, 0.0], WeightScale::Tensor(0.5)),
        ([0.5, -0.5, 0.0, 0.25, 0.0, -0.25], WeightScale::Rows(vec![0.5, 0.25])),
        ([0.0, 0.0, 0.0, 0.25, 0.0, -0.25], WeightScale::Tensor(0.25)),
        ([0.0; 6], WeightScale::Tensor(0.0)),
    ] {
        let matrix = float::decode(&floats(2, 3, &values)).unwrap();
        assert_eq!(matrix.scale(), &scale);
        let signs: Vec<i8> =
            values.iter().map(|v| i8::from(*v > 0.0) - i8::from(*v < 0.0)).collect();
        assert_eq!(values_of(&matrix), signs);
    }
}

#[test]
fn floats_that_are_not_ternary_are_refused_with_their_place() {
    for wrong in [0.25, f32::NAN, f32::INFINITY] {
        let error = float::decode(&floats(2, 3, &[0.0, 0.0, 0.0, 0.5, 0.0, wrong])).unwrap_err();
        assert!(matches!(error, TernaryError::Value { row: 1, col: 2, .. }), "{error}");
    }
    let error = float::decode_units(&floats(1, 2, &[0.0, 0.5]), 1.0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "row 0, column 1 holds 0.5, but ternary weights here are 0 and ±1"
    );
}
