//! Model files: made up, looked at, and named on the hub.

use std::path::Path;

use crate::{run, testdata};

const TINY: &str = "golden/gguf/bitnet-tiny-I2_S.gguf";

/// Writes a synthetic model and gives its path.
#[track_caller]
fn synth(directory: &Path, name: &str, args: &[&str]) -> String {
    let path = directory.join(name).to_str().unwrap().to_owned();
    run([&["synth", "-o", &path], args].concat()).text();
    path
}

#[test]
fn a_synthetic_model_predicts_like_chance_and_says_various_things() {
    let directory = tempfile::tempdir().unwrap();
    let path = synth(directory.path(), "m.gguf", &["--preset", "tiny"]);
    let text = testdata("demo-model/heldout.LICENSE.txt");
    let args = ["perplexity", "-m", &path, "--ctx", "64", "--json", "-f", text.to_str().unwrap()];
    let perplexity = run(args).json()["perplexity"].as_f64().unwrap();
    assert!((500.0..4000.0).contains(&perplexity), "1024 tokens, by chance: {perplexity}");
    let args = [
        "run",
        "-m",
        &path,
        "-p",
        "the hen",
        "-n",
        "24",
        "--temperature",
        "0",
        "--ignore-eos",
        "--json",
    ];
    let found = run(args).json();
    let text = found.to_string();
    assert!(text.len() > 100 && !text.contains("NaN"), "{text}");
}

#[test]
fn the_same_seed_gives_the_same_file() {
    let directory = tempfile::tempdir().unwrap();
    let make = |name, seed| {
        std::fs::read(synth(directory.path(), name, &["--preset", "tiny", "--seed", seed])).unwrap()
    };
    let first = make("a", "7");
    assert!(first == make("b", "7"), "the same seed");
    assert!(first != make("c", "8"), "another seed");
}

#[test]
fn synthetic_models_have_the_dimensions_and_encodings_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    for (ternary, head) in [("i2_s", "f16"), ("tq2_0", "q6_k"), ("i2_s", "q8_0")] {
        let sizes = [
            "--hidden",
            "512",
            "--ffn",
            "1024",
            "--layers",
            "3",
            "--kv-heads",
            "2",
            "--vocab",
            "640",
        ];
        let path = synth(
            directory.path(),
            head,
            &[&sizes[..], &["--type", ternary, "--head", head]].concat(),
        );
        let found = run(["inspect", &path, "--json"]).json();
        let it = &found["architecture"];
        assert_eq!((&it["hidden_size"], &it["num_hidden_layers"]), (&512.into(), &3.into()));
        assert_eq!(
            (&it["num_attention_heads"], &it["num_key_value_heads"]),
            (&4.into(), &2.into())
        );
        let names: Vec<_> =
            found["encodings"].as_array().unwrap().iter().map(|e| &e["encoding"]).collect();
        for name in [ternary, head] {
            assert!(names.iter().any(|found| **found == name.to_uppercase()), "{names:?}");
        }
        let text = run(["run", "-q", "-m", &path, "-p", "x", "-n", "3", "--ignore-eos"]);
        assert_eq!(text.code, Some(0), "{}", text.stderr);
    }
}

#[test]
fn a_file_is_not_overwritten_unless_that_is_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let path = synth(directory.path(), "m.gguf", &["--preset", "tiny"]);
    let again = run(["synth", "--preset", "tiny", "-o", &path]);
    assert_eq!(again.code, Some(2));
    assert!(
        again.stderr.contains("exists already") && again.stderr.contains("--force"),
        "{}",
        again.stderr
    );
    synth(directory.path(), "m.gguf", &["--preset", "tiny", "--force"]);
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let (pipe, link) = (directory.path().join("pipe"), directory.path().join("link"));
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::os::unix::fs::symlink("elsewhere", &link).unwrap();
    for path in [&pipe, &link, &directory.path().to_owned()] {
        let before = std::fs::symlink_metadata(path).unwrap().file_type();
        let end = run(["synth", "--preset", "tiny", "--force", "-o", path.to_str().unwrap()]);
        assert_eq!(end.code, Some(2), "{}", end.stderr);
        assert!(end.stderr.contains("is no ordinary file"), "{}", end.stderr);
        assert_eq!(std::fs::symlink_metadata(path).unwrap().file_type(), before);
    }
}

#[test]
fn dimensions_that_cannot_be_are_refused() {
    for (args, part) in [
        (&["--hidden", "100"][..], "no head of width 128 fits"),
        (&["--preset", "tiny", "--vocab", "200"], "200 tokens is too small"),
        (&["--preset", "tiny", "--hidden", "320", "--type", "tq2_0"], "cannot be stored"),
        (&["--preset", "tiny", "--layers", "0"], "--layers"),
    ] {
        let end = run([&["synth", "-o", "/no/such/place/m.gguf"], args].concat());
        assert_eq!(end.code, Some(2), "{}", end.stderr);
        assert!(end.stderr.contains(part), "{}", end.stderr);
    }
    let end = run(["synth", "--preset", "tiny", "-o", "/no/such/place/m.gguf"]);
    assert_eq!(end.code, Some(2));
    assert!(end.stderr.contains("/no/such/place/m.gguf: cannot be written"), "{}", end.stderr);
}

