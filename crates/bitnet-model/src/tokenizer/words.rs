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
    normalizers: Vec<NormalizerWrapper>,
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
        Ok(Self { normalizers: Vec::new(), steps, inner_steps: None })
    }

    /// Words as `normalizer` and `pre_tokenizer` of a tokenizer.json say, and what they are made of.
    ///
    /// `file` is named in errors.
    pub(super) fn of_json(
        file: &str,
        normalizer: Option<&Value>,
        pre_tokenizer: Option<&Value>,
    ) -> Result<(Self, Atoms), TokenizerError> {
        let mut normalizers = Vec::new();
        if let Some(value) = normalizer.filter(|value| !value.is_null()) {
            flatten(file, &NORMALIZERS, value, &mut normalizers)?;
        }
        let normalizers = normalizers.iter().map(|leaf| parse_leaf(file, NORMALIZERS.key, leaf));
        let normalizers = normalizers.collect::<Result<_, _>>()?;
        let mut leaves = Vec::new();
        if let Some(value) = pre_tokenizer.filter(|value| !value.is_null()) {
            flatten(file, &PRE_TOKENIZERS, value, &mut leaves)?;
        }
        let (steps, atoms) = parse_steps(file, &leaves)?;
        let mut words = Self { normalizers, steps, inner_steps: None };
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
        let text = match self.normalizers.as_slice() {
            [] => text,
            normalizers => {
                normalized = normalize(normalizers, text)?;
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

/// How much longer than a text its normalized form may be. Real normalizers write `▁` for a space, three bytes for one;
/// compatibility forms grow elevenfold at most.
const MAX_GROWTH: usize = 16;

fn normalize(normalizers: &[NormalizerWrapper], text: &str) -> Result<String, TokenizerError> {
    let limit = text.len().saturating_mul(MAX_GROWTH).saturating_add(1 << 16);
    let mut string = NormalizedString::from(text);
    for normalizer in normalizers {
        let len = string.get().len();
        // These two could make a text of any length at once.
        let longest = match normalizer {
            NormalizerWrapper::Replace(replace) => {
                (len + 1).saturating_mul(replace.content.len()).saturating_add(len)
            }
            NormalizerWrapper::Prepend(prepend) => len.saturating_add(prepend.prepend.len()),
            _ => len,
        };
        if longest > limit {
            let problem = format!("its normalizer may make {longest} bytes of {}", text.len());
            return Err(TokenizerError::encode(problem));
        }
        normalizer
            .normalize(&mut string)
            .map_err(|error| TokenizerError::encode(error.to_string()))?;
    }
    Ok(string.get().to_owned())
}

/// The common case, all steps isolating matches, without `PreTokenizedString` and its 16 bytes of offsets for each byte.
fn cut(
    steps: &[Step],
    text: &str,
    word: &mut impl FnMut(&str) -> Result<(), TokenizerError>,
) -> Result<(), TokenizerError> {
    match steps {
        [Step::Split { splitter, .. }, rest @ ..] => splitter.split(text).try_for_each(|part| {
            let ((start, end), _) = part.map_err(TokenizerError::encode)?;
            cut(rest, &text[start..end], word)
        }),
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

/// Types that are handed to the `tokenizers` crate, which trusts some of its others too much.
struct Known {
    key: &'static str,
    /// The key of a sequence's parts.
    parts: &'static str,
    types: [&'static str; 9],
}

const NORMALIZERS: Known = Known {
    key: "normalizer",
    parts: "normalizers",
    types: ["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "Prepend", "Replace"],
};

const PRE_TOKENIZERS: Known = Known {
    key: "pre_tokenizer",
    parts: "pretokenizers",
    types: [
        "Sequence",
        "Split",
        "ByteLevel",
        "Metaspace",
        "Digits",
        "Punctuation",
        "Whitespace",
        "WhitespaceSplit",
        "UnicodeScripts",
    ],
};

/// Parts of a sequence. Real ones have up to six, and each may take another look at every word.
const MAX_PARTS: usize = 32;

/// Lists the parts of nested sequences.
fn flatten(
    file: &str,
    known: &Known,
    value: &Value,
    leaves: &mut Vec<Value>,
) -> Result<(), TokenizerError> {
    let place = || format!("{file}: `{}`", known.key);
    let name = value["type"]
        .as_str()
        .ok_or_else(|| TokenizerError::malformed(place(), "its `type` is missing"))?;
    if !known.types.contains(&name) {
        return Err(TokenizerError::Unsupported {
            place: place(),
            found: name.into(),
            known: known.types.join(", "),
        });
    }
    if name == "Sequence" {
        let parts = value[known.parts].as_array().ok_or_else(|| {
            TokenizerError::malformed(place(), format!("its `{}` is not a list", known.parts))
        })?;
        return parts.iter().try_for_each(|part| flatten(file, known, part, leaves));
    }
    // Each writes the text of the one before in an alphabet of characters with two bytes: it doubles.
    let again = name == "ByteLevel" && leaves.iter().any(|leaf| leaf["type"] == "ByteLevel");
    if again || leaves.len() == MAX_PARTS {
        let problem = if again { "two parts are ByteLevel" } else { "it has too many parts" };
        return Err(TokenizerError::malformed(place(), problem));
    }
    leaves.push(value.clone());
    Ok(())
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
            steps.push(Step::Other(parse_leaf(file, PRE_TOKENIZERS.key, &leaf)?));
        } else if leaf["type"] == "Split" {
            steps.push(parse_split(file, leaf)?);
        } else {
            steps.push(Step::Other(parse_leaf(file, PRE_TOKENIZERS.key, leaf)?));
        }
    }
    Ok((steps, Atoms::Chars))
}

fn parse_leaf<T: serde::de::DeserializeOwned>(
    file: &str,
    key: &str,
    leaf: &Value,
) -> Result<T, TokenizerError> {
    serde_json::from_value(leaf.clone())
        .map_err(|error| TokenizerError::malformed(format!("{file}: `{key}`"), error.to_string()))
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
    let Split { pattern, behavior, invert } = parse_leaf(file, PRE_TOKENIZERS.key, leaf)?;
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
