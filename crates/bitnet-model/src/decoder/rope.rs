//! The frequencies of the rotary position embedding.

use crate::config::{RopeConfig, RopeScaling};

/// Radians per position for each of the `head_dim / 2` pairs: `theta^(-2i / head_dim)`, stretched as the config says.
pub fn inverse_frequencies(rope: &RopeConfig, head_dim: usize) -> Vec<f32> {
    let base = |i: usize| 1.0 / rope.theta.powf(2.0 * i as f32 / head_dim as f32);
    (0..head_dim / 2).map(|i| stretch(&rope.scaling, base(i))).collect()
}

fn stretch(scaling: &RopeScaling, freq: f32) -> f32 {
    match *scaling {
        RopeScaling::Default => freq,
        RopeScaling::Linear { factor } => freq / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let turns =
                original_max_position_embeddings as f32 * freq / (2.0 * std::f32::consts::PI);
            if turns < low_freq_factor {
                freq / factor
            } else if turns > high_freq_factor {
                freq
            } else {
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * freq / factor + smooth * freq
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fall_from_one_to_nearly_the_inverse_of_theta() {
        let rope = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default };
        let freqs = inverse_frequencies(&rope, 64);
        assert_eq!(freqs[0], 1.0);
        assert!((freqs[31] - 10_000f32.powf(-62.0 / 64.0)).abs() < 1e-9);
    }

    #[test]
    fn llama3_scaling_leaves_fast_pairs_and_stretches_slow_ones() {
        // Llama 3.1's values; expected numbers from transformers' `_compute_llama3_parameters`.
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let plain = inverse_frequencies(
            &RopeConfig { theta: 500_000.0, scaling: RopeScaling::Default },
            128,
        );
        let scaled = inverse_frequencies(&RopeConfig { theta: 500_000.0, scaling }, 128);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        assert!(scaled.iter().zip(&plain).all(|(s, p)| s <= p && *s >= p / 8.0));
    }
}
