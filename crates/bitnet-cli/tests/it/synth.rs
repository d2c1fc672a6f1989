//! Models with random weights.

use std::path::Path;

use crate::{program, run};

/// Arguments that name a file in a folder.
fn output(folder: &Path) -> String {
    folder.join("x.gguf").to_str().unwrap().to_owned()
}

#[test]
fn it_says_what_it_writes_and_keeps_an_existing_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = output(folder.path());
    let args = ["synth", "-o", &file, "--hidden", "256", "--ffn", "512", "--layers", "2"];
    let small = ["--vocab", "1000", "--head-dim", "64", "--head", "q8_0"];
    let end = run([&args[..], &small].concat());
    for part in ["2 layers", "hidden size 256", "1000 tokens", "i2_s with q8_0"] {
        assert!(end.stderr.contains(part), "{part}: {}", end.stderr);
    }
    end.text();
    let again = run([&args[..], &["--heads", "3", "--kv-heads", "2"]].concat());
    assert!(again.code == Some(2) && again.stderr.contains("exists already"), "{}", again.stderr);
    assert!(run(["synth", "--help"]).text().contains("[default: those of 2b-4t]"));
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_for_which_there_is_no_room_is_refused_with_both_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let large = ["--hidden", "1048576", "--ffn", "1048576", "--layers", "40", "--vocab", "1000"];
    let file = output(folder.path());
    let end = run([&["synth", "-o", &file], &large[..]].concat());
    assert_eq!(end.code, Some(2), "{}", end.stderr);
    assert!(end.stderr.contains("TiB are needed, and the disk has "), "{}", end.stderr);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["synth", "-q", "--preset", "2b-4t", "-o", &output(folder.path())]);
    let mut child = command.spawn().unwrap();
    while std::fs::read_dir(folder.path()).unwrap().count() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it is still running");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    let id = child.id().to_string();
    let kill = std::process::Command::new("kill").args(["-INT", &id]).status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
