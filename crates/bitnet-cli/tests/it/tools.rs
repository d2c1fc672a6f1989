use std::io::Read;
use std::process::{Command, Stdio};

use crate::{Run, program, run, run_with_stdin, testdata};

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

/// Memory that a program has used at most by the time its output begins, while it waits for someone to read the rest.
#[cfg(target_os = "linux")]
fn peak_memory_at_first_output(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[test]
#[cfg(target_os = "linux")]
fn tokens_of_a_long_text_are_written_as_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    std::fs::write(&file, "Once upon a time, a dog saw 17 cats. ".repeat(60_000)).unwrap();
    for json in [&[][..], &["--json"]] {
        let peak = |file: &std::path::Path| {
            let mut command = program();
            command.args(["tokenize", "-q", "-f"]).arg(file).args(json);
            peak_memory_at_first_output(command)
        };
        // The shorter text's list is longer than a pipe holds as well, so that the program is still there to be looked at.
        let (short, long) = (peak(&testdata("demo-model/heldout.txt")), peak(&file));
        // The text, twice where it is read, and four bytes for each of 800,000 tokens: below 10 MB. A list of rows took 220 MB.
        assert!(long < short + (16 << 20), "{json:?}: {short} bytes, then {long}");
    }
}

#[test]
fn the_reader_of_a_list_may_leave() {
    for args in [&["tokenize", "-q", "-f"][..], &["tokenize", "-q", "--json", "-f"]] {
        let mut command = program();
        command.args(args).arg(testdata("demo-model/heldout.txt"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0; 1]).unwrap(); // and is closed
        let end: Run = child.wait_with_output().unwrap().into();
        assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
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
    for name in ["INFERENCE", "CHAT", "TOKENIZE", "INFO", "COMPLETIONS", "ENVIRONMENT", "NOTES"] {
        assert!(page.contains(&format!("\n.SH {name}\n")), "{name}");
    }
    assert!(page.contains("\n\\fBinference, run\\fR\n"), "commands have their aliases");
    let of_inference = &page[page.find("\n.SH INFERENCE\n").unwrap()..];
    let of_inference = &of_inference[..of_inference.find("\n.SH CHAT\n").unwrap()];
    for part in [".SS SYNOPSIS\n", ".SS OPTIONS\n", ".SS Sampling\n"] {
        assert!(
            of_inference.to_lowercase().contains(&part.to_lowercase()),
            "{part}\n{of_inference}"
        );
    }
    assert!(page.contains("bos\\-second\\-half  The same windows"), "the methods of perplexity");
    assert!(!page.contains("(1)\n"), "there is no page but this one: {page}");
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
fn the_help_of_logits_says_how_to_get_the_references() {
    let help = run(["run", "--help"]).text();
    let of = &help[help.find("--logits <FILE>").unwrap()..];
    let of: Vec<_> = of.split_whitespace().take(60).collect();
    assert!(of.join(" ").contains("`--head file --kv-dtype f32`"), "{of:?}");
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
