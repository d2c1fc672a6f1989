//! The seeds of the fuzz targets `tokenizer` and `packed`, replayed as these would.

#[path = "../../../../fuzz/checks/packed.rs"]
mod packed;
#[path = "../../../../fuzz/checks/tokenizer.rs"]
mod tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

/// The files of a target's corpus in order. Well-formed ones have an ending; the others are what fuzzing has found.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(!names.is_empty());
    names.into_iter().map(|name| (name.clone(), fs::read(name).unwrap())).collect()
}

#[test]
fn every_seed_is_a_tokenizer_or_an_error() {
    for (name, data) in corpus("tokenizer") {
        let input = tokenizer::Input::parse(&data);
        let (files, metadata) = (input.load_files().is_some(), input.load_metadata().is_some());
        let ending = name.extension().and_then(|ending| ending.to_str());
        match ending {
            Some("json") => assert!(files, "{}", name.display()),
            Some("metadata") => assert!(metadata, "{}", name.display()),
            _ => {}
        }
    }
}

#[test]
fn every_seed_is_a_file_of_packed_weights_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checker = packed::Checker::new(folder.path());
    for (name, data) in corpus("packed") {
        let used = checker.run(&data);
        if name.extension().is_some_and(|ending| ending == "sections") {
            let (matrices, used) = used.unwrap_or_else(|| panic!("{}", name.display()));
            assert!(matrices > 0 && used == matrices, "{}: {used} of {matrices}", name.display());
        }
    }
}
