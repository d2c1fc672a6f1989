use serde_json::Value;

use crate::{Run, program, run, run_with_stdin};

const PROMPTS: [&str; 4] = ["Once upon a time", "A dog", "The cat", "One day"];
const SETTINGS: [&str; 5] = ["-n", "12", "--temperature", "0", "--json"];

/// The texts of a run with `--json`, and the whole of it.
#[track_caller]
fn texts(run: Run) -> Vec<String> {
    let json = run.json();
    let results = json["results"].as_array().unwrap().iter();
    results.map(|item| item["text"].as_str().unwrap().to_owned()).collect()
}

fn parallel<'a>(args: impl IntoIterator<Item = &'a str>) -> Run {
    run(["parallel"].into_iter().chain(args).chain(SETTINGS))
}

/// What `run` says to each prompt.
fn alone() -> Vec<String> {
    let text = |prompt| {
        let run = run(["run", "-p", prompt, "-n", "12", "--temperature", "0", "-q"]);
        run.text().trim_end_matches('\n').to_owned()
    };
    PROMPTS.map(text).to_vec()
}

#[test]
fn every_strategy_gives_each_prompts_own_answer_in_order() {
    let expected = alone();
    for strategy in [
        &[][..],
        &["-s", "batched"],
        &["-s", "sequential"],
        &["--parallel", "2x1"],
        &["-s", "balanced"],
        &["--workers", "3", "-t", "1"],
        &["-s", "2x1", "--processes"],
        &["--workers", "3", "--processes"],
    ] {
        assert_eq!(
            texts(parallel(PROMPTS.iter().chain(strategy).copied())),
            expected,
            "{strategy:?}"
        );
    }
}

#[test]
fn prompts_come_from_arguments_a_file_or_stdin() {
    let expected = alone();
    let lines = PROMPTS.join("\n\n");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts.txt");
    std::fs::write(&file, &lines).unwrap();
    assert_eq!(texts(parallel(["--prompts", file.to_str().unwrap()])), expected);
    for args in [&["parallel"][..], &["parallel", "-f", "-"]] {
        let found = run_with_stdin(args.iter().copied().chain(SETTINGS), lines.as_bytes());
        assert_eq!(texts(found), expected);
    }
    let found = run_with_stdin(
        ["parallel", "--strategy", "1x1", "--processes"].into_iter().chain(SETTINGS),
        lines.as_bytes(),
    );
    assert_eq!(texts(found), expected);
}

#[test]
fn a_prompt_that_fails_does_not_lose_the_others() {
    let long = "word ".repeat(2000);
    for strategy in [&["-s", "batched"][..], &["-s", "2x1"], &["-s", "1x1", "--processes"]] {
        let found =
            parallel(["A dog", &long, "The cat"].into_iter().chain(strategy.iter().copied()));
        assert_eq!(found.code, Some(1), "{}", found.stderr);
        assert!(found.stderr.contains("1 of 3 prompts failed"), "{}", found.stderr);
        let json: Value = serde_json::from_str(&found.stdout).unwrap();
        let item = |index: usize, field: &str| json["results"][index][field].clone();
        assert_eq!([item(0, "error"), item(2, "error")], [Value::Null, Value::Null]);
        assert_eq!(item(0, "text"), alone()[1]);
        let error = item(1, "error").to_string();
        assert!(error.contains("but the context has room for 512"), "{error}");
    }
}

#[test]
fn the_text_shows_each_prompt_with_its_answer() {
    let found = run(["parallel", "A dog", "The cat", "-n", "5", "--temperature", "0"]);
    assert!(found.stderr.contains("2 prompts in ") && found.stderr.contains("tokens/s"));
    let text = found.text();
    let (first, second) = text.split_once("\n\n").unwrap();
    assert!(first.starts_with("[1/2] 5 tokens in ") && first.contains("\nA dog "), "{text}");
    assert!(second.starts_with("[2/2] 5 tokens in ") && second.contains("\nThe cat "), "{text}");
}

