//! A safetensors file beside each of three configurations, read to the last tensor.
#![no_main]

use std::path::Path;

use bitnet_model::format::{Checkpoint, OpenOptions, PackedLayout};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

const CONFIGS: [&[u8]; 3] = [
    include_bytes!("../corpus/config/bitnet.json"),
    include_bytes!("../corpus/config/llama.json"),
    include_bytes!("../corpus/config/master.json"),
];

fuzz_target!(|data: &[u8]| {
    let data = Bytes::copy_from_slice(data);
    for config in CONFIGS {
        for packed_layout in [PackedLayout::HfRows, PackedLayout::WfMsb] {
            let options = OpenOptions { packed_layout, ..OpenOptions::default() };
            let opened =
                Checkpoint::from_safetensors(Path::new("fuzz"), config, data.clone(), &options);
            if let Ok(checkpoint) = opened {
                let _ = checkpoint.verify();
            }
        }
    }
});
