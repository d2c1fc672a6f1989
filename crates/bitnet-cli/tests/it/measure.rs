//! Benchmarks and perplexity.

use serde_json::Value;

use crate::{run, run_with_stdin};

/// A short benchmark of the demo model.
const QUICK: [&str; 9] =
    ["benchmark", "-q", "-p", "16", "-n", "4", "--iterations", "2", "--warmup=0"];

#[test]
fn every_level_is_measured_or_not_available_here() {
    let levels = ["--simd-level", "sse,avx2,avx512,neon", "--threads", "1,2", "--json"];
    let report = run([&QUICK[..], &levels].concat()).json();
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        match case["outcome"].as_str().unwrap() {
            "measured" => {
                assert_eq!(case["logits_hash"], report["oracles"][0]["logits_hash"]);
                assert!(case["probes"]["read_small_pages"]["best"].as_f64().unwrap() > 0.0);
                let line = &case["lines"][1];
                assert_eq!(line["work"], "generation");
                assert_eq!(line["rate"]["samples"].as_array().unwrap().len(), 2);
                assert!(line["read_bandwidth"].as_f64().unwrap() > 0.0);
                let probes = line["probes"].as_array().unwrap();
                assert_eq!(probes.len(), 2);
                assert!(probes[1]["after"]["macs"]["median"].as_f64().unwrap() > 0.0);
                let parts = &line["bytes_per_step"];
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
    assert_eq!(report["model"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(report["model"]["head_encoding"], "Q8_0");
}

#[test]
fn forms_of_weights_head_and_cache_are_cases_with_bytes_of_their_own() {
    let forms = "--packing 2bit,1.6bit --head int8,file --kv-dtype f16,int8 -t 1 --json";
    let args: Vec<_> = QUICK.into_iter().chain(forms.split(' ')).collect();
    let report = run(args.iter().copied()).json();
    let cases = report["cases"].as_array().unwrap();
    let of = |case: &Value| {
        let name = |part: &str| case["forms"][part].as_str().unwrap().to_owned();
        let bytes = |part: &str| case["lines"][1]["bytes_per_step"][part].as_u64().unwrap();
        (name("packing"), name("head"), name("kv_dtype"), bytes("ternary"), bytes("kv"))
    };
    let found: Vec<_> = cases.iter().map(of).collect();
    assert_eq!((found.len(), report["oracles"].as_array().unwrap().len()), (8, 4));
    for (packing, head, kv_dtype, ternary, kv) in &found {
        let (first, last) = (&found[0], &found[7]);
        assert_eq!(*ternary, if packing == "2bit" { first.3 } else { last.3 });
        assert_eq!(*kv, if kv_dtype == "f16" { first.4 } else { last.4 });
        assert!(head == "int8" || head == "Q8_0", "{head}");
    }
    assert!(found[0].3 > found[7].3 && found[0].4 > found[7].4, "{found:?}");
}

#[test]
fn defaults_are_cut_to_the_models_context_with_a_note() {
    let once = ["benchmark", "-t", "1", "--iterations", "1", "--json"];
    for mode in [&["-n", "4", "--warmup=0"][..], &["-n", "4", "--phases"]] {
        let end = run([&once[..], mode].concat());
        let note = "context has 512 tokens: a prompt of 511 in place of 512";
        assert!(end.stderr.contains(note), "{mode:?}: {}", end.stderr);
        end.json();
    }
    let end = run([&once[..], &["-p", "512"]].concat());
    assert_eq!(end.code, Some(2), "{}", end.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn threads_of_a_benchmark_run_where_they_are_told_to() {
    let (first, beyond) = ("--cpu-list 0 --pin -t 1 --json", "--cpu-list 9999");
    let of = |args: &'static str| run(QUICK.into_iter().chain(args.split(' ')));
    assert_eq!(of(first).json()["cases"][0]["outcome"], "measured");
    let end = of(beyond);
    assert_eq!(end.code, Some(2), "{}", end.stderr);
    assert!(end.stderr.contains("9999"), "{}", end.stderr);
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
    assert_eq!(columns, [40, 40, 40], "{csv}");
    let md = lines("r.md");
    assert!(md.contains("| level | threads |") && md.contains("- machine:"), "{md}");
    for refused in [["-o", "r.txt"], ["-o", "json"]] {
        let end = run([&QUICK[..], &refused].concat());
        assert_eq!(end.code, Some(2));
        assert!(end.stderr.contains("end the name in ."), "{}", end.stderr);
    }
}

#[test]
fn a_table_names_memory_arithmetic_and_oversubscription() {
    let directory = tempfile::tempdir().unwrap();
    let plot = directory.path().join("plots");
    let once = ["benchmark", "-p", "8", "-n", "3", "--iterations", "1", "--warmup=0"];
    let end = run(
        [&once[..], &["-t", "1,64", "--ctx", "0,9", "--plot", plot.to_str().unwrap()]].concat()
    );
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    for part in ["ternary MB", "read GB/s", "barrier", "generate at 9", "best for gen", "64 (!)"] {
        assert!(end.stdout.contains(part), "{part}: {}", end.stdout);
    }
    assert!(end.stderr.contains("64 threads are more than the"), "{}", end.stderr);
    assert!(
        std::fs::read_to_string(plot.join("context.svg"))
            .unwrap()
            .contains("Generation, by context")
    );
}

#[test]
fn a_product_is_measured_beside_a_naive_one() {
    let args = "benchmark -q --kernel-bench --shape 64x128,32x48 --batch 1,3 -t 1,2 --iterations 1";
    let report = run(args.split(' ').chain(["--json"])).json();
    let lines = report["lines"].as_array().unwrap();
    assert_eq!(lines.iter().filter(|line| line["kernel"] == "naive").count(), 4);
    assert!(lines.iter().all(|line| line["correct"] == true));
    assert!(
        lines[1]["tile"].is_array()
            && lines[1]["probes"]["of_peak"]["median"].as_f64().unwrap() > 0.0
    );
    let text = run(args.split(' ')).text();
    assert!(text.contains("GOPS") && text.contains("naive") && text.contains("of peak"), "{text}");
}

#[test]
fn an_ablation_has_steps_for_a_product_and_for_the_model() {
    let args = "benchmark -q --ablation --shape 64x256 --batch 1 -p 4 -n 2 --iterations 1 -t 2";
    let report = run(args.split(' ').chain(["--json"])).json();
    let names = |steps: &Value| -> Vec<String> {
        let steps = steps.as_array().unwrap().iter();
        steps.map(|step| step["name"].as_str().unwrap().to_owned()).collect()
    };
    let (product, model) = (names(&report["product"]), names(&report["model"]));
    assert_eq!((&*product[0], &*product[1]), ("scalar", "table"));
    assert_eq!((product.last(), model.last()), (Some(&"pool".into()), Some(&"pool".into())));
}

#[test]
fn loading_is_measured_apart() {
    let args = "benchmark -q --load -t 1 --iterations 2";
    let report = run(args.split(' ').chain(["--json"])).json();
    let line = &report["lines"][0];
    assert!(line["repack"]["bytes_per_second"].as_f64().unwrap() > 0.0);
    assert!(line["first_token_seconds"].as_f64().unwrap() > 0.0);
    let text = run(args.split(' ')).text();
    assert!(text.contains("repack GB/s") && text.contains("peak memory"), "{text}");
}

#[test]
fn three_ways_to_answer_several_prompts_are_compared() {
    let args = "benchmark -q --modes -p 4 -n 3 -t 2 --iterations 1";
    let report = run(args.split(' ').chain(["--json"])).json();
    let modes = report["modes"].as_array().unwrap();
    let names: Vec<_> = modes.iter().map(|mode| mode["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["one by one", "workers", "batch"]);
    assert!(modes.iter().all(|mode| mode["tokens_hash"] == modes[0]["tokens_hash"]));
}

#[test]
fn the_time_of_steps_is_taken_apart() {
    let args = "benchmark -q --phases -p 9 -n 4 --ctx 3 --batch-sizes 1,2 -t 2 --iterations 1";
    let report = run(args.split(' ').chain(["--json"])).json();
    let steps = report["steps"].as_array().unwrap();
    let tokens: Vec<_> = steps.iter().map(|step| step["tokens"].as_u64().unwrap()).collect();
    assert_eq!(tokens, [9, 1, 2]);
    assert!(steps.iter().all(|step| step["milliseconds"].as_f64().unwrap() > 0.0), "{report}");
    let text = run(args.split(' ')).text();
    for part in ["prompt of 9", "2 sequences from 3 on", "gate, up", "####"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn benchmarks_that_measure_nothing_are_refused() {
    for args in [
        "--iterations 0",
        "-p 0 -n 0",
        "-t 0",
        "-t 1,x",
        "--simd-level mmx",
        "-p 100000",
        "--ctx 100000",
        "--ctx x",
        "--batch-sizes 0",
        "--batch-sizes 4 -n 0",
        "--load --iterations 0",
        "--load --ctx 5",
        "--load --kernel-bench",
        "--mlock --kernel-bench",
        "--mlock --load",
        "--modes --load",
        "--modes -n 0",
        "--phases --modes",
        "--phases -p 0 -n 0",
        "--kernel-bench --shape 4096",
        "--kernel-bench --shape 0x4096",
        "--kernel-bench --shape 4096x4096 --batch 0",
        "--kernel-bench --iterations 0",
        "--kernel-bench -p 5",
        "--kernel-bench --plot x",
        "--shape 16x16",
        "--batch 4",
        "--ablation --shape 16x16,32x32",
        "--ablation --simd-level avx2",
        "--ablation --packing 2bit",
        "--kernel-bench --packing auto",
        "--kernel-bench --pin",
        "--modes --kv-dtype f16,int8",
        "--packing 3bit",
        "--kv-dtype f17",
    ] {
        let end = run(["benchmark", "-q"].into_iter().chain(args.split(' ')));
        assert_eq!(end.code, Some(2), "{args:?}: {}", end.stderr);
    }
    let end = run("benchmark -q -p 4 -n 2 --iterations 1 -t 1 --plot x".split(' '));
    assert_eq!(end.code, Some(2), "{}", end.stderr);
    assert!(end.stderr.contains("no curve to plot"), "{}", end.stderr);
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

#[test]
fn traffic_is_measured_with_each_step_target() {
    let args = ["benchmark", "--traffic", "--requests", "4", "-p", "20", "-n", "5", "-t", "1"];
    let json = run(args.into_iter().chain(["--step-target", "50,0", "--json"])).json();
    let targets: Vec<_> = json["cases"].as_array().unwrap().iter().collect();
    assert_eq!(targets.iter().map(|case| &case["step_target_ms"]).collect::<Vec<_>>(), [50, 0]);
    for case in targets {
        assert!(case["inter_token_ms"]["p99"].as_f64().unwrap() > 0.0, "{case}");
    }
    let table = run(args).text();
    assert!(table.contains("step target ms") && table.contains("any time"), "{table}");
    let alone = run(["benchmark", "--requests", "4"]);
    assert_eq!(alone.code, Some(2), "{}", alone.stdout);
}

#[test]
fn what_the_engine_adds_is_measured() {
    let args = ["benchmark", "--overhead", "-n", "20", "-t", "1", "--iterations", "2"];
    let json = run(args.into_iter().chain(["--json"])).json();
    assert_eq!((&json["same_tokens"], &json["generated_tokens"]), (&true.into(), &20.into()));
    assert!(json["ratio"]["median"].as_f64().unwrap() > 0.0, "{json}");
    let shared = &json["shared"];
    // The demo model's context of 512 leaves room for an answer.
    let expected = [("shared_tokens", 448), ("prompts", 3), ("cached_tokens", 2 * 448)];
    for (name, value) in expected {
        assert_eq!(shared[name], value, "{name}: {shared}");
    }
    assert_eq!(shared["computed_tokens"], 448 + 3 * 16);
    let table = run(args).text();
    assert!(table.contains("engine/loop") && table.contains("computed in all"), "{table}");
    let both = run(["benchmark", "--overhead", "--traffic"]);
    assert_eq!(both.code, Some(2), "{}", both.stdout);
}
