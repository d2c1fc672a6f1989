//! From a stretch of text to the words that the model sees: normalization and pre-tokenization.

use serde_json::Value;
use tokenizers::tokenizer::{Normalizer, PreTokenizer};
use tokenizers::{
    NormalizedString, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizerWrapper, SplitDelimiterBehavior,
};

use super::bpe::Atoms;
use super::error::TokenizerError;
use super::split::{GPT2, Splitter};

/// What happens to text before the model.
#[derive(Debug)]
pub(super) struct Words {
    normalizer: Option<NormalizerWrapper>,
    steps: Vec<Step>,
    /// The steps for text that does not start the input, where they differ.
    inner_steps: Option<Vec<Step>>,
}

#[derive(Debug)]
enum Step {
    Split { splitter: Splitter, behavior: SplitDelimiterBehavior, invert: bool },
    Other(PreTokenizerWrapper),
}

impl Step {
    fn isolate(splitter: Splitter) -> Self {
        Self::Split { splitter, behavior: SplitDelimiterBehavior::Isolated, invert: false }
    }

    fn is_plain(&self) -> bool {
        matches!(self, Self::Split { behavior: SplitDelimiterBehavior::Isolated, .. })
    }
}

impl Words {
    /// Words cut by one regular expression after the other, each cutting the pieces of the one before.
    pub(super) fn of_patterns(patterns: &[&str]) -> Result<Self, String> {
        let step = |pattern: &&str| Splitter::new(pattern).map(Step::isolate);
        let steps = patterns.iter().map(step).collect::<Result<_, _>>()?;
        Ok(Self { normalizer: None, steps, inner_steps: None })
    }

    /// Words as `normalizer` and `pre_tokenizer` of a tokenizer.json say, and what they are made of.
    ///
    /// `file` is named in errors.
    pub(super) fn of_json(
        file: &str,
        normalizer: Option<&Value>,
        pre_tokenizer: Option<&Value>,
    ) -> Result<(Self, Atoms), TokenizerError> {
        let normalizer = normalizer
            .filter(|value| !value.is_null())
            .map(|value| parse_normalizer(file, value))
            .transpose()?;
        let mut leaves = Vec::new();
        if let Some(value) = pre_tokenizer.filter(|value| !value.is_null()) {
            flatten(file, value, &mut leaves)?;
        }
        let (steps, atoms) = parse_steps(file, &leaves)?;
        let mut words = Self { normalizer, steps, inner_steps: None };
        if leaves.iter().any(|leaf| leaf["prepend_scheme"] == "first") {
            for leaf in leaves.iter_mut().filter(|leaf| leaf["prepend_scheme"] == "first") {
                leaf["prepend_scheme"] = "never".into();
            }
            words.inner_steps = Some(parse_steps(file, &leaves)?.0);
        }
        Ok((words, atoms))
    }

    /// Calls `word` with each word of `text`; `first` says that the input starts with it.
    pub(super) fn for_each(
        &self,
        text: &str,
        first: bool,
        mut word: impl FnMut(&str) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        let normalized;
        let text = match &self.normalizer {
            None => text,
            Some(normalizer) => {
                let mut string = NormalizedString::from(text);
                normalizer
                    .normalize(&mut string)
                    .map_err(|error| TokenizerError::encode(error.to_string()))?;
                normalized = string.get().to_owned();
                &normalized
            }
        };
        let steps = match &self.inner_steps {
            Some(inner) if !first => inner,
            _ => &self.steps,
        };
        if steps.iter().all(Step::is_plain) {
            return cut(steps, text, &mut word);
        }
        let mut string = PreTokenizedString::from(text);
        for step in steps {
            apply(step, &mut string).map_err(|error| TokenizerError::encode(error.to_string()))?;
        }
        string
            .get_splits(OffsetReferential::Normalized, OffsetType::None)
            .into_iter()
            .try_for_each(|(text, ..)| word(text))
    }
}

/// The common case, all steps isolating matches, without `PreTokenizedString` and its 16 bytes of offsets for each byte.
fn cut(
    steps: &[Step],
    text: &str,
    word: &mut impl FnMut(&str) -> Result<(), TokenizerError>,
) -> Result<(), TokenizerError> {
    match steps {
        [Step::Split { splitter, .. }, rest @ ..] => splitter
            .split(text)
            .map_err(TokenizerError::encode)?
            .into_iter()
            .try_for_each(|((start, end), _)| cut(rest, &text[start..end], word)),
        _ if text.is_empty() => Ok(()),
        _ => word(text),
    }
}

fn apply(step: &Step, string: &mut PreTokenizedString) -> tokenizers::Result<()> {
    match step {
        Step::Other(step) => step.pre_tokenize(string),
        Step::Split { splitter, behavior, invert } => string.split(|_, piece| match invert {
            true => piece.split(tokenizers::tokenizer::pattern::Invert(splitter), *behavior),
            false => piece.split(splitter, *behavior),
        }),
    }
}

/// Nothing else is handed to the `tokenizers` crate, which trusts some of its other types too much.
const NORMALIZERS: [&str; 9] =
    ["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Prepend", "Replace"];
const PRE_TOKENIZERS: [&str; 9] = [
    "Sequence",
    "Split",
    "ByteLevel",
    "Metaspace",
    "Digits",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
    "UnicodeScripts",
];

