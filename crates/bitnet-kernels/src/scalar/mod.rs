//! Plain Rust definitions of every operation, and the oracle of all tests.
//!
//! Float operations here are also what runs: `cpu` compiles these same functions once per instruction set. They never fuse
//! a multiplication with an addition and sum in a fixed arrangement of [`LANES`] partial sums, so every machine, tier,
//! thread count and batch gives the same bits.

pub mod attention;
pub mod elementwise;
pub mod head;
pub mod norm;
pub mod rope;
pub mod ternary;

/// Partial sums of a reduction over floats; a multiple of every vector width.
pub const LANES: usize = 16;

/// Adds up partial sums as a balanced tree.
#[inline(always)]
pub(crate) fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ a·b` in f32.
///
/// # Panics
/// If the lengths disagree.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut lanes = [0.0; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    add_lanes(lanes)
}
