//! Where a process's memory goes, with a model of any size: `cargo run --release -p bitnet --example memory -- MODEL [REQUESTS TOKENS]`.
//!
//! Prints what is in use after loading, with answers under way, after them, and when all has been given back that is only kept.

use bitnet::{BitNetModel, Error, GenerationConfig, MemoryMonitor, RequestOptions};

fn say(what: &str) {
    let usage = MemoryMonitor::new().current_usage();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let resident = usage.resident.map_or("?".to_owned(), |bytes| format!("{:.1}", mib(bytes)));
    println!(
        "{what:22} {resident:>9} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>8.1} %",
        mib(usage.weights_mapped),
        mib(usage.weights_owned),
        mib(usage.kv_cache),
        mib(usage.activations),
        mib(usage.tokenizer),
        mib(usage.other),
        100.0 * usage.known() as f64 / usage.total().max(1) as f64
    );
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("give a model")?;
    let number =
        |index: usize, otherwise| arguments.get(index).map_or(Ok(otherwise), |n| n.parse());
    let (requests, tokens) = (number(1, 8)?, number(2, 8)?);
    println!(
        "{:22} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10}",
        "MiB", "resident", "mapped", "owned", "kv", "scratch", "tokenizer", "other", "known"
    );
    let model = BitNetModel::from_pretrained(path).load()?;
    say("loaded");
    let config =
        GenerationConfig { max_new_tokens: tokens, ignore_eos: true, ..Default::default() };
    let start = |index: usize| {
        let words =
            (0..200).map(|word| format!("{} ", (word * 7 + index) % 90)).collect::<String>();
        model.generate_stream_with(words, &config, RequestOptions::default())
    };
    let streams: Result<Vec<_>, Error> = (0..requests).map(start).collect();
    let mut streams = streams?.into_iter().map(bitnet::GenerationStream::blocking);
    let first = streams.next().map(Iterator::count);
    say("the first answer is there");
    let others = streams.map(Iterator::count).sum::<usize>();
    say("all answers are there");
    MemoryMonitor::new().clean_up();
    say("cleaned up");
    println!("{} pieces, {:?}", first.unwrap_or(0) + others, model.stats());
    Ok(())
}
