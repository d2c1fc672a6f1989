//! What a step costs, learned while running, so that prompts can be cut to pieces that fit between the tokens of answers.
//!
//! Past the few tokens that come for the price of reading the weights, a step takes `base + work · tokens + attention · pairs`
//! seconds. The three are fitted by recursive least squares that forgets (Ljung 1999, chapter 11).

use std::time::Duration;

/// Tokens from which on the model holds: below, a step takes as long as reading the weights.
const LINEAR: f64 = 4.0;
/// How much of what was learned is left after a step.
const FORGETTING: f64 = 0.98;
/// Units in which the three are fitted, to be of one order.
const SCALE: [f64; 3] = [1.0, 64.0, 65536.0];
/// Uncertainty at the beginning: what the first step takes is mostly due to its tokens.
const UNCERTAIN: [f64; 3] = [1.0, 1e3, 10.0];
/// The most that their sum may grow to, which it would do without bound as long as all steps are alike.
const MOST_UNCERTAIN: f64 = 1e3;

/// The size of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepSize {
    /// Tokens, with rows of logits counted as what they are in products: a part of a token.
    pub tokens: f64,
    /// Sum over the tokens of the positions that they attend to.
    pub pairs: f64,
}

impl StepSize {
    /// `count` tokens of a sequence that follow `before` others, with `rows` rows of logits that cost `row` tokens each.
    pub fn of(before: usize, count: usize, rows: usize, row: f64) -> Self {
        let (before, count) = (before as f64, count as f64);
        Self { tokens: count + rows as f64 * row, pairs: count * (before + (count + 1.0) / 2.0) }
    }
}

impl std::ops::AddAssign for StepSize {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.pairs += other.pairs;
    }
}

/// What has been learned.
#[derive(Clone, Copy, Debug)]
pub struct StepModel {
    /// Seconds in units of `SCALE`.
    seconds: [f64; 3],
    /// The inverse of what was seen, symmetric.
    covariance: [[f64; 3]; 3],
    seen: u32,
}

impl Default for StepModel {
    fn default() -> Self {
        let mut covariance = [[0.0; 3]; 3];
        (0..3).for_each(|i| covariance[i][i] = UNCERTAIN[i]);
        Self { seconds: [0.0; 3], covariance, seen: 0 }
    }
}

impl StepModel {
    /// Books a step.
    pub fn observe(&mut self, size: StepSize, time: Duration) {
        if size.tokens < LINEAR {
            return;
        }
        let x = features(size);
        let mut seconds = time.as_secs_f64();
        // A step during which the process did not get the processors says nothing about steps.
        if self.seen > 8 {
            seconds = seconds.min(3.0 * self.seconds(size));
        }
        let p = &mut self.covariance;
        let px: [f64; 3] = std::array::from_fn(|i| dot(&p[i], &x));
        let scale = FORGETTING + dot(&x, &px);
        let error = seconds - dot(&self.seconds, &x);
        for (seconds, px) in self.seconds.iter_mut().zip(px) {
            *seconds += px / scale * error;
        }
        for (row, a) in p.iter_mut().zip(px) {
            row.iter_mut().zip(px).for_each(|(value, b)| *value -= a * b / scale);
        }
        let trace = p[0][0] + p[1][1] + p[2][2];
        if trace / FORGETTING < MOST_UNCERTAIN {
            p.iter_mut().flatten().for_each(|value| *value /= FORGETTING);
        }
        self.seen += 1;
    }

    /// Whether any step was seen.
    pub fn is_known(&self) -> bool {
        self.seen > 0
    }

    /// Seconds that a step takes; for few tokens less than it does.
    pub fn seconds(&self, size: StepSize) -> f64 {
        let costs = self.seconds.map(|cost| cost.max(0.0)); // a fit may go below, a step does not
        dot(&costs, &features(size))
    }

    /// The most tokens of a sequence that follow `before` others and take no more than so many seconds.
    pub fn fitting(&self, seconds: f64, before: usize) -> usize {
        let [_, token, pair] = self.costs();
        // pair / 2 · n² + (token + pair · before) · n = seconds
        let linear = token + pair * before as f64;
        let root = (linear * linear + 2.0 * pair * seconds).sqrt();
        let count = 2.0 * seconds / (linear + root); // the form that also holds for pair = 0
        if count.is_nan() { 0 } else { count.max(0.0) as usize }
    }

