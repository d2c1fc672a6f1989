//! Packed weights that are kept between runs, and where weights are meanwhile.

use std::path::Path;

use crate::{Run, program, testdata};

/// Generates with the demo model from a file.
fn generate(arguments: &[&str], cache: &Path) -> Run {
    let model = testdata("demo-model/gguf/demo-tq1_0.gguf");
    let fixed =
        ["run", "-p", "Once", "-n", "12", "--temperature", "0", "-m", model.to_str().unwrap()];
    let mut command = program();
    // What is a cache folder by default is not the tester's own either.
    command.args(fixed).args(arguments).env("XDG_CACHE_HOME", cache).env("HOME", cache);
    command.output().unwrap().into()
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn a_second_run_takes_the_weights_of_the_first() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("packed");
    let own = ["--cache-dir", folder.to_str().unwrap()];
    let without = generate(&["--no-cache"], home.path()).text();
    let first = generate(&own, home.path());
    assert!(
        first.stderr.contains("packed weights are kept for the next start"),
        "{}",
        first.stderr
    );
    assert_eq!(first.text(), without);
    let ways = [&["mmap"][..], &["lazy", "--max-layers-in-memory", "1"], &["preload"]];
    for load in ways {
        let later = generate(&[&own[..], &["--load"], load].concat(), home.path());
        assert!(!later.stderr.contains("packed weights are kept"), "{}", later.stderr);
        assert_eq!(later.text(), without, "{load:?}");
    }
    assert_eq!(files(&folder), 1);
}

#[test]
fn small_models_are_kept_only_where_a_folder_is_named() {
    let home = tempfile::tempdir().unwrap();
    generate(&[], home.path()).text();
    assert_eq!(files(home.path()), 0);
    let folder = home.path().join("packed");
    generate(&["--no-cache", "--cache-dir", folder.to_str().unwrap()], home.path()).text();
    assert_eq!(files(home.path()), 0);
}

#[test]
fn a_folder_that_cannot_be_written_is_a_warning() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    let own = ["--cache-dir", file.to_str().unwrap()];
    let run = generate(&own, home.path());
    assert!(run.stderr.contains("packed weights could not be kept"), "{}", run.stderr);
    run.text();
    let lazy = generate(&[&own[..], &["--load", "lazy"]].concat(), home.path());
    assert_eq!(lazy.code, Some(2), "{}", lazy.stderr);
    assert!(lazy.stderr.contains("hint: load the model from a file"), "{}", lazy.stderr);
}

#[test]
fn memory_that_cannot_be_locked_is_a_warning() {
    let home = tempfile::tempdir().unwrap();
    let run = generate(&["--mlock"], home.path());
    let refused = run.stderr.contains("memory is not locked");
    // Where it was locked, nothing is said.
    assert!(run.stderr.contains("LimitMEMLOCK") || !refused || !cfg!(target_os = "linux"));
    run.text();
}

#[test]
fn lazy_loading_and_locking_exclude_each_other() {
    let home = tempfile::tempdir().unwrap();
    let run = generate(&["--load", "lazy", "--mlock"], home.path());
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("`lock_memory`"), "{}", run.stderr);
}
