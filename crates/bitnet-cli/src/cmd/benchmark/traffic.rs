//! How requests fare that come at their own times, as a table.

use bitnet::bench::traffic::TrafficReport;

use super::model::{build, machine};
use super::sheet::{Cell, Document, Sheet, hidden, number, plain};

pub fn document(report: &TrafficReport) -> Document {
    let mut sheet = Sheet::new([
        number("step_target_ms", "step target ms"),
        number("capacity", "requests/s at most"),
        number("tokens_per_second", "tokens/s"),
        number("first_token_ms_p50", "first token ms p50"),
        number("first_token_ms_p99", "p99"),
        number("inter_token_ms_p50", "next token ms p50"),
        number("inter_token_ms_p95", "p95"),
        number("inter_token_ms_p99", "p99"),
        number("inter_token_ms_max", "max"),
        hidden("requests"),
    ]);
    for case in &report.cases {
        let target = match case.step_target_ms {
            0 => Cell::new("any time", 0),
            ms => Cell::new(ms.to_string(), ms),
        };
        let (first, next) = (case.first_token_ms, case.inter_token_ms);
        sheet.row([
            target,
            plain(case.capacity),
            plain(case.tokens_per_second),
            plain(first.p50),
            plain(first.p99),
            plain(next.p50),
            plain(next.p95),
            plain(next.p99),
            plain(next.max),
            report.requests.into(),
        ]);
    }
    let (requests, prompt, answer) =
        (report.requests, report.prompt_tokens, report.generated_tokens);
    let facts = vec![
        ("machine", machine(&report.machine)),
        ("bitnet", build(&report.build)),
        ("model", report.model.clone()),
        ("threads", report.threads.to_string()),
        ("work", format!("{requests} requests: prompts of {prompt} tokens, answers of {answer}")),
    ];
    let load = 100.0 * report.load;
    let notes = vec![
        "requests/s at most, tokens/s: all requests at once".to_owned(),
        format!("first token, next token: requests at random times, {load:.0} % of the most"),
    ];
    Document { facts, sheets: vec![sheet], notes }
}
