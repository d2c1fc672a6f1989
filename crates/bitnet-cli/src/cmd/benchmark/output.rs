//! A benchmark's results as files.

use std::path::Path;

use anyhow::Result;
use bitnet::bench::{BenchReport, Measurement, Outcome};

use super::tables;
use crate::failure::Failure;

/// A format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Csv,
    Markdown,
}

impl Format {
    /// The format that a file's ending stands for.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("json") => Ok(Self::Json),
            Some("csv") => Ok(Self::Csv),
            Some("md") => Ok(Self::Markdown),
            _ => Err(Failure::input(format!(
                "{}: no format is known by this ending",
                path.display()
            ))
            .hint("end the name in .json, .csv or .md")
            .into()),
        }
    }

    pub fn render(self, report: &BenchReport) -> Result<String> {
        Ok(match self {
            Self::Json => serde_json::to_string_pretty(report)? + "\n",
            Self::Csv => csv(report),
            Self::Markdown => markdown(report),
        })
    }
}

const COLUMNS: [&str; 17] = [
    "simd_level",
    "threads",
    "oversubscribed",
    "outcome",
    "prompt_tokens_per_second",
    "prompt_min",
    "prompt_max",
    "generated_tokens_per_second",
    "generated_min",
    "generated_max",
    "bytes_per_token",
    "bytes_per_second",
    "read_bandwidth",
    "macs_per_second",
    "peak_macs_per_second",
    "tokens_hash",
    "logits_hash",
];

/// One line for each case, in plain numbers.
fn csv(report: &BenchReport) -> String {
    let mut out = COLUMNS.join(",") + "\n";
    for case in &report.cases {
        let (outcome, cells) = match &case.outcome {
            Outcome::NotAvailable { reason } => {
                (format!("\"{}\"", reason.replace('"', "'")), vec![String::new(); 13])
            }
            Outcome::Measured(m) => (format!("{:?}", m.agreement).to_lowercase(), numbers(m)),
        };
        let start = [
            case.simd_level.clone(),
            case.threads.to_string(),
            case.oversubscribed.to_string(),
            outcome,
        ];
        out += &[&start[..], &cells].concat().join(",");
        out.push('\n');
    }
    out
}

fn numbers(m: &Measurement) -> Vec<String> {
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
    let rate = |rate: &Option<bitnet::bench::Rate>| {
        let values = rate.as_ref().map(|rate| [rate.median, rate.min, rate.max]);
        [0, 1, 2].map(|i| number(values.map(|values| values[i])))
    };
    let mut cells = [rate(&m.prompt), rate(&m.generation)].concat();
    cells.push(m.bytes_per_token.total().to_string());
    cells.push(number(m.bytes_per_second));
    cells.push(number(Some(m.read_bandwidth.best)));
    cells.push(number(m.prompt_macs_per_second));
    cells.push(number(Some(m.peak_macs_per_second.best)));
    cells.extend([m.tokens_hash.clone(), m.logits_hash.clone()]);
    cells
}

/// A table, and under it where it was made.
fn markdown(report: &BenchReport) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut out = row(&tables::HEADINGS.map(str::to_owned));
    out += &row(&tables::HEADINGS.map(|_| "---".to_owned()));
    for case in &report.cases {
        let mut cells = tables::cells(report, case);
        cells.resize(tables::HEADINGS.len(), String::new());
        out += &row(&cells);
    }
    let (machine, model, settings) = (&report.machine, &report.model, &report.settings);
    out += &format!(
        "\n{} on {} ({} processors), bitnet {}; prompt of {}, generation of {}, {} times.\n",
        model.name,
        machine.cpu.as_deref().unwrap_or("an unknown processor"),
        machine.processors,
        report.version,
        settings.prompt_tokens,
        settings.generated_tokens,
        settings.iterations,
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_choose_formats() {
        let format = |name: &str| Format::of(Path::new(name)).ok();
        assert_eq!(format("a/b.json"), Some(Format::Json));
        assert_eq!(format("b.csv"), Some(Format::Csv));
        assert_eq!(format("b.md"), Some(Format::Markdown));
        assert_eq!(format("b.txt"), None);
        assert_eq!(format("json"), None);
    }
}
