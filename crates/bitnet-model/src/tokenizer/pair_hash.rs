//! A quick hash for pairs of token ids, which encoding looks up for every pair of neighbours.
//!
//! Folded multiplication by a random odd number: a file cannot be made so that its merges collide.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Makes hashers that share one random factor.
#[derive(Clone, Debug)]
pub(super) struct PairHash(u64);

impl Default for PairHash {
    fn default() -> Self {
        Self(RandomState::new().hash_one(()) | 1)
    }
}

impl BuildHasher for PairHash {
    type Hasher = PairHasher;

    fn build_hasher(&self) -> PairHasher {
        PairHasher { factor: self.0, state: self.0 }
    }
}

/// The state of one hash.
pub(super) struct PairHasher {
    factor: u64,
    state: u64,
}

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.state ^ value) * u128::from(self.factor);
        self.state = product as u64 ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.state
    }
}
