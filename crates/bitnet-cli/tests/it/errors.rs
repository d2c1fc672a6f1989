use std::io::ErrorKind;

use crate::{Run, program, run, run_with_stdin, testdata};

/// Arguments that cannot work: exit code 2, nothing on stdout, and a message with each of these parts.
#[track_caller]
fn check(args: &[&str], parts: &[&str]) {
    let end = run(args.iter().copied());
    assert_eq!((end.code, end.stdout.as_str()), (Some(2), ""), "{args:?}: {}", end.stderr);
    for part in parts {
        assert!(end.stderr.contains(part), "{args:?} should say `{part}`:\n{}", end.stderr);
    }
    assert!(
        !end.stderr.contains("panicked") && !end.stderr.contains("this is a bug"),
        "{}",
        end.stderr
    );
}

#[test]
fn flags_that_cannot_be_are_refused_with_the_reason() {
    let table: [(&[&str], &[&str]); 18] = [
        (&[], &["Usage"]),
        (&["fly"], &["unrecognized subcommand", "fly"]),
        (&["run", "-t", "-1", "-p", "x"], &["-1", "--threads", "0 (automatic) to 1024"]),
        (&["run", "-t", "lots", "-p", "x"], &["lots", "--threads"]),
        (&["run", "-t", "1025", "-p", "x"], &["1025", "--threads"]),
        (&["run", "-p", "x", "--temperature", "-1"], &["temperature", "-1"]),
        (
            &["run", "-p", "x", "--top-p", "1.5"],
            &["top_p", "1.5", "up to 1", "hint: --top-p sets it"],
        ),
        (&["run", "-p", "x", "--temperature", "nan"], &["temperature", "NaN"]),
        (&["run", "-p", "x", "-n", "-3"], &["-3", "--max-tokens"]),
        (&["run", "-p", "x", "-n", "0"], &["-n 0", "--logits"]),
        (&["run", "-p", "x", "-c", "0"], &["0", "--ctx-size"]),
        (
            &["run", "-p", "x", "-c", "100000"],
            &["max_seq_len", "100000", "512", "hint: -c/--ctx-size"],
        ),
        (&["run", "-p", "x", "--device", "cuda:0"], &["cuda:0", "hint:"]),
        (&["run", "-p", "x", "--device", "tpu"], &["tpu", "auto"]),
        (&["run", "-p", "x", "--simd-level", "mmx"], &["mmx", "avx2", "hint: available here"]),
        (&["run", "-p", "x", "--kv-dtype", "f8"], &["f8", "f16"]),
        (
            &["run", "-p", "x", "--head", "int4"],
            &["int4", "--head", "`int8`, `two-stage` and `file`"],
        ),
        (&["run", "-p", "x", "--stop", ""], &["stop", "at least one character"]),
    ];
    table.iter().for_each(|(args, parts)| check(args, parts));
}

/// Every flag that takes a number, with what may be written instead: the message has the flag, the text and what was expected.
#[test]
fn flags_with_numbers_say_what_they_expect() {
    const WHOLE: &str = "expected a whole number from ";
    const REAL: &str = "expected a number such as";
    let sampling = |run: &'static str| {
        let whole =
            ["--max-tokens", "--top-k", "--repeat-last-n", "--seed"].map(|flag| (flag, WHOLE));
        let real = [
            "--temperature",
            "--top-p",
            "--min-p",
            "--repeat-penalty",
            "--presence-penalty",
            "--frequency-penalty",
        ];
        let all = whole.into_iter().chain(real.map(|flag| (flag, REAL)));
        all.chain([("--ctx-size", WHOLE), ("--threads", "expected 0 (automatic) to 1024")])
            .map(move |(flag, expected)| (run, flag, expected))
    };
    let others = [
        ("run", "--token-ids"),
        ("tokenize", "--ids"),
        ("perplexity", "--ctx"),
        ("bench", "--threads"),
        ("bench", "--prompt-tokens"),
        ("bench", "--max-tokens"),
        ("bench", "--iterations"),
        ("bench", "--warmup"),
        ("synth", "--seed"),
        ("synth", "--hidden"),
        ("synth", "--ffn"),
        ("synth", "--layers"),
        ("synth", "--heads"),
        ("synth", "--kv-heads"),
        ("synth", "--head-dim"),
        ("synth", "--vocab"),
    ];
    let others = others.map(|(command, flag)| (command, flag, WHOLE));
    for (command, flag, expected) in sampling("run").chain(sampling("chat")).chain(others) {
        for value in ["lots", "-x"] {
            check(&[command, flag, value], &[flag, &format!("'{value}'"), expected]);
        }
        if expected == WHOLE {
            for value in ["-1", "1.5", "99999999999999999999", ""] {
                check(&[command, flag, value], &[flag, &format!("'{value}'"), expected]);
            }
        }
    }
}

