use std::process::Command;

use crate::{Run, program, run};

/// `info --json` under these variables.
fn threads(env: &[(&str, &str)], args: &[&str]) -> serde_json::Value {
    let mut command = program();
    command.args(["info", "--json"]).args(args).envs(env.iter().copied());
    let json = Run::from(command.output().unwrap()).json();
    json["threads"].clone()
}

#[track_caller]
fn check_threads(env: &[(&str, &str)], args: &[&str], count: usize, rule: &str) {
    let threads = threads(env, args);
    assert_eq!(threads["count"], count);
    assert!(threads["rule"].as_str().unwrap().starts_with(rule), "{threads}");
}

#[test]
fn the_flag_then_the_variables_then_the_machine_set_the_threads() {
    let env = [("BITNET_THREADS", "3"), ("RAYON_NUM_THREADS", "4"), ("OMP_NUM_THREADS", "5")];
    check_threads(&env, &["-t", "2"], 2, "-t/--threads");
    check_threads(&env, &[], 3, "environment variable BITNET_THREADS");
    check_threads(&env, &["-t", "0"], 3, "environment variable BITNET_THREADS");
    check_threads(&env[1..], &[], 4, "environment variable RAYON_NUM_THREADS");
    check_threads(&env[2..], &[], 5, "environment variable OMP_NUM_THREADS");
    let automatic = threads(&[], &[]);
    assert!(automatic["rule"].as_str().unwrap().starts_with("automatic: "), "{automatic}");
    let most = std::thread::available_parallelism().unwrap().get() as u64;
    assert!((1..=most).contains(&automatic["count"].as_u64().unwrap()), "{automatic}");
}

#[test]
fn variables_of_other_libraries_are_listed_as_ignored() {
    let mut command = program();
    command.arg("info").envs([("MKL_NUM_THREADS", "4"), ("OPENBLAS_NUM_THREADS", "8")]);
    let text = Run::from(command.output().unwrap()).text();
    assert!(text.contains("MKL_NUM_THREADS=4: no MKL"), "{text}");
    assert!(text.contains("OPENBLAS_NUM_THREADS=8: no OpenBLAS"), "{text}");
    assert!(!run(["info"]).text().contains("ignored"));
}

#[test]
fn more_threads_than_processors_are_used_with_a_warning() {
    let most = std::thread::available_parallelism().unwrap().get() + 1;
    let end = run(["run", "-p", "Once", "-n", "2", "-t", &most.to_string()]);
    let warning = format!("warning: {most} threads (-t/--threads) on ");
    assert!(end.stderr.contains(&warning), "{}", end.stderr);
    assert_eq!(end.code, Some(0));
}

#[test]
#[cfg(target_os = "linux")]
fn exactly_as_many_threads_compute_as_asked_for() {
    use std::io::Read;
    for (args, env, expected) in
        [(&["-t", "100"][..], None, 100), (&[], Some("2"), 2), (&["-t", "1"], Some("2"), 1)]
    {
        let mut command = program();
        command.args(["run", "-p", "Once", "-n", "400", "--ignore-eos", "-q"]).args(args);
        command.envs(env.map(|count| ("OMP_NUM_THREADS", count)));
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap(); // it computes
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        let names =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        let compute =
            names.filter(|name| name.starts_with("bitnet-") && name.trim() != "bitnet-cli").count();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(compute, expected, "{args:?} {env:?}");
    }
}

/// Affinity of the compute threads of a program that generates, by their names.
#[cfg(target_os = "linux")]
fn affinity(args: &[&str], env: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    use std::io::Read;
    let mut command = program();
    command.args(["run", "-p", "Once", "-n", "400", "--ignore-eos", "-q"]).args(args);
    command.envs(env.iter().copied());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap(); // it computes
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status"));
    let texts: Vec<_> = tasks.filter_map(|task| status(task.ok()?).ok()).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().to_owned()
    };
    let pairs = texts.iter().map(|t| (field(t, "Name:"), field(t, "Cpus_allowed_list:")));
    pairs.filter(|(name, _)| name == "bitnet-engine" || name.starts_with("bitnet-w")).collect()
}