    /// Seconds of a step as such, of a token in it, and of a position that a token attends to.
    pub fn costs(&self) -> [f64; 3] {
        std::array::from_fn(|i| self.seconds[i].max(0.0) / SCALE[i])
    }
}

fn features(size: StepSize) -> [f64; 3] {
    [1.0 / SCALE[0], size.tokens / SCALE[1], size.pairs / SCALE[2]]
}

fn dot(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: [f64; 3] = [4e-3, 3e-3, 2e-7];

    fn truth(size: StepSize) -> Duration {
        Duration::from_secs_f64(COSTS[0] + COSTS[1] * size.tokens + COSTS[2] * size.pairs)
    }

    /// Prompts of all lengths in pieces of all sizes beside some answers.
    fn sizes() -> impl Iterator<Item = StepSize> {
        (0..200usize).map(|i| {
            let mut size = StepSize::of(i * 37 % 3000, 16 + i * 13 % 500, 1, 0.3);
            size += StepSize::of(i * 91 % 4000, 1, 1, 0.3);
            size
        })
    }

    #[test]
    fn costs_are_found() {
        let mut model = StepModel::default();
        (0..3).flat_map(|_| sizes()).for_each(|size| model.observe(size, truth(size)));
        for (found, cost) in model.costs().into_iter().zip(COSTS) {
            assert!((found / cost - 1.0).abs() < 0.05, "{found} for {cost}");
        }
    }

    #[test]
    fn one_long_prompt_says_about_right_what_a_few_tokens_cost() {
        let mut model = StepModel::default();
        let size = StepSize::of(0, 512, 1, 0.3);
        model.observe(size, truth(size));
        let few = StepSize::of(512, 20, 1, 0.3);
        let ratio = model.seconds(few) / truth(few).as_secs_f64();
        assert!((0.7..1.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_machine_that_becomes_slower_is_noticed() {
        let mut model = StepModel::default();
        sizes().for_each(|size| model.observe(size, truth(size)));
        sizes().for_each(|size| model.observe(size, truth(size) * 2));
        let size = StepSize::of(500, 64, 1, 0.3);
        let ratio = model.seconds(size) / (2.0 * truth(size).as_secs_f64());
        assert!((ratio - 1.0).abs() < 0.1, "{ratio}");
    }

    #[test]
    fn a_single_hiccup_changes_little() {
        let mut model = StepModel::default();
        sizes().for_each(|size| model.observe(size, truth(size)));
        let size = StepSize::of(500, 64, 1, 0.3);
        let before = model.seconds(size);
        model.observe(size, Duration::from_secs(100));
        assert!(model.seconds(size) < 1.5 * before, "{} {before}", model.seconds(size));
    }

    #[test]
    fn the_same_kind_of_step_for_ever_does_no_harm() {
        let mut model = StepModel::default();
        let size = StepSize::of(0, 64, 1, 0.3);
        (0..100_000).for_each(|_| model.observe(size, truth(size)));
        let ratio = model.seconds(size) / truth(size).as_secs_f64();
        assert!((ratio - 1.0).abs() < 1e-3, "{ratio}");
        let other = StepSize::of(2000, 64, 1, 0.3);
        (0..50).for_each(|_| model.observe(other, truth(other)));
        assert!((model.seconds(other) / truth(other).as_secs_f64() - 1.0).abs() < 0.05);
    }

    #[test]
    fn what_fits_takes_the_time_and_one_more_token_takes_longer() {
        let mut model = StepModel::default();
        sizes().for_each(|size| model.observe(size, truth(size)));
        let base = model.costs()[0];
        for (seconds, before) in [(0.1, 0), (0.1, 4000), (1.0, 100), (0.004, 0)] {
            let count = model.fitting(seconds, before);
            let time = |count| model.seconds(StepSize::of(before, count, 0, 0.0)) - base;
            assert!(time(count) <= seconds * 1.001, "{count}");
            assert!(time(count + 2) > seconds, "{count}");
        }
        assert_eq!(model.fitting(-1.0, 10), 0);
        assert_eq!(StepModel::default().fitting(0.0, 10), 0);
    }
}
