use std::io::Read;
use std::process::Stdio;

use crate::{Run, program, run, run_with_stdin, testdata};

const STORY: [&str; 8] = ["run", "-p", "Once upon a time", "-n", "12", "--temperature", "0", "-q"];

/// What the embedded model says to [`STORY`].
fn story() -> String {
    run(STORY).text()
}

#[test]
fn stdout_is_the_continuation_and_nothing_else() {
    let loud = run(STORY.into_iter().filter(|arg| *arg != "-q"));
    assert!(
        loud.stderr.contains("built-in demo model") && loud.stderr.contains("tokens/s"),
        "{}",
        loud.stderr
    );
    let text = loud.text();
    assert!(text.starts_with(", there was a") && text.ends_with('\n'), "{text:?}");
    let quiet = run(STORY);
    assert_eq!((quiet.stderr.as_str(), quiet.stdout), ("", text));
}

#[test]
fn the_prompt_comes_from_wherever_it_is_given() {
    let rest = ["-n", "12", "--temperature", "0", "-q"];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "Once upon a time\n").unwrap();
    let expected = story();
    let from_file = ["inference", "--file", file.to_str().unwrap()];
    assert_eq!(run(from_file.into_iter().chain(rest)).text(), expected);
    for dash in [&["run"][..], &["run", "-p", "-"], &["run", "-f", "-"]] {
        let found = run_with_stdin(dash.iter().copied().chain(rest), b"Once upon a time\r\n");
        assert_eq!(found.text(), expected, "{dash:?}");
    }
}

#[test]
fn old_spellings_mean_the_same() {
    let args =
        ["run", "-p", "Once upon a time", "--n-predict", "12", "-temp", "0", "-q", "-t", "1"];
    assert_eq!(run(args).text(), story());
}

#[test]
fn json_describes_the_whole_run() {
    let args = [
        "run",
        "-p",
        "Once upon a time",
        "-n",
        "12",
        "--temperature",
        "0",
        "--json",
        "-t",
        "1",
        "-q",
    ];
    let json = run(args).json();
    assert_eq!(format!("{}\n", json["text"].as_str().unwrap()), story());
    assert_eq!(json["ids"].as_array().unwrap().len(), 12);
    assert_eq!(json["prompt_ids"][0], 4080);
    assert_eq!(json["finish_reason"], "length");
    assert_eq!(json["threads"]["count"], 1);
    assert_eq!(json["threads"]["rule"], "-t/--threads");
    for (name, at_least) in [
        ("load_s", 0.0),
        ("time_to_first_token_s", 0.0),
        ("prompt_tokens", 5.0),
        ("generated_tokens", 12.0),
    ] {
        assert!(json["timings"][name].as_f64().unwrap() >= at_least, "{name}");
    }
    for name in ["model", "simd", "context_length", "kv_dtype", "seed"] {
        assert!(!json[name].is_null(), "{name}");
    }
}

#[test]
fn the_output_head_has_the_form_asked_for() {
    let args = ["run", "-p", "Once", "-n", "2", "--temperature", "0", "--json", "-q"];
    assert_eq!(run(args).json()["head"], "int8");
    assert_eq!(run(args.into_iter().chain(["--head", "file"])).json()["head"], "file");
    let two_stage = run(args.into_iter().chain(["--head", "two-stage"])).json();
    assert_eq!(two_stage["head"], "two-stage");
}

#[test]
fn a_seed_makes_the_same_answer_again() {
    let answer = |seed| {
        let args =
            ["run", "-p", "The dog", "-n", "20", "--temperature", "1.5", "-q", "--seed", seed];
        run(args).text()
    };
    assert_eq!(answer("7"), answer("7"));
    assert_ne!(answer("7"), answer("8"));
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let stopped = run(STORY.into_iter().chain(["--stop", " was", "--json"])).json();
    assert_eq!(stopped["text"], ", there");
    assert_eq!((&stopped["finish_reason"], &stopped["stop"]), (&"stop".into(), &" was".into()));
}

