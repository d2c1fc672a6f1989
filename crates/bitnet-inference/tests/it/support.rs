//! Models and requests for tests.

use std::path::PathBuf;
use std::sync::Arc;

use async_channel::Receiver;
use bitnet_inference::engine::Event;
use bitnet_inference::{EngineConfig, EngineError, FinishReason, GenerationConfig, Request, Work};
use bitnet_kernels::backend::Backend;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::KvType;
use bitnet_model::decoder::Model;
use bitnet_model::format::{Checkpoint, OpenOptions};

pub fn testdata(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata")).join(name)
}

pub fn load<B: Backend>(name: &str, backend: B) -> Arc<Model<B>> {
    let checkpoint = Checkpoint::open(&testdata(name), &OpenOptions::default()).unwrap();
    Arc::new(Model::load(&checkpoint, Arc::new(backend), HeadType::File, 1, &|_| {}).unwrap())
}

/// Keys and values as the reference has them.
pub fn exact() -> EngineConfig {
    EngineConfig { kv_dtype: KvType::F32, ..Default::default() }
}

/// Greedy, whatever the tokens.
pub fn generate(ids: &[u32], max_new_tokens: usize) -> Request {
    let sampling = GenerationConfig::default().sampling().unwrap();
    let work = Work::Generate { sampling, max_new_tokens, stop_ids: Vec::new() };
    Request::new(ids.to_vec(), work)
}

/// All tokens of a generation, and its end.
pub fn tokens(events: &Receiver<Event>) -> (Vec<u32>, Result<FinishReason, EngineError>) {
    let mut ids = Vec::new();
    loop {
        match events.recv_blocking() {
            Ok(Event::Token { id, .. }) => ids.push(id),
            Ok(Event::Finished(reason)) => return (ids, Ok(reason)),
            Ok(Event::Failed(error)) => return (ids, Err(error)),
            Ok(_) => {}
            Err(_) => return (ids, Err(EngineError::Stopped)),
        }
    }
}
