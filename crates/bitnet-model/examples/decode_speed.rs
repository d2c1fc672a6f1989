//! How fast one core turns each on-disk encoding into the neutral form, on a matrix of BitNet b1.58 2B4T's `down_proj`.
//!
//! `cargo run --release -p bitnet-model --example decode_speed`, or with a model's path behind `--` to read all of it.

use std::{path::Path, time::Instant};

use bitnet_kernels::{
    dense::{DenseMatrix, DenseType},
    ternary::{TernaryMatrix, WeightScale},
};
use bitnet_model::{
    format::{
        Checkpoint, I2sLayout, OpenOptions,
        ternary::{float, hf, i2s, tq, wf_msb},
    },
    quantize,
};

const ROWS: usize = 2560;
const COLS: usize = 6912;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(path) = std::env::args().nth(1) {
        let start = Instant::now();
        let checkpoint = Checkpoint::open(Path::new(&path), &OpenOptions::default())?;
        let opened = start.elapsed();
        checkpoint.verify()?;
        let seconds = start.elapsed().as_secs_f64();
        let gb = checkpoint.size_bytes() as f64 / 1e9;
        println!(
            "{path}: opened in {opened:.1?}, {gb:.3} GB verified in {seconds:.2} s, {:.2} GB/s",
            gb / seconds
        );
        return Ok(());
    }
    let values: Vec<i8> = (0..ROWS * COLS).map(|i| (i * i / 7 % 3) as i8 - 1).collect();
    let matrix = TernaryMatrix::from_values(ROWS, COLS, &values, WeightScale::Tensor(0.5));
    for layout in [I2sLayout::Block128, I2sLayout::Block64] {
        let data = i2s::encode(&matrix, layout)?;
        report(&format!("I2_S {layout:?}"), data.len(), || i2s::decode(ROWS, COLS, &data, layout));
    }
    let data = hf::encode(&matrix)?;
    report("packed uint8", data.len(), || hf::decode(ROWS, COLS, &data, 0.5));
    let data = wf_msb::encode(&matrix)?;
    report("wf-msb", data.len(), || wf_msb::decode(ROWS, COLS, &data, 0.5));
    let data = tq::encode_tq1(&matrix)?;
    report("TQ1_0", data.len(), || tq::decode_tq1(ROWS, COLS, &data));
    let data = tq::encode_tq2(&matrix)?;
    report("TQ2_0", data.len(), || tq::decode_tq2(ROWS, COLS, &data));
    let data: Vec<u8> =
        values.iter().flat_map(|&v| half::bf16::from_f32(f32::from(v)).to_le_bytes()).collect();
    let floats = DenseMatrix::new(ROWS, COLS, DenseType::BF16, data.into())?;
    report("BF16, already ternary", ROWS * COLS * 2, || float::decode(&floats));
    report("BF16 masters", ROWS * COLS * 2, || quantize::absmean(&floats));
    Ok(())
}

/// The best of several runs, in input bytes and in weights per second.
fn report<T, E: std::fmt::Debug>(name: &str, bytes: usize, decode: impl Fn() -> Result<T, E>) {
    let time = |_| {
        let start = Instant::now();
        decode().expect("encoded by the same program");
        start.elapsed().as_secs_f64()
    };
    let best = (0..10).map(time).fold(f64::INFINITY, f64::min);
    let (gb, weights) = (bytes as f64 / best / 1e9, (ROWS * COLS) as f64 / best / 1e9);
    println!("{name:24} {gb:6.2} GB/s   {weights:6.2} G weights/s");
}
