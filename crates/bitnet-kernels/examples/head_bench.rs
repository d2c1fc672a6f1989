//! How fast the output head is, beside what this machine could do at best.
//!
//! `cargo run --release -p bitnet-kernels --example head_bench -- [LEVEL ...]`
//!
//! The head of BitNet b1.58 2B4T, 128256 rows of 2560. One token is held against a plain read of as many bytes, many tokens
//! against the tier's multiply-add peak (two products of bytes for each weight). Turns alternate with those of the probe,
//! and what counts is the ratio of their lower quartiles.

use std::hint::black_box;
use std::time::Instant;

use bitnet_kernels::backend::{Backend, Norm};
use bitnet_kernels::cpu::isa::{Isa, IsaError};
use bitnet_kernels::cpu::probe::read;
use bitnet_kernels::cpu::{CpuBackend, CpuHead};
use bitnet_kernels::dense::{DenseMatrix, DenseType};
use bitnet_kernels::head::HeadType;

const ROWS: usize = 128_256;
const COLS: usize = 2560;

fn main() -> Result<(), IsaError> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let isas: Vec<Isa> = match &names[..] {
        [] => Isa::available().to_vec(),
        names => names.iter().map(|name| Isa::parse(name)).collect::<Result<_, _>>()?,
    };
    for isa in isas {
        let backend = CpuBackend::new(isa, 1).expect("one thread needs no other");
        bench_int8(&backend);
        for dtype in [DenseType::F16, DenseType::BF16, DenseType::F32, DenseType::Q8_0, DenseType::Q6K, DenseType::Q4K] {
            bench_file(&backend, dtype);
        }
    }
    Ok(())
}

fn bench_int8(backend: &CpuBackend) {
    let source = weights(DenseType::F16, ROWS);
    let start = Instant::now();
    let head = upload(backend, source.clone(), HeadType::Int8);
    let seconds = start.elapsed().as_secs_f64();
    let bytes = source.bytes().len() as f64;
    println!("{:<12} int8  packed from f16 at {:.1} GB/s", backend.isa().name(), bytes / seconds / 1e9);
    memory(backend, "int8", &head, HeadType::Int8.bytes(ROWS, COLS, 0));
    let small = upload(backend, weights(DenseType::F16, 2560), HeadType::Int8);
    for tokens in [1, 2, 3, 4, 5, 8, 16, 64] {
        let mut call = call(backend, &small, tokens);
        let products = 2 * 2560 * COLS * tokens;
        let rounds = products / backend.isa().spin(1);
        let [work, probe] = alternate(100, &mut call, &mut || _ = black_box(backend.isa().spin(rounds)));
        report(backend, "int8", tokens, products as f64 / work, "GMAC/s", probe / work);
    }
}

fn bench_file(backend: &CpuBackend, dtype: DenseType) {
    let source = weights(dtype, ROWS);
    let bytes = source.bytes().len() as u64;
    let name = format!("{dtype:?}");
    memory(backend, &name, &upload(backend, source, HeadType::File), bytes);
    let small = upload(backend, weights(dtype, 2560), HeadType::File);
    for tokens in [1, 4, 16] {
        let mut call = call(backend, &small, tokens);
        let work = alternate(20, &mut call, &mut || ())[0];
        let products = (2560 * COLS * tokens) as f64;
        report(backend, &name, tokens, products / work, "GMAC/s", f64::NAN);
    }
}

/// One token, and a few, from memory.
fn memory(backend: &CpuBackend, name: &str, head: &CpuHead, bytes: u64) {
    let words = vec![1_u64; bytes as usize / 8];
    for tokens in [1, 2, 4] {
        let mut call = call(backend, head, tokens);
        let [work, probe] = alternate(9, &mut call, &mut || read(&words));
        report(backend, &format!("{name} memory"), tokens, bytes as f64 / work, "GB/s", probe / work);
    }
}

fn report(backend: &CpuBackend, name: &str, tokens: usize, speed: f64, unit: &str, ratio: f64) {
    println!("{:<12} {name:<12} N={tokens:<3} {speed:>8.1} {unit:<7} {ratio:>5.2} of probe", backend.isa().name());
}

fn upload(backend: &CpuBackend, weights: DenseMatrix, form: HeadType) -> CpuHead {
    backend.upload_head(weights, form, &|_| {}).expect("all weights are finite")
}

/// A head whose bytes make no pattern and no infinity.
fn weights(dtype: DenseType, rows: usize) -> DenseMatrix {
    let bytes = rows * dtype.row_bytes(COLS).expect("2560 columns are whole blocks");
    let byte = |i: usize| ((i as u32).wrapping_mul(0x9E37_79B1) >> 15) as u8 & 0x2f;
    let data: Vec<u8> = (0..bytes).map(byte).collect();
    DenseMatrix::new(rows, COLS, dtype, data.into()).expect("as many bytes as the shape needs")
}

fn call<'a>(backend: &'a CpuBackend, head: &'a CpuHead, tokens: usize) -> impl FnMut() + 'a {
    let table = DenseMatrix::new(64, COLS, DenseType::F32, vec![0x3d; 64 * COLS * 4].into());
    let mut x = backend.activations();
    backend.embed(&table.expect("whole rows"), &vec![1; tokens], &mut x);
    let norm = Norm { weight: vec![1.0; COLS], eps: 1e-5 };
    let (mut scratch, mut out) = (backend.scratch(), Vec::new());
    let rows: Vec<usize> = (0..tokens).collect();
    move || {
        backend.logits(&mut scratch, &x, &rows, &norm, head, &mut out);
        black_box(&out);
    }
}

/// Nanoseconds of a turn of the work and of its probe.
fn alternate(turns: usize, work: &mut dyn FnMut(), probe: &mut dyn FnMut()) -> [f64; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let mut timed = |times: &mut Vec<f64>, run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        times.push(start.elapsed().as_nanos() as f64);
    };
    for _ in 0..turns {
        timed(&mut times[0], work);
        timed(&mut times[1], probe);
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[turns / 4]
    })
}
