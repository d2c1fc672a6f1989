//! Names of models and files on the hub. All that becomes part of a path or an address passes through here.

use std::{fmt, str::FromStr};

use super::HubError;

/// A model on the hub: `hf:owner/name[@revision][/file]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// User or organization.
    pub owner: String,
    /// The repository's name.
    pub name: String,
    /// A branch, a tag or a commit; `main` if none is given.
    pub revision: String,
    /// One file of the repository.
    pub file: Option<String>,
}

impl HubId {
    /// What ids start with.
    pub const PREFIX: &str = "hf:";

    /// `owner/name`.
    pub fn repo(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

impl FromStr for HubId {
    type Err = HubError;

    fn from_str(given: &str) -> Result<Self, HubError> {
        let wrong = |problem| HubError::Id { given: given.into(), problem };
        let rest = given.strip_prefix(Self::PREFIX).ok_or(wrong("it does not start with `hf:`"))?;
        let (owner, rest) = rest.split_once('/').ok_or(wrong("there is no `/` after the owner"))?;
        let (repo, file) = match rest.split_once('/') {
            Some((repo, file)) => (repo, Some(file)),
            None => (rest, None),
        };
        let (name, revision) = repo.split_once('@').unwrap_or((repo, "main"));
        for part in [owner, name, revision] {
            check_part(part).map_err(wrong)?;
        }
        if let Some(file) = file {
            check_file(file).map_err(wrong)?;
        }
        Ok(Self {
            owner: owner.into(),
            name: name.into(),
            revision: revision.into(),
            file: file.map(Into::into),
        })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}/{}", Self::PREFIX, self.owner, self.name)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

/// Whether this can be an owner, a repository's name or a revision.
fn check_part(part: &str) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if part.is_empty() {
        Err("owner, name and revision cannot be empty")
    } else if part.len() > 96 {
        Err("owner, name and revision have 96 characters at most")
    } else if !part.chars().all(plain) {
        Err("owner, name and revision consist of letters, digits, `-`, `_` and `.`")
    } else if part.starts_with(['.', '-']) || part.contains("..") || part.contains("--") {
        Err("owner, name and revision do not start with `.` or `-` and have no `..` or `--`")
    } else {
        Ok(())
    }
}

/// Whether this can be a file of a repository: a relative path that stays in its directory, on every system.
pub(super) fn check_file(file: &str) -> Result<(), &'static str> {
    if file.len() > 512 {
        return Err("a file's name has 512 bytes at most");
    }
    for segment in file.split('/') {
        if segment.is_empty() {
            return Err("a file's path is relative and has no empty parts");
        }
        if segment == "." || segment == ".." {
            return Err("a file's path has no `.` or `..` in it");
        }
        if segment.chars().any(|c| c.is_control() || "\\:*?\"<>|".contains(c)) {
            return Err("a file's name has none of \\ : * ? \" < > | and no control characters");
        }
    }
    Ok(())
}

/// A file's path as it stands in an address.
pub(super) fn percent_encoded(file: &str) -> String {
    let mut out = String::with_capacity(file.len());
    for byte in file.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                out.push(byte.into());
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Whether this is a commit: 40 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(given: &str) -> Option<(String, String, Option<String>)> {
        given.parse::<HubId>().ok().map(|id| (id.repo(), id.revision, id.file))
    }

    #[test]
    fn an_id_has_a_repository_and_perhaps_a_revision_and_a_file() {
        let expect = |repo: &str, revision: &str, file: Option<&str>| {
            Some((repo.into(), revision.into(), file.map(Into::into)))
        };
        assert_eq!(parts("hf:ms/b-1.58"), expect("ms/b-1.58", "main", None));
        assert_eq!(parts("hf:ms/b@v1.0"), expect("ms/b", "v1.0", None));
        assert_eq!(parts("hf:ms/b/i2 s.gguf"), expect("ms/b", "main", Some("i2 s.gguf")));
        assert_eq!(parts("hf:ms/b@v1/d/e.gguf"), expect("ms/b", "v1", Some("d/e.gguf")));
        for text in ["hf:ms/b", "hf:ms/b@v1/d/e.gguf"] {
            assert_eq!(text.parse::<HubId>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn hostile_ids_are_refused() {
        for given in [
            "ms/b",
            "hf:",
            "hf:b",
            "hf:/b",
            "hf:ms/",
            "hf:../b",
            "hf:ms/..",
            "hf:ms/.b",
            "hf:-ms/b",
            "hf:a--b/c",
            "hf:ms/b@",
            "hf:ms/b@..",
            "hf:ms/b@a b",
            "hf:ms/b/",
            "hf:ms/b//etc/passwd",
            "hf:ms/b/../x",
            "hf:ms/b/x/../../y",
            "hf:ms/b/x\\y",
            "hf:ms/b/c:x",
            "hf:ms/b/x\ny",
            "hf:ms/b/./x",
            "hf:m s/b",
            "hf:ms/ö",
            "hf:http://x/y",
        ] {
            assert_eq!(parts(given), None, "{given}");
        }
        assert_eq!(parts(&format!("hf:ms/{}", "a".repeat(97))), None);
    }

    #[test]
    fn addresses_are_encoded() {
        assert_eq!(percent_encoded("d/ä %#?.gguf"), "d/%C3%A4%20%25%23%3F.gguf");
    }
}
