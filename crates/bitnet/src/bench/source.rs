//! Which program and which model a report is about.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

/// The program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Build {
    /// Version of this library.
    pub version: &'static str,
    /// The commit: what `BITNET_COMMIT` said when the program was compiled, else the head of the checkout that it was compiled
    /// from, as it is now.
    pub commit: Option<String>,
    /// Whether it was compiled without optimizations that a release has.
    pub debug: bool,
}

impl Build {
    /// Of this program.
    pub fn current() -> Self {
        let given = option_env!("BITNET_COMMIT").map(str::to_owned);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: given.or_else(|| head(Path::new(env!("CARGO_MANIFEST_DIR")))),
            debug: cfg!(debug_assertions),
        }
    }
}

/// The commit that is checked out in the repository around a folder.
fn head(folder: &Path) -> Option<String> {
    let git = folder.ancestors().map(|folder| folder.join(".git")).find(|path| path.exists())?;
    // In a worktree it is a file that names the folder.
    let git = match fs::read_to_string(&git) {
        Ok(text) => git.parent()?.join(text.strip_prefix("gitdir:")?.trim()),
        Err(_) => git,
    };
    let head = fs::read_to_string(git.join("HEAD")).ok()?;
    let Some(reference) = head.trim().strip_prefix("ref: ") else { return commit(&head) };
    let common = fs::read_to_string(git.join("commondir")).unwrap_or_default();
    let common = git.join(common.trim());
    if let Some(found) = fs::read_to_string(common.join(reference)).ok().as_deref().and_then(commit)
    {
        return Some(found);
    }
    let packed = fs::read_to_string(common.join("packed-refs")).ok()?;
    packed.lines().find_map(|line| commit(line.strip_suffix(reference)?))
}

/// A commit's name, if this is one.
fn commit(text: &str) -> Option<String> {
    let name = text.trim();
    (name.len() >= 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| name.to_owned())
}

/// SHA-256 of a model's files, one after the other; that of one file is the one that `sha256sum` prints. None if one cannot be
/// read.
pub(super) fn of_files(files: &[PathBuf]) -> Option<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let mut file = fs::File::open(path).ok()?;
        loop {
            match file.read(&mut buffer).ok()? {
                0 => break,
                len => hash.update(&buffer[..len]),
            }
        }
    }
    Some(hex(&hash.finalize()))
}

/// SHA-256 of bytes.
#[cfg(feature = "demo-model")]
pub(super) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_hash_that_sha256sum_prints() {
        assert_eq!(
            hex(&Sha256::digest(b"abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let this = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        let whole = hex(&Sha256::digest(fs::read(&this).unwrap()));
        assert_eq!(of_files(std::slice::from_ref(&this)), Some(whole));
        assert_eq!(of_files(&[this, "/no/such/file".into()]), None);
    }

    #[test]
    fn the_commit_of_a_checkout_is_found() {
        let folder = std::env::temp_dir().join(format!("bitnet-head-{}", std::process::id()));
        let (name, inner) = ("0123456789abcdef0123456789abcdef01234567", folder.join("a/b"));
        fs::create_dir_all(folder.join(".git/refs/heads")).unwrap();
        fs::create_dir_all(&inner).unwrap();
        fs::write(folder.join(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
        assert_eq!(head(&inner), None);
        fs::write(folder.join(".git/packed-refs"), format!("# x\n{name} refs/heads/main\n"))
            .unwrap();
        assert_eq!(head(&inner).as_deref(), Some(name));
        let other = name.replace('0', "f");
        fs::write(folder.join(".git/refs/heads/main"), format!("{other}\n")).unwrap();
        assert_eq!(head(&inner), Some(other));
        fs::write(folder.join(".git/HEAD"), name).unwrap();
        assert_eq!(head(&inner).as_deref(), Some(name));
        fs::remove_dir_all(folder).unwrap();
    }
}
