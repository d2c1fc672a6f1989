//! Which weights these are, told without reading all of them: so that what was made of a file is not taken for another's.

use std::{fmt::Write, fs::Metadata, time::UNIX_EPOCH};

use super::{Checkpoint, Kind};
use crate::{error::LoadError, format::packed::sum::sum};

/// Bytes that are looked at in one place of a file.
const SAMPLE: u64 = 4096;

/// Such places in each file: the beginning, the end, and between them at equal distances.
const SAMPLES: u64 = 16;

impl Checkpoint {
    /// A text that is the same as long as files, configuration and options would give the same weights; none for a model
    /// that is in no file.
    ///
    /// For each file it has the length, the inode and the times of the last change of content and of anything, as the system
    /// keeps them: nobody can change a file and leave the last of these as it was, not by `touch`, `cp -p` or `rsync -t` either.
    /// That is what `git` trusts. Where a system does not tell some of them, or keeps them coarsely, a sum over samples of the
    /// content shows most of what is left. Reading all would be safest and cost as much as loading. The path is not in it.
    pub fn identity(&self) -> Result<Option<String>, LoadError> {
        let mut text = String::new();
        for (file, source) in self.files.iter().zip(&self.sources) {
            let Some(metadata) = source.metadata() else { return Ok(None) };
            let io_error = |source| LoadError::Io { path: file.into(), source };
            let (mut samples, len) = (Vec::new(), metadata.len());
            for sample in 0..SAMPLES {
                let start = len.saturating_sub(SAMPLE) / (SAMPLES - 1) * sample;
                let bytes = source.read(start..len.min(start + SAMPLE)).map_err(io_error)?;
                samples.extend_from_slice(&bytes);
            }
            let _ = write!(text, "{}, samples {:016x}; ", stamp(metadata), sum(&samples));
        }
        let form = match &self.kind {
            Kind::Gguf(_) => "GGUF".to_owned(),
            Kind::HuggingFace(form) => format!("{form:?}"),
        };
        let tensors = sum(format!("{:?} {:?} {:?}", self.config, self.tensors, form).as_bytes());
        let (i2s, packed) = (self.options.i2s_layout, self.options.packed_layout);
        let _ = write!(text, "tensors {tensors:016x}, {i2s:?}, {packed:?}");
        Ok(Some(text))
    }
}

/// What the system says of a file's content.
fn stamp(metadata: &Metadata) -> String {
    let mut text = format!("{} bytes", metadata.len());
    if let Some(time) =
        metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok())
    {
        let _ = write!(text, ", modified {}", time.as_nanos());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
        let inode = metadata.ino();
        let _ = write!(text, ", changed {seconds}.{nanoseconds:09}, inode {inode}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::format::{I2sLayout, OpenOptions};

    fn model(folder: &Path) -> std::path::PathBuf {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/gguf");
        let mut files: Vec<_> = fs::read_dir(golden).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        let file = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "gguf"));
        let copy = folder.join("model.gguf");
        fs::copy(file.unwrap(), &copy).unwrap();
        copy
    }

    fn identity(path: &Path, options: &OpenOptions) -> String {
        Checkpoint::open(path, options).unwrap().identity().unwrap().unwrap()
    }

    #[test]
    fn the_same_file_is_the_same_however_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = model(folder.path());
        let read = OpenOptions { mmap: false, ..OpenOptions::default() };
        let mapped = identity(&path, &OpenOptions::default());
        assert_eq!(identity(&path, &read), mapped);
        let other = OpenOptions { i2s_layout: I2sLayout::Block64, ..OpenOptions::default() };
        assert_ne!(identity(&path, &other), mapped);
    }

    #[test]
    fn a_changed_file_is_another_even_with_its_old_time_and_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = model(folder.path());
        let before = identity(&path, &OpenOptions::default());
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        fs::File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert_ne!(identity(&path, &OpenOptions::default()), before);
    }

    #[test]
    fn a_model_in_memory_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = fs::read(model(folder.path())).unwrap();
        let name = Path::new("in memory");
        let checkpoint =
            Checkpoint::from_gguf(name, bytes.into(), &OpenOptions::default()).unwrap();
        assert_eq!(checkpoint.identity().unwrap(), None);
    }
}
