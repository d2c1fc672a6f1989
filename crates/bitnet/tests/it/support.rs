//! Models for tests.

use std::path::PathBuf;
use std::sync::OnceLock;

use bitnet::{BitNetModel, HeadType, KvType, ModelConfig};

pub fn testdata(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata")).join(name)
}

pub fn load(name: &str) -> BitNetModel {
    BitNetModel::from_pretrained(testdata(name)).load().unwrap()
}

/// Keys, values and head as the reference has them.
pub fn load_exact(name: &str) -> BitNetModel {
    let config = ModelConfig { kv_dtype: KvType::F32, head: HeadType::File, ..Default::default() };
    BitNetModel::from_pretrained(testdata(name)).with_config(config).load().unwrap()
}

/// The demo model, loaded once for all tests.
pub fn demo() -> &'static BitNetModel {
    static MODEL: OnceLock<BitNetModel> = OnceLock::new();
    MODEL.get_or_init(|| load("demo-model/gguf/demo-tq2_0.gguf"))
}