#[test]
fn a_model_file_is_described_by_its_headers() {
    let path = testdata(TINY);
    let found = run(["inspect", path.to_str().unwrap(), "--tensors", "--json"]).json();
    let tensors = found["tensors"].as_array().unwrap();
    let sum: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!(found["model"]["bytes"], sum);
    let count: u64 =
        found["encodings"].as_array().unwrap().iter().map(|e| e["tensors"].as_u64().unwrap()).sum();
    assert_eq!(count as usize, tensors.len());
    let kernels: u64 =
        found["kernels"].as_array().unwrap().iter().map(|k| k["tensors"].as_u64().unwrap()).sum();
    assert_eq!(kernels as usize, tensors.len());
    let mut heads = found["kernels"].as_array().unwrap().iter();
    let head = heads.find(|kernel| kernel["part"].as_str().unwrap().contains("head")).unwrap();
    assert!(head["kernel"].as_str().unwrap().contains("held as int8"), "{head}");
    assert_eq!(found["problems"].as_array().unwrap().len(), 1, "{}", found["problems"]);
    let reads = found["bytes_per_token"].as_array().unwrap();
    assert!(reads.iter().all(|read| {
        let part = |name: &str| read[name].as_u64().unwrap();
        part("total") == part("ternary") + part("head") + part("other") + part("kv_f16")
    }));
}

#[test]
fn long_arrays_of_metadata_are_shown_in_part() {
    let path = testdata(TINY);
    let text = run(["inspect", "-m", path.to_str().unwrap()]).text();
    let tokens = text.lines().find(|line| line.contains("tokenizer.ggml.tokens ")).unwrap();
    assert!(tokens.contains("in all]") && tokens.len() < 200, "{tokens}");
    assert!(!text.contains("\nTensors\n"), "only with --tensors");
}

#[test]
fn what_is_no_model_is_refused() {
    let end = run(["inspect", "/no/such/model.gguf"]);
    assert_eq!(end.code, Some(2));
    assert!(
        end.stderr.contains("/no/such/model.gguf") && end.stderr.contains("hint:"),
        "{}",
        end.stderr
    );
    assert_eq!(run(["inspect"]).code, Some(2));
}

#[cfg(feature = "hub")]
mod hub {
    use super::TINY;
    use crate::{Run, program, testdata};
    use std::path::Path;

    fn with_cache(cache: &Path, args: &[&str]) -> Run {
        program()
            .env("HF_HUB_CACHE", cache)
            .env("HF_HUB_OFFLINE", "1")
            .args(args)
            .output()
            .unwrap()
            .into()
    }

    #[test]
    fn a_model_in_the_cache_needs_no_network() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--owner--name");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        std::fs::create_dir_all(repo.join("refs")).unwrap();
        std::fs::create_dir_all(repo.join("snapshots").join(commit)).unwrap();
        std::fs::write(repo.join("refs/main"), commit).unwrap();
        std::fs::copy(testdata(TINY), repo.join("snapshots").join(commit).join("m.gguf")).unwrap();
        let found = with_cache(cache.path(), &["inspect", "-m", "hf:owner/name", "--json"]).json();
        assert!(found["model"]["path"].as_str().unwrap().ends_with("m.gguf"));
    }

    #[test]
    fn it_is_told_what_is_asked_and_why_again() {
        use std::io::{BufRead, BufReader};
        let cache = tempfile::tempdir().unwrap();
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", server.local_addr().unwrap());
        std::thread::spawn(move || server.incoming().for_each(drop)); // closes at once
        let mut command = program();
        command.env("HF_HUB_CACHE", cache.path()).env("HF_ENDPOINT", &endpoint);
        command.args(["run", "-m", "hf:owner/name", "-p", "x"]);
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let lines: Vec<_> = lines.take(2).collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(lines[0].starts_with(&format!("asking {endpoint}/")), "{lines:?}");
        assert!(lines[1].contains("broke") && lines[1].contains("trying again in"), "{lines:?}");
    }

    #[test]
    fn without_a_home_nothing_is_downloaded_into_the_current_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = program();
        for name in ["HOME", "XDG_CACHE_HOME", "USERPROFILE"] {
            command.env_remove(name);
        }
        command.current_dir(folder.path()).args(["run", "-m", "hf:owner/name", "-p", "x"]);
        let end: Run = command.output().unwrap().into();
        assert_eq!(end.code, Some(2), "{}", end.stderr);
        assert!(end.stderr.contains("HOME is not set"), "{}", end.stderr);
        assert!(end.stderr.contains("HF_HOME"), "{}", end.stderr);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_model_that_is_not_in_the_cache_says_where_it_would_be() {
        let cache = tempfile::tempdir().unwrap();
        let end = with_cache(cache.path(), &["run", "-m", "hf:owner/name", "-p", "x"]);
        assert_eq!(end.code, Some(2), "{}", end.stderr);
        let place = cache.path().join("models--owner--name");
        for part in [
            "hf:owner/name is not in the cache",
            place.to_str().unwrap(),
            "hint:",
            "owner/name on another",
            "HF_HUB_OFFLINE",
        ] {
            assert!(end.stderr.contains(part), "{part}: {}", end.stderr);
        }
        assert_eq!(with_cache(cache.path(), &["run", "-m", "hf:../name", "-p", "x"]).code, Some(2));
    }
}
