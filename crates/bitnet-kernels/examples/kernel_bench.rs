//! How fast the integer products of each tier are, beside what this machine could do at best.
//!
//! `cargo run --release -p bitnet-kernels --example kernel_bench -- [LEVEL ...]`
//!
//! One thread. Clocks and memory drift and other programs interrupt, so each measurement is many short turns that
//! alternate with a probe's, and what counts is the ratio of their lower quartiles: one-token products against a plain
//! read of as many bytes, many-token ones against the tier's multiply-add peak.

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use bitnet_kernels::activation::QuantizedRows;
use bitnet_kernels::cpu::isa::{Isa, IsaError};
use bitnet_kernels::cpu::packed::PackedTernary;
use bitnet_kernels::cpu::probe::read;
use bitnet_kernels::ternary::{TernaryMatrix, WeightScale, words_per_row};

const COLS: usize = 2560;
const PANEL_BYTES: usize = 16 * COLS / 4;

/// Turns of a measurement and of its probe, each about half a millisecond: short enough to often escape interruption.
const TURNS: usize = 400;

fn main() -> Result<(), IsaError> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let isas: Vec<Isa> = match &names[..] {
        [] => Isa::available().to_vec(),
        names => names.iter().map(|name| Isa::parse(name)).collect::<Result<_, _>>()?,
    };
    println!("packing {:.1} GB/s", pack_speed());
    let (square, streamed) = (weights(2560), weights(409_600));
    let words = vec![1_u64; streamed.bytes() / 8];
    println!("tier             work      GB/s    GMAC/s  of probe");
    for isa in isas {
        one_token(isa, "L2", &square, 40, &words);
        one_token(isa, "memory", &streamed, 800, &words);
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
    let value = |i: usize| (i * 37 % 255) as i16 - 127;
    let values: Vec<i8> = (0..tokens * COLS).map(|i| value(i) as i8).collect();
    QuantizedRows::from_values(tokens, COLS, &values, vec![1.0; tokens])
}

fn pack_speed() -> f64 {
    let matrix = neutral(25_600);
    let best = (0..9).map(|_| {
        let start = Instant::now();
        black_box(PackedTernary::pack(&matrix));
        start.elapsed().as_secs_f64()
    });
    (matrix.rows() * COLS / 4) as f64 / best.fold(f64::INFINITY, f64::min) / 1e9
}

/// Walks through the matrix in windows of `panels`. A small one stays in the cache, a large one never does.
fn one_token(isa: Isa, place: &str, w: &PackedTernary, panels: usize, words: &[u64]) {
    let (x, mut out) = (activations(1), vec![0; 16 * panels]);
    let windows = if place == "memory" { w.panels() / panels } else { 1 };
    let repeat = 800 / panels;
    let window_words = panels * PANEL_BYTES / 8;
    let [kernel, probe] = alternate(
        |turn| {
            let first = turn % windows * panels;
            (0..repeat).for_each(|_| product(isa, w, first..first + panels, &x, &mut out));
        },
        |turn| {
            let window = &words[turn % windows * window_words..][..window_words];
            (0..repeat).for_each(|_| read(window));
        },
    );
    let bytes = (repeat * panels * PANEL_BYTES) as f64;
    report(isa, place, bytes, 4.0 * bytes, kernel);
    println!("{:>10.2} of {:.1} GB/s", probe / kernel, bytes / probe);
}

fn many_tokens(isa: Isa, w: &PackedTernary, tokens: usize) {
    let panels = w.panels().min(w.panels() * 48 / tokens).max(16);
    let (x, mut out) = (activations(tokens), vec![0; tokens * panels * 16]);
    let products = panels * 16 * COLS * tokens;
    let repeat = 60_000_000 / products + 1;
    let rounds = repeat * products / isa.spin(1);
    let [kernel, probe] = alternate(
        |_| (0..repeat).for_each(|_| product(isa, w, 0..panels, &x, &mut out)),
        |_| _ = black_box(isa.spin(rounds)),
    );
    let products = (repeat * products) as f64;
    report(isa, &format!("N={tokens}"), products / tokens as f64 / 4.0, products, kernel);
    println!("{:>10.2} of {:.0} GMAC/s", probe / kernel, products / probe);
}

fn product(isa: Isa, w: &PackedTernary, panels: Range<usize>, x: &QuantizedRows, out: &mut [i32]) {
    isa.ternary_product(w, panels, 0..w.blocks_per_panel(), x, 0..x.rows(), out);
    black_box(out);
}

fn report(isa: Isa, work: &str, bytes: f64, products: f64, nanoseconds: f64) {
    let (bandwidth, speed) = (bytes / nanoseconds, products / nanoseconds);
    print!("{:<12} {work:>8} {bandwidth:>9.1} {speed:>9.1}", isa.name());
}

/// Nanoseconds of a turn of the work and of its probe.
fn alternate(mut work: impl FnMut(usize), mut probe: impl FnMut(usize)) -> [f64; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let timed = |times: &mut Vec<f64>, run: &mut dyn FnMut(usize), turn| {
        let start = Instant::now();
        run(turn);
        times.push(start.elapsed().as_nanos() as f64);
    };
    for turn in 0..TURNS {
        timed(&mut times[0], &mut work, turn);
        timed(&mut times[1], &mut probe, turn);
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[TURNS / 4]
    })
}
