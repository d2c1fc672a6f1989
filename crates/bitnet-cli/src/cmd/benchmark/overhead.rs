//! What the engine adds to the model, as two tables.

use bitnet::bench::overhead::OverheadReport;

use super::model::{build, machine};
use super::sheet::{Cell, Document, Sheet, number, plain};

pub fn document(report: &OverheadReport) -> Document {
    let mut alone = Sheet::new([
        number("plain_tokens_per_second", "loop tokens/s"),
        number("engine_tokens_per_second", "engine tokens/s"),
        number("ratio", "engine/loop"),
        number("spread", "spread"),
    ]);
    let (ratio, spread) = (report.ratio.median, report.ratio.spread);
    alone.row([
        plain(report.plain.median),
        plain(report.engine.median),
        Cell::new(format!("{ratio:.4}"), ratio),
        Cell::new(format!("{:.1} %", 100.0 * spread), spread),
    ]);
    let shared = &report.shared;
    let mut prefix = Sheet::new([
        number("prompts", "prompts"),
        number("prompt_tokens", "tokens each"),
        number("shared_tokens", "the same"),
        number("computed_tokens", "computed in all"),
        number("cached_tokens", "found in all"),
        number("first_ms", "first ms"),
        number("next_ms", "others ms"),
    ]);
    prefix.row([
        shared.prompts.into(),
        shared.prompt_tokens.into(),
        shared.shared_tokens.into(),
        Cell::new(shared.computed_tokens.to_string(), shared.computed_tokens),
        Cell::new(shared.cached_tokens.to_string(), shared.cached_tokens),
        plain(shared.first_ms),
        plain(shared.next_ms.median),
    ]);
    let facts = vec![
        ("machine", machine(&report.machine)),
        ("bitnet", build(&report.build)),
        ("model", report.model.clone()),
        ("threads", report.threads.to_string()),
        ("work", format!("answers of {} tokens", report.generated_tokens)),
    ];
    let mut notes = vec![
        "engine/loop: of one request alone and of a plain loop over the same weights, in turns"
            .to_owned(),
        "first ms, others ms: from request to first token, of prompts one after another".to_owned(),
    ];
    if !report.same_tokens {
        notes.push("WRONG: engine and loop gave different tokens".to_owned());
    }
    if !shared.is_right() {
        notes.push("WRONG: the shared beginning was not computed exactly once".to_owned());
    }
    Document { facts, sheets: vec![alone, prefix], notes }
}
