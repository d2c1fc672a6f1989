//! How well a model predicts a text, counted in the ways that others count, so that figures can be compared.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use bitnet_inference::handle::collect_rows;
use bitnet_inference::{InvalidConfig, Request, Work};
use bitnet_model::tokenizer::Special;

use crate::error::Error;
use crate::model::BitNetModel;

/// Windows given to the engine at a time, so that it need not wait for the next.
const IN_FLIGHT: usize = 2;

/// A text to predict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PerplexityInput {
    /// As text.
    Text(String),
    /// As tokens, taken as they are: the method puts no token before the first.
    Ids(Vec<u32>),
}

impl From<&str> for PerplexityInput {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for PerplexityInput {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<u32>> for PerplexityInput {
    fn from(ids: Vec<u32>) -> Self {
        Self::Ids(ids)
    }
}

/// What is counted. A last window that is not full is left out, except by `Documents`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PerplexityMethod {
    /// As `llama-perplexity -c WINDOW`: the text starts with BOS if the tokenizer says so, and BOS replaces the first token of
    /// every window; of each window, the tokens after the one in the middle count.
    #[default]
    LlamaCpp,
    /// Windows of BOS and `window - 1` tokens of text; all of these count.
    Bos,
    /// Windows of BOS and `window - 1` tokens of text; the second half counts.
    BosSecondHalf,
    /// Windows of `window` tokens of text; all but the first count.
    NoBos,
    /// Texts separated by blank lines, each as BOS, text, EOS and cut to `window` tokens; all but BOS count.
    Documents,
}

impl PerplexityMethod {
    /// All methods.
    pub const ALL: [Self; 5] =
        [Self::LlamaCpp, Self::Bos, Self::BosSecondHalf, Self::NoBos, Self::Documents];
}

impl fmt::Display for PerplexityMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LlamaCpp => "llama.cpp",
            Self::Bos => "bos",
            Self::BosSecondHalf => "bos-second-half",
            Self::NoBos => "no-bos",
            Self::Documents => "documents",
        })
    }
}

impl FromStr for PerplexityMethod {
    type Err = InvalidConfig;

    fn from_str(name: &str) -> Result<Self, InvalidConfig> {
        let found = Self::ALL.into_iter().find(|method| method.to_string() == name);
        found.ok_or_else(|| InvalidConfig {
            field: "method",
            found: name.to_owned(),
            expected: Self::ALL.map(|method| method.to_string()).join(", "),
        })
    }
}

/// How far a measurement has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerplexityProgress {
    /// Windows done.
    pub done: usize,
    /// Windows in all.
    pub total: usize,
    /// Of the windows done.
    pub so_far: Perplexity,
}

/// How well a text was predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// Mean of `-ln p` over the tokens that count.
    pub mean_nll: f64,
    /// Standard error of that mean, as if tokens were independent; none for a single token.
    pub std_error: Option<f64>,
    /// Tokens that count.
    pub scored: usize,
    /// Windows.
    pub windows: usize,
}

impl Perplexity {
    /// `e` to the mean: as uncertain as a choice among so many equally likely tokens.
    pub fn value(&self) -> f64 {
        self.mean_nll.exp()
    }

    /// Standard error of [`value`](Self::value).
    pub fn value_std_error(&self) -> Option<f64> {
        self.std_error.map(|error| error * self.value())
    }
}

/// A sum under way.
#[derive(Default)]
struct Sums {
    count: usize,
    sum: f64,
    squares: f64,
    windows: usize,
}

impl Sums {
    fn add(&mut self, scores: &[f32]) {
        self.count += scores.len();
        self.windows += 1;
        for score in scores.iter().copied().map(f64::from) {
            self.sum += score;
            self.squares += score * score;
        }
    }

    fn result(&self) -> Perplexity {
        let n = self.count as f64;
        let mean = self.sum / n;
        let variance = (self.squares / n - mean * mean).max(0.0);
        let std_error = (self.count > 1).then(|| (variance / (n - 1.0)).sqrt());
        Perplexity { mean_nll: mean, std_error, scored: self.count, windows: self.windows }
    }
}

/// Tokens computed together, and the first of them that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    ids: Vec<u32>,
    from: usize,
}

pub(crate) fn measure(
    model: &BitNetModel,
    input: &PerplexityInput,
    window: usize,
    method: PerplexityMethod,
    mut progress: impl FnMut(PerplexityProgress),
) -> Result<Perplexity, Error> {
    let context = model.engine().limits().max_seq_len;
    if !(4..=context).contains(&window) {
        let expected = format!("from 4 to {context}, the context");
        return Err(invalid("window", window, expected).into());
    }
    let windows = windows(model, input, window, method)?;
    let (total, mut windows) = (windows.len(), windows.into_iter());
    let (mut sums, mut running) = (Sums::default(), VecDeque::new());
    loop {
        while running.len() < IN_FLIGHT {
            let Some(Window { ids, from }) = windows.next() else { break };
            running.push_back(model.order(Request::new(ids, Work::Score { from }))?);
        }
        let Some(first) = running.pop_front() else { return Ok(sums.result()) };
        sums.add(&collect_rows(&first)?);
        progress(PerplexityProgress { done: sums.windows, total, so_far: sums.result() });
    }
}

