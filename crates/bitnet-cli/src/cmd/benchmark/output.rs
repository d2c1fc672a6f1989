//! A benchmark's results as files.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::sheet::Document;
use crate::failure::Failure;

/// A format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Csv,
    Markdown,
}

impl Format {
    /// The format that a file's ending stands for.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("json") => Ok(Self::Json),
            Some("csv") => Ok(Self::Csv),
            Some("md") => Ok(Self::Markdown),
            _ => Err(Failure::input(format!(
                "{}: no format is known by this ending",
                path.display()
            ))
            .hint("end the name in .json, .csv or .md")
            .into()),
        }
    }

    pub fn render(self, report: &impl Serialize, document: &Document) -> Result<String> {
        Ok(match self {
            Self::Json => json(report)?,
            Self::Csv => document.csv(),
            Self::Markdown => document.markdown(),
        })
    }
}

/// Everything, for programs.
pub fn json(report: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(report)? + "\n")
}

/// Writes a file.
pub fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_choose_formats() {
        let format = |name: &str| Format::of(Path::new(name)).ok();
        assert_eq!(format("a/b.json"), Some(Format::Json));
        assert_eq!(format("b.csv"), Some(Format::Csv));
        assert_eq!(format("b.md"), Some(Format::Markdown));
        assert_eq!(format("b.txt"), None);
        assert_eq!(format("json"), None);
    }
}
