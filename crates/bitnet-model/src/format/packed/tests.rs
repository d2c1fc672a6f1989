use std::{fs, path::Path, thread};

use bitnet_kernels::stored::StoredParts;

use super::*;

const KEY: &str = "the key";

/// Two matrices, the first of more than one block.
fn matrices(panels: &[Vec<u8>]) -> Vec<Named<'_>> {
    panels
        .iter()
        .enumerate()
        .map(|(i, panels)| {
            let scales = vec![i as u8; 4 * (i + 1)].into();
            (format!("matrix {i}"), StoredParts { form: format!("form {i}"), panels, scales })
        })
        .collect()
}

fn panels() -> Vec<Vec<u8>> {
    let bytes = |len: usize, seed: usize| (0..len).map(|i| (i * seed % 251) as u8).collect();
    vec![bytes(BLOCK + 192, 7), bytes(640, 3), Vec::new()]
}

fn written(path: &Path) -> u64 {
    write(path, KEY, Path::new("model.gguf"), &matrices(&panels())).unwrap()
}

fn check_content(file: &PackedFile) {
    for (name, parts) in matrices(&panels()) {
        let found = file.get(&name).unwrap();
        assert_eq!((found.form.as_str(), &found.panels[..]), (parts.form.as_str(), parts.panels));
        assert_eq!(found.scales, parts.scales[..]);
        let aligned = found.panels.is_empty() || found.panels.as_ptr().addr().is_multiple_of(64);
        assert!(aligned, "{name}");
    }
    assert_eq!(file.get("another"), None);
}

#[test]
fn what_was_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let len = length(KEY, Path::new("model.gguf"), &matrices(&panels())).unwrap();
    assert_eq!((written(&path), fs::metadata(&path).unwrap().len()), (len, len));
    for place in [Place::File, Place::Memory] {
        for threads in [1, 3] {
            check_content(&PackedFile::open(&path, KEY, place, threads).unwrap());
        }
    }
    assert_eq!(origin(&path).unwrap(), (Path::new("model.gguf").to_owned(), KEY.to_owned()));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
}

#[test]
fn a_file_of_another_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    written(&path);
    let error = PackedFile::open(&path, "another", Place::File, 1).unwrap_err();
    assert_eq!(error.to_string(), "what it was made of is the key, but another is needed");
}

/// Changes a file and asks for it in both ways.
fn check_damage(what: &str, expected: &str, change: impl Fn(&mut Vec<u8>)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    written(&path);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, &bytes).unwrap();
    for place in [Place::File, Place::Memory] {
        let error = PackedFile::open(&path, KEY, place, 2).expect_err(what).to_string();
        assert!(error.contains(expected), "{what}: {error}");
    }
}

#[test]
fn damage_anywhere_is_seen() {
    check_damage("empty", "cannot be read", |bytes| bytes.clear());
    check_damage("half a prefix", "cannot be read", |bytes| bytes.truncate(40));
    check_damage("no header", "should have", |bytes| bytes.truncate(64));
    check_damage("one byte short", "should have", |bytes| bytes.truncate(bytes.len() - 1));
    check_damage("one byte more", "should have", |bytes| bytes.push(0));
    check_damage("magic", "begin", |bytes| bytes[0] ^= 1);
    check_damage("version", "its version is 9, but 1 is needed", |bytes| bytes[8] = 9);
    check_damage("length of the header", "check sum", |bytes| bytes[12] ^= 1);
    check_damage("huge header", "a header of", |bytes| bytes[12..16].fill(0xff));
    check_damage("sum of the header", "check sum", |bytes| bytes[24] ^= 1);
    check_damage("header", "check sum", |bytes| bytes[70] ^= 1);
    check_damage("first block", "block 0", |bytes| bytes[LARGE_PAGE as usize + 5] ^= 1);
    check_damage("last block", "block 1", |bytes| *bytes.last_mut().unwrap() ^= 0x80);
}

/// A header that is whole and wrong, as no program writes it.
fn check_header(what: &str, expected: &str, change: impl Fn(&mut Header)) {
    check_damage(what, expected, |bytes| {
        let len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let mut header = serde_json::from_slice(&bytes[PREFIX..PREFIX + len]).unwrap();
        change(&mut header);
        let json = serde_json::to_vec(&header).unwrap();
        bytes[12..16].copy_from_slice(&(json.len() as u32).to_le_bytes());
        bytes[24..32].copy_from_slice(&sum::sum(&json).to_le_bytes());
        bytes[PREFIX..PREFIX + json.len()].copy_from_slice(&json);
    });
}

#[test]
fn a_header_with_too_few_sums_is_refused() {
    check_header("a sum too few", "1 check sums for 2 blocks", |header| drop(header.sums.pop()));
    check_header("no sums", "0 check sums for 2 blocks", |header| header.sums.clear());
}

#[test]
fn parts_that_are_not_in_the_file_are_not_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    written(&path);
    let mut file = PackedFile::open(&path, KEY, Place::File, 1).unwrap();
    for part in [
        Part { start: 0, len: u64::MAX },
        Part { start: u64::MAX, len: 64 },
        Part { start: u64::MAX - 63, len: 64 },
        Part { start: file.bytes.len() as u64, len: 1 },
        Part { start: 1, len: 64 },
    ] {
        file.sections.get_mut("matrix 0").unwrap().panels = part;
        assert_eq!(file.get("matrix 0"), None, "{part:?}");
    }
}

#[test]
fn many_may_write_and_read_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    written(&path);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..5).for_each(|_| assert!(written(&path) > 0)));
            scope.spawn(|| {
                for _ in 0..5 {
                    check_content(&PackedFile::open(&path, KEY, Place::File, 1).unwrap());
                }
            });
        }
    });
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
}

#[test]
fn where_a_file_cannot_be_put_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    fs::create_dir(&path).unwrap();
    assert!(write(&path, KEY, Path::new("m"), &matrices(&panels())).is_err());
    assert!(matches!(PackedFile::open(&path, KEY, Place::File, 1), Err(Refused::Io(_))));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the folder itself");
}
