use bitnet_kernels::scalar::head::peak;

use super::*;
use crate::constraint::tests::Counting;
use crate::request::{GenerationConfig, SamplingStrategy};

fn sampler(config: GenerationConfig) -> Sampler {
    let config = GenerationConfig {
        sampling_strategy: SamplingStrategy::of(
            config.temperature,
            config.top_k,
            config.top_p,
            config.min_p,
        ),
        ..config
    };
    Sampler::new(config.sampling().unwrap())
}

/// The test statistic of `draws` draws from `expected` probabilities, and its degrees of freedom.
fn chi_square(expected: &[f64], observed: &[u32]) -> (f64, usize) {
    let draws: u32 = observed.iter().sum();
    let terms: Vec<f64> = expected
        .iter()
        .zip(observed)
        .filter(|(p, _)| **p > 0.0)
        .map(|(p, o)| (f64::from(*o) - p * f64::from(draws)).powi(2) / (p * f64::from(draws)))
        .collect();
    (terms.iter().sum(), terms.len() - 1)
}

/// Draws 20,000 tokens from probabilities ∝ `weights` and compares with `expected` weights.
#[track_caller]
fn check(config: GenerationConfig, weights: &[f64], expected: &[f64]) {
    let logits: Vec<f32> = weights.iter().map(|w| w.ln() as f32 + 3.0).collect();
    let mut sampler = sampler(GenerationConfig { seed: Some(11), ..config });
    let mut observed = vec![0; weights.len()];
    for _ in 0..20_000 {
        observed[sampler.draw(LogitRow::All(&logits), &[], 0).unwrap() as usize] += 1;
    }
    let total: f64 = expected.iter().sum();
    let expected: Vec<f64> = expected.iter().map(|e| e / total).collect();
    for (p, o) in expected.iter().zip(&observed) {
        assert!(*p > 0.0 || *o == 0, "a token that was filtered out was drawn: {observed:?}");
    }
    let (statistic, freedom) = chi_square(&expected, &observed);
    // Wilson and Hilferty's approximation of the quantile that a right sampler exceeds once in a million runs (4.75 σ);
    // the seed is fixed, so this test passes always or never.
    let k = freedom as f64;
    let limit = k * (1.0 - 2.0 / (9.0 * k) + 4.75 * (2.0 / (9.0 * k)).sqrt()).powi(3);
    assert!(freedom == 0 || statistic < limit, "χ² {statistic} ≥ {limit}: {observed:?}");
}

const WEIGHTS: [f64; 8] = [1.0, 30.0, 4.0, 16.0, 2.0, 16.0, 0.5, 8.0];

fn config() -> GenerationConfig {
    GenerationConfig { temperature: 1.0, ..Default::default() }
}

#[test]
fn temperature_one_draws_by_probability() {
    check(config(), &WEIGHTS, &WEIGHTS);
}

#[test]
fn temperature_sharpens_and_flattens() {
    let power = |exponent: f64| WEIGHTS.map(|w| w.powf(exponent));
    check(GenerationConfig { temperature: 0.5, ..config() }, &WEIGHTS, &power(2.0));
    check(GenerationConfig { temperature: 2.0, ..config() }, &WEIGHTS, &power(0.5));
}

#[test]
fn top_k_keeps_the_k_likeliest() {
    check(
        GenerationConfig { top_k: 3, ..config() },
        &WEIGHTS,
        &[0.0, 30.0, 0.0, 16.0, 0.0, 16.0, 0.0, 0.0],
    );
}

#[test]
fn top_k_breaks_ties_by_id() {
    check(
        GenerationConfig { top_k: 2, ..config() },
        &WEIGHTS,
        &[0.0, 30.0, 0.0, 16.0, 0.0, 0.0, 0.0, 0.0],
    );
}

