//! Checks tokenizers against ids from their references: `cargo run --release --example check_vocab -- VOCAB.gguf ...`
//!
//! Beside each file lie test strings in `VOCAB.gguf.inp`, separated by lines `__ggml_vocab_test__`, and in
//! `VOCAB.gguf.out` a line of ids for each, without BOS. llama.cpp's `models/` folder has such files.

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;
use std::{env, fs};

use bitnet_model::format::gguf::read_metadata;
use bitnet_model::tokenizer::{Special, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<_> = env::args_os().skip(1).collect();
    if paths.is_empty() {
        return Err("usage: check_vocab VOCAB.gguf ...".into());
    }
    let mut failed = 0;
    for path in &paths {
        failed += check(Path::new(path))?;
        measure(Path::new(path))?;
    }
    if failed > 0 { Err(format!("{failed} strings have other ids").into()) } else { Ok(()) }
}

/// Compares every string of one vocabulary; returns how many differ.
fn check(path: &Path) -> Result<usize, Box<dyn Error>> {
    let metadata = read_metadata(path)?;
    let start = Instant::now();
    let tokenizer = Tokenizer::from_gguf(&metadata)?;
    println!(
        "{}: {} tokens, built in {:.0?}",
        path.display(),
        tokenizer.vocab_size(),
        start.elapsed()
    );

    let beside = |suffix: &str| {
        let mut name = OsString::from(path);
        name.push(suffix);
        fs::read_to_string(name)
    };
    let (inputs, outputs) = (beside(".inp")?, beside(".out")?);
    // Each string is followed by the separator, the last one too.
    let mut inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    inputs.pop_if(|last| last.is_empty());
    if inputs.len() != outputs.lines().count() {
        return Err(format!(
            "{} strings, but {} lines of ids",
            inputs.len(),
            outputs.lines().count()
        )
        .into());
    }
    let mut failed = 0;
    for (input, output) in inputs.iter().zip(outputs.lines()) {
        let expected =
            output.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
        let found = tokenizer.encode(input, Special::Text, false)?;
        if found != expected {
            failed += 1;
            println!("  {input:?}\n    found    {found:?}\n    expected {expected:?}");
        }
    }
    println!("  {} of {} strings have the expected ids", inputs.len() - failed, inputs.len());
    Ok(failed)
}

/// Times a megabyte of ordinary text, and of the kinds that make tokenizers slow.
fn measure(path: &Path) -> Result<(), Box<dyn Error>> {
    const SIZE: usize = 1_000_000;
    let tokenizer = Tokenizer::from_gguf(&read_metadata(path)?)?;
    let prose = "The quick brown fox, aged 42, doesn't jump over 1234 lazy dogs.\n";
    let texts = [
        ("prose", prose),
        ("a", "a"),
        ("spaces", " "),
        ("newlines", "\n"),
        ("digits", "7"),
        ("bars", "<|"),
        ("control tokens", "<|eot_id|>"),
        ("emoji", "🙂"),
        ("spaces and letters", "                    x"),
    ];
    for (name, pattern) in texts {
        let text = pattern.repeat(SIZE / pattern.len());
        let start = Instant::now();
        let ids = tokenizer.encode(&text, Special::Text, false)?;
        let encoded = start.elapsed();
        let start = Instant::now();
        let same = tokenizer.decode(&ids, false) == text;
        println!(
            "  1 MB of {name}: {} ids in {encoded:.0?}, back in {:.0?}, same text: {same}",
            ids.len(),
            start.elapsed()
        );
    }
    Ok(())
}
