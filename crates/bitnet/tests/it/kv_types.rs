//! What smaller types of keys and values cost in exactness, and what they save.

use bitnet::{BitNetModel, KvType, Logits, ModelConfig};

use crate::support::testdata;

fn load(kv_dtype: KvType) -> BitNetModel {
    let config = ModelConfig { kv_dtype, ..Default::default() };
    BitNetModel::from_pretrained(testdata("demo-model/packed")).with_config(config).load().unwrap()
}

/// The cosine of the angle between what two models say after each token, the least and the mean.
fn cosines(a: &Logits, b: &Logits) -> (f64, f64) {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let cosine = |row| {
        let (a, b) = (a.row(row), b.row(row));
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let all: Vec<f64> = (0..a.tokens).map(cosine).collect();
    let least = all.iter().copied().fold(1.0, f64::min);
    (least, all.iter().sum::<f64>() / all.len() as f64)
}

#[test]
fn logits_with_smaller_keys_and_values_point_where_those_of_f32_do() {
    let text = std::fs::read_to_string(testdata("demo-model/heldout.txt")).unwrap();
    let exact = load(KvType::F32);
    let ids = exact.encode(&text[..1500].into()).unwrap();
    assert!((200..=512).contains(&ids.len()), "{}", ids.len());
    let expected = exact.logits(&ids).unwrap();
    for (kv_dtype, bound) in [(KvType::F16, 0.999), (KvType::Int8, 0.998), (KvType::Fp8E4m3, 0.99)]
    {
        let (least, mean) = cosines(&expected, &load(kv_dtype).logits(&ids).unwrap());
        assert!(least >= bound, "{kv_dtype}: {least} at least, {mean} on average");
    }
}

#[test]
fn a_byte_for_each_number_halves_the_memory_but_for_the_scales() {
    let bytes = KvType::ALL.map(|kv_dtype| load(kv_dtype).info().kv_bytes_per_token);
    let model = load(KvType::F16);
    let config = model.config();
    let heads = 2 * config.num_hidden_layers * config.num_key_value_heads; // keys and values
    let dim = config.head_dim;
    assert_eq!(bytes, [4 * dim, 2 * dim, 2 * dim, dim + 4, dim + 4].map(|each| heads * each));
    // A scale of four bytes beside 128 numbers, as of BitNet b1.58 2B-4T.
    assert_eq!((128.0 + 4.0) / (2.0 * 128.0), 0.515_625);
}
