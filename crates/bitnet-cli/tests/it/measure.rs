//! Benchmarks and perplexity.

use serde_json::Value;

use crate::{run, run_with_stdin};

/// A short benchmark of the demo model.
const QUICK: [&str; 9] =
    ["benchmark", "-q", "-p", "16", "-n", "4", "--iterations", "2", "--warmup=0"];

#[test]
fn every_level_is_measured_or_not_available_here() {
    let levels = ["--simd-level", "sse,avx,avx2,avx512,neon", "--threads", "1,2", "--json"];
    let report = run([&QUICK[..], &levels].concat()).json();
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 10);
    for case in cases {
        match case["outcome"].as_str().unwrap() {
            "measured" => {
                assert!(
                    ["reference", "same"].contains(&case["agreement"].as_str().unwrap()),
                    "{case}"
                );
                assert_eq!(case["generation"]["samples"].as_array().unwrap().len(), 2);
                assert!(case["read_bandwidth"]["best"].as_f64().unwrap() > 0.0);
                let parts = &case["bytes_per_token"];
                assert!(
                    parts["ternary"].as_u64().unwrap() > 0 && parts["head"].as_u64().unwrap() > 0
                );
            }
            other => {
                assert_eq!(other, "not_available");
                assert!(case["reason"].as_str().unwrap().contains("not available here"), "{case}");
            }
        }
    }
    assert!(report["machine"]["processors"].as_u64().unwrap() > 0);
}

#[test]
fn results_are_written_in_the_format_of_the_files_ending() {
    let directory = tempfile::tempdir().unwrap();
    let lines = |name: &str| {
        let path = directory.path().join(name);
        run([&QUICK[..], &["-t", "1", "-o", path.to_str().unwrap()]].concat()).text();
        std::fs::read_to_string(path).unwrap()
    };
    let json: Value = serde_json::from_str(&lines("r.json")).unwrap();
    assert_eq!(json["settings"]["prompt_tokens"], 16);
    let csv = lines("r.csv");
    let columns: Vec<_> = csv.lines().map(|line| line.split(',').count()).collect();
    assert_eq!(columns, [17, 17], "{csv}");
    let md = lines("r.md");
    assert!(md.starts_with("| level | threads |") && md.lines().count() >= 5, "{md}");
    let end = run([&QUICK[..], &["-o", "r.txt"]].concat());
    assert_eq!(end.code, Some(2));
    assert!(end.stderr.contains(".json, .csv or .md"), "{}", end.stderr);
}

#[test]
fn a_table_names_memory_arithmetic_and_oversubscription() {
    let end =
        run(["benchmark", "-p", "8", "-n", "3", "--iterations", "1", "--warmup=0", "-t", "1,64"]);
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    for part in ["bytes per token", "read GB/s", "peak GMAC/s", "fastest generation", "64 (!)"] {
        assert!(end.stdout.contains(part), "{part}: {}", end.stdout);
    }
    assert!(end.stderr.contains("64 threads are more than the"), "{}", end.stderr);
}

#[test]
fn benchmarks_that_measure_nothing_are_refused() {
    for args in [
        &["--iterations", "0"][..],
        &["-p", "0", "-n", "0"],
        &["-t", "0"],
        &["-t", "1,x"],
        &["--simd-level", "mmx"],
        &["-p", "100000"],
    ] {
        let end = run([&["benchmark", "-q"], args].concat());
        assert_eq!(end.code, Some(2), "{args:?}: {}", end.stderr);
    }
}

#[test]
fn perplexity_has_an_error_and_counts_windows() {
    let text = "Once upon a time there was a little girl. ".repeat(30);
    let end = run_with_stdin(["perplexity", "-f", "-", "--ctx", "64"], text.as_bytes());
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    assert!(end.stdout.starts_with("PPL = ") && end.stdout.contains(" ± "), "{}", end.stdout);
    assert!(end.stderr.contains("[1/") && end.stderr.contains("[2/"), "{}", end.stderr);
    let json =
        run_with_stdin(["perplexity", "-q", "-f", "-", "--ctx", "64", "--json"], text.as_bytes())
            .json();
    assert_eq!((&json["window"], &json["method"]), (&64.into(), &"llama.cpp".into()));
    let scored = json["tokens"].as_u64().unwrap();
    assert_eq!(scored, 31 * json["windows"].as_u64().unwrap());
}

#[test]
fn methods_of_perplexity_are_chosen_by_name() {
    let text = "Once upon a time there was a little girl.\n\n".repeat(30);
    for method in ["llama.cpp", "bos", "bos-second-half", "no-bos", "documents"] {
        let args = ["perplexity", "-q", "-f", "-", "--ctx", "32", "--json", "--method", method];
        let json = run_with_stdin(args, text.as_bytes()).json();
        assert_eq!(json["method"], method);
        assert!(run(["perplexity", "--help"]).text().contains(method));
    }
    let end = run_with_stdin(["perplexity", "-f", "-", "--method", "magic"], b"x");
    assert_eq!(end.code, Some(2));
    assert!(end.stderr.contains("bos-second-half"), "{}", end.stderr);
}
