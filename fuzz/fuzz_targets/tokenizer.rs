//! tokenizer.json and the files beside it, and the same keys as GGUF metadata: loaded, then used.
#![no_main]

#[path = "../checks/tokenizer.rs"]
mod tokenizer;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let input = tokenizer::Input::parse(data);
    input.load_files();
    input.load_metadata();
});