#[test]
fn a_full_context_ends_the_answer_and_says_so() {
    let args = ["run", "-p", "Once upon a time", "-c", "16", "-n", "100", "--ignore-eos"];
    let full = run(args);
    assert!(full.stderr.contains("the context of 16 tokens is full"), "{}", full.stderr);
    assert_eq!(run(args.into_iter().chain(["--json"])).json()["finish_reason"], "context");
}

#[test]
fn a_chat_turn_is_written_as_the_template_says() {
    let args = [
        "run",
        "--chat",
        "--system",
        "Be kind.",
        "-p",
        "Tell me a story.",
        "-n",
        "1",
        "--json",
        "-q",
    ];
    let ids = &run(args).json()["prompt_ids"];
    let ids: Vec<_> = ids.as_array().unwrap().iter().map(ToString::to_string).collect();
    let text = run(["tokenize", "-q", "--ids", &ids.join(",")]).text();
    assert_eq!(
        text,
        "<|begin_of_text|>System: Be kind.<|eot_id|>User: Tell me a story.<|eot_id|>Assistant: \n"
    );
}

/// Reference tokens of `transformers` for a tiny model: prompt and greedy continuation.
fn golden(model: &str, prompt: usize) -> (String, Vec<u64>) {
    let text = std::fs::read(testdata(&format!("golden/{model}/golden.json"))).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let list = |name: &str| -> Vec<u64> {
        let ids = json["prompts"][prompt][name].as_array().unwrap();
        ids.iter().map(|id| id.as_u64().unwrap()).collect()
    };
    let ids: Vec<_> = list("input_ids").iter().map(ToString::to_string).collect();
    (ids.join(","), list("generated"))
}

#[track_caller]
fn check_golden(model: &str, reference: &str, more: &[&str]) {
    let path = testdata(model);
    let (ids, expected) = golden(reference, 1);
    let args =
        ["run", "-m", path.to_str().unwrap(), "--token-ids", &ids, "-n", "32", "--ignore-eos"];
    let greedy = ["--temperature", "0", "--kv-dtype", "f32", "--json", "-q"];
    let json = run(args.into_iter().chain(greedy).chain(more.iter().copied())).json();
    let found: Vec<_> =
        json["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert_eq!(found, expected);
}

#[test]
fn tiny_models_continue_as_the_reference_does() {
    check_golden("golden/bitnet-tiny", "bitnet-tiny", &[]);
    check_golden("golden/gguf/bitnet-tiny-I2_S.gguf", "bitnet-tiny", &["--no-mmap"]);
    check_golden("golden/llama158-tiny", "llama158-tiny", &["--simd-level", "scalar", "-t", "1"]);
}

/// Tensor `name` of a safetensors file: shape and values.
fn tensor(file: &std::path::Path, name: &str) -> (Vec<u64>, Vec<f32>) {
    let bytes = std::fs::read(file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let list = |field: &str| -> Vec<u64> {
        json[name][field].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect()
    };
    assert_eq!(json[name]["dtype"], "F32");
    let range = list("data_offsets");
    let data = &bytes[header..][range[0] as usize..range[1] as usize];
    let values = data.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    (list("shape"), values.collect())
}

#[test]
fn logits_are_those_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("logits.safetensors");
    let path = testdata("golden/bitnet-tiny");
    let (ids, _) = golden("bitnet-tiny", 1);
    let args = ["run", "-m", path.to_str().unwrap(), "--token-ids", &ids, "-n", "0"];
    let exact = ["--kv-dtype", "f32", "--head", "file"];
    let written = run(args.into_iter().chain(exact).chain(["--logits", file.to_str().unwrap()]));
    assert_eq!(written.text(), "");
    let (shape, found) = tensor(&file, "logits");
    let (expected_shape, expected) = tensor(&path.join("golden.safetensors"), "p1.logits");
    assert_eq!(shape, expected_shape);
    // The tolerance of the golden data's README; observed differences are five times smaller.
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));
    assert_eq!(folder.path().read_dir().unwrap().count(), 1, "nothing unfinished is left");
}