#[test]
fn top_p_keeps_the_fewest_that_reach_it() {
    // Sum 77.5: 30 + 16 + 16 = 62 is 0.8 of it.
    let three = [0.0, 30.0, 0.0, 16.0, 0.0, 16.0, 0.0, 0.0];
    check(GenerationConfig { top_p: 0.79, ..config() }, &WEIGHTS, &three);
    let four = [0.0, 30.0, 0.0, 16.0, 0.0, 16.0, 0.0, 8.0];
    check(GenerationConfig { top_p: 0.81, ..config() }, &WEIGHTS, &four);
    let one = [0.0, 30.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    check(GenerationConfig { top_p: 1e-6, ..config() }, &WEIGHTS, &one);
}

#[test]
fn top_p_counts_what_top_k_left() {
    // Of 30 + 16 + 16, the first is 0.48 and the first two 0.74.
    check(
        GenerationConfig { top_k: 3, top_p: 0.7, ..config() },
        &WEIGHTS,
        &[0.0, 30.0, 0.0, 16.0, 0.0, 0.0, 0.0, 0.0],
    );
}

#[test]
fn min_p_is_relative_to_the_likeliest() {
    check(
        GenerationConfig { min_p: 0.26, ..config() },
        &WEIGHTS,
        &[0.0, 30.0, 0.0, 16.0, 0.0, 16.0, 0.0, 8.0],
    );
}

#[test]
fn filters_of_a_large_vocabulary_equal_those_by_sorting() {
    // Logits from a multiplicative sequence, many of them equal.
    let logits: Vec<f32> =
        (0..5000u64).map(|i| ((i * 2_654_435_761) % 997) as f32 / 100.0).collect();
    let weights: Vec<Candidate> =
        logits.iter().zip(0..).map(|(l, place)| Candidate { weight: l.exp(), place }).collect();
    let mut sorted = weights.clone();
    sorted.sort_by(by_weight);
    for k in [1, 2, 40, 997, 4999] {
        let mut kept = Vec::new();
        collect_top_k(&mut kept, &logits, k);
        let mut expected: Vec<u32> = sorted[..k].iter().map(|c| c.place).collect();
        expected.sort_unstable();
        assert_eq!(kept.iter().map(|c| c.place).collect::<Vec<_>>(), expected);
    }
    let total: f64 = sorted.iter().map(|c| f64::from(c.weight)).sum();
    for p in [0.001, 0.1, 0.5, 0.9, 0.999] {
        let (mut kept, mut order) = (weights.clone(), Vec::new());
        keep_top_p(&mut kept, &mut order, p);
        let mut mass = 0.0;
        let count = sorted
            .iter()
            .position(|c| {
                mass += f64::from(c.weight);
                mass >= f64::from(p) * total
            })
            .unwrap();
        assert_eq!(kept.len(), count + 1, "top_p {p}");
        let last = sorted[count];
        assert!(kept.iter().all(|c| by_weight(c, &last) != Ordering::Greater));
    }
}

#[test]
fn greedy_takes_the_lowest_id_of_equals() {
    let mut sampler = sampler(GenerationConfig::default());
    assert_eq!(sampler.draw(LogitRow::All(&[1.0, 5.0, -3.0, 5.0]), &[], 0), Ok(1));
    assert_eq!(sampler.draw(LogitRow::All(&[-1.0, f32::NEG_INFINITY, -1.0]), &[], 0), Ok(0));
    let logits = [1.0, -3.0, 0.0, 5.0, 5.0];
    let peaked = LogitRow::Peaked { logits: &logits, peaks: &[1.0, 5.0, 5.0], width: 2 };
    assert_eq!(sampler.draw(peaked, &[], 0), Ok(3));
}

#[test]
fn the_repetition_penalty_divides_positive_and_multiplies_negative_logits_once() {
    let config = GenerationConfig { repetition_penalty: 2.0, ..Default::default() };
    let draw = |logits: &[f32], tokens: &[u32]| {
        sampler(config.clone()).draw(LogitRow::All(logits), tokens, 0)
    };
    assert_eq!(draw(&[5.0, 3.0], &[0]), Ok(1)); // 2.5 < 3
    assert_eq!(draw(&[5.0, 2.4], &[0, 0, 0]), Ok(0)); // 2.5, not 0.6
    assert_eq!(draw(&[-1.0, -1.5], &[0]), Ok(1)); // -2 < -1.5
}

#[test]
fn the_repetition_penalty_forgets_what_is_long_past() {
    let config =
        GenerationConfig { repetition_penalty: 2.0, repeat_last_n: 2, ..Default::default() };
    let draw =
        |tokens: &[u32]| sampler(config.clone()).draw(LogitRow::All(&[5.0, 3.0, 0.0]), tokens, 0);
    assert_eq!(draw(&[0, 2]), Ok(1));
    assert_eq!(draw(&[0, 2, 2]), Ok(0));
}

#[test]
fn presence_and_frequency_penalties_count_the_answer_only() {
    let draw = |presence_penalty, frequency_penalty, prompt_len| {
        let config = GenerationConfig { presence_penalty, frequency_penalty, ..Default::default() };
        sampler(config).draw(LogitRow::All(&[5.0, 4.0, 3.1]), &[0, 0, 0, 1], prompt_len)
    };
    assert_eq!(draw(1.5, 0.0, 0), Ok(0)); // 3.5, 2.5, 3.1
    assert_eq!(draw(0.0, 0.5, 0), Ok(0)); // 3.5, 3.5, 3.1: the lower id
    assert_eq!(draw(0.0, 0.7, 0), Ok(1)); // 2.9, 3.3, 3.1
    assert_eq!(draw(2.0, 2.0, 3), Ok(0)); // the prompt's tokens do not count
}

fn biased(bias: &[(u32, f32)]) -> GenerationConfig {
    GenerationConfig { logit_bias: bias.iter().copied().collect(), ..Default::default() }
}

#[test]
fn a_bias_is_added_before_penalties() {
    let draw = |config, tokens: &[u32]| {
        sampler(config).draw(LogitRow::All(&[5.0, 4.0, 3.0]), tokens, 0).unwrap()
    };
    assert_eq!(draw(biased(&[(1, 0.9)]), &[]), 0);
    assert_eq!(draw(biased(&[(1, 1.1), (99, 100.0)]), &[]), 1);
    assert_eq!(draw(biased(&[(0, -100.0), (1, -2.0)]), &[]), 2);
    let both = GenerationConfig { repetition_penalty: 2.0, ..biased(&[(0, 3.5)]) };
    assert_eq!(draw(both, &[0]), 0); // 8.5 / 2 > 4; 5 / 2 + 3.5 would be, too, but
    let both = GenerationConfig { repetition_penalty: 2.0, ..biased(&[(0, 2.5)]) };
    assert_eq!(draw(both, &[0]), 1); // 7.5 / 2 < 4 < 5 / 2 + 2.5
}

#[test]
fn a_bias_changes_probabilities_by_its_exponential() {
    let config =
        GenerationConfig { temperature: 1.0, ..biased(&[(1, -2f32.ln()), (6, 4f32.ln())]) };
    check(config, &WEIGHTS, &[1.0, 15.0, 4.0, 16.0, 2.0, 16.0, 2.0, 8.0]);
}

#[test]
fn no_token_that_ends_the_text_is_drawn_before_the_least_number() {
    let config = GenerationConfig { min_tokens: 2, ..Default::default() };
    let logits = [5.0, 4.0, 3.0, 6.0];
    // From the logits alone that are wanted, after tokens and a draft of which the first is the prompt.
    let draw = |tokens: &[u32], draft: &[u32]| {
        let mut sampler = sampler(config.clone()).with_ends(&[3, 0, 3]);
        let ids = sampler.wanted(tokens, draft, 1, &mut Vec::new()).of(&logits);
        let some: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
        let row = LogitRow::Some { ids: &ids, logits: &some };
        sampler.draw(row, &[tokens, draft].concat(), 1).unwrap()
    };
    assert_eq!([draw(&[9], &[]), draw(&[9, 1], &[]), draw(&[9, 1, 1], &[])], [1, 1, 3]);
    assert_eq!([draw(&[9], &[1]), draw(&[9], &[1, 1])], [1, 3]);
}

#[test]
fn logprobs_are_those_before_all_changes() {
    let config = GenerationConfig {
        logprobs: Some(2),
        temperature: 3.0,
        presence_penalty: 2.0,
        seed: Some(1),
        ..biased(&[(0, -100.0)])
    };
    let mut sampler = sampler(config);
    let logits = WEIGHTS.map(|w| (w / 77.5).ln() as f32);
    let row = LogitRow::All(&logits);
    let token = sampler.draw(row, &[1, 3], 0).unwrap();
    let found = sampler.logprobs(row, token).unwrap();
    let near = |a: f32, b: f32| (a - b).abs() < 1e-6;
    assert!(found.id == token && near(found.logprob, logits[token as usize]), "{found:?}");
    assert_eq!([found.top[0].0, found.top[1].0], [1, 3]);
    assert!(near(found.top[0].1, logits[1]) && near(found.top[1].1, logits[3]), "{found:?}");
}

fn counting(config: GenerationConfig) -> Sampler {
    let constraint = Constraint::new(Box::new(Counting(0))).unwrap();
    let params = sampler(config).params.constrained(constraint);
    Sampler::new(params).with_ends(&[31])
}

/// Draws until an end or 30 tokens, from logits that like 31 best, then high tokens.
fn draw_constrained(mut sampler: Sampler) -> Vec<u32> {
    let logits: Vec<f32> = (0..32).map(|i| i as f32 / 4.0).collect();
    let mut tokens = Vec::new();
    while tokens.len() < 30 && tokens.last() != Some(&31) && !sampler.is_complete() {
        let wanted = sampler.wanted(&tokens, &[], 0, &mut Vec::new());
        let ids = wanted.of(&logits);
        let some: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
        let row = LogitRow::Some { ids: &ids, logits: &some };
        let expected = sampler.clone().draw(LogitRow::All(&logits), &tokens, 0);
        tokens.push(sampler.draw(row, &tokens, 0).unwrap());
        assert_eq!(expected, Ok(tokens[tokens.len() - 1]), "{wanted:?}");
    }
    tokens
}

#[test]
fn only_what_a_constraint_allows_is_drawn() {
    assert_eq!(draw_constrained(counting(GenerationConfig::default())), [2, 31]);
    let min_tokens = |min_tokens| GenerationConfig { min_tokens, ..Default::default() };
    assert_eq!(draw_constrained(counting(min_tokens(4))), [2, 4, 6, 8, 31]);
    let all: Vec<u32> = (1..=10).map(|i| 2 * i).collect();
    assert_eq!(draw_constrained(counting(min_tokens(20))), all); // complete, with fewer tokens
    for seed in 0..50 {
        let config = GenerationConfig { seed: Some(seed), min_tokens: 3, ..config() };
        let tokens = draw_constrained(counting(config));
        let (last, before) = tokens.split_last().unwrap();
        assert!(before.is_sorted() && tokens[0] <= 2, "{tokens:?}");
        assert!(before.windows(2).all(|two| two[1] - two[0] <= 2), "{tokens:?}");
        assert!(*last == 20 || *last == 31 && before[before.len() - 1] % 2 == 0, "{tokens:?}");
    }
}

#[test]
fn a_draft_is_cut_where_the_constraint_does_not_allow_it() {
    let mut sampler = counting(GenerationConfig::default());
    assert_eq!(sampler.fitting(&[1, 3, 6, 7]), 2);
    sampler.draw(LogitRow::All(&[0.0, 1.0, 0.0]), &[], 0).unwrap();
    assert_eq!(sampler.fitting(&[1, 3]), 0);
    assert_eq!(sampler.fitting(&[3, 5, 6]), 3);
}

#[test]
fn same_seed_same_tokens() {
    let tokens = |seed| {
        let mut sampler = sampler(GenerationConfig { seed: Some(seed), ..config() });
        let logits = WEIGHTS.map(|w| w.ln() as f32);
        (0..50).map(|_| sampler.draw(LogitRow::All(&logits), &[], 0).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(tokens(1), tokens(1));
    assert_ne!(tokens(1), tokens(2));
}

#[test]
fn logits_that_are_no_numbers_are_an_error() {
    for config in [GenerationConfig::default(), config()] {
        let mut sampler = sampler(config);
        for value in [f32::NAN, f32::INFINITY] {
            let logits = [0.0, value, 1.0];
            let peaked = LogitRow::Peaked { logits: &logits, peaks: &[f32::NAN, 1.0], width: 2 };
            for row in [LogitRow::All(&logits), peaked] {
                let error = sampler.draw(row, &[], 0).unwrap_err();
                assert_eq!(error.to_string(), format!("the model's logit of token 1 is {value}"));
            }
        }
        let nothing = sampler.draw(LogitRow::All(&[f32::NEG_INFINITY; 3]), &[], 0);
        assert_eq!(nothing, Err(SampleError::Nothing));
    }
}

#[test]
fn extreme_temperatures_are_no_panic() {
    for temperature in [f32::MIN_POSITIVE, 1e-30, 1e30, f32::MAX] {
        for logits in [[1e30, -1e30, 0.0], [-1e38, -1e38, -1e38]] {
            let config =
                GenerationConfig { temperature, top_k: 2, top_p: 0.5, min_p: 0.5, ..config() };
            assert!(sampler(config).draw(LogitRow::All(&logits), &[], 0).unwrap() < 3);
        }
    }
}

/// Draws 20 times from all logits, from those wanted alone, and from all with their peaks.
#[track_caller]
fn check_wanted(config: &GenerationConfig, logits: &[f32], prompt: &[u32]) {
    // The greatest logit's, so that it matters to leave it out, and one of the prompt.
    let greatest = (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    let mut samplers = [0, 1, 2].map(|_| sampler(config.clone()).with_ends(&[greatest, 3]));
    let mut tokens = prompt.to_vec();
    for _ in 0..20 {
        let ids = samplers[0].wanted(&tokens, &[], prompt.len(), &mut Vec::new()).of(logits);
        let some: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
        let peaks: Vec<f32> = logits.chunks(33).map(peak).collect();
        let rows = [
            LogitRow::All(logits),
            LogitRow::Some { ids: &ids, logits: &some },
            LogitRow::Peaked { logits, peaks: &peaks, width: 33 },
        ];
        let mut draw = |i: usize| samplers[i].draw(rows[i], &tokens, prompt.len()).unwrap();
        let [all, some, peaked] = [0, 1, 2].map(&mut draw);
        assert_eq!((all, all), (some, peaked), "{config:?} after {tokens:?}");
        tokens.push(all);
    }
}

#[test]
fn the_wanted_logits_are_enough() {
    let logits: Vec<f32> = (0..500u64).map(|i| ((i * 2_654_435_761) % 97) as f32 / 9.0).collect();
    let base = GenerationConfig { seed: Some(5), temperature: 0.8, ..Default::default() };
    let filters = [
        GenerationConfig { temperature: 0.0, ..base.clone() },
        GenerationConfig { top_k: 7, ..base.clone() },
        GenerationConfig { top_k: 40, top_p: 0.8, min_p: 0.02, ..base.clone() },
        GenerationConfig { min_p: 0.1, ..base.clone() },
        GenerationConfig { min_p: 0.1, temperature: 30.0, ..base.clone() },
        GenerationConfig { top_p: 0.5, ..base.clone() },
        GenerationConfig { top_k: 1000, ..base },
    ];
    for filter in filters {
        for (repetition_penalty, presence_penalty, frequency_penalty) in
            [(1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (0.5, 0.0, 0.0), (1.0, 1.5, 0.3), (1.2, -2.0, -2.0)]
        {
            let config = GenerationConfig {
                repetition_penalty,
                presence_penalty,
                frequency_penalty,
                repeat_last_n: 6,
                ..filter.clone()
            };
            check_wanted(&config, &logits, &[3, 499, 17, 3, 9999]);
            let logit_bias = [(400, 9.0), (77, -3.0), (12, 1.5), (9999, 5.0)].into();
            let biased = GenerationConfig { logit_bias, min_tokens: 9, ..config };
            check_wanted(&biased, &logits, &[3, 499, 17, 3, 9999]);
        }
    }
}

#[test]
fn all_logits_are_wanted_only_where_the_choice_rests_on_all() {
    let wanted = |config| sampler(config).wanted(&[1], &[2], 1, &mut Vec::new());
    let greatest = |count| Wanted::Some { always: vec![], others: Others::Greatest(count) };
    assert_eq!(wanted(GenerationConfig::default()), greatest(1));
    assert_eq!(wanted(GenerationConfig { top_k: 5, top_p: 0.5, ..config() }), greatest(5));
    assert_eq!(wanted(GenerationConfig { top_p: 0.5, ..config() }), Wanted::All);
    assert_eq!(wanted(config()), Wanted::All);
    assert_eq!(wanted(GenerationConfig { logprobs: Some(0), ..Default::default() }), Wanted::All);
}
