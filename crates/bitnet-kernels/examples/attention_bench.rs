//! How fast attention is with each type of keys and values, in the shape of BitNet b1.58 2B4T, beside what this machine could do.
//!
//! `cargo run --release -p bitnet-kernels --example attention_bench -- [THREADS [LEVEL [prompt|token|all [TYPE ...]]]]`
//!
//! Prompts are computed as an engine does, 512 tokens at a time, in one layer. A single token attends in as many layers as
//! exceed the processor's cache, one after the other, so keys and values come from memory. Of each measurement the median of
//! some turns counts; the probes run between them.

use std::error::Error;
use std::time::{Duration, Instant};

use bitnet_kernels::backend::{Backend, Span};
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::pool::ThreadPool;
use bitnet_kernels::cpu::probe::{Pages, ReadProbe, Walk, multiply_adds};
use bitnet_kernels::cpu::{CpuBackend, Matrix};
use bitnet_kernels::dense::{DenseMatrix, DenseType};
use bitnet_kernels::kv::{KvLayer, KvShape, KvType, PAGE};
use bitnet_kernels::scalar::kv::store_row;

const HEADS: usize = 20;
const KV_HEADS: usize = 5;
const DIM: usize = 128;
const LAYERS: f64 = 30.0;
const BATCH: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments.first().map_or(Ok(1), |count| count.parse())?;
    let isa = arguments.get(1).map_or(Ok(Isa::best()), |name| Isa::parse(name))?;
    let works = |work: &str| arguments.get(2).is_none_or(|name| name == work || name == "all");
    let types = match arguments.get(3..) {
        Some(names) if !names.is_empty() => {
            names.iter().map(|name| name.parse()).collect::<Result<Vec<KvType>, _>>()?
        }
        _ => KvType::ALL.to_vec(),
    };
    let bench = Bench { backend: CpuBackend::new(isa, threads)? };
    println!("{isa}, {threads} threads, all figures for 30 layers");
    println!("type      work            ms/token   GMAC/s  of int8 peak    GB/s  of read");
    for dtype in types {
        for tokens in [512, 4096].into_iter().filter(|_| works("prompt")) {
            bench.prompt(dtype, tokens)?;
        }
        if arguments.get(2).is_some_and(|name| name == "cached") {
            bench.token(dtype, 512, 0)?;
            bench.token(dtype, 4096, 0)?;
        }
        for positions in [128, 4096].into_iter().filter(|_| works("token")) {
            bench.token(dtype, positions, 192 << 20)?;
        }
    }
    Ok(())
}

struct Bench {
    backend: CpuBackend,
}

impl Bench {
    fn layer(&self, dtype: KvType, positions: usize) -> KvLayer {
        let shape =
            KvShape { pages: positions.div_ceil(PAGE), kv_heads: KV_HEADS, head_dim: DIM, dtype };
        let mut layer = self.backend.kv_layer(shape);
        for start in (0..positions).step_by(BATCH) {
            self.store(&mut layer, start, BATCH.min(positions - start));
        }
        layer
    }

    fn store(&self, layer: &mut KvLayer, start: usize, tokens: usize) {
        let [k, v] = [2, 3].map(|seed| self.floats(KV_HEADS, seed, tokens));
        let [k, v] = [k, v].map(|x| self.backend.download(&x));
        let rows = k.chunks(KV_HEADS * DIM).zip(v.chunks(KV_HEADS * DIM));
        rows.zip(start..).for_each(|((k, v), slot)| store_row(layer, slot, k, v));
    }

    /// Numbers in -2..2, `[tokens, heads · DIM]`.
    fn floats(&self, heads: usize, seed: u32, tokens: usize) -> Matrix {
        let value = |i: usize| {
            let bits = (i as u32 ^ seed << 24).wrapping_mul(0x9E37_79B1);
            ((bits ^ bits >> 15).wrapping_mul(0x85EB_CA77) >> 8) as f32 / (1 << 22) as f32 - 2.0
        };
        let bytes: Vec<u8> = (0..97 * heads * DIM).flat_map(|i| value(i).to_le_bytes()).collect();
        let table = DenseMatrix::new(97, heads * DIM, DenseType::F32, bytes.into());
        let mut out = self.backend.activations();
        let ids: Vec<u32> = (0..tokens as u32).map(|id| id % 97).collect();
        self.backend.embed(&table.expect("the shape is that of the bytes"), &ids, &mut out);
        out
    }

    fn prompt(&self, dtype: KvType, tokens: usize) -> Result<(), Box<dyn Error>> {
        let (layer, pages) = (self.layer(dtype, tokens), pages(tokens));
        let (q, mut out) = (self.floats(HEADS, 1, BATCH), self.backend.activations());
        let mut scratch = self.backend.scratch();
        let mut turns = Vec::new();
        let mut peaks = Vec::new();
        let pool = ThreadPool::new(self.backend.threads())?;
        for _ in 0..(8192 / tokens).max(3) {
            peaks.extend(multiply_adds(self.backend.isa(), &pool, Duration::from_millis(10)));
            turns.push(seconds(|| {
                for start in (0..tokens).step_by(BATCH) {
                    let spans = [Span { rows: 0..BATCH, start, pages: pages.clone() }];
                    self.backend.attention(&mut scratch, &q, &layer, &spans, &mut out);
                }
            }));
        }
        let time = LAYERS * median(turns) / tokens as f64;
        let work = LAYERS * (HEADS * DIM) as f64 * (tokens + 1) as f64 / time;
        println!(
            "{:9} prompt {tokens:5}   {:8.3} {:8.1} {:13.2}",
            dtype.name(),
            1e3 * time,
            work / 1e9,
            work / median(peaks),
        );
        Ok(())
    }

    fn token(&self, dtype: KvType, positions: usize, size: usize) -> Result<(), Box<dyn Error>> {
        let layer = self.layer(dtype, positions);
        let bytes = layer.shape().bytes_per_position() * positions;
        let layers = vec![layer; size / bytes + 1];
        let spans = [Span { rows: 0..1, start: positions - 1, pages: pages(positions) }];
        let (q, mut out) = (self.floats(HEADS, 1, 1), self.backend.activations());
        let (mut scratch, memory) =
            (self.backend.scratch(), ReadProbe::new(256 << 20, Pages::Huge)?);
        let (mut turns, mut reads, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
        let (isa, pool) = (self.backend.isa(), ThreadPool::new(self.backend.threads())?);
        for _ in 0..9 {
            reads.extend(memory.measure(&pool, Walk::ALL, Duration::from_millis(30)).rates);
            peaks.extend(multiply_adds(isa, &pool, Duration::from_millis(10)));
            if layers.len() == 1 {
                self.backend.attention(&mut scratch, &q, &layers[0], &spans, &mut out);
            }
            turns.push(seconds(|| {
                for layer in &layers {
                    self.backend.attention(&mut scratch, &q, layer, &spans, &mut out);
                }
            }));
        }
        let time = median(turns) / layers.len() as f64;
        let work = (2 * HEADS * DIM * positions) as f64 / time;
        let rate = bytes as f64 / time;
        println!(
            "{:9} token {positions:6}   {:8.3} {:8.1} {:13.2} {:8.1} {:8.2}",
            dtype.name(),
            1e3 * LAYERS * time,
            work / 1e9,
            work / median(peaks),
            rate / 1e9,
            rate / median(reads),
        );
        Ok(())
    }
}

fn pages(positions: usize) -> Vec<u32> {
    (0..positions.div_ceil(PAGE) as u32).collect()
}

fn seconds(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
