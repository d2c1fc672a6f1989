//! Weights and inputs without a model, for examples of several crates.

/// The same normally distributed numbers on every call: sums of twelve uniform ones.
pub fn gaussian() -> impl FnMut() -> f32 {
    let mut state = 1_u64;
    move || {
        let uniform = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (*state >> 40) as f32 / (1 << 24) as f32
        };
        (0..12).map(|_| uniform(&mut state)).sum::<f32>() - 6.0
    }
}

/// A float between 2^-14 and 2^15 in size, or zero, cut to binary16.
pub fn half_bits(x: f32) -> u16 {
    let (bits, sign) = (x.to_bits() & 0x7fff_ffff, (x.to_bits() >> 16 & 0x8000) as u16);
    if bits < 113 << 23 { sign } else { sign | ((bits - (112 << 23)) >> 13) as u16 }
}