#[test]
fn the_demo_has_six_prompts_of_forty_tokens() {
    let json = run(["parallel", "--demo", "--json", "--ignore-eos"]).json();
    let results = json["results"].as_array().unwrap();
    let tokens = results.iter().map(|item| item["ids"].as_array().unwrap().len());
    assert_eq!(tokens.collect::<Vec<_>>(), [40; 6]);
}

#[test]
fn a_comparison_measures_each_strategy_on_the_same_work() {
    let args = ["parallel", "--benchmark-strategies", "-s", "batched,2x1", "-n", "8", "--json"];
    let json = run(args).json();
    let strategies = json["strategies"].as_array().unwrap();
    let of = |field: &str| strategies.iter().map(|s| s[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("strategy"), ["sequential", "batched", "2x1"]);
    assert_eq!(of("tokens"), [48; 3]);
    assert_eq!(of("speedup")[0], 1.0);
    assert_eq!(of("best").iter().filter(|best| **best == true).count(), 1);
    for strategy in strategies {
        assert_eq!(strategy["seconds"].as_array().unwrap().len(), 3);
    }
    let table = run(["parallel", "--benchmark-strategies", "-s", "batched", "-n", "8"]).text();
    assert!(table.starts_with("strategy") && table.contains(" best\n"), "{table}");
}

#[test]
fn a_timeout_ends_an_answer_with_what_there_is() {
    for strategy in [&["-s", "batched"][..], &["-s", "2x1"], &["-s", "1x1", "--processes"]] {
        let args = ["parallel", "A dog", "-n", "500", "--ignore-eos", "--json", "--timeout"];
        let timeout = |seconds| {
            let run = run(args.into_iter().chain([seconds]).chain(strategy.iter().copied()));
            run.json()["results"][0].clone()
        };
        let cut = timeout("0.02");
        assert_eq!(cut["finish_reason"], "timeout", "{cut}");
        assert!(cut["ids"].as_array().unwrap().len() < 500);
        assert_eq!(timeout("600")["finish_reason"], "length");
    }
}

#[test]
fn what_contradicts_itself_is_an_error() {
    for (args, expected) in [
        (&["a", "-s", "2x3", "-t", "2"][..], "--threads with --strategy 2x3"),
        (&["a", "--processes"], "--processes without workers"),
        (&["a", "-s", "2x1,batched"], "--strategy with several names"),
        (&["a", "-s", "fast"], "workers times threads such as 3x2"),
        (&["a", "-n", "0"], "-n 0: an answer has at least one token"),
        (&["a", "--workers", "0"], "'0'"),
        (&["a", "--timeout", "0"], "from 0.001 to 86400"),
        (&["a", "--timeout", "NaN"], "from 0.001 to 86400"),
        (&["a", "-f", "b"], "cannot be used with"),
        (&["-f", "/no/such/file"], "/no/such/file: cannot be read"),
        (&["a", "--top-p", "0"], "top"),
    ] {
        let found = run(["parallel"].into_iter().chain(args.iter().copied()));
        assert_eq!((found.code, found.stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(found.stderr.contains(expected), "{args:?}: {}", found.stderr);
    }
    let found = run_with_stdin(["parallel"], b"\n \n");
    assert_eq!(found.code, Some(2));
    assert!(
        found.stderr.contains("stdin: no prompt, expected one in each line"),
        "{}",
        found.stderr
    );
}

#[test]
fn a_process_that_cannot_load_the_model_is_an_error() {
    let found = run(["parallel", "a", "-s", "2x1", "--processes", "-m", "/no/such/model"]);
    assert_eq!(found.code, Some(2), "{}", found.stderr);
    assert!(found.stderr.contains("a process ended before it was ready"), "{}", found.stderr);
    assert!(found.stderr.contains("/no/such/model"), "{}", found.stderr);
}

#[test]
fn the_guides_script_gives_its_arguments_on() {
    let script =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parallel_inference.py");
    let mut command = std::process::Command::new("python3");
    let args = PROMPTS.iter().copied().chain(SETTINGS);
    command.arg(&script).args(args).env("BITNET_CLI", program().get_program());
    let Ok(output) = command.env_remove("BITNET_MODEL").output() else {
        eprintln!("python3 is not here: nothing to check");
        return;
    };
    assert_eq!(texts(output.into()), alone());
}
