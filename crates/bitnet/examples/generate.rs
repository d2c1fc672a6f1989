//! Continues a text: `cargo run --release --example generate -- [MODEL] [PROMPT]`.
//!
//! MODEL is a .gguf file or a Hugging Face directory; without one, the built-in demo model writes a story.

use bitnet::{BitNetModel, GenerationConfig, ModelBuilder};

fn main() -> Result<(), bitnet::Error> {
    let mut args = std::env::args().skip(1);
    let model = builder(args.next()).load()?;
    let prompt = args.next().unwrap_or_else(|| "Once upon a time".into());
    let config = GenerationConfig { max_new_tokens: 100, ..Default::default() };
    let output = model.generate_blocking(&prompt, &config)?;
    println!("{prompt}{output}");
    let speed = output.timings.decode_tokens_per_second().unwrap_or(0.0);
    eprintln!("{} tokens, {speed:.0} per second, end: {}", output.ids.len(), output.finish_reason);
    Ok(())
}

#[cfg(feature = "demo-model")]
fn builder(path: Option<String>) -> ModelBuilder {
    path.map_or_else(BitNetModel::demo, BitNetModel::from_pretrained)
}

#[cfg(not(feature = "demo-model"))]
fn builder(path: Option<String>) -> ModelBuilder {
    BitNetModel::from_pretrained(path.expect("without the feature `demo-model`, name a model"))
}