#[test]
fn numbers_that_no_setting_can_be_are_refused_before_a_model_is_loaded() {
    for command in ["run", "chat"] {
        for (flag, name) in
            [("--temperature", "temperature"), ("--top-p", "top_p"), ("--min-p", "min_p")]
        {
            for (value, shown) in [("-inf", "-inf"), ("inf", "inf"), ("NaN", "NaN"), ("-1", "-1")] {
                let parts = [format!("`{name}` is {shown}"), format!("hint: {flag} sets it")];
                let parts = parts.each_ref().map(String::as_str);
                check(&[command, "-m", "/no/such/model.gguf", flag, value], &parts);
            }
        }
    }
}

#[test]
fn options_that_contradict_each_other_are_refused_with_the_reason() {
    let table: [(&[&str], &[&str]); 13] = [
        (&["-p", "x", "--no-cache", "--cache-dir", "d"], &["--no-cache", "--cache-dir", "cannot"]),
        (&["-p", "x", "--no-cache", "--cache-size", "1G"], &["--no-cache", "--cache-size"]),
        (&["-p", "x", "--pin", "--no-pin"], &["--pin", "--no-pin", "cannot be used with"]),
        (&["-p", "x", "--token-ids", "1"], &["--prompt with --token-ids", "both give the prompt"]),
        (&["-p", "x", "-f", "y"], &["--prompt with --file", "both give the prompt"]),
        (&["--chat", "--token-ids", "1"], &["--chat with --token-ids", "complete prompt"]),
        (&["-p", "x", "--system", "y"], &["--system without --chat", "no roles"]),
        (&["-p", "x", "--json", "--logits", "f", "-n", "0"], &["--json with -n 0", "no answer"]),
        (&["-cnv", "--json"], &["--json with --conversation", "many"]),
        (&["-cnv", "--logits", "f"], &["--logits with --conversation", "many"]),
        (&["-cnv", "-f", "y"], &["--file with --conversation", "stdin"]),
        (&["-p", "x", "--max-layers-in-memory", "2"], &["without --load lazy", "all layers"]),
        (&["-p", "x", "-q", "-v"], &["--quiet", "--verbose", "cannot be used with"]),
    ];
    for (args, parts) in table {
        check(&[&["run"], args].concat(), parts);
    }
}

#[test]
fn hints_name_flags_that_there_are() {
    let heldout = testdata("demo-model/heldout.txt");
    let table: [(&[&str], &str); 6] = [
        (&["benchmark", "-p", "0", "-n", "0"], "-n/--max-tokens"),
        (&["run", "-p", "x", "--load", "lazy", "--no-mmap"], "--no-mmap"),
        (&["run", "-p", "x", "--load", "lazy", "--mlock"], "--mlock"),
        (&["run", "-p", "x", "-c", "1"], "by 1 token, or raise -c/--ctx-size"),
        (&["run", "-p", "x", "-c", "9999"], "-c/--ctx-size"),
        (&["perplexity", "-f", heldout.to_str().unwrap(), "--ctx", "9999"], "--ctx"),
    ];
    for (args, hint) in table {
        let end = run(args.iter().copied());
        assert_eq!(end.code, Some(2), "{args:?}: {}", end.stderr);
        let found = end.stderr.lines().find(|line| line.starts_with("hint: ")).unwrap_or_default();
        assert!(found.split(" sets it").next().unwrap().contains(hint), "{args:?}: {}", end.stderr);
        let flag = found.split([' ', '/']).find(|word| word.starts_with("--")).unwrap();
        let help = run([args[0], "--help"]).text();
        assert!(
            help.contains(&format!("{flag} ")) || help.contains(&format!("{flag}\n")),
            "{flag}"
        );
    }
}

