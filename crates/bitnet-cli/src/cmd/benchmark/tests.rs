use bitnet::bench::{BenchReport, Outcome, Outputs};

use super::*;

fn quick() -> BenchReport {
    let config = BenchConfig {
        threads: vec![1, 2],
        prompt_tokens: 6,
        generated_tokens: 2,
        depths: vec![4, 20],
        batch_sizes: vec![2],
        iterations: 2,
        warmup: 0,
        ..BenchConfig::default()
    };
    let model = ModelConfig::default();
    bench::run(&BitNetModel::demo, &model, &config, &mut |_| ()).unwrap()
}

#[test]
fn reports_have_every_format_and_warn_of_what_disturbs() {
    let mut report = quick();
    let document = model::document(&report);
    let csv = document.csv();
    let counts: Vec<_> = csv.lines().map(|line| line.split(',').count()).collect();
    assert_eq!(counts, [40; 1 + 2 * 4], "{csv}");
    let text = document.text();
    for part in [
        "ternary MB",
        "M products/token",
        "generate at 20",
        "2 sequences at 4",
        "of bound",
        "best for prompts",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(document.markdown().contains("| level | threads | weights | head | KV | work |"));
    let json: serde_json::Value = serde_json::from_str(&output::json(&report).unwrap()).unwrap();
    let line = &json["cases"][0]["lines"][1];
    assert_eq!((&line["work"], &line["depth"]), (&"generation".into(), &4.into()));
    assert_eq!(line["rate"]["samples"].as_array().unwrap().len(), 2);

    let Outcome::Measured(m) = &mut report.cases[0].outcome else { panic!("it ran") };
    let line = &mut m.lines[0];
    line.rate.spread = 0.5;
    line.conditions.other_processes = Some(1e3);
    line.conditions.throttled = Some(7);
    line.conditions.stolen = Some(0.03 * report.machine.processors as f64);
    report.cases[1].oversubscribed = true;
    let warnings = warnings(&report).join("\n");
    for part in [
        "2 threads are more",
        "by up to",
        "used up to 1000.0 of",
        "7 times because of heat",
        "took up to 3 %",
    ] {
        assert!(warnings.contains(part), "{part}: {warnings}");
    }
}

#[test]
fn wrong_tokens_are_an_error_and_have_no_speed() {
    let mut report = quick();
    assert!(report.is_right() && verdict(report.is_right()).is_ok());
    let outputs = |hash: &str| Outputs { tokens_hash: hash.into(), logits_hash: "l".into() };
    report.cases[1].outcome = Outcome::Wrong {
        what: "the tokens or logits of a short text".into(),
        found: outputs("found"),
        expected: outputs("expected"),
    };
    assert!(verdict(report.is_right()).is_err());
    let text = model::document(&report).text();
    assert!(text.contains("WRONG") && text.contains("found l, and should be expected l"), "{text}");
    let csv = model::document(&report).csv();
    assert!(csv.lines().last().unwrap().contains(",wrong,"), "{csv}");
}

#[test]
fn plots_have_panels_for_what_has_several_values_and_two_themes() {
    let report = quick();
    let pictures = plot::pictures(&report, "bitnet-cli benchmark -t 1,2").unwrap();
    let names: Vec<_> = pictures.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["threads.svg", "context.svg"], "one batch size is no curve");
    for part in ["Generation, by threads", "Prompt, by threads", "% of bound", "-t 1,2"] {
        assert!(pictures[0].1.contains(part), "{part}");
    }
    assert!(pictures[1].1.contains("Generation, by context"));
    for (_, svg) in pictures {
        assert!(svg.contains("prefers-color-scheme:dark") && svg.contains("fill=\"#1F2328\""));
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }
    let single = BenchReport { cases: Vec::new(), ..report };
    assert!(plot::pictures(&single, "").is_err());
}
