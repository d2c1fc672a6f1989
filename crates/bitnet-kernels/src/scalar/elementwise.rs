//! What is done to single values: the results of integer products, activation functions, the exponential.

/// What is applied to the gate before it multiplies `up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)²`.
    Relu2,
    /// `x / (1 + e^-x)`.
    Silu,
}

/// `e^x` to within 2 units in the last place, in operations that vectorize; 0 below -87, finite above 88.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4; // 9 bits, so that n · LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 1.5 * (1 << 23) as f32;
    let clamped = if x > 88.0 { 88.0 } else { x };
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // Taylor's coefficients up to r⁷ leave 2e-10 at |r| = ln 2 / 2.
    let p = r * (1.0 / 5040.0) + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let exponent = ((n + ROUND).to_bits() << 23).wrapping_add(127 << 23);
    if x < -87.0 { 0.0 } else { p * f32::from_bits(exponent) }
}

/// The activation function.
#[inline(always)]
pub fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Relu2 => {
            let positive = if x > 0.0 { x } else { 0.0 };
            positive * positive
        }
        Activation::Silu => x / (1.0 + exp(-x)),
    }
}

/// `y = acc · w / s`: an integer product with the weights' scale and the activations' scale (127 / absmax).
#[inline(always)]
pub fn scale_product(acc: &[i32], w: f32, s: f32, y: &mut [f32]) {
    for (y, &acc) in y.iter_mut().zip(acc) {
        *y = acc as f32 * w / s;
    }
}

/// `y = acc · w / s` with a scale `w` for each row of the weights.
#[inline(always)]
pub fn scale_product_rows(acc: &[i32], w: &[f32], s: f32, y: &mut [f32]) {
    for ((y, &acc), &w) in y.iter_mut().zip(acc).zip(w) {
        *y = acc as f32 * w / s;
    }
}

/// `y += x`.
#[inline(always)]
pub fn add(x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// `y *= x`.
#[inline(always)]
pub fn multiply(y: &mut [f32], x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y *= x;
    }
}

/// `gate = f(gate) · up`.
#[inline(always)]
pub fn gate(activation: Activation, up: &[f32], gate: &mut [f32]) {
    match activation {
        Activation::Relu2 => {
            gate.iter_mut().zip(up).for_each(|(g, &u)| *g = activate(Activation::Relu2, *g) * u)
        }
        Activation::Silu => {
            gate.iter_mut().zip(up).for_each(|(g, &u)| *g = activate(Activation::Silu, *g) * u)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let (ours, exact) = (exp(x), f64::from(x).exp());
            let error = (f64::from(ours) - exact).abs() / exact / f64::from(f32::EPSILON);
            assert!(error < 2.0, "exp({x}) = {ours}, off by {error} ulp");
        }
    }

    #[test]
    fn exp_ends_in_zero_and_stays_finite() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e9), 0.0);
        assert!(exp(1e9).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn activations_are_as_defined() {
        assert_eq!([-2.0, 0.0, 3.0].map(|x| activate(Activation::Relu2, x)), [0.0, 0.0, 9.0]);
        assert!((activate(Activation::Silu, 1.0) - 0.731_058_6).abs() < 1e-6);
        assert_eq!(activate(Activation::Silu, -200.0), -200.0 / (1.0 + exp(200.0)));
    }
}
