use crate::{program, run, run_with_stdin, testdata};

#[test]
fn text_becomes_ids_and_ids_text() {
    let tiny = testdata("golden/bitnet-tiny");
    let model = ["-q", "-m", tiny.to_str().unwrap()];
    let text = std::fs::read(tiny.join("golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for case in
        golden["tokenizer"].as_array().unwrap().iter().filter(|case| case["text"] != "").take(6)
    {
        let text = case["text"].as_str().unwrap();
        let found = run(["tokenize", "--special", "--json", text].into_iter().chain(model)).json();
        assert_eq!(found["ids"], case["ids"], "{text:?}");
        let bare = case["ids_without_specials"].as_array().unwrap();
        let ids: Vec<_> = bare.iter().map(ToString::to_string).collect();
        let back = run(["tokenize", "--ids", &ids.join(",")].into_iter().chain(model)).text();
        assert_eq!(back, format!("{text}\n"));
    }
}

#[test]
fn pieces_are_shown_aligned() {
    let text = run_with_stdin(["tokenize", "-q"], "Once <\u{e9}".as_bytes()).text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "4080  <|begin_of_text|>  control token");
    assert_eq!(lines[1], " 422  Once               \"Once\"");
    assert_eq!(
        lines.last().map(|line| line.ends_with("part of a character")),
        Some(true),
        "{text}"
    );
}

#[test]
fn ids_and_text_together_are_refused() {
    assert_eq!(run(["tokenize", "x", "--ids", "1"]).code, Some(2));
    let end = run(["tokenize", "--ids", "1,4096"]);
    assert_eq!(end.code, Some(2));
    assert!(end.stderr.contains("there is no token 4096, ids end at 4095"), "{}", end.stderr);
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(["completions", shell]).text();
        assert!(script.contains("tokenize") && script.contains("max-tokens"), "{shell}");
    }
}

#[test]
fn the_manual_page_has_every_subcommand() {
    let page = run(["man"]).text();
    assert!(page.starts_with(".ie") && page.contains(".TH bitnet-cli 1"), "{}", &page[..200]);
    for name in ["INFERENCE", "CHAT", "TOKENIZE", "INFO", "COMPLETIONS"] {
        assert!(page.contains(&format!("\n.SH {name}\n")), "{name}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    assert!(run(["--version"]).text().starts_with("bitnet-cli 0."));
    for args in [&["--help"][..], &["run", "-h"], &["chat", "--help"], &["info", "--help"]] {
        let help = run(args.iter().copied());
        assert_eq!(help.stderr, "");
        assert!(help.text().contains("Usage: bitnet-cli"), "{args:?}");
    }
}

#[test]
#[cfg(unix)]
fn the_compatibility_script_takes_the_old_flags() {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../run_inference.py");
    let python = |cli: &str| {
        let mut command = std::process::Command::new("python3");
        command.arg(&script).args([
            "-p",
            "Once upon a time",
            "-n",
            "12",
            "-t",
            "1",
            "-c",
            "128",
            "-temp",
            "0",
        ]);
        command.env("BITNET_CLI", cli).env_remove("BITNET_MODEL").output()
    };
    let Ok(output) = python(env!("CARGO_BIN_EXE_bitnet-cli")) else {
        eprintln!("python3 is not here: nothing to check");
        return;
    };
    let expected =
        program().args(["run", "-p", "Once upon a time", "-n", "12", "-q", "-temp", "0"]).output();
    assert_eq!(output.stdout, expected.unwrap().stdout);
    let missing = python("/no/such/program").unwrap();
    let message = String::from_utf8(missing.stderr).unwrap();
    assert!(message.contains("BITNET_CLI=/no/such/program is not a program"), "{message}");
}
