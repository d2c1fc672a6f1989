//! A byte-level vocabulary: every byte, a few merges, words that only decoding knows, and special tokens at the end.

use bitnet_model::format::metadata::{Metadata, Value};

/// Pairs that are merged, in order; a letter stands for a byte and `Ġ` for a blank.
const MERGES: [&str; 34] = [
    "Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he", "e r", "Ġ s", "a t", "Ġ w", "Ġ o", "e n",
    "Ġ c", "i t", "i s", "a n", "o r", "e s", "Ġ b", "e d", "Ġ f", "in g", "Ġ p", "o u", "Ġa n",
    "a l", "a r", "Ġt o", "Ġ m", "Ġo f", "Ġ in", "Ġ d", "Ġan d",
];

/// Token types as GGUF counts them.
const NORMAL: i128 = 1;
const CONTROL: i128 = 3;

/// Fewest tokens that a vocabulary can have here.
pub const SMALLEST: usize = 256 + MERGES.len() + few_special();

const fn few_special() -> usize {
    10
}

/// Special tokens of a vocabulary: Llama 3's 256 if there is room, at its ids if there are 128256 tokens.
fn special(vocab: usize) -> usize {
    if vocab >= 4096 { 256 } else { few_special() }
}

/// Adds `tokenizer.ggml.*` for `vocab` tokens, at least [`SMALLEST`].
pub fn add(metadata: &mut Metadata, vocab: usize) {
    let first_special = vocab - special(vocab);
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_char(byte).to_string()).collect();
    tokens.extend(MERGES.map(|pair| pair.replace(' ', "")));
    tokens.extend((0..first_special - tokens.len()).map(word));
    tokens.extend((0..special(vocab)).map(special_name));
    let kinds = (0..vocab).map(|id| if id < first_special { NORMAL } else { CONTROL }).collect();
    let id = |offset: usize| Value::Int((first_special + offset) as i128);
    let pairs = [
        ("model", Value::String("gpt2".into())),
        ("pre", Value::String("llama-bpe".into())),
        ("tokens", Value::Strings(tokens)),
        ("token_type", Value::Ints(kinds)),
        ("merges", Value::Strings(MERGES.map(str::to_owned).into())),
        ("bos_token_id", id(0)),
        ("eos_token_id", id(1)),
        ("eot_token_id", id(9)),
        ("add_bos_token", Value::Bool(true)),
    ];
    metadata.0.extend(pairs.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
}

/// GPT-2's printable character for a byte: itself where it is printable, else one from U+0100 on.
fn byte_char(byte: u8) -> char {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(&byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|byte| !printable(byte)).count() as u32;
    char::from_u32(0x100 + before).expect("68 bytes are not printable, and U+0100 to U+0143 exist")
}

/// A word that sounds like one, another for each index.
fn word(index: usize) -> String {
    const SYLLABLES: [&str; 16] = [
        "ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wu",
        "zy",
    ];
    let mut word = "Ġ".to_owned();
    let mut rest = index + 256; // three syllables at least, which no merge makes
    while rest > 0 {
        word += SYLLABLES[rest % 16];
        rest /= 16;
    }
    word
}

/// Llama 3's name of its special token number `offset`.
fn special_name(offset: usize) -> String {
    match offset {
        0 => "<|begin_of_text|>".into(),
        1 => "<|end_of_text|>".into(),
        6 => "<|start_header_id|>".into(),
        7 => "<|end_header_id|>".into(),
        9 => "<|eot_id|>".into(),
        2..=5 => format!("<|reserved_special_token_{}|>", offset - 2),
        8 => "<|reserved_special_token_4|>".into(),
        _ => format!("<|reserved_special_token_{}|>", offset - 5),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn tokens(vocab: usize) -> (Metadata, Vec<String>) {
        let mut metadata = Metadata::default();
        add(&mut metadata, vocab);
        let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().to_vec();
        (metadata, tokens)
    }

    #[test]
    fn all_tokens_differ_and_all_merges_make_one() {
        for vocab in [SMALLEST, 1024, 128_256] {
            let (_, tokens) = tokens(vocab);
            let set: HashSet<_> = tokens.iter().collect();
            assert_eq!((tokens.len(), set.len()), (vocab, vocab));
            for merge in MERGES {
                for part in merge.split(' ').chain([merge.replace(' ', "").as_str()]) {
                    assert!(set.contains(&part.to_owned()), "{merge}");
                }
            }
        }
    }

    #[test]
    fn a_large_vocabulary_has_llama_3s_special_ids() {
        let (metadata, tokens) = tokens(128_256);
        assert_eq!(metadata.u64("tokenizer.ggml.bos_token_id"), Some(128_000));
        assert_eq!(metadata.u64("tokenizer.ggml.eot_token_id"), Some(128_009));
        assert_eq!(tokens[128_009], "<|eot_id|>");
        assert_eq!(tokens[128_255], "<|reserved_special_token_250|>");
    }

    #[test]
    fn bytes_have_gpt2s_characters() {
        assert_eq!([0, 32, 10, 127, 173, 255].map(byte_char), ['Ā', 'Ġ', 'Ċ', 'ġ', 'Ń', 'ÿ']);
    }
}