fn parse_normalizer(file: &str, value: &Value) -> Result<NormalizerWrapper, TokenizerError> {
    fn check(file: &str, value: &Value) -> Result<(), TokenizerError> {
        check_type(file, "normalizer", value, &NORMALIZERS)?;
        let parts = value["normalizers"].as_array();
        parts.into_iter().flatten().try_for_each(|part| check(file, part))
    }
    check(file, value)?;
    serde_json::from_value(value.clone()).map_err(|error| {
        TokenizerError::malformed(format!("{file}: `normalizer`"), error.to_string())
    })
}

fn check_type(file: &str, key: &str, value: &Value, known: &[&str]) -> Result<(), TokenizerError> {
    match value["type"].as_str() {
        Some(name) if known.contains(&name) => Ok(()),
        Some(name) => Err(TokenizerError::Unsupported {
            place: format!("{file}: `{key}`"),
            found: name.into(),
            known: known.join(", "),
        }),
        None => Err(TokenizerError::malformed(format!("{file}: `{key}`"), "its `type` is missing")),
    }
}

/// Lists the parts of nested sequences.
fn flatten(file: &str, value: &Value, leaves: &mut Vec<Value>) -> Result<(), TokenizerError> {
    check_type(file, "pre_tokenizer", value, &PRE_TOKENIZERS)?;
    if value["type"] != "Sequence" {
        leaves.push(value.clone());
        return Ok(());
    }
    let parts = value["pretokenizers"].as_array().ok_or_else(|| {
        TokenizerError::malformed(
            format!("{file}: `pre_tokenizer`"),
            "its `pretokenizers` is not a list",
        )
    })?;
    parts.iter().try_for_each(|part| flatten(file, part, leaves))
}

fn parse_steps(file: &str, leaves: &[Value]) -> Result<(Vec<Step>, Atoms), TokenizerError> {
    let mut steps = Vec::new();
    for (index, leaf) in leaves.iter().enumerate() {
        let byte_level = leaf["type"] == "ByteLevel";
        // A missing `use_regex` means true, as in files from before it existed.
        if byte_level && leaf["add_prefix_space"] == false && leaf["use_regex"] != false {
            steps.push(Step::isolate(
                Splitter::new(GPT2).map_err(|problem| regex_error(file, problem))?,
            ));
        }
        if byte_level && leaf["add_prefix_space"] == false {
            if index + 1 == leaves.len() {
                return Ok((steps, Atoms::Bytes));
            }
            let mut leaf = leaf.clone();
            leaf["use_regex"] = false.into();
            steps.push(Step::Other(parse_leaf(file, &leaf)?));
        } else if leaf["type"] == "Split" {
            steps.push(parse_split(file, leaf)?);
        } else {
            steps.push(Step::Other(parse_leaf(file, leaf)?));
        }
    }
    Ok((steps, Atoms::Chars))
}

fn parse_leaf<T: serde::de::DeserializeOwned>(
    file: &str,
    leaf: &Value,
) -> Result<T, TokenizerError> {
    serde_json::from_value(leaf.clone()).map_err(|error| {
        TokenizerError::malformed(format!("{file}: `pre_tokenizer`"), error.to_string())
    })
}

fn parse_split(file: &str, leaf: &Value) -> Result<Step, TokenizerError> {
    #[derive(serde::Deserialize)]
    struct Split {
        pattern: SplitPattern,
        behavior: SplitDelimiterBehavior,
        #[serde(default)]
        invert: bool,
    }
    #[derive(serde::Deserialize)]
    enum SplitPattern {
        String(String),
        Regex(String),
    }
    let Split { pattern, behavior, invert } = parse_leaf(file, leaf)?;
    let pattern = match pattern {
        SplitPattern::Regex(pattern) => pattern,
        SplitPattern::String(text) => fancy_regex::escape(&text).into_owned(),
    };
    let splitter = Splitter::new(&pattern).map_err(|problem| regex_error(file, problem))?;
    Ok(Step::Split { splitter, behavior, invert })
}

fn regex_error(file: &str, problem: String) -> TokenizerError {
    TokenizerError::malformed(
        format!("{file}: `pre_tokenizer`"),
        format!("wrong regular expression: {problem}"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(pre_tokenizer: Value, text: &str, expected: (Atoms, &[&str])) {
        let (words, atoms) = Words::of_json("tokenizer.json", None, Some(&pre_tokenizer)).unwrap();
        let mut found = Vec::new();
        let collect = |word: &str| {
            found.push(word.to_owned());
            Ok(())
        };
        words.for_each(text, false, collect).unwrap();
        assert_eq!(
            (atoms, found.iter().map(String::as_str).collect::<Vec<_>>()),
            (expected.0, expected.1.to_vec())
        );
    }

    #[test]
    fn byte_level_cuts_by_itself_unless_told_not_to() {
        let byte_level = |extra: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": extra});
        check(byte_level(true), "ab 12", (Atoms::Bytes, &["ab", " 12"]));
        check(byte_level(false), "ab 12", (Atoms::Bytes, &["ab 12"]));
    }

    #[test]
    fn steps_after_byte_level_see_its_alphabet() {
        let sequence = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            {"type": "Digits", "individual_digits": true},
        ]});
        check(sequence, "é a12!?", (Atoms::Chars, &["Ã©", "Ġa", "1", "2", "!?"]));
    }

    #[test]
    fn a_split_may_remove_what_it_matches() {
        let split = json!({"type": "Split", "pattern": {"String": "."}, "behavior": "Removed", "invert": false});
        check(split, "a.b", (Atoms::Chars, &["a", "b"]));
    }

    #[test]
    fn metaspace_marks_only_the_first_text_if_told_so() {
        let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
        check(metaspace, "a b", (Atoms::Chars, &["a▁b"]));
    }
}
