//! The seeds of the fuzz target `tokenizer`, replayed as it would.

#[path = "../../../../fuzz/checks/tokenizer.rs"]
mod tokenizer;

use std::{fs, path::Path};

#[test]
fn every_seed_is_a_tokenizer_or_an_error() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/tokenizer");
    let mut names: Vec<_> =
        fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(!names.is_empty());
    for name in names {
        let data = fs::read(&name).unwrap();
        let input = tokenizer::Input::parse(&data);
        let (files, metadata) = (input.load_files().is_some(), input.load_metadata().is_some());
        // Well-formed files have one of these endings; the others are what fuzzing has found.
        let ending = name.extension().and_then(|ending| ending.to_str());
        match ending {
            Some("json") => assert!(files, "{}", name.display()),
            Some("metadata") => assert!(metadata, "{}", name.display()),
            _ => {}
        }
    }
}
