//! What is wrong with a model file, or could surprise.

use bitnet::{Checkpoint, Tokenizer};
use bitnet_kernels::cpu::topology::Topology;

use crate::cmd::info::Section;
use crate::report::bytes;

pub fn section(checkpoint: &Checkpoint) -> Section {
    let found = findings(checkpoint);
    let text = match found.is_empty() {
        true => "  none\n".to_owned(),
        false => found.iter().map(|problem| format!("  {problem}\n")).collect(),
    };
    Section { title: "Problems", text, json: ("problems", found.into()) }
}

fn findings(checkpoint: &Checkpoint) -> Vec<String> {
    let config = checkpoint.config();
    let mut found = Vec::new();
    match Tokenizer::from_source(&checkpoint.tokenizer_source()) {
        Err(error) => found.push(format!("no text can be made tokens: {error}")),
        Ok(tokenizer) if tokenizer.vocab_size() > config.vocab_size => found.push(format!(
            "the tokenizer has {} tokens and the model only {}: they do not belong together",
            tokenizer.vocab_size(),
            config.vocab_size
        )),
        Ok(_) => {}
    }
    if config.eos_token_ids.is_empty() {
        found.push("no token ends a text: generation runs to its limit".into());
    }
    if config.tie_word_embeddings && checkpoint.tensors().any(|it| it.name == "lm_head.weight") {
        found.push("`lm_head.weight` is not used: the configuration says that the embedding is the output head".into());
    }
    let scalar = |key: &str| checkpoint.metadata().string(key);
    if scalar("tokenizer.ggml.model") == Some("gpt2") && scalar("tokenizer.ggml.pre").is_none() {
        found.push("`tokenizer.ggml.pre` is missing: texts are split as Llama 3 does".into());
    }
    let memory = Topology::detect().memory;
    if let Some(memory) = memory.filter(|memory| checkpoint.size_bytes() > memory.total) {
        let (size, total) = (bytes(checkpoint.size_bytes()), bytes(memory.total));
        found.push(format!("{size} of weights do not fit into {total} of memory"));
    }
    found
}
