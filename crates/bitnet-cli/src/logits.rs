//! Logits as a safetensors file: eight bytes of header length, a JSON header, then the numbers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use bitnet::Logits;

use crate::output_file::beside;

/// Writes `logits` [tokens, vocab] f32. A file appears whole or not at all.
pub fn write(path: &Path, logits: &Logits) -> Result<()> {
    let written = match fs::metadata(path) {
        // Renaming would put a file in the place of the device, pipe or link, for everyone on the machine.
        Ok(found) if !found.is_file() => {
            OpenOptions::new().write(true).open(path).and_then(|file| write_to(file, logits))
        }
        Ok(_) => fs::canonicalize(path).and_then(|path| replace(&path, logits)),
        Err(_) => replace(path, logits),
    };
    written.with_context(|| format!("{}: cannot be written", path.display()))
}

fn replace(path: &Path, logits: &Logits) -> io::Result<()> {
    let part = beside(path, "part");
    let written = File::create_new(&part)
        .and_then(|file| {
            write_to(file.try_clone()?, logits)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part); // it may never have come to be
    }
    written
}

fn write_to(file: File, logits: &Logits) -> io::Result<()> {
    let mut file = BufWriter::new(file);
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
    file.flush()
}
