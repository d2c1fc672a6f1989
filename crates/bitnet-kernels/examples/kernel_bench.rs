//! How fast the integer products of each tier are, in both packings, beside what this machine could do at best.
//!
//! `cargo run --release -p bitnet-kernels --example kernel_bench -- [LEVEL | PACKING | N=TOKENS ...]`
//!
//! One thread. Clocks and memory drift and other programs interrupt, so each measurement is many short turns that
//! alternate with a probe's, and what counts is the ratio of their lower quartiles: one-token products against a plain
//! read of as many bytes, many-token ones against the tier's multiply-add peak.

use std::error::Error;
use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use bitnet_kernels::activation::QuantizedRows;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::packed::{PackedTernary, Packing};
use bitnet_kernels::cpu::probe::read;
use bitnet_kernels::ternary::{TernaryMatrix, WeightScale, words_per_row};

const COLS: usize = 2560;

/// Turns of a measurement and of its probe, each about half a millisecond: short enough to often escape interruption.
const TURNS: usize = 400;

/// What to measure.
#[derive(Default)]
struct Choice {
    isas: Vec<Isa>,
    packings: Vec<Packing>,
    tokens: Vec<usize>,
}

impl Choice {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut choice = Self::default();
        for argument in arguments {
            match (argument.strip_prefix("N="), argument.parse()) {
                (Some(tokens), _) => choice.tokens.push(tokens.parse()?),
                (None, Ok(packing)) => choice.packings.push(packing),
                (None, Err(_)) => choice.isas.push(Isa::parse(&argument)?),
            }
        }
        if choice.isas.is_empty() {
            choice.isas = Isa::available().to_vec();
        }
        if choice.packings.is_empty() {
            choice.packings = Packing::ALL.to_vec();
        }
        if choice.tokens.is_empty() {
            choice.tokens = (1..=16).chain([32, 64, 480]).collect();
        }
        Ok(choice)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let choice = Choice::parse(std::env::args().skip(1))?;
    for packing in choice.packings {
        println!("packing as {packing}: {:.1} GB/s of codes", pack_speed(packing));
        let (square, streamed) = (weights(2560, packing), weights(409_600, packing));
        let words = vec![1_u64; streamed.bytes() / 8];
        println!("tier         packing     work        GB/s    GMAC/s  of probe");
        for &isa in &choice.isas {
            if choice.tokens.contains(&1) {
                one_token(isa, "L2", &square, 40, &words);
                one_token(isa, "memory", &streamed, 800, &words);
            }
            for &tokens in &choice.tokens {
                many_tokens(isa, "L2", &square, tokens);
                many_tokens(isa, "memory", &streamed, tokens);
            }
        }
    }
    Ok(())
}

/// A matrix of 2560 columns with all weights in it.
fn weights(rows: usize, packing: Packing) -> PackedTernary {
    PackedTernary::pack_as(packing, &neutral(rows))
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

fn pack_speed(packing: Packing) -> f64 {
    let matrix = neutral(25_600);
    let best = (0..9).map(|_| {
        let start = Instant::now();
        black_box(PackedTernary::pack_as(packing, &matrix));
        start.elapsed().as_secs_f64()
    });
    (matrix.rows() * COLS / 4) as f64 / best.fold(f64::INFINITY, f64::min) / 1e9
}

/// Walks through the matrix in windows of `panels`. A small one stays in the cache, a large one never does.
fn one_token(isa: Isa, place: &str, w: &PackedTernary, panels: usize, words: &[u64]) {
    let (x, mut out) = (activations(1), vec![0; 16 * panels]);
    let panel_bytes = w.bytes() / w.panels();
    let windows = if place == "memory" { w.panels() / panels } else { 1 };
    let repeat = 800 / panels;
    let window_words = panels * panel_bytes / 8;
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
    let bytes = (repeat * panels * panel_bytes) as f64;
    let weights = bytes * w.packing().weights_per_byte() as f64;
    report(isa, w.packing(), place, bytes / kernel, weights / kernel);
    println!("{:>10.2} of {:.1} GB/s", probe / kernel, bytes / probe);
}

fn many_tokens(isa: Isa, place: &str, w: &PackedTernary, tokens: usize) {
    let panels = (160 * 48 / tokens).clamp(16, 160);
    let windows = if place == "memory" { w.panels() / panels } else { 1 };
    let (x, mut out) = (activations(tokens), vec![0; tokens * panels * 16]);
    let products = panels * 16 * COLS * tokens;
    let repeat = 60_000_000 / products + 1;
    let rounds = repeat * products / isa.spin(1);
    let [kernel, probe] = alternate(
        |turn| {
            for i in 0..repeat {
                let first = (turn * repeat + i) % windows * panels;
                product(isa, w, first..first + panels, &x, &mut out);
            }
        },
        |_| _ = black_box(isa.spin(rounds)),
    );
    let products = (repeat * products) as f64;
    let bytes = (repeat * panels * (w.bytes() / w.panels())) as f64;
    let place = format!("{place} {tokens}");
    report(isa, w.packing(), &place, bytes / kernel, products / kernel);
    println!("{:>10.2} of {:.0} GMAC/s", probe / kernel, products / probe);
}

fn product(isa: Isa, w: &PackedTernary, panels: Range<usize>, x: &QuantizedRows, out: &mut [i32]) {
    isa.ternary_product(w, panels, 0..w.blocks_per_panel(), x, 0..x.rows(), out);
    black_box(out);
}

fn report(isa: Isa, packing: Packing, work: &str, bandwidth: f64, speed: f64) {
    print!("{:<12} {packing:>7} {work:>10} {bandwidth:>9.1} {speed:>9.1}", isa.name());
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
