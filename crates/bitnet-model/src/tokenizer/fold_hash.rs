//! A quick hash for tokens and for pairs of them: loading and encoding look up little else.
//!
//! Folded multiplication by a random odd number, so a file cannot be made in which all tokens or merges collide.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Makes hashers that share one random factor.
#[derive(Clone, Debug)]
pub(super) struct FoldHash(u64);

impl Default for FoldHash {
    fn default() -> Self {
        Self(RandomState::new().hash_one(()) | 1)
    }
}

impl BuildHasher for FoldHash {
    type Hasher = FoldHasher;

    fn build_hasher(&self) -> FoldHasher {
        FoldHasher { factor: self.0, state: self.0 }
    }
}

/// The state of one hash.
pub(super) struct FoldHasher {
    factor: u64,
    state: u64,
}

impl Hasher for FoldHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        // The length tells a short word from one that ends in zeros.
        self.write_u64(u64::from_le_bytes(last) ^ (bytes.len() as u64) << 56);
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.state ^ value) * u128::from(self.factor);
        self.state = product as u64 ^ (product >> 64) as u64;
    }

    fn write_u8(&mut self, value: u8) {
        self.state ^= u64::from(value);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}