#[test]
fn layouts_of_tensors_that_a_model_does_not_have_are_a_warning() {
    let gguf = testdata("golden/gguf/bitnet-tiny-I2_S.gguf");
    let folder = testdata("golden/bitnet-tiny");
    for (model, flag, value, warned) in [
        (&folder, "--i2s-layout", "block64", true),
        (&folder, "--i2s-layout", "block128", false),
        (&gguf, "--i2s-layout", "block64", false),
        (&gguf, "--packed-layout", "wf-msb", true),
    ] {
        let end = run(["run", "-p", "x", "-n", "1", "-m", model.to_str().unwrap(), flag, value]);
        let warning = format!("warning: {flag} changes nothing");
        assert_eq!(end.stderr.contains(&warning), warned, "{flag} {value}: {}", end.stderr);
    }
}

#[test]
fn prompts_that_cannot_be_are_refused() {
    check(&["run"], &["no prompt", "hint: give one with -p TEXT"]);
    check(&["run", "-f", "/no/such/file"], &["/no/such/file: cannot be read"]);
    check(&["run", "-f", "."], &[".: is a directory, expected a text file"]);
    check(&["run", "--token-ids", "1,x"], &["x", "--token-ids"]);
    check(&["run", "--token-ids", "4096"], &["4096", "vocabulary"]);
    let long = "dog ".repeat(600);
    check(&["run", "-p", &long], &["tokens", "512", "hint: "]);
    let garbled = run_with_stdin(["run"], b"abc\xff");
    assert_eq!(garbled.code, Some(2));
    assert!(
        garbled.stderr.contains("stdin: not UTF-8 text: the byte at offset 3"),
        "{}",
        garbled.stderr
    );
}

#[test]
fn models_that_cannot_be_are_refused() {
    check(
        &["run", "-p", "x", "-m", "/no/such/model.gguf"],
        &["/no/such/model.gguf", "cannot be read", "hint:"],
    );
    check(&["run", "-p", "x", "-m", ""], &["--model", "the name is empty"]);
    check(&["run", "-p", "x", "-m", "hf:nothing"], &["hf:OWNER/NAME"]);
    let text = testdata("README.md");
    check(&["run", "-p", "x", "-m", text.to_str().unwrap()], &["README.md", "hint:"]);
    let folder = testdata("");
    check(&["chat", "-m", folder.to_str().unwrap()], &["testdata", "hint:"]);
    let end = program().args(["run", "-p", "x"]).env("BITNET_MODEL", "/no/such").output().unwrap();
    assert_eq!(end.status.code(), Some(2));
    assert!(String::from_utf8(end.stderr).unwrap().contains("/no/such"));
}

#[test]
fn models_in_the_wrong_place_are_told_where_they_are_looked_for() {
    let tiny = testdata("golden/bitnet-tiny");
    let config = tiny.join("config.json");
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.gguf", "b.gguf"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let [tiny, config, folder] = [&tiny, &config, folder.path()].map(|path| path.to_str().unwrap());
    let table: [(&[&str], &[&str]); 4] = [
        (
            &["-m", "owner/name-1.5"],
            &["no such file or folder", "hint:", "write hf:owner/name-1.5"],
        ),
        (&["-m", config], &["this is a JSON file", "directory that holds config.json"]),
        (&["-m", folder], &["there are 2 .gguf files (a.gguf, b.gguf)"]),
        (&["-m", tiny, "--packed-layout", "wf-msb"], &["q_proj", "hint:", "--packed-layout"]),
    ];
    for (args, parts) in table {
        check(&[&["run", "-p", "x"], args].concat(), parts);
    }
    check(&["tokenize", "--bogus"], &["unexpected argument '--bogus'"]);
    check(&["run", "-p", "x", "-c", "1"], &["shorten it by 1 token,"]);
}

#[test]
#[cfg(unix)]
fn a_folder_that_may_not_be_read_is_no_empty_one() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let allow = |mode| {
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for mode in [0o000, 0o300, 0o400] {
        allow(mode);
        // Nothing is forbidden to root.
        if std::fs::metadata(folder.path().join("x"))
            .is_err_and(|e| e.kind() != ErrorKind::NotFound)
        {
            let path = folder.path().to_str().unwrap();
            check(&["run", "-p", "x", "-m", path], &["cannot be read", "hint: give yourself"]);
        }
    }
    allow(0o700);
}

#[test]
fn a_head_that_is_not_used_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(testdata("golden/llama158-tiny")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["tie_word_embeddings"] = true.into();
    std::fs::write(config, json.to_string()).unwrap();
    let path = folder.path().to_str().unwrap();
    let end = run(["run", "-p", "x", "-n", "1", "-m", path]);
    assert!(end.stderr.contains("warning: `tie_word_embeddings` is true"), "{}", end.stderr);
    let end = run(["inspect", path]);
    assert!(end.stdout.contains("`lm_head.weight` is not used"), "{}", end.stdout);
}

