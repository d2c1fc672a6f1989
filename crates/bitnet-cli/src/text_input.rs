//! Text from a file or from stdin.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, Result};

use crate::failure::Failure;

/// Far more than any context holds, and little enough to read.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a text file, or stdin for `-`. One newline at the end belongs to the file and not to the text.
pub fn read(path: &Path) -> Result<String> {
    if path.as_os_str() == "-" {
        return stdin();
    }
    let shown = path.display();
    let refuse = |error: io::Error| Failure::input(format!("{shown}: cannot be read: {error}"));
    let metadata = path.metadata().map_err(refuse)?;
    if metadata.is_dir() {
        return Err(Failure::input(format!("{shown}: is a directory, expected a text file")).into());
    }
    let file = File::open(path).map_err(refuse)?;
    text(file, &shown.to_string())
}

/// Reads stdin to its end.
pub fn stdin() -> Result<String> {
    text(io::stdin().lock(), "stdin")
}

/// Whether something other than a person is at stdin.
pub fn stdin_is_piped() -> bool {
    !io::stdin().is_terminal()
}

fn text(source: impl Read, name: &str) -> Result<String> {
    let mut bytes = Vec::new();
    match source.take(MAX_BYTES + 1).read_to_end(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(Failure::input(format!("{name}: is a directory, expected text")).into());
        }
        read => read.with_context(|| format!("{name}: reading failed"))?,
    };
    if bytes.len() as u64 > MAX_BYTES {
        let limit = MAX_BYTES >> 20;
        return Err(
            Failure::input(format!("{name}: longer than {limit} MiB, expected a prompt")).into()
        );
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Failure::input(format!(
            "{name}: not UTF-8 text: the byte at offset {place} fits no character"
        ))
        .hint("convert it, for example with `iconv -t utf-8`")
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_at_the_end_is_not_text() {
        for (bytes, expected) in
            [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), ("", "")]
        {
            assert_eq!(text(bytes.as_bytes(), "x").unwrap(), expected);
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_located() {
        let error = text(&b"abc\xffdef"[..], "x").unwrap_err().to_string();
        assert_eq!(error, "x: not UTF-8 text: the byte at offset 3 fits no character");
    }

    #[test]
    fn an_endless_source_is_refused() {
        let error = text(io::repeat(b'a'), "x").unwrap_err().to_string();
        assert_eq!(error, "x: longer than 64 MiB, expected a prompt");
    }
}
