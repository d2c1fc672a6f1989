//! How prompts share the processors.

use std::fmt;

/// Workers, and threads of each, at most.
pub const MOST: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// One engine computes all prompts together.
    Batched,
    /// One prompt after another.
    Sequential,
    /// Engines that each compute one prompt at a time.
    Workers { workers: usize, threads: usize },
}

impl Strategy {
    pub const BALANCED: Self = Self::Workers { workers: 3, threads: 4 };
    const CONCURRENT: Self = Self::Workers { workers: 6, threads: 2 };
    const POWER: Self = Self::Workers { workers: 2, threads: 6 };

    pub fn parse(name: &str) -> Result<Self, String> {
        Ok(match name {
            "batched" | "auto" => Self::Batched,
            "sequential" => Self::Sequential,
            "balanced" => Self::BALANCED,
            "concurrent" => Self::CONCURRENT,
            "power" => Self::POWER,
            other => {
                let parts = other.split_once('x').and_then(|(workers, threads)| {
                    Some((workers.parse::<usize>().ok()?, threads.parse::<usize>().ok()?))
                });
                match parts {
                    Some((workers @ 1..=MOST, threads @ 1..=MOST)) => {
                        Self::Workers { workers, threads }
                    }
                    _ => {
                        return Err(format!(
                            "expected batched, auto, sequential, balanced, concurrent, power, \
                             or workers times threads such as 3x2, each from 1 to {MOST}"
                        ));
                    }
                }
            }
        })
    }

    /// What is compared if nobody says what: the guides' strategies, one prompt after another, and all together.
    pub fn all(prompts: usize) -> Vec<Self> {
        let workers = |workers, threads| Self::Workers { workers, threads };
        let mut all = vec![Self::Sequential, workers(1, 2), workers(2, 1), workers(3, 2)];
        all.extend([workers(6, 1), Self::BALANCED, Self::CONCURRENT, Self::POWER, Self::Batched]);
        all.retain(|s| !matches!(s, Self::Workers { workers, .. } if *workers > prompts));
        all
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Batched => f.write_str("batched"),
            Self::Sequential => f.write_str("sequential"),
            Self::BALANCED => f.write_str("balanced (3x4)"),
            Self::CONCURRENT => f.write_str("concurrent (6x2)"),
            Self::POWER => f.write_str("power (2x6)"),
            Self::Workers { workers, threads } => write!(f, "{workers}x{threads}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_products_are_strategies() {
        let workers = |workers, threads| Strategy::Workers { workers, threads };
        for (name, expected) in [
            ("auto", Strategy::Batched),
            ("balanced", workers(3, 4)),
            ("concurrent", workers(6, 2)),
            ("power", workers(2, 6)),
            ("1x1", workers(1, 1)),
            ("12x34", workers(12, 34)),
        ] {
            assert_eq!(Strategy::parse(name), Ok(expected));
        }
        for name in ["", "x", "0x2", "2x0", "-1x2", "2x", "9999x1", "2x2x2", "fast"] {
            assert!(Strategy::parse(name).is_err(), "{name}");
        }
    }
}
