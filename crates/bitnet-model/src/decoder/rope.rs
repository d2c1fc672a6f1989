//! The frequencies of the rotary position embedding.

use crate::config::{RopeConfig, RopeScaling};

/// Radians per position for each of the `head_dim / 2` pairs: `theta^(-2i / head_dim)`, stretched as the config says.
pub fn inverse_frequencies(rope: &RopeConfig, head_dim: usize) -> Vec<f32> {
    let base = |i: usize| 1.0 / rope.theta.powf(2.0 * i as f32 / head_dim as f32);
    let factor = |i: usize| rope.factors.get(i).copied().unwrap_or(1.0);
    (0..head_dim / 2).map(|i| stretch(&rope.scaling, base(i)) / factor(i)).collect()
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

    fn config(theta: f32, scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta, scaling, factors: Vec::new() }
    }

    /// Llama 3.1's values.
    const LLAMA3: RopeScaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };

    #[test]
    fn frequencies_fall_from_one_to_nearly_the_inverse_of_theta() {
        let freqs = inverse_frequencies(&config(10_000.0, RopeScaling::Default), 64);
        assert_eq!(freqs[0], 1.0);
        assert!((freqs[31] - 10_000f32.powf(-62.0 / 64.0)).abs() < 1e-9);
    }

    #[test]
    fn llama3_scaling_leaves_fast_pairs_and_stretches_slow_ones() {
        let plain = inverse_frequencies(&config(500_000.0, RopeScaling::Default), 128);
        let scaled = inverse_frequencies(&config(500_000.0, LLAMA3), 128);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        assert!(scaled.iter().zip(&plain).all(|(s, p)| s <= p && *s >= p / 8.0));
    }
    /// What llama.cpp's converter writes into `rope_freqs.weight` for Llama 3.1, by wavelengths: 1 below 8192 / 4 positions,
    /// 8 above 8192, and between them the inverse of a line from 1/8 to 1 in turns per 8192 positions.
    #[test]
    fn factors_of_a_gguf_file_are_llama3_scaling() {
        let plain = inverse_frequencies(&config(500_000.0, RopeScaling::Default), 128);
        let factor = |frequency: f32| {
            let wavelength = 2.0 * std::f64::consts::PI / f64::from(frequency);
            let smooth = ((8192.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / 8.0 + smooth)) as f32
        };
        let factors: Vec<f32> = plain.iter().copied().map(factor).collect();
        assert!(factors.iter().any(|&f| f > 1.5 && f < 7.5), "some lie between");
        let rope = RopeConfig { factors, ..config(500_000.0, RopeScaling::Default) };
        let (found, expected) =
            (inverse_frequencies(&rope, 128), inverse_frequencies(&config(500_000.0, LLAMA3), 128));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
        }
    }
}
