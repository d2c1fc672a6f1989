//! Logits as a safetensors file: eight bytes of header length, a JSON header, then the numbers.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bitnet::Logits;

/// Writes `logits` [tokens, vocab] f32. The file appears whole or not at all.
pub fn write(path: &Path, logits: &Logits) -> Result<()> {
    let part = beside(path);
    let written = write_to(&part, logits).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part); // it may never have come to be
    }
    written.with_context(|| format!("{}: cannot be written", path.display()))
}

/// A name in the same directory, so that renaming is atomic; the process's id keeps two runs apart.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

fn write_to(path: &Path, logits: &Logits) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create_new(path)?);
    let bytes = 4 * logits.data.len();
    let header = serde_json::json!({
        "logits": { "dtype": "F32", "shape": [logits.tokens, logits.vocab], "data_offsets": [0, bytes] }
    });
    let mut header = header.to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len()); // numbers start at a multiple of 8
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for value in &logits.data {
        file.write_all(&value.to_le_bytes())?;
    }
    file.into_inner()?.sync_all()
}
