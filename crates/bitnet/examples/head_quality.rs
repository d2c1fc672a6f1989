//! What an int8 output head costs in quality, beside the head as the model file has it.
//!
//! `cargo run --release -p bitnet --example head_quality -- TEXT MODEL`
//!
//! Prints the perplexity of both on a text in windows of 512 tokens, the divergence of their predictions (KL, in nats), how
//! often they agree on the likeliest token, and the same for random rows, as wide as those of 2B4T and without a model.

#[path = "../../bitnet-kernels/examples/random/mod.rs"]
mod random;

use bitnet::{BitNetModel, HeadType, ModelConfig};
use bitnet_kernels::backend::{Backend, Norm};
use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::dense::{DenseMatrix, DenseType};
use bitnet_kernels::logits::{Logits, Wanted};
use random::{gaussian, half_bits};

const WINDOW: usize = 512;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let text = std::fs::read_to_string(args.next().ok_or("give a file with text")?)?;
    of_model(&text, &args.next().ok_or("give a model as well")?)?;
    of_random_rows();
    Ok(())
}

fn of_model(text: &str, path: &str) -> Result<(), Box<dyn std::error::Error>> {
    let load = |head| {
        let config = ModelConfig { head, ..Default::default() };
        BitNetModel::from_pretrained(path).with_config(config).load()
    };
    let (file, int8) = (load(HeadType::File)?, load(HeadType::Int8)?);
    let ids = file.encode(&text.into())?;
    let mut sums = Sums::default();
    for ids in ids.chunks_exact(WINDOW) {
        let (p, q) = (file.logits(ids)?, int8.logits(ids)?);
        for (token, &next) in ids[1..].iter().enumerate() {
            sums.add(p.row(token), q.row(token), next as usize);
        }
    }
    println!("{}, {} tokens in windows of {WINDOW}:", file.info().name, sums.count);
    sums.print();
    let n = sums.count as f64;
    let (p, q) = ((sums.nll[0] / n).exp(), (sums.nll[1] / n).exp());
    println!("  perplexity: file {p:.5}, int8 {q:.5} ({:+.5})", q - p);
    Ok(())
}

/// 32000 Gaussian rows of 2560 in f16 whose logits have a standard deviation of 3, and 64 Gaussian inputs.
fn of_random_rows() {
    const SHAPE: (usize, usize, usize) = (32_000, 2560, 64);
    let (rows, cols, tokens) = SHAPE;
    let mut gaussian = gaussian();
    let scale = 3.0 / (cols as f32).sqrt();
    let bytes: Vec<u8> =
        (0..rows * cols).flat_map(|_| half_bits(gaussian() * scale).to_le_bytes()).collect();
    let weights = DenseMatrix::new(rows, cols, DenseType::F16, bytes.into()).expect("whole rows");
    let inputs = (0..tokens * cols).flat_map(|_| gaussian().to_le_bytes()).collect::<Vec<_>>();
    let inputs = DenseMatrix::new(tokens, cols, DenseType::F32, inputs.into()).expect("whole rows");
    let backend = CpuBackend::new(Isa::best(), 1).expect("one thread needs no other");
    let (mut x, norm) = (backend.activations(), Norm { weight: vec![1.0; cols], eps: 1e-5 });
    backend.embed(&inputs, &(0..tokens as u32).collect::<Vec<_>>(), &mut x);
    let positions: Vec<_> = (0..tokens).map(|token| (token, Wanted::All)).collect();
    let [p, q] = [HeadType::File, HeadType::Int8].map(|form| {
        let head = backend.upload_head(weights.clone(), form, &|_| {}).expect("finite weights");
        let mut out = Logits::default();
        backend.logits(&mut backend.scratch(), &x, &positions, &norm, &head, &mut out);
        out.whole().to_vec()
    });
    let mut sums = Sums::default();
    for (p, q) in p.chunks(rows).zip(q.chunks(rows)) {
        sums.add(p, q, 0);
    }
    println!("{tokens} random inputs, {rows} random rows of {cols}:");
    sums.print();
}

/// What is added up over positions; `p` is the file's head and `q` the int8 one.
#[derive(Default)]
struct Sums {
    count: usize,
    agree: usize,
    divergence: f64,
    worst: f64,
    /// Squared differences of logits, and squared deviations of logits from their mean.
    squares: [f64; 2],
    nll: [f64; 2],
}

impl Sums {
    fn add(&mut self, p: &[f32], q: &[f32], next: usize) {
        let best = |x: &[f32]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b]));
        let mean = p.iter().map(|&x| f64::from(x)).sum::<f64>() / p.len() as f64;
        let mean_square = |squares: f64| squares / p.len() as f64;
        let off = p.iter().zip(q).map(|(p, q)| f64::from(p - q).powi(2)).sum();
        let spread = p.iter().map(|&p| (f64::from(p) - mean).powi(2)).sum();
        self.squares[0] += mean_square(off);
        self.squares[1] += mean_square(spread);
        self.count += 1;
        self.agree += usize::from(best(p) == best(q));
        let (p, q) = (log_probabilities(p), log_probabilities(q));
        let divergence = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        self.divergence += divergence;
        self.worst = self.worst.max(divergence);
        self.nll[0] -= p[next];
        self.nll[1] -= q[next];
    }

    fn print(&self) {
        let n = self.count as f64;
        let [off, spread] = self.squares.map(|squares| (squares / n).sqrt());
        println!("  logits: standard deviation {spread:.3}, differ by {off:.4} (root mean square)");
        println!("  divergence: mean {:.2e}, largest {:.2e}", self.divergence / n, self.worst);
        println!("  same likeliest token: {:.3} %", 100.0 * self.agree as f64 / n);
    }
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}
