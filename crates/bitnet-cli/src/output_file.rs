//! Whether a file can be written, asked before the work whose result it is to hold.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Refuses a file that cannot be written. Its contents stay as they are, and nothing is left behind.
pub fn check(path: &Path) -> Result<(), Failure> {
    writable(path).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "make the folder first, or name a file in another one",
            _ => "name another file",
        };
        Failure::input(format!("{}: cannot be written: {error}", path.display())).hint(hint)
    })
}

fn writable(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if found.is_file() => OpenOptions::new().append(true).open(path).map(drop),
        Ok(_) => Ok(()), // opening a pipe would wait for its reader
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let probe = beside(path, "probe");
            let made = fs::File::create_new(&probe).map(drop);
            made.and_then(|()| fs::remove_file(&probe))
        }
        Err(error) => Err(error),
    }
}

/// A name in the same folder, so that renaming is atomic; the process's id keeps two runs apart.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{ending}", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_can_be_written_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::write(&old, "contents").unwrap();
        check(&old).unwrap();
        check(&new).unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "contents");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        for path in [folder.path().to_owned(), folder.path().join("a/b"), old.join("c")] {
            let error = check(&path).unwrap_err().to_string();
            assert!(error.contains(": cannot be written: "), "{error}");
        }
    }
}