#[test]
fn the_reader_of_a_pipe_may_leave() {
    let mut command = program();
    command.args(["run", "-p", "Once", "-n", "400", "--ignore-eos", "-q"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1]).unwrap();
    drop(stdout);
    let end: Run = child.wait_with_output().unwrap().into();
    assert_eq!((end.code, end.stderr.as_str()), (Some(0), ""));
}

#[test]
fn text_comes_before_the_end() {
    let mut command = program();
    command.args(["run", "-p", "Once", "-n", "400", "--ignore-eos", "-q"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 1]).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "it still writes");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_prompt_may_begin_with_a_dash() {
    assert_eq!(run(["run", "-p", "-temp", "-n", "1", "-q"]).code, Some(0));
}

#[test]
fn six_programs_at_once_do_not_disturb_each_other() {
    let children: Vec<_> = (0..6)
        .map(|_| {
            let mut command = program();
            command
                .args(STORY)
                .env("OMP_NUM_THREADS", "2")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let expected = story();
    for child in children {
        let end: Run = child.wait_with_output().unwrap().into();
        assert_eq!(end.text(), expected);
    }
}

#[test]
fn a_result_names_its_model_and_its_ids() {
    let once = ["run", "-q", "-p", "Once", "--temperature", "0", "--json", "-n"];
    let of = |tokens: &str| run([&once[..], &[tokens]].concat()).json();
    let (one, two) = (of("5"), of("6"));
    let hash = one["model_hash"].as_str().unwrap();
    let benchmark = ["benchmark", "-q", "-p", "4", "-n", "0", "--iterations", "1", "--json"];
    let sha256 = run(benchmark).json()["model"]["sha256"].as_str().unwrap().to_owned();
    assert_eq!(hash, format!("sha256:{sha256}"));
    assert_eq!(one["ids_hash"].as_str().unwrap().len(), 16);
    assert_eq!(one["ids_hash"], of("5")["ids_hash"]);
    assert_ne!(one["ids_hash"], two["ids_hash"]);
}

#[test]
fn without_a_token_no_time_is_printed() {
    let empty = ["run", "-p", "Once", "-c", "2"];
    let end = run(empty);
    assert!(
        end.stderr.contains("0 tokens") && !end.stderr.contains("first token"),
        "{}",
        end.stderr
    );
    let times = &run([&empty[..], &["--json"]].concat()).json()["timings"];
    for name in ["time_to_first_token_s", "prompt_s", "generation_s"] {
        assert!(times[name].is_null(), "{times}");
    }
}

#[test]
fn an_end_that_was_asked_for_is_told_with_the_timings() {
    let args = ["run", "-p", "Once upon a time", "--temperature", "0", "--stop", "."];
    let end = run(args);
    assert!(end.stderr.contains("stopped before the text \".\""), "{}", end.stderr);
    assert_eq!(run([&args[..], &["-q"]].concat()).stderr, "");
}

#[cfg(feature = "grammar")]
#[test]
fn an_answer_has_the_form_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let schema = file(
        "schema.json",
        r#"{"type": "array", "items": {"const": 7}, "minItems": 2, "maxItems": 2}"#,
    );
    let grammar = file("list.lark", "start: WORD (\", \" WORD){2}\nWORD: \"a\" | \"b\"\n");
    let answer = |flag: &str, value: &str| {
        run(["run", "-p", "Tom said", "-n", "60", "-q", "--seed", "1", flag, value]).text()
    };
    let json: serde_json::Value = serde_json::from_str(&answer("--json-schema", &schema)).unwrap();
    assert_eq!(json, serde_json::json!([7, 7]));
    let text = answer("--regex", "-?[0-9]{4}");
    assert_eq!(text.trim_start_matches('-').trim().len(), 4, "{text}");
    let text = answer("--grammar", &grammar);
    assert!(text.trim().split(", ").all(|word| ["a", "b"].contains(&word)), "{text}");
    let bad = run(["run", "-p", "x", "--regex", "a("]);
    assert!(bad.stderr.contains("the regular expression cannot be used"), "{}", bad.stderr);
    let two = run(["run", "-p", "x", "--regex", "a", "--json-object"]);
    assert!(two.stderr.contains("cannot be used with"), "{}", two.stderr);
}