fn windows(
    model: &BitNetModel,
    input: &PerplexityInput,
    window: usize,
    method: PerplexityMethod,
) -> Result<Vec<Window>, Error> {
    let tokenizer = model.tokenizer();
    let bos = || {
        tokenizer.bos_id().ok_or_else(|| {
            invalid("method", method, "llama.cpp or no-bos, as this model has no BOS token")
        })
    };
    if method == PerplexityMethod::Documents {
        let PerplexityInput::Text(text) = input else {
            return Err(invalid(
                "method",
                method,
                "another one, as this needs text and not tokens",
            )
            .into());
        };
        let eos = *model.config().eos_token_ids.first().ok_or_else(|| {
            invalid("method", method, "another one, as this model has no EOS token")
        })?;
        return documents(model, text, window, bos()?, eos);
    }
    let llama = method == PerplexityMethod::LlamaCpp;
    let ids = match input {
        PerplexityInput::Text(text) => tokenizer.encode(text, Special::Text, llama)?,
        PerplexityInput::Ids(ids) => ids.clone(),
    };
    let first = match method {
        PerplexityMethod::LlamaCpp => tokenizer.encode("", Special::Text, true)?.first().copied(),
        PerplexityMethod::NoBos => None,
        _ => Some(bos()?),
    };
    let windows = cut(&ids, window, method, first);
    match windows.is_empty() {
        true => {
            let expected = format!("less, as the text has {} tokens", ids.len());
            Err(invalid("window", window, expected).into())
        }
        false => Ok(windows),
    }
}

/// Full windows of a text; `first` is the token that starts them, if there is one.
fn cut(ids: &[u32], window: usize, method: PerplexityMethod, first: Option<u32>) -> Vec<Window> {
    let replaces = method == PerplexityMethod::LlamaCpp || first.is_none();
    let from = match method {
        PerplexityMethod::LlamaCpp => window / 2 + 1,
        PerplexityMethod::BosSecondHalf => window / 2,
        _ => 1,
    };
    ids.chunks_exact(if replaces { window } else { window - 1 })
        .map(|chunk| {
            let rest = if replaces { &chunk[1..] } else { chunk };
            let ids = [&[first.unwrap_or(chunk[0])], rest].concat();
            Window { ids, from }
        })
        .collect()
}

fn documents(
    model: &BitNetModel,
    text: &str,
    window: usize,
    bos: u32,
    eos: u32,
) -> Result<Vec<Window>, Error> {
    let texts = text.split("\n\n").map(|text| text.trim_matches('\n')).filter(|t| !t.is_empty());
    let windows = texts
        .map(|text| {
            let ids = model.tokenizer().encode(text, Special::Text, false)?;
            let mut ids = [&[bos], &ids[..], &[eos]].concat();
            ids.truncate(window);
            Ok(Window { ids, from: 1 })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    match windows.is_empty() {
        true => Err(invalid("text", "empty", "one that has at least one document").into()),
        false => Ok(windows),
    }
}

fn invalid(
    field: &'static str,
    found: impl ToString,
    expected: impl Into<String>,
) -> InvalidConfig {
    InvalidConfig { field, found: found.to_string(), expected: expected.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: PerplexityMethod, first: Option<u32>, expected: &[(&[u32], usize)]) {
        let ids: Vec<u32> = (1..=9).collect();
        let expected: Vec<_> =
            expected.iter().map(|(ids, from)| Window { ids: ids.to_vec(), from: *from }).collect();
        assert_eq!(cut(&ids, 4, method, first), expected);
    }

    #[test]
    fn llama_cpp_replaces_first_tokens_and_counts_after_the_middle() {
        let windows: [(&[u32], usize); 2] = [(&[0, 2, 3, 4], 3), (&[0, 6, 7, 8], 3)];
        check(PerplexityMethod::LlamaCpp, Some(0), &windows);
        let windows: [(&[u32], usize); 2] = [(&[1, 2, 3, 4], 3), (&[5, 6, 7, 8], 3)];
        check(PerplexityMethod::LlamaCpp, None, &windows);
    }

    #[test]
    fn a_bos_window_has_room_for_one_token_less() {
        let windows: [(&[u32], usize); 3] =
            [(&[0, 1, 2, 3], 1), (&[0, 4, 5, 6], 1), (&[0, 7, 8, 9], 1)];
        check(PerplexityMethod::Bos, Some(0), &windows);
        check(PerplexityMethod::BosSecondHalf, Some(0), &windows.map(|(ids, _)| (ids, 2)));
    }

    #[test]
    fn without_bos_the_first_token_is_only_looked_back_on() {
        check(PerplexityMethod::NoBos, None, &[(&[1, 2, 3, 4], 1), (&[5, 6, 7, 8], 1)]);
    }

    #[test]
    fn the_mean_has_the_standard_error_of_its_numbers() {
        let mut sums = Sums::default();
        sums.add(&[1.0, 2.0]);
        sums.add(&[3.0, 4.0]);
        let result = sums.result();
        assert_eq!((result.mean_nll, result.scored, result.windows), (2.5, 4, 2));
        // Variance 5/3 of a sample of four.
        assert!((result.std_error.unwrap() - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert!((result.value() - 2.5f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn names_are_read_as_they_are_printed() {
        for method in PerplexityMethod::ALL {
            assert_eq!(method.to_string().parse(), Ok(method));
        }
        assert_eq!(
            "half".parse::<PerplexityMethod>().unwrap_err().to_string(),
            "`method` is half; it should be llama.cpp, bos, bos-second-half, no-bos, documents"
        );
    }
}
