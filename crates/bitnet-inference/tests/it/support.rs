//! Models and requests for tests.

use std::path::PathBuf;
use std::sync::Arc;

use async_channel::Receiver;
use bitnet_inference::engine::Event;
use bitnet_inference::{
    EngineConfig, EngineError, FinishReason, GenerationConfig, Request, TokenLogprobs, Work,
};
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

type End = Result<FinishReason, EngineError>;

/// All tokens of a generation, and its end.
pub fn tokens(events: &Receiver<Event>) -> (Vec<u32>, End) {
    let (tokens, end) = likely_tokens(events);
    (tokens.into_iter().map(|(id, _)| id).collect(), end)
}

/// All tokens of a generation, how likely they were if that is told, and its end.
pub fn likely_tokens(events: &Receiver<Event>) -> (Vec<(u32, Option<TokenLogprobs>)>, End) {
    let mut all = Vec::new();
    loop {
        match events.recv_blocking() {
            Ok(Event::Token { id, logprobs, .. }) => all.push((id, logprobs.map(|some| *some))),
            Ok(Event::Finished(reason)) => return (all, Ok(reason)),
            Ok(Event::Failed(error)) => return (all, Err(error)),
            Ok(_) => {}
            Err(_) => return (all, Err(EngineError::Stopped)),
        }
    }
}
