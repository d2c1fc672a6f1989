//! How fast the integer products of each tier are, beside what this machine could do at best.
//!
//! `cargo run --release -p bitnet-kernels --example kernel_bench -- [LEVEL ...]`
//!
//! One thread. Clocks and memory drift, so every measurement alternates with its probe, and what counts is the ratio:
//! one-token products against a plain read of as many bytes, many-token ones against the tier's multiply-add peak.

use std::hint::black_box;
use std::time::Instant;

use bitnet_kernels::activation::QuantizedRows;
use bitnet_kernels::cpu::isa::{Isa, IsaError};
use bitnet_kernels::cpu::packed::PackedTernary;
use bitnet_kernels::ternary::{TernaryMatrix, WeightScale, words_per_row};

const COLS: usize = 2560;

/// Turns that a measurement and its probe take.
const TURNS: usize = 15;

fn main() -> Result<(), IsaError> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let isas: Vec<Isa> = match &names[..] {
        [] => Isa::available().to_vec(),
        names => names.iter().map(|name| Isa::parse(name)).collect::<Result<_, _>>()?,
    };
    println!("packing {:.1} GB/s", pack_speed());
    let (cached, streamed) = (weights(640), weights(204_800));
    let square = weights(2560);
    println!(
        "{:<12} {:>10} {:>9} {:>9} {:>8} {:>9}",
        "tier", "work", "GB/s", "GMAC/s", "ratio", "probe"
    );
    for isa in isas {
        one_token(isa, "L2", &cached);
        one_token(isa, "memory", &streamed);
        for tokens in [1, 2, 3, 4, 6, 8, 12, 48, 480] {
            many_tokens(isa, &square, tokens);
        }
    }
    Ok(())
}

/// A matrix of 2560 columns with all weights in it.
fn weights(rows: usize) -> PackedTernary {
    PackedTernary::pack(&neutral(rows))
}

fn neutral(rows: usize) -> TernaryMatrix {
    let word = |i: usize| {
        let bits = (i as u32).wrapping_mul(0x9E37_79B1);
        let ones = bits & 0x5555_5555;
        ones | bits.rotate_left(7) & 0xAAAA_AAAA & !(ones << 1)
    };
    let words = (0..rows * words_per_row(COLS)).map(word).collect();
    TernaryMatrix::new(rows, COLS, words, WeightScale::Tensor(1.0)).expect("no code is 3")
}

fn activations(tokens: usize) -> QuantizedRows {
    let values: Vec<i8> =
        (0..tokens * COLS).map(|i| (i * 37 % 255) as u8 as i8).map(|q| q.max(-127)).collect();
    QuantizedRows::from_values(tokens, COLS, &values, vec![1.0; tokens])
}

fn pack_speed() -> f64 {
    let matrix = neutral(25_600);
    let seconds = (0..5).map(|_| seconds(1, || drop(black_box(PackedTernary::pack(&matrix)))));
    (matrix.rows() * COLS / 4) as f64 / seconds.fold(f64::INFINITY, f64::min) / 1e9
}

fn one_token(isa: Isa, place: &str, w: &PackedTernary) {
    let (x, mut out) = (activations(1), vec![0; w.rows()]);
    let words = vec![1_u64; w.bytes() / 8];
    let repeat = (32 << 20) / w.bytes() + 1;
    let kernel = || product(isa, w, &x, &mut out);
    let (kernel, probe, ratio) = alternate(repeat, kernel, || read(&words));
    let bytes = w.bytes() as f64;
    report(
        isa,
        place,
        bytes / kernel,
        4.0 * bytes / kernel,
        ratio,
        &format!("{:.1} GB/s", bytes / probe),
    );
}

fn many_tokens(isa: Isa, w: &PackedTernary, tokens: usize) {
    let (x, mut out) = (activations(tokens), vec![0; tokens * w.rows()]);
    let products = w.rows() * COLS * tokens;
    let per_round = isa.spin(1);
    let repeat = 100_000_000 / products + 1;
    let kernel = || product(isa, w, &x, &mut out);
    let spin = || _ = black_box(isa.spin(products / per_round));
    let (kernel, probe, ratio) = alternate(repeat, kernel, spin);
    let products = products as f64;
    let bytes = w.bytes() as f64;
    report(
        isa,
        &format!("N={tokens}"),
        bytes / kernel,
        products / kernel,
        ratio,
        &format!("{:.0} GMAC/s", products / probe),
    );
}

fn product(isa: Isa, w: &PackedTernary, x: &QuantizedRows, out: &mut [i32]) {
    isa.ternary_product(w, 0..w.panels(), 0..w.blocks_per_panel(), x, 0..x.rows(), out);
    black_box(out);
}

fn report(isa: Isa, work: &str, bytes: f64, products: f64, ratio: f64, probe: &str) {
    println!("{:<12} {work:>10} {bytes:>9.1} {products:>9.1} {ratio:>8.2} {probe:>12}", isa.name());
}

/// Reads all words.
#[inline(never)]
fn read(words: &[u64]) {
    let mut sums = [0_u64; 16];
    for words in black_box(words).as_chunks::<16>().0 {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum ^= word;
        }
    }
    black_box(sums);
}

/// Best nanoseconds of the work and of its probe, and the median over turns of probe time by work time.
fn alternate(repeat: usize, mut work: impl FnMut(), mut probe: impl FnMut()) -> (f64, f64, f64) {
    let (mut best, mut best_probe, mut ratios) = (f64::INFINITY, f64::INFINITY, Vec::new());
    for _ in 0..TURNS {
        let before = seconds(repeat, &mut probe);
        let working = seconds(repeat, &mut work);
        let after = seconds(repeat, &mut probe);
        ratios.push((before + after) / 2.0 / working);
        best = best.min(working);
        best_probe = best_probe.min(before).min(after);
    }
    ratios.sort_by(f64::total_cmp);
    (best * 1e9, best_probe * 1e9, ratios[TURNS / 2])
}

fn seconds(repeat: usize, mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..repeat).for_each(|_| work());
    start.elapsed().as_secs_f64() / repeat as f64
}
