//! Attention as a whole against its definition, and against itself however the work is cut.

use half::{bf16, f16};

use super::*;
use crate::backend::Backend;
use crate::cpu::pool::ThreadPool;
use crate::kv::KvShape;
use crate::scalar::attention::{QUERY_MAX, WEIGHT_MAX};
use crate::scalar::kv::store_row;

/// A sequence in pages that lie in no order, with the numbers that belong to it.
struct Sequence {
    shape: KvShape,
    /// Queries for each key-value head.
    each: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Deterministic floats in -1..1.
fn floats(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

impl Sequence {
    fn new(dtype: KvType, head_dim: usize, each: usize, len: usize) -> Self {
        let shape = KvShape { pages: len.div_ceil(PAGE) + 2, kv_heads: 2, head_dim, dtype };
        let width = 2 * head_dim;
        let q = floats(1, len * each * width).iter().map(|x| 3.0 * x).collect();
        Self { shape, each, q, k: floats(2, len * width), v: floats(3, len * width) }
    }

    fn len(&self) -> usize {
        self.v.len() / self.width()
    }

    fn width(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    /// Page `i` of the sequence.
    fn page(&self, i: usize) -> u32 {
        (self.shape.pages - 1 - (i ^ 1) % self.shape.pages.max(2)) as u32
    }

    /// Feeds the sequence in pieces that end where `splits` say.
    fn run(&self, backend: &CpuBackend, splits: &[usize]) -> Vec<f32> {
        let mut kv = backend.kv_layer(self.shape);
        let (mut scratch, mut out) = (backend.scratch(), Matrix::default());
        let pages: Vec<u32> = (0..self.len().div_ceil(PAGE)).map(|i| self.page(i)).collect();
        let (mut all, mut start) = (Vec::new(), 0);
        for &end in splits.iter().chain([&self.len()]) {
            let rows = |x: &[f32], width: usize| Matrix {
                cols: width,
                data: x[start * width..end * width].to_vec(),
            };
            let slot =
                |position: usize| pages[position / PAGE] * PAGE as u32 + (position % PAGE) as u32;
            let slots: Vec<u32> = (start..end).map(slot).collect();
            let q = rows(&self.q, self.each * self.width());
            let (k, v) = (rows(&self.k, self.width()), rows(&self.v, self.width()));
            for (row, &slot) in slots.iter().enumerate() {
                store_row(&mut kv, slot as usize, k.row(row), v.row(row));
            }
            let spans = [Span { rows: 0..end - start, start, pages: pages.clone() }];
            backend.attention(&mut scratch, &q, &kv, &spans, &mut out);
            all.extend_from_slice(&out.data);
            start = end;
        }
        all
    }

    /// What a token gets by definition, in f64, from keys and values as they are stored.
    fn exact(&self, position: usize) -> Vec<f64> {
        let (dim, width) = (self.shape.head_dim, self.width());
        let head_of = |x: &[f32], at: usize, head: usize| {
            stored(self.shape.dtype, &x[at * width + head * dim..][..dim])
        };
        let mut out = Vec::new();
        for (head, queries) in self.q[position * self.each * width..][..self.each * width]
            .chunks(self.each * dim)
            .enumerate()
        {
            let keys: Vec<_> = (0..=position).map(|at| head_of(&self.k, at, head)).collect();
            let values: Vec<_> = (0..=position).map(|at| head_of(&self.v, at, head)).collect();
            for q in queries.chunks(dim) {
                let score = |k: &Vec<f64>| {
                    q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum::<f64>()
                        / (dim as f64).sqrt()
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..dim).map(|i| {
                    values.iter().zip(&weights).map(|(v, w)| v[i] * w / total).sum::<f64>()
                }));
            }
        }
        out
    }

    #[track_caller]
    fn check(&self, backend: &CpuBackend, positions: &[usize], tolerance: f64) {
        let (found, width) = (self.run(backend, &[]), self.each * self.width());
        for &position in positions {
            let exact = self.exact(position);
            for (found, exact) in found[position * width..].iter().zip(exact) {
                assert!(
                    (f64::from(*found) - exact).abs() <= tolerance,
                    "{:?} at {position} on {}: {found}, not {exact}",
                    self.shape,
                    backend.isa()
                );
            }
        }
    }
}

/// A head's key or value as it is stored.
fn stored(dtype: KvType, x: &[f32]) -> Vec<f64> {
    let absmax = x.iter().fold(1e-5_f32, |max, x| max.max(x.abs()));
    let fp8: Vec<f32> = (0..448)
        .map(|i| {
            let exponent = i / 8 % 16;
            let mantissa = (i % 8) as f32 / 8.0;
            if exponent == 0 { mantissa / 64.0 } else { (1.0 + mantissa) * 2f32.powi(exponent - 7) }
        })
        .filter(|&x| x <= 448.0)
        .collect();
    let store = |&x: &f32| match dtype {
        KvType::F32 => x,
        KvType::F16 => f16::from_f32(x).to_f32(),
        KvType::Bf16 => bf16::from_f32(x).to_f32(),
        KvType::Int8 => (x * (127.0 / absmax)).round_ties_even() / (127.0 / absmax),
        KvType::Fp8E4m3 => {
            let scaled = (x * (448.0 / absmax)).abs();
            let distance = |y: &&f32| (**y - scaled).abs();
            let nearest = fp8.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap();
            nearest.copysign(x) / (448.0 / absmax)
        }
    };
    x.iter().map(|x| f64::from(store(x))).collect()
}

fn scalar() -> CpuBackend {
    CpuBackend::new(Isa::Scalar, 1).unwrap()
}

/// How far a result may be from the definition with keys and values as stored, which are below 1: rounding of f32 sums; for
/// int8 also that of queries and weights to 16 bits.
fn tolerance(dtype: KvType) -> f64 {
    if dtype == KvType::Int8 { 4e-5 } else { 4e-6 }
}

#[test]
fn attention_is_its_definition_for_every_type_and_shape() {
    for dtype in KvType::ALL {
        for (dim, each) in [(20, 1), (64, 4), (96, 3), (100, 2), (128, 4), (128, 9)] {
            let sequence = Sequence::new(dtype, dim, each, 300);
            let positions = [0, 1, 15, 16, 63, 64, 255, 256, 299];
            sequence.check(&scalar(), &positions, tolerance(dtype));
        }
    }
}

#[test]
fn every_tier_and_thread_count_gives_the_same_bits() {
    for dtype in KvType::ALL {
        for (dim, each, len) in [(128, 4, 530), (100, 3, 257), (20, 1, 300), (64, 2, 16)] {
            let sequence = Sequence::new(dtype, dim, each, len);
            let expected = sequence.run(&scalar(), &[]);
            for &isa in Isa::available() {
                for threads in 1..=3 {
                    let backend = CpuBackend::with_pool(isa, ThreadPool::new(threads).unwrap());
                    let same = sequence.run(&backend, &[len - 1]) == expected;
                    assert!(same, "{:?} on {isa} with {threads} threads", sequence.shape);
                }
            }
        }
    }
}

#[test]
fn a_prompt_split_anywhere_gives_the_same_bits() {
    for dtype in KvType::ALL {
        let sequence = Sequence::new(dtype, 64, 3, 530);
        let backend = CpuBackend::new(Isa::best(), 2).unwrap();
        let expected = sequence.run(&backend, &[]);
        for split in [1, 15, 16, 17, 31, 33, 64, 255, 256, 257, 512, 513] {
            assert!(sequence.run(&backend, &[split]) == expected, "{dtype} split at {split}");
        }
        let all: Vec<usize> = (1..530).collect();
        assert!(sequence.run(&backend, &all) == expected, "{dtype} token by token");
    }
}

#[test]
fn extreme_numbers_stay_within_the_values() {
    type Change = fn(&mut Sequence);
    let changes: [(&str, Change); 5] = [
        ("zeros", |s| [&mut s.q, &mut s.k, &mut s.v].into_iter().for_each(|x| x.fill(0.0))),
        ("all equal", |s| [&mut s.q, &mut s.k, &mut s.v].into_iter().for_each(|x| x.fill(1.0))),
        ("huge scores", |s| s.q.iter_mut().for_each(|x| *x *= 1e6)),
        ("tiny numbers", |s| s.k.iter_mut().chain(&mut s.v).for_each(|x| *x *= 1e-9)),
        ("huge keys", |s| s.k.iter_mut().for_each(|x| *x *= 6e4)),
    ];
    for dtype in KvType::ALL {
        for (name, change) in changes {
            let mut sequence = Sequence::new(dtype, 64, 4, 300);
            change(&mut sequence);
            let expected = sequence.run(&scalar(), &[]);
            let bound = sequence.v.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            let fits = |x: &f32| x.abs() <= bound * 1.001 + 1e-7;
            assert!(expected.iter().all(fits), "{dtype}, {name}");
            for &isa in Isa::available() {
                let backend = CpuBackend::new(isa, 2).unwrap();
                assert!(sequence.run(&backend, &[]) == expected, "{dtype}, {name} on {isa}");
            }
        }
    }
}

#[test]
fn a_token_that_takes_most_of_the_attention_leaves_the_others_theirs() {
    for dtype in KvType::ALL {
        let mut sequence = Sequence::new(dtype, 64, 1, 200);
        sequence.q.iter_mut().for_each(|x| *x *= 0.1);
        // All queries like the first key, with a weight of some e^8 times the others', and its value is zero.
        for head in 0..2 {
            for row in 0..200 {
                sequence.q[row * 128 + head * 64] = 8.0;
            }
            sequence.k[head * 64] = 8.0;
            sequence.v[head * 64..][..64].fill(0.0);
        }
        sequence.check(&scalar(), &[150, 199], tolerance(dtype));
    }
}

#[test]
fn a_batch_of_many_sequences_is_each_of_them_alone() {
    let (dim, each) = (64, 4);
    for dtype in [KvType::F16, KvType::Int8] {
        let lens = [1, 40, 300, 2];
        let shape = KvShape { pages: 10, kv_heads: 2, head_dim: dim, dtype };
        for threads in 1..=3 {
            let backend = CpuBackend::with_pool(Isa::best(), ThreadPool::new(threads).unwrap());
            let mut kv = backend.kv_layer(shape);
            let (mut spans, mut first_page, mut row) = (Vec::new(), 0, 0);
            let (mut q, mut expected) = (Vec::new(), Vec::new());
            for (seed, len) in (1..).zip(lens) {
                let sequence = Sequence::new(dtype, dim, each, len);
                let mut own = sequence;
                own.v = floats(100 + seed, own.v.len());
                let pages: Vec<u32> =
                    (first_page..first_page + len.div_ceil(PAGE) as u32).collect();
                first_page += pages.len() as u32;
                let rows = own.k.chunks(own.width()).zip(own.v.chunks(own.width()));
                for (i, (k, v)) in rows.enumerate() {
                    store_row(&mut kv, pages[i / PAGE] as usize * PAGE + i % PAGE, k, v);
                }
                // All but the last sequence bring their last token only.
                let tokens = if len == 2 { 2 } else { 1 };
                let width = each * own.width();
                q.extend_from_slice(&own.q[(len - tokens) * width..]);
                expected.extend_from_slice(&own.run(&scalar(), &[])[(len - tokens) * width..]);
                spans.push(Span { rows: row..row + tokens, start: len - tokens, pages });
                row += tokens;
            }
            let q = Matrix { cols: each * 2 * dim, data: q };
            let mut out = Matrix::default();
            backend.attention(&mut backend.scratch(), &q, &kv, &spans, &mut out);
            assert!(out.data == expected, "{dtype} with {threads} threads");
        }
    }
}

#[test]
fn integers_have_the_bits_that_their_products_are_promised() {
    const { assert!((QUERY_MAX + 128) >> 8 == 127 && (-QUERY_MAX + 128) >> 8 >= -128) };
    const { assert!(WEIGHT_MAX >> 8 == 127) };
}

/// The greatest score is in the second of three chunks, so that sums are made smaller by one fold and not by the next.
#[test]
fn the_greatest_score_may_be_in_any_chunk() {
    for dtype in [KvType::F32, KvType::Int8] {
        for at in [100, CHUNK + 100, 2 * CHUNK + 100] {
            let mut sequence = Sequence::new(dtype, 64, 2, 3 * CHUNK);
            sequence.q.iter_mut().for_each(|x| *x = 0.2 * *x + 0.25);
            for head in 0..2 {
                sequence.k[at * 128 + head * 64..][..64].fill(1.0);
            }
            sequence.check(&scalar(), &[2 * CHUNK - 1, 2 * CHUNK, 3 * CHUNK - 1], tolerance(dtype));
        }
    }
}

/// Scores of such a head would need more than 32 bits if its queries were rounded as those of shorter ones are.
#[test]
fn long_heads_have_the_scores_that_they_should() {
    let mut sequence = Sequence::new(KvType::Int8, 640, 1, 40);
    sequence.q.fill(1.0);
    for (at, k) in sequence.k.chunks_mut(2 * 640).enumerate() {
        k.fill(if at % 3 == 0 { 1.0 } else { -1.0 });
    }
    sequence.check(&scalar(), &[7, 39], tolerance(KvType::Int8));
}