/// What `info --json` says about the processors that threads are bound to.
fn places(args: &[&str], env: &[(&str, &str)]) -> Vec<Vec<usize>> {
    serde_json::from_value(threads(env, args)["placement"]["cpus"].clone()).unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn threads_run_where_info_says() {
    use bitnet_kernels::cpu::placement::ranges;
    let all = affinity(&["-t", "2"], &[])["bitnet-w01"].clone();
    for (args, env) in [
        (&["-t", "2", "--pin"][..], &[][..]),
        (&["-t", "2"], &[("OMP_PROC_BIND", "true"), ("OMP_PLACES", "cores")]),
        (&["-t", "2", "--cpu-list", "0"], &[]),
        (&["-t", "1", "-tb", "2", "--pin"], &[]),
    ] {
        let (found, said) = (affinity(args, env), places(args, env));
        let said: Vec<_> = said.iter().map(|cpus| ranges(cpus)).collect();
        let names = ["bitnet-engine", "bitnet-w01"];
        assert_eq!(names.map(|name| found[name].clone()).to_vec(), said, "{args:?} {env:?}");
    }
    let free = affinity(&["-t", "2", "--no-pin"], &[("OMP_PROC_BIND", "true")]);
    assert!(free.values().all(|cpus| *cpus == all), "{free:?}");
}

#[test]
fn info_says_where_threads_run_and_why() {
    let free = threads(&[], &[]);
    assert_eq!(free["placement"]["set_by"], "default");
    assert_eq!(free["placement"]["cpus"], serde_json::json!([]));
    assert_eq!(free["wait"]["policy"], "balanced");
    let passive = threads(&[("OMP_WAIT_POLICY", "passive")], &[]);
    assert_eq!(
        passive["wait"],
        serde_json::json!({"policy": "passive", "set_by": "OMP_WAIT_POLICY"})
    );
    let batch = threads(&[("OMP_NUM_THREADS", "2")], &["-tb", "1"]);
    assert_eq!((&batch["count"], &batch["batch"]), (&2.into(), &1.into()));
    let warned = threads(&[("OMP_WAIT_POLICY", "lazy")], &[]);
    assert!(warned["warnings"][0].as_str().unwrap().contains("OMP_WAIT_POLICY=lazy"), "{warned}");
}

#[test]
#[cfg(target_os = "linux")]
fn pinned_threads_are_listed() {
    let pinned = threads(&[("OMP_PROC_BIND", "true")], &["-t", "2"]);
    assert_eq!(pinned["placement"]["set_by"], "OMP_PROC_BIND");
    assert_eq!(pinned["placement"]["cpus"].as_array().unwrap().len(), 2);
    let text = run(["info", "-t", "1", "--pin"]).text();
    assert!(text.contains("one CPU each, SMT siblings last (--pin)"), "{text}");
    assert!(text.contains("thread 0 on CPU "), "{text}");
    let warned = run(["info", "--numa", "distribute"]).text();
    let nodes = bitnet_kernels::cpu::topology::Topology::detect().nodes.len();
    assert_eq!(warned.contains("one memory node"), nodes < 2, "{warned}");
}

#[test]
#[cfg(target_os = "linux")]
fn processors_that_are_not_there_are_refused() {
    for args in [["--cpu-list", "60000"], ["--cpu-list", "a"], ["--numa", "mirror"]] {
        let end = run(["info"].into_iter().chain(args));
        assert_eq!(end.code, Some(2), "{args:?} {}", end.stderr);
        assert!(end.stderr.contains(args[1]), "{}", end.stderr);
    }
}

#[test]
fn places_for_another_machine_are_a_warning() {
    let end = program_with(&[("OMP_PLACES", "{60000}")]);
    assert_eq!(end.code, Some(0));
    assert!(
        cfg!(not(target_os = "linux")) || end.stderr.contains("OMP_PLACES is ignored"),
        "{}",
        end.stderr
    );
}

fn program_with(env: &[(&str, &str)]) -> Run {
    let mut command = program();
    command.args(["run", "-p", "Once", "-n", "1"]).envs(env.iter().copied());
    command.output().unwrap().into()
}

#[test]
fn an_empty_environment_is_enough() {
    for args in [&["run", "-p", "Once", "-n", "3"][..], &["info"], &["chat"], &["tokenize", "x"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-cli"));
        command.args(args).env_clear().stdin(std::process::Stdio::null());
        let end: Run = command.output().unwrap().into();
        assert_eq!(end.code, Some(0), "{args:?}: {}", end.stderr);
    }
}

#[test]
fn info_shows_processor_levels_and_threads() {
    let text = run(["info"]).text();
    for part in
        ["Processor\n", "caches", "SIMD levels\n", "self-test", "chosen", "Threads\n", "rule"]
    {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let json = run(["info", "--json", "--cpu"]).json();
    assert!(json["cpu"]["physical_cores"].as_u64().unwrap() >= 1);
    let levels = json["simd"]["levels"].as_array().unwrap();
    let chosen: Vec<_> = levels.iter().filter(|level| level["chosen"] == true).collect();
    assert_eq!(chosen.len(), 1);
    assert_eq!(
        (&chosen[0]["level"], &chosen[0]["self_test"]),
        (&json["simd"]["chosen"], &"passed".into())
    );
    assert!(json["threads"].is_null(), "--cpu is the processor only");
}

#[test]
fn debug_logs_name_level_kernel_and_features_and_normal_runs_do_not() {
    let args = ["run", "-p", "Once", "-n", "1"];
    let mut command = program();
    command.args(args).env("RUST_LOG", "debug");
    let loud = Run::from(command.output().unwrap()).stderr;
    let line = loud
        .lines()
        .find(|line| line.contains("SIMD level in use"))
        .unwrap_or_else(|| panic!("{loud}"));
    let level = run(args.into_iter().chain(["--json"])).json()["simd"].as_str().unwrap().to_owned();
    assert!(
        line.contains(&level) && line.contains("kernel=") && line.contains("features="),
        "{line}"
    );
    let quiet = run(args).stderr.to_lowercase();
    assert!(!quiet.contains("simd"), "{quiet}");
}

#[test]
fn the_log_variable_decides_before_the_flags() {
    // Levels of the log lines of a run with this variable and these flags.
    let levels = |variable: &str, flags: &[&str]| {
        let mut command = program();
        command.args(["run", "-p", "Once", "-n", "1"]).args(flags).env("RUST_LOG", variable);
        let end = Run::from(command.output().unwrap());
        assert_eq!(end.code, Some(0), "{}", end.stderr);
        assert!(!end.stdout.contains("INFO"), "{}", end.stdout);
        ["INFO", "DEBUG"].map(|level| end.stderr.lines().any(|l| l.trim_start().starts_with(level)))
    };
    for (variable, flags, expected) in [
        ("", &[][..], [false, false]),
        ("", &["-v"], [true, false]),
        ("", &["-vv"], [true, true]),
        ("info", &[], [true, false]),
        ("debug", &["-q"], [true, true]),
        ("error", &["-vv"], [false, false]),
        ("off", &["-v"], [false, false]),
        ("warn,bitnet_cli=debug", &[], [true, true]),
        ("warn,no_such_module=trace", &["-vv"], [false, false]),
    ] {
        assert_eq!(levels(variable, flags), expected, "RUST_LOG={variable} {flags:?}");
    }
}

/// No machine has room for threads with such stacks, so the system refuses each.
#[test]
#[cfg(target_os = "linux")]
fn refused_threads_are_a_failure_with_the_reason() {
    let text = crate::testdata("README.md");
    let text = text.to_str().unwrap();
    for (args, message) in [
        (&["perplexity", "-t", "2", "-f", text][..], "2 threads cannot be started: "),
        (&["perplexity", "-t", "1", "-f", text], "the engine's thread cannot be started: "),
        (&["run", "-p", "Once"], "cannot watch for Ctrl-C: "),
    ] {
        let mut command = program();
        command.args(args).env("RUST_MIN_STACK", (1_u64 << 46).to_string());
        let end = Run::from(command.output().unwrap());
        assert_eq!((end.code, end.stdout.as_str()), (Some(1), ""), "{args:?}: {}", end.stderr);
        let reason = format!("{message}Resource temporarily unavailable");
        assert!(end.stderr.contains(&reason), "{args:?}: {}", end.stderr);
    }
}

#[test]
fn info_sizes_a_model_in_floats() {
    let path = crate::testdata("golden/gguf/bitnet-tiny-I2_S.gguf");
    let json = run(["info", "--json", "-m", path.to_str().unwrap()]).json();
    let parameters = json["model"]["parameters"].as_u64().unwrap();
    assert_eq!(json["model"]["f32_bytes"], 4 * parameters);
    let packed =
        json["encodings"].as_array().unwrap().iter().find(|e| e["encoding"] == "I2_S").unwrap();
    // Two bits a weight, and 32 bytes with the scale after each of 14 matrices.
    assert_eq!(
        packed["bytes"].as_u64().unwrap(),
        packed["parameters"].as_u64().unwrap() / 4 + 14 * 32
    );
}
