//! How likely tokens are by the model itself: log-softmax of logits as they come, before anything is done to them.

use bitnet_kernels::scalar::elementwise::exp;

use super::{Candidate, SampleError, by_weight, collect_top_k, max};

/// How likely a token was by the model itself, before bias, penalties, temperature and filters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability, from minus infinity to 0.
    pub logprob: f32,
    /// The most likely tokens with theirs, as many as were asked for: the likeliest first, of equals the one with the lowest id.
    /// The token itself is among them if it is one of these.
    pub top: Vec<(u32, f32)>,
}

/// Natural logarithm of the sum of the exponentials of finite numbers and minus infinities, in an order that depends on their
/// count alone.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = max(logits);
    let mut lanes = [0f64; 8]; // one would be a chain of additions
    let (chunks, rest) = logits.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(exp(x - max));
        }
    }
    let rest: f64 = rest.iter().map(|&x| f64::from(exp(x - max))).sum();
    f64::from(max) + (lanes.iter().sum::<f64>() + rest).ln()
}

/// The log-probability of a token by all its logits, and `top` of the greatest; `candidates` is memory for these.
pub(crate) fn log_likelihood(
    logits: &[f32],
    id: u32,
    top: usize,
    candidates: &mut Vec<Candidate>,
) -> TokenLogprobs {
    let all = log_sum_exp(logits);
    let of = |logit: f32| (f64::from(logit) - all) as f32;
    candidates.clear();
    if top > 0 {
        collect_top_k(candidates, logits, top);
        candidates.sort_unstable_by(by_weight);
    }
    let top = candidates.iter().map(|c| (c.place, of(c.weight))).collect();
    TokenLogprobs { id, logprob: of(logits[id as usize]), top }
}

/// `-ln p(id)`.
///
/// # Errors
/// If that is no finite number.
pub(crate) fn negative_log_likelihood(logits: &[f32], id: u32) -> Result<f32, SampleError> {
    let value = log_sum_exp(logits) - f64::from(logits[id as usize]);
    match value.is_finite() {
        true => Ok(value as f32),
        false => Err(SampleError::NotFinite { id, value: value as f32 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(logits: &[f32], id: u32, top: usize, expected: f64, expected_top: &[(u32, f64)]) {
        let found = log_likelihood(logits, id, top, &mut Vec::new());
        let near = |found: f32, expected: f64| {
            let expected = expected.ln();
            f64::from(found) == expected || (f64::from(found) - expected).abs() < 1e-6
        };
        assert!(found.id == id && near(found.logprob, expected), "{found:?}");
        let ids: Vec<u32> = found.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, expected_top.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        assert!(found.top.iter().zip(expected_top).all(|(f, e)| near(f.1, e.1)), "{found:?}");
    }

    #[test]
    fn a_logprob_is_the_logarithm_of_the_softmax() {
        let logits = [1.0, 2.0, 4.0, 2.0, 7.0].map(|p: f64| (p / 16.0).ln() as f32 + 9.0);
        check(&logits, 0, 0, 1.0 / 16.0, &[]);
        check(&logits, 4, 3, 7.0 / 16.0, &[(4, 7.0 / 16.0), (2, 0.25), (1, 0.125)]);
        check(&[f32::NEG_INFINITY, 3.0], 1, 20, 1.0, &[(1, 1.0), (0, 0.0)]);
    }

    #[test]
    fn a_whole_vocabulary_sums_to_one() {
        let logits: Vec<f32> =
            (0..5003u64).map(|i| ((i * 2_654_435_761) % 997) as f32 / 50.0 - 10.0).collect();
        let all = log_likelihood(&logits, 0, logits.len(), &mut Vec::new()).top;
        let sum: f64 = all.iter().map(|(_, logprob)| f64::from(*logprob).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        let order = |pair: &[(u32, f32)]| pair[0].1 > pair[1].1 || pair[0].0 < pair[1].0;
        assert!(all.windows(2).all(order));
    }

    #[test]
    fn a_score_is_the_negative_logarithm_of_the_softmax() {
        let score = |logits: &[f32], id| negative_log_likelihood(logits, id).unwrap();
        assert!((score(&[0.0, 0.0, 2f32.ln()], 2) - 2f32.ln()).abs() < 1e-6); // 2 / (1 + 1 + 2)
        assert_eq!(score(&[1000.0, 0.0, 0.0], 0), 0.0);
    }

    #[test]
    fn a_row_that_is_no_number_has_no_score() {
        assert!(negative_log_likelihood(&[0.0, f32::NAN], 0).is_err());
    }
}
