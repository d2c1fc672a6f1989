//! Which model gave a result: a short text that differs between models, made in a moment.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bitnet_model::format::{Checkpoint, OpenOptions};
use sha2::{Digest, Sha256};

use crate::info::ModelInfo;

/// Bytes up to which all is read: a tenth of a second.
const WHOLE: u64 = 64 << 20;

/// Bytes that are read in one place of a file that is not read as a whole, and how many such places there are.
const SAMPLE: u64 = 64 << 10;
const SAMPLES: u64 = 64;

impl ModelInfo {
    /// `sha256:` and the SHA-256 of the model's files, one after the other; that of one file is what `sha256sum` prints. Models of
    /// more than 64 MiB, for which that takes long, have `sampled:` and the SHA-256 of each file's length, as 8 bytes from the
    /// least on, and of 64 times 64 KiB of it at equal distances, the first at its beginning and the last at its end. Other
    /// names and places of files change nothing. None if they cannot be read any more.
    pub fn fingerprint(&self) -> Option<String> {
        match &self.path {
            Some(path) => of_files(&files(path)?).ok(),
            #[cfg(feature = "demo-model")]
            None => Some(format!("sha256:{}", hex(Sha256::digest(crate::builder::DEMO)))),
            #[cfg(not(feature = "demo-model"))]
            None => None,
        }
    }
}

fn files(path: &Path) -> Option<Vec<PathBuf>> {
    if path.is_file() && path.extension().is_none_or(|ending| ending != "safetensors") {
        return Some(vec![path.to_owned()]);
    }
    Some(Checkpoint::open(path, &OpenOptions::default()).ok()?.files().to_vec())
}

fn of_files(paths: &[PathBuf]) -> io::Result<String> {
    let lengths: Vec<_> =
        paths.iter().map(|path| Ok(path.metadata()?.len())).collect::<io::Result<_>>()?;
    let mut hash = Sha256::new();
    if lengths.iter().sum::<u64>() <= WHOLE {
        for path in paths {
            hash.update(std::fs::read(path)?);
        }
        return Ok(format!("sha256:{}", hex(hash.finalize())));
    }
    for (path, &len) in paths.iter().zip(&lengths) {
        hash.update(len.to_le_bytes());
        let mut file = File::open(path)?;
        let mut sample = Vec::new();
        for number in 0..SAMPLES {
            let start = u128::from(len.saturating_sub(SAMPLE)) * u128::from(number);
            file.seek(SeekFrom::Start((start / u128::from(SAMPLES - 1)) as u64))?;
            sample.clear();
            file.by_ref().take(SAMPLE).read_to_end(&mut sample)?;
            hash.update(&sample);
        }
    }
    Ok(format!("sampled:{}", hex(hash.finalize())))
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_at_either_end_or_in_length_shows_in_files_of_any_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        for (size, kind) in [(1000, "sha256:"), (WHOLE + 1, "sampled:")] {
            let of = |first: u8, last: u8, size: u64| {
                let file = File::create(&path).unwrap();
                file.set_len(size).unwrap(); // with holes, so that it takes no space
                let write = |byte: u8, at: u64| {
                    let mut file = &file;
                    file.seek(SeekFrom::Start(at)).unwrap();
                    io::Write::write_all(&mut file, &[byte]).unwrap();
                };
                write(first, 0);
                write(last, size - 1);
                of_files(std::slice::from_ref(&path)).unwrap()
            };
            let hashes = [of(0, 0, size), of(1, 0, size), of(0, 1, size), of(0, 0, size + 1)];
            assert!(hashes.iter().all(|hash| hash.starts_with(kind)), "{hashes:?}");
            let different: std::collections::BTreeSet<_> = hashes.iter().collect();
            assert_eq!(different.len(), 4, "{hashes:?}");
            assert_eq!(of(0, 0, size), hashes[0]);
        }
    }
}
