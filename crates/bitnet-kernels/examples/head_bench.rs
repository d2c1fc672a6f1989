//! How fast the output head is, beside what this machine could do at best.
//!
//! `cargo run --release -p bitnet-kernels --example head_bench -- [LEVEL ...]`
//!
//! The head of BitNet b1.58 2B4T, 128256 rows of 2560. One token is held against a plain read of as many bytes, many tokens
//! against the tier's multiply-add peak (two products of bytes for each weight). Turns alternate with those of the probe,
//! and what counts is the ratio of their lower quartiles.

mod random;

use std::hint::black_box;
use std::time::Instant;

use bitnet_kernels::backend::{Backend, Norm};
use bitnet_kernels::cpu::isa::{Isa, IsaError};
use bitnet_kernels::cpu::probe::read;
use bitnet_kernels::cpu::{CpuBackend, CpuHead};
use bitnet_kernels::dense::{DenseMatrix, DenseType};
use bitnet_kernels::head::HeadType;
use bitnet_kernels::logits::{Logits, Others, Wanted};
use random::{gaussian, half_bits};

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
        bench_two_stage(&backend);
        bench_int8(&backend);
        for dtype in [
            DenseType::F16,
            DenseType::BF16,
            DenseType::F32,
            DenseType::Q8_0,
            DenseType::Q6K,
            DenseType::Q4K,
        ] {
            bench_file(&backend, dtype);
        }
    }
    Ok(())
}

fn bench_int8(backend: &CpuBackend) {
    let source = weights(DenseType::F16, ROWS);
    let start = Instant::now();
    black_box(upload(backend, source.clone(), HeadType::Int8));
    let speed = source.bytes().len() as f64 / start.elapsed().as_secs_f64() / 1e9;
    println!("{:<12} int8 packed from f16 at {speed:.1} GB/s", backend.isa());
    drop(source);
    memory(backend, "int8", DenseType::F16, HeadType::Int8);
    let small = upload(backend, weights(DenseType::F16, 2560), HeadType::Int8);
    for tokens in [1, 2, 3, 4, 5, 8, 16, 64] {
        let mut call = call(backend, std::slice::from_ref(&small), tokens);
        let products = 2 * 2560 * COLS * tokens;
        let rounds = products / backend.isa().spin(1);
        let spin = &mut || _ = black_box(backend.isa().spin(rounds));
        let [work, probe] = alternate(100, &mut call, spin);
        report(backend, "int8", tokens, products as f64 / work, "GMAC/s", probe / work);
    }
}

/// The two-stage head beside the int8 head, on normally distributed rows and inputs, which is the worst that can be expected,
/// and on inputs near a row, as those of trained models are.
fn bench_two_stage(backend: &CpuBackend) {
    let mut gaussian = gaussian();
    let mut f16 = || half_bits(gaussian() / 50.0).to_le_bytes();
    let values: Vec<u8> = (0..ROWS * COLS).flat_map(|_| f16()).collect();
    let source = DenseMatrix::new(ROWS, COLS, DenseType::F16, values.into()).expect("whole rows");
    let start = Instant::now();
    let two_stage = upload(backend, source.clone(), HeadType::TwoStage);
    let speed = source.bytes().len() as f64 / start.elapsed().as_secs_f64() / 1e9;
    println!("{:<12} two-stage packed from f16 at {speed:.1} GB/s", backend.isa());
    let int8 = upload(backend, source.clone(), HeadType::Int8);
    let norm = Norm { weight: vec![1.0; COLS], eps: 1e-5 };
    for (name, near) in [("random", 0.0), ("near a row", 10.0)] {
        for others in [Others::Greatest(1), Others::Greatest(40)] {
            for tokens in [1, 8, 32] {
                let mut row = vec![0.0; COLS];
                let mut input = |token: usize| {
                    source.dequantize_row(token * 3001, &mut row);
                    row.iter().map(|w| gaussian() + near * w).collect::<Vec<f32>>()
                };
                let inputs: Vec<f32> = (0..tokens).flat_map(&mut input).collect();
                let bytes: Vec<u8> = inputs.iter().flat_map(|x| x.to_le_bytes()).collect();
                let table = DenseMatrix::new(tokens, COLS, DenseType::F32, bytes.into());
                let mut x = backend.activations();
                let ids: Vec<u32> = (0..tokens as u32).collect();
                backend.embed(&table.expect("whole rows"), &ids, &mut x);
                let wanted = Wanted::Some { always: Vec::new(), others };
                let rows: Vec<_> = (0..tokens).map(|token| (token, wanted.clone())).collect();
                let run = |head| {
                    let (mut scratch, mut out) = (backend.scratch(), Logits::default());
                    let (x, rows, norm) = (&x, &rows, &norm);
                    move || backend.logits(&mut scratch, x, rows, norm, head, &mut out)
                };
                let before = two_stage.record().expect("it is two-stage").counts();
                let [two, one] = alternate(15, &mut run(&two_stage), &mut run(&int8));
                let counts = two_stage.record().expect("it is two-stage").counts();
                let searched = counts.found + counts.given_up - before.found - before.given_up;
                println!(
                    "{:<12} {name}, {others:?}, N={tokens}: {:.2} ms, int8 {:.2} ms; rows {:.0}, given up {} of {searched}",
                    backend.isa().name(),
                    two / 1e6,
                    one / 1e6,
                    (counts.rows - before.rows) as f64 / searched as f64,
                    counts.given_up - before.given_up,
                );
            }
        }
    }
}