#[test]
fn bad_variables_are_named_with_their_value() {
    for (name, value) in [
        ("BITNET_THREADS", "many"),
        ("RAYON_NUM_THREADS", "-2"),
        ("OMP_NUM_THREADS", "1e3"),
        ("RUST_LOG", "a=b=c"),
        ("BITNET_CACHE_SIZE", "much"),
    ] {
        let end = program().args(["run", "-p", "x"]).env(name, value).output().unwrap();
        let stderr = String::from_utf8(end.stderr).unwrap();
        assert_eq!(end.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.contains(&format!("{name}={value}")) && stderr.contains("hint:"),
            "{stderr}"
        );
        assert!(!stderr.contains("for '--"), "{stderr}");
    }
}

#[test]
fn empty_variables_are_as_good_as_none() {
    let names = ["BITNET_CACHE_DIR", "BITNET_CACHE_SIZE", "BITNET_THREADS"];
    let mut command = program();
    command.args(["run", "-p", "Once", "-n", "1"]).envs(names.map(|name| (name, "")));
    let end: Run = command.output().unwrap().into();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
}

#[test]
fn a_folder_for_a_model_that_is_never_kept_is_a_warning() {
    let folder = std::env::temp_dir();
    let folder = folder.to_str().unwrap();
    for (flag, value) in [("--cache-dir", folder), ("--cache-size", "1G")] {
        let end = run(["run", "-p", "Once", "-n", "1", flag, value]);
        let warning = format!("warning: {flag} changes nothing: the built-in model");
        assert!(end.code == Some(0) && end.stderr.contains(&warning), "{}", end.stderr);
    }
}

#[test]
#[cfg(unix)]
fn a_directory_at_stdin_is_bad_input() {
    let folder = std::fs::File::open("/").unwrap();
    let end: Run = program().arg("run").stdin(folder).output().unwrap().into();
    assert_eq!(end.code, Some(2), "{}", end.stderr);
    assert!(end.stderr.contains("stdin: is a directory, expected text"), "{}", end.stderr);
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_any_work() {
    let folder = std::env::temp_dir();
    let folder = folder.to_str().unwrap();
    let table: [&[&str]; 4] = [
        &["run", "-p", "x", "-n", "0", "-m", "/no/such/model", "--logits"],
        &["benchmark", "-m", "/no/such/model", "-o"],
        &["benchmark", "-m", "/no/such/model", "--plot"],
        &["synth", "--preset", "tiny", "-o"],
    ];
    for args in table {
        let path = if args.contains(&"--plot") { "/dev/null/p" } else { "/no/such/folder/x.json" };
        check(&[args, &[path]].concat(), &[path]);
    }
    for args in [table[0], table[3]] {
        check(&[args, &[folder]].concat(), &[folder]);
    }
}

/// Logits go to a file beside the one named, which is then renamed. Done to a pipe, a device or a link, that would put a file
/// in its place, and `--logits /dev/null` as root would take away everyone's /dev/null.
#[test]
#[cfg(unix)]
fn logits_go_through_pipes_and_links_and_do_not_replace_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let write = |name: &str| {
        let file = path(name);
        let args = ["run", "-p", "Once", "-n", "0", "--logits", file.to_str().unwrap()];
        assert_eq!(run(args).code, Some(0), "{name}");
    };
    std::fs::write(path("file"), "old").unwrap();
    std::os::unix::fs::symlink("file", path("link")).unwrap();
    write("link");
    assert!(path("link").is_symlink());
    let expected = std::fs::read(path("file")).unwrap();
    assert!(expected.len() > 4096);

    assert!(std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    let pipe = path("pipe");
    let reader = std::thread::spawn(move || std::fs::read(pipe).unwrap());
    write("pipe");
    assert!(!path("pipe").is_file());
    assert_eq!(reader.join().unwrap(), expected);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_a_failure_and_no_panic() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let end = program().args(["info"]).stdout(full).output().unwrap();
    let stderr = String::from_utf8(end.stderr).unwrap();
    assert_eq!(end.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("No space left"), "{stderr}");
}

#[test]
#[cfg(target_os = "linux")]
fn messages_that_nobody_can_read_stop_nothing() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let end = program().args(["run", "-p", "Once", "-n", "3", "-v"]).stderr(full).output().unwrap();
    assert_eq!(end.status.code(), Some(0));
    assert!(!end.stdout.is_empty());
}
