//! Files that are something else than their names say: what failed downloads leave behind, and other containers.

/// Bytes of a file's beginning that tell what it is.
pub(crate) const HEAD: usize = 512;

/// What a file is instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Impostor {
    pub what: &'static str,
    pub help: &'static str,
}

const LFS_POINTER: Impostor = Impostor {
    what: "a Git LFS pointer, which only stands for the file",
    help: "fetch the file itself: run `git lfs pull` in the clone, or download it from the model's page",
};

const WEB_PAGE: Impostor = Impostor {
    what: "a web page",
    help: "download the file and not the page about it (at huggingface.co, /resolve/ in the address gives files and /blob/ gives pages); \
           where access needs a login, the page may say so",
};

const GGUF: Impostor = Impostor {
    what: "a GGUF file under another name",
    help: "name it directly, after renaming it to end in .gguf",
};

pub(crate) const SAFETENSORS: Impostor = Impostor {
    what: "a safetensors file under another name",
    help: "call it model.safetensors, put config.json and tokenizer.json of the same model beside it, and name their directory",
};

/// What a file that cannot be read as what it should be is, by its first [`HEAD`] bytes.
pub(crate) fn recognize(head: &[u8]) -> Option<Impostor> {
    if head.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Some(LFS_POINTER);
    }
    if head.starts_with(b"GGUF") {
        return Some(GGUF);
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let starts =
        |with: &[u8]| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    (starts(b"<!doctype html") || starts(b"<html")).then_some(WEB_PAGE)
}

/// Whether this is how safetensors files begin: the length of a table, and the table's brace.
pub(crate) fn begins_as_safetensors(head: &[u8]) -> bool {
    // No table has four gigabytes.
    matches!(head, [_, _, _, _, 0, 0, 0, 0, b'{', ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_pointers_are_recognized_however_they_are_written() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
        for (head, expected) in [
            (&pointer[..], Some(LFS_POINTER)),
            (b"<!DOCTYPE html>", Some(WEB_PAGE)),
            (b"\xef\xbb\xbf\n\n  <!doctype HTML PUBLIC", Some(WEB_PAGE)),
            (b"<HTML lang=en>", Some(WEB_PAGE)),
            (b"GGUF\x03\0\0\0", Some(GGUF)),
            (b"{\"a\": \"<html>\"}", None),
            (b"version 2", None),
            (b"<!DOC", None),
            (b"", None),
        ] {
            assert_eq!(recognize(head), expected, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn safetensors_begin_with_a_length_and_a_brace() {
        assert!(begins_as_safetensors(b"\x40\x01\0\0\0\0\0\0{\"a\""));
        assert!(!begins_as_safetensors(b"{\"a\": {}}"));
        assert!(!begins_as_safetensors(b"\x40\x01\0\0\0\0\0\0"));
    }
}
