//! Two chats at the same time on one thread, piece by piece: `cargo run --release --example stream -- MODEL`.
//!
//! The model computes on threads of its own, so any async runtime will do; this is a small one.

use bitnet::{BitNetModel, GenerationConfig, Message, Role, SamplingStrategy};
use futures_lite::{StreamExt, future};

async fn chat(model: &BitNetModel, request: &str) -> Result<String, bitnet::Error> {
    let config = GenerationConfig {
        sampling_strategy: SamplingStrategy::TopP,
        temperature: 0.7,
        top_p: 0.9,
        max_new_tokens: 200,
        ..Default::default()
    };
    let messages = vec![Message::new(Role::User, request)];
    let mut stream = model.generate_stream(messages, &config)?;
    let mut text = String::new();
    while let Some(piece) = stream.next().await {
        let piece = piece?.text;
        eprint!("{piece}"); // the two stories come out word by word, mixed
        text.push_str(&piece);
    }
    Ok(text)
}

fn main() -> Result<(), bitnet::Error> {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: stream MODEL");
        return Ok(());
    };
    future::block_on(async {
        let model = BitNetModel::from_pretrained(path).await?;
        let (max, mia) = future::try_zip(
            chat(&model, "Tell me a story about a little dog named Max."),
            chat(&model, "Write a short story about a brave girl named Mia."),
        )
        .await?;
        println!("\n\n{}\n\n{}", max.trim(), mia.trim());
        Ok(())
    })
}
