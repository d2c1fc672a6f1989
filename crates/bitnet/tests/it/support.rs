//! Models for tests, and what they log.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use bitnet::{BitNetModel, HeadType, KvType, ModelConfig};
use tracing::field::{Field, Visit};

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

/// Keeps what is logged for one target, a line for each event.
#[derive(Clone)]
pub struct Lines {
    target: &'static str,
    pub lines: Arc<Mutex<Vec<String>>>,
}

impl Lines {
    /// What the whole process logs from now on; only one test of a process can ask for it.
    pub fn of(target: &'static str) -> Self {
        let lines = Self { target, lines: Arc::default() };
        tracing::subscriber::set_global_default(lines.clone()).unwrap();
        lines
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == self.target
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);
        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        self.lines.lock().unwrap().push(fields.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
