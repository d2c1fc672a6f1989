//! Plain Rust definitions of every operation, and the oracle of all tests.
//!
//! Float operations here are also what runs: `cpu` compiles these same functions once per instruction set. They never fuse
//! a multiplication with an addition and sum in a fixed arrangement of [`LANES`] partial sums, so every machine, tier,
//! thread count and batch gives the same bits.

pub mod attention;
pub mod elementwise;
pub mod head;
pub mod int8;
pub mod kv;
pub mod norm;
pub mod rope;
pub mod screen;
pub mod ternary;

/// Partial sums of a reduction over floats; a multiple of every vector width.
pub const LANES: usize = 16;

/// Adds up partial sums as a balanced tree.
#[inline(never)] // inlined, its halving makes LLVM cut the loop before it into pairs of lanes, which halves the head's speed
pub(crate) fn add_lanes<const N: usize>(mut lanes: [f32; N]) -> f32 {
    const { assert!(N.is_power_of_two()) };
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ a·b` in f32, in four times [`LANES`] partial sums: an addition must not wait for the one before it.
///
/// # Panics
/// If the lengths disagree.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    const SUMS: usize = 4 * LANES;
    assert_eq!(a.len(), b.len());
    let mut sums = [0.0; SUMS];
    let (a_whole, a_rest) = a.as_chunks::<SUMS>();
    let (b_whole, b_rest) = b.as_chunks::<SUMS>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for i in 0..SUMS {
            sums[i] += a[i] * b[i];
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += a * b;
    }
    add_lanes(sums)
}