fn bench_file(backend: &CpuBackend, dtype: DenseType) {
    let name = format!("{dtype:?}");
    memory(backend, &name, dtype, HeadType::File);
    let small = upload(backend, weights(dtype, 640), HeadType::File);
    for tokens in [1, 4, 16] {
        let mut call = call(backend, std::slice::from_ref(&small), tokens);
        let work = alternate(20, &mut call, &mut || ())[0];
        let products = (640 * COLS * tokens) as f64;
        report(backend, &name, tokens, products / work, "GMAC/s", f64::NAN);
    }
}

/// One token, and a few, with a head in memory, cut into pieces so that turns are short enough to escape interruption.
fn memory(backend: &CpuBackend, name: &str, dtype: DenseType, form: HeadType) {
    const PIECE: usize = 2560;
    let stored = (PIECE * dtype.row_bytes(COLS).expect("whole blocks")) as u64;
    let bytes = form.bytes(PIECE, COLS, stored) as usize;
    let heads: Vec<_> =
        (0..ROWS / PIECE).map(|_| upload(backend, weights(dtype, PIECE), form)).collect();
    let words = vec![1_u64; heads.len() * bytes / 8];
    let mut pieces = words.chunks_exact(bytes / 8).cycle();
    for tokens in [1, 2, 4] {
        let mut call = call(backend, &heads, tokens);
        let mut probe = || read(pieces.next().expect("a cycle has no end"));
        let [work, probe] = alternate(200, &mut call, &mut probe);
        let name = format!("{name} memory");
        report(backend, &name, tokens, bytes as f64 / work, "GB/s", probe / work);
    }
}

fn report(backend: &CpuBackend, name: &str, tokens: usize, speed: f64, unit: &str, ratio: f64) {
    println!(
        "{:<12} {name:<12} N={tokens:<3} {speed:>8.1} {unit:<7} {ratio:>5.2} of probe",
        backend.isa().name()
    );
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

/// Computes the logits of some tokens with one head after the other.
fn call<'a>(backend: &'a CpuBackend, heads: &'a [CpuHead], tokens: usize) -> impl FnMut() + 'a {
    let table = DenseMatrix::new(64, COLS, DenseType::F32, vec![0x3d; 64 * COLS * 4].into());
    let mut x = backend.activations();
    backend.embed(&table.expect("whole rows"), &vec![1; tokens], &mut x);
    let norm = Norm { weight: vec![1.0; COLS], eps: 1e-5 };
    let (mut scratch, mut out) = (backend.scratch(), Logits::default());
    let rows: Vec<_> = (0..tokens).map(|token| (token, Wanted::All)).collect();
    let mut heads = heads.iter().cycle();
    move || {
        let head = heads.next().expect("a cycle has no end");
        backend.logits(&mut scratch, &x, &rows, &norm, head, &mut out);
        black_box(&out);
    }
}

/// Nanoseconds of a turn of the work and of its probe.
fn alternate(turns: usize, work: &mut dyn FnMut(), probe: &mut dyn FnMut()) -> [f64; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let timed = |times: &mut Vec<f64>, run: &mut dyn FnMut()| {
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
