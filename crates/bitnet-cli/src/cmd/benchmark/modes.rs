//! Ways to answer several prompts, as a table.

use bitnet::bench::modes::ModesReport;

use super::model::{build, machine};
use super::sheet::{Cell, Document, Sheet, hidden, number, plain, times, word};

pub fn document(report: &ModesReport) -> Document {
    let mut sheet = Sheet::new([
        word("mode", "mode"),
        number("engines", "engines"),
        number("threads", "threads each"),
        number("seconds", "s"),
        number("spread", "spread"),
        number("tokens_per_second", "tokens/s"),
        number("speed_up", "speed-up"),
        hidden("tokens_hash"),
    ]);
    for mode in &report.modes {
        let spread = mode.seconds.spread;
        sheet.row([
            mode.name.into(),
            mode.engines.into(),
            mode.threads.into(),
            plain(mode.seconds.median),
            Cell::new(format!("{:.1} %", 100.0 * spread), spread),
            plain(mode.tokens_per_second),
            times(mode.speed_up),
            mode.tokens_hash.as_str().into(),
        ]);
    }
    let (prompts, tokens, answer) = (report.prompts, report.prompt_tokens, report.generated_tokens);
    let facts = vec![
        ("machine", machine(&report.machine)),
        ("bitnet", build(&report.build)),
        ("model", report.model.clone()),
        ("work", format!("{prompts} prompts of {tokens} tokens, answers of {answer}")),
    ];
    let mut notes =
        vec!["tokens/s: generated tokens over the time until all prompts are answered".to_owned()];
    if !report.is_right() {
        notes.push("WRONG: the ways gave different answers".to_owned());
    }
    Document { facts, sheets: vec![sheet], notes }
}
