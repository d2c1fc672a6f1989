//! A GGUF file, opened and read to the last tensor.
#![no_main]

use std::path::Path;

use bitnet_model::format::{Checkpoint, I2sLayout, OpenOptions};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let data = Bytes::copy_from_slice(data);
    for i2s_layout in [I2sLayout::Block128, I2sLayout::Block64] {
        let options = OpenOptions { i2s_layout, ..OpenOptions::default() };
        if let Ok(checkpoint) = Checkpoint::from_gguf(Path::new("fuzz"), data.clone(), &options) {
            let _ = checkpoint.verify();
        }
    }
});
