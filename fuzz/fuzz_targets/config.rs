//! A config.json beside weights of three kinds.
#![no_main]

use std::path::Path;

use bitnet_model::format::{Checkpoint, OpenOptions};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

const WEIGHTS: [&[u8]; 3] = [
    include_bytes!("../corpus/safetensors/bitnet.safetensors"),
    include_bytes!("../corpus/safetensors/llama.safetensors"),
    include_bytes!("../corpus/safetensors/master.safetensors"),
];

fuzz_target!(|config: &[u8]| {
    for weights in WEIGHTS {
        let (name, weights) = (Path::new("fuzz"), Bytes::from_static(weights));
        let opened = Checkpoint::from_safetensors(name, config, weights, &OpenOptions::default());
        if let Ok(checkpoint) = opened {
            let _ = checkpoint.verify();
        }
    }
});
