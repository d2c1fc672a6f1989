//! Where a process's memory goes, with a model of any size: `cargo run --release -p bitnet --example memory -- MODEL [REQUESTS TOKENS
//! [MIB]]`.
//!
//! Prints what is in use after loading, after the first answer, after all, and when all has been given back that is only kept; with a
//! number of MiB as the limit, also how many answers came to nothing and the most that was in use.

use bitnet::{BitNetModel, Error, GenerationConfig, MemoryMonitor, PerformanceMonitor};

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
    let (monitor, performance) = (MemoryMonitor::new(), PerformanceMonitor::of(&model));
    performance.start();
    let config =
        GenerationConfig { max_new_tokens: tokens, ignore_eos: true, ..Default::default() };
    let start = |index: usize| {
        let words =
            (0..200).map(|word| format!("{} ", (word * 7 + index) % 90)).collect::<String>();
        model.generate_stream(words, &config)
    };
    let limit: u64 = number(3, 0)? as u64;
    if limit > 0 {
        monitor.set_limit(limit << 20);
    }
    let streams: Vec<_> = (0..requests).map(start).collect();
    let (mut pieces, mut failed) = (0, Vec::new());
    for (index, stream) in streams.into_iter().enumerate() {
        let answer: Result<Vec<_>, Error> = stream.and_then(|stream| stream.blocking().collect());
        match answer {
            Ok(answer) => pieces += answer.len(),
            Err(error) => failed.push(error.to_string()),
        }
        if index == 0 {
            say("the first answer is there");
        }
    }
    say("all answers are there");
    let most = performance.stop().peak_memory_gb * 1024.0;
    monitor.clean_up();
    say("cleaned up");
    println!("{pieces} pieces, {most:.1} MiB at most; {} failed: {failed:?}", failed.len());
    println!("{:?}", model.stats());
    Ok(())
}
