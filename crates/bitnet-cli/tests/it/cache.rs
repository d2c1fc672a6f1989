//! Packed weights that are kept between runs, and where weights are meanwhile.

use std::path::Path;

use crate::{Run, program, run, testdata};

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
    generate(&["--cache-dir", folder.to_str().unwrap()], home.path()).text();
    assert_eq!(files(&folder), 1);
}

#[test]
fn a_folder_that_cannot_be_written_is_a_warning() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    let own = ["--cache-dir", file.to_str().unwrap()];
    let run = generate(&own, home.path());
    assert!(run.stderr.contains("warning: packed weights could not be kept"), "{}", run.stderr);
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

/// A folder with the packed weights of one model, and its path as an argument.
fn kept(home: &Path) -> String {
    let folder = home.join("packed").to_str().unwrap().to_owned();
    generate(&["--cache-dir", &folder], home).text();
    folder
}

#[test]
fn kept_weights_are_listed() {
    let home = tempfile::tempdir().unwrap();
    let folder = kept(home.path());
    let list = run(["cache", "list", "--json", "--cache-dir", &folder, "--cache-size", "2.5G"]);
    let list = list.json();
    let file = &list["files"][0];
    let path = Path::new(file["path"].as_str().unwrap());
    assert_eq!(file["bytes"], path.metadata().unwrap().len());
    assert!(file["model"].as_str().unwrap().ends_with("gguf/demo-tq1_0.gguf"), "{list}");
    assert!(file["form"].as_str().unwrap().contains("head int8"), "{list}");
    assert!(file["in_use"] == false && file["last_used"].as_u64() > Some(1_700_000_000), "{list}");
    assert_eq!((&list["bytes"], &list["max_bytes"]), (&file["bytes"], &(5_u64 << 29).into()));
    let text = run(["cache", "list", "--cache-dir", &folder]).text();
    assert!(text.contains("of 10 GiB") && text.contains("just now"), "{text}");
    let empty = home.path().join("empty");
    let text = run(["cache", "list", "--cache-dir", empty.to_str().unwrap()]).text();
    assert!(text.contains("size    0 bytes") && !empty.exists(), "{text}");
}

#[test]
fn kept_weights_are_deleted_when_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let folder = kept(home.path());
    std::fs::write(Path::new(&folder).join("mine.txt"), "mine").unwrap();
    let clear = |arguments: &[&str]| {
        let fixed = ["cache", "clear", "--cache-dir", &folder, "--json"];
        run(fixed.iter().chain(arguments).copied())
    };
    assert_eq!(clear(&["--dry-run"]).json()["deleted"].as_array().unwrap().len(), 1);
    assert_eq!(files(Path::new(&folder)), 2, "a dry run deletes nothing");
    let other = clear(&["other.gguf"]);
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("no packed weights of other.gguf are kept"), "{}", other.stderr);
    let model = testdata("demo-model/gguf/demo-tq1_0.gguf");
    let cleared = clear(&[model.to_str().unwrap()]).json();
    assert_eq!(cleared["deleted"].as_array().unwrap().len(), 1, "{cleared}");
    assert!(cleared["bytes"].as_u64() > Some(1 << 20), "{cleared}");
    assert_eq!(clear(&[]).json()["deleted"].as_array().unwrap().len(), 0);
    assert_eq!(files(Path::new(&folder)), 1, "what is not ours stays");
}

#[test]
fn weights_in_use_are_not_deleted() {
    let home = tempfile::tempdir().unwrap();
    let folder = kept(home.path());
    let list = || run(["cache", "list", "--json", "--cache-dir", &folder]).json();
    let path = list()["files"][0]["path"].as_str().unwrap().to_owned();
    let file = std::fs::File::open(&path).unwrap();
    file.lock_shared().unwrap(); // as a program with mapped weights does
    assert_eq!(list()["files"][0]["in_use"], true);
    let cleared = run(["cache", "clear", "--cache-dir", &folder]);
    assert!(cleared.stderr.contains("is in use and stays"), "{}", cleared.stderr);
    assert!(cleared.text().starts_with("deleted 0 files") && Path::new(&path).exists());
    drop(file);
    let cleared = run(["cache", "clear", "--cache-dir", &folder]);
    assert!(cleared.text().starts_with("deleted 1 file") && !Path::new(&path).exists());
}

#[test]
fn weights_that_are_more_than_the_cache_may_have_are_not_kept() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("packed");
    let own = ["--cache-dir", folder.to_str().unwrap(), "--cache-size"];
    let run = generate(&[&own[..], &["64K"]].concat(), home.path());
    assert!(run.stderr.contains("and the cache may have 65536"), "{}", run.stderr);
    run.text();
    assert_eq!(files(&folder), 0);
    let run = generate(&[&own[..], &["much"]].concat(), home.path());
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("expected a size such as 500M"), "{}", run.stderr);
}
