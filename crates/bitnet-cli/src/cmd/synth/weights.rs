//! Random weights, made by all processors and handed out in order.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use bitnet_kernels::dense::DenseType;
use bitnet_kernels::ternary::{TernaryMatrix, WeightScale, words_per_row};
use bitnet_model::format::gguf::write::TensorType;
use bitnet_model::format::ternary::{i2s, tq};
use bitnet_model::quantize::blocks;

use super::plan::{Piece, Plan};

type Made = (usize, io::Result<Vec<u8>>);

/// Runs `consume` on all pieces of a plan in order, while other threads make the next ones.
pub fn in_order<T>(
    plan: &Plan,
    consume: impl FnOnce(&mut dyn Iterator<Item = io::Result<Vec<u8>>>) -> T,
) -> T {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let (sender, receiver) = sync_channel::<Made>(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let index = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(piece) = plan.pieces().get(index)
                {
                    if sender.send((index, make(piece, plan.seed, index))).is_err() {
                        return; // writing has failed
                    }
                }
            });
        }
        drop(sender);
        let mut pieces = Ordered { receiver, waiting: BTreeMap::new(), next: 0 };
        consume(&mut pieces) // then `pieces` goes, and with it the receiver, which ends the threads
    })
}

/// Pieces that come in any order, in order.
struct Ordered {
    receiver: Receiver<Made>,
    waiting: BTreeMap<usize, io::Result<Vec<u8>>>,
    next: usize,
}

impl Iterator for Ordered {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.waiting.contains_key(&self.next) {
            let (index, piece) = self.receiver.recv().ok()?;
            self.waiting.insert(index, piece);
        }
        let piece = self.waiting.remove(&self.next);
        self.next += 1;
        piece
    }
}

/// The bytes of a piece, which depend on the seed and its index alone.
fn make(piece: &Piece, seed: u64, index: usize) -> io::Result<Vec<u8>> {
    let mut random = Random::new(seed, index as u64);
    match piece.kind {
        TensorType::Dense(dtype) => {
            let values = match (piece.rows, dtype) {
                (1, DenseType::F32) => norm(piece.cols, &mut random),
                _ => table(piece, &mut random),
            };
            blocks::encode(dtype, &values)
                .ok_or_else(|| io::Error::other("not written in this type"))
        }
        TensorType::I2S => i2s::encode(&ternary(piece, &mut random), i2s::I2sLayout::Block128)
            .map_err(io::Error::other),
        TensorType::Tq2_0 => tq::encode_tq2(&ternary(piece, &mut random)).map_err(io::Error::other),
        TensorType::Tq1_0 => tq::encode_tq1(&ternary(piece, &mut random)).map_err(io::Error::other),
    }
}

/// Weights of a norm: one, give or take a tenth.
fn norm(len: usize, random: &mut Random) -> Vec<f32> {
    (0..len).map(|_| 0.9 + 0.2 * random.unit()).collect()
}

/// Rows of length one on average, so that logits of a normed row are about as spread as a real model's.
fn table(piece: &Piece, random: &mut Random) -> Vec<f32> {
    // A sum of four uniform values is normal enough; its variance is 4 / 12.
    let scale = (3.0 / piece.cols as f32).sqrt();
    let gaussian: Vec<f32> =
        (0..4096).map(|_| scale * ((0..4).map(|_| random.unit()).sum::<f32>() - 2.0)).collect();
    let mut values = Vec::with_capacity(piece.rows * piece.cols);
    while values.len() < piece.rows * piece.cols {
        let bits = random.next();
        let left = (piece.rows * piece.cols - values.len()).min(5);
        values.extend((0..left).map(|i| gaussian[(bits >> (12 * i)) as usize & 4095]));
    }
    values
}

/// About a third zeros. The scale gives outputs as large as inputs: 21 of 32 weights add a square each.
fn ternary(piece: &Piece, random: &mut Random) -> TernaryMatrix {
    let words = piece.rows * words_per_row(piece.cols);
    let mut codes = Vec::with_capacity(words + 1);
    while codes.len() < words {
        let (zero, sign) = (random.about_a_third(), random.next());
        for half in [0, 1] {
            let (zero, sign) = (zero >> half & EVEN, sign >> half & EVEN);
            let pair = zero | (sign & !zero) << 1; // 1: zero; 0 and 2: -1 and +1
            codes.extend([pair as u32, (pair >> 32) as u32]);
        }
    }
    codes.truncate(words);
    let scale = (1.5 / piece.cols as f32).sqrt();
    TernaryMatrix::new(piece.rows, piece.cols, codes, WeightScale::Tensor(scale))
        .expect("no code is 3 and there are as many as the shape needs")
}

const EVEN: u64 = 0x5555_5555_5555_5555;

/// SplitMix64 (Steele, Lea and Flood 2014), which is fast and plenty for weights.
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        Self(mix(mix(seed ^ 0x6269_746E_6574) ^ stream))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// From 0 to 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// 64 bits, each set with probability 21/64 = 0.010101 in binary: an `or` halves the way to 1, an `and` that to 0.
    fn about_a_third(&mut self) -> u64 {
        (0..3).fold(0, |bits, _| (bits | self.next()) & self.next())
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_a_third_of_the_weights_are_zero_and_signs_balance() {
        let piece = Piece { kind: TensorType::I2S, rows: 64, cols: 1000 };
        let matrix = ternary(&piece, &mut Random::new(7, 0));
        let mut counts = [0_usize; 3];
        for row in 0..64 {
            let codes =
                matrix.row(row).iter().flat_map(|&w| bitnet_kernels::ternary::codes_from_word(w));
            codes.take(1000).for_each(|code| counts[usize::from(code)] += 1);
        }
        let share = counts.map(|count| count as f64 / 64_000.0);
        assert!((share[1] - 21.0 / 64.0).abs() < 0.01, "{share:?}");
        assert!((share[0] - share[2]).abs() < 0.02, "{share:?}");
    }

    #[test]
    fn a_table_has_rows_of_length_one() {
        let piece = Piece { kind: TensorType::Dense(DenseType::F16), rows: 50, cols: 256 };
        let values = table(&piece, &mut Random::new(7, 0));
        let length = values.iter().map(|x| x * x).sum::<f32>() / 50.0;
        assert!((length - 1.0).abs() < 0.05, "{length}");
        assert_eq!(values.len(), 50 * 256);
    }

    #[test]
    fn pieces_come_in_order_whoever_makes_them() {
        let (sender, receiver) = sync_channel(8);
        for index in [2, 0, 3, 1] {
            sender.send((index, Ok(vec![index as u8]))).unwrap();
        }
        drop(sender);
        let ordered = Ordered { receiver, waiting: BTreeMap::new(), next: 0 };
        let found: Vec<u8> = ordered.flat_map(Result::unwrap).collect();
        assert_eq!(found, [0, 1, 2, 3]);
    }
}
