//! A GGUF file, opened and read to the last tensor, and its tokenizer used.
#![no_main]

#[expect(dead_code, reason = "the JSON files are the target `tokenizer`'s")]
#[path = "../checks/tokenizer.rs"]
mod tokenizer;

use std::path::Path;

use bitnet_model::format::{Checkpoint, I2sLayout, OpenOptions, TokenizerSource};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let data = Bytes::copy_from_slice(data);
    for i2s_layout in [I2sLayout::Block128, I2sLayout::Block64] {
        let options = OpenOptions { i2s_layout, ..OpenOptions::default() };
        if let Ok(checkpoint) = Checkpoint::from_gguf(Path::new("fuzz"), data.clone(), &options) {
            let _ = checkpoint.verify();
            if let TokenizerSource::Gguf(_, metadata) = checkpoint.tokenizer_source() {
                tokenizer::from_metadata(metadata, "a <s> é1");
            }
        }
    }
});
