use bitnet_kernels::stored::StoredParts;
use tempfile::TempDir;

use super::*;
use crate::format::packed::{PackedFile, Place};

const KEY: &str = "layout; more";

/// A cache whose files take about a hundred pages each.
struct Fixture {
    home: TempDir,
    cache: PackedCache,
}

impl Fixture {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let cache = PackedCache::new(home.path().join("cache"));
        fs::create_dir(&cache.folder).unwrap();
        Self { home, cache }
    }

    /// Weights of a model that is there, used so many hours ago.
    fn weights(&self, model: &str, hours: u64) -> CachedFile {
        let source = self.home.path().join(model);
        fs::write(&source, "a model").unwrap();
        let path = self.cache.place(&source, "layout");
        let panels = vec![7; 100 << 12];
        let scales = vec![0; 4].into();
        let matrix = StoredParts { form: "form".into(), panels: &panels, scales };
        packed::write(&path, KEY, &source, &[("matrix".into(), matrix)]).unwrap();
        let used = SystemTime::now() - Duration::from_secs(3600 * hours);
        File::options().write(true).open(&path).unwrap().set_modified(used).unwrap();
        self.cache.files().unwrap().into_iter().find(|file| file.path == path).unwrap()
    }

    /// Something with this name that is none of the cache's.
    fn other(&self, name: &str) -> PathBuf {
        let path = self.cache.folder.join(name);
        fs::write(&path, "BITNETPK").unwrap();
        path
    }

    /// The models whose weights are there, the one used last at the end.
    fn models(&self) -> Vec<String> {
        let name = |file: &CachedFile| Some(file.origin()?.model.file_name()?.to_str()?.to_owned());
        self.cache.files().unwrap().iter().filter_map(name).collect()
    }
}

#[test]
fn files_are_listed_with_what_they_were_made_of() {
    let fixture = Fixture::new();
    fixture.weights("new.gguf", 1);
    let old = fixture.weights("old.gguf", 5);
    fixture.cache.remember("which", "this");
    fixture.other("notes.txt");
    let files = fixture.cache.files().unwrap();
    let kinds: Vec<_> = files.iter().map(|file| file.kind).collect();
    assert_eq!(kinds, [CachedKind::Weights, CachedKind::Weights, CachedKind::Note]);
    assert_eq!(fixture.models(), ["old.gguf", "new.gguf"]);
    let model = fixture.home.path().join("old.gguf");
    assert_eq!(old.origin(), Some(CachedOrigin { model, layout: "layout".into() }));
    assert_eq!(old.bytes, fs::metadata(&old.path).unwrap().len());
    assert_eq!(files[2].origin(), None);
    let absent = PackedCache::new(fixture.home.path().join("absent"));
    assert_eq!(absent.files().unwrap(), []);
}

/// What goes if a file of `needed` bytes is to be written where others of 1, 2 and 3 hours take `max` together.
#[track_caller]
fn check_room(needed: impl Fn(u64) -> u64, left: &[&str]) {
    let mut fixture = Fixture::new();
    let all = [("a.gguf", 2), ("b.gguf", 3), ("c.gguf", 1)];
    let files = all.map(|(model, hours)| fixture.weights(model, hours));
    fixture.cache.max_bytes = files.iter().map(|file| file.bytes).sum();
    let needed = needed(files[0].bytes);
    fixture.cache.make_room(&fixture.cache.folder.join("new"), needed).unwrap();
    assert_eq!(fixture.models(), left, "{needed}");
}

#[test]
fn what_was_not_used_for_the_longest_time_makes_room() {
    check_room(|_| 0, &["b.gguf", "a.gguf", "c.gguf"]);
    check_room(|_| 1, &["a.gguf", "c.gguf"]);
    check_room(|each| each, &["a.gguf", "c.gguf"]);
    check_room(|each| each + 1, &["c.gguf"]);
    check_room(|each| 3 * each, &[]);
}

#[test]
fn a_file_makes_room_for_the_one_that_replaces_it() {
    let mut fixture = Fixture::new();
    let [old, other] = [fixture.weights("a.gguf", 9), fixture.weights("b.gguf", 1)];
    fixture.cache.max_bytes = old.bytes + other.bytes;
    fixture.cache.make_room(&old.path, old.bytes).unwrap();
    assert_eq!(fixture.models(), ["a.gguf", "b.gguf"]);
}

#[test]
fn weights_that_are_in_use_stay() {
    let mut fixture = Fixture::new();
    let [used, other] = [fixture.weights("used.gguf", 9), fixture.weights("other.gguf", 1)];
    let open = |place| PackedFile::open(&used.path, KEY, place, 1).unwrap();
    // The matrices are what keeps it, not what they were taken from.
    let matrix = open(Place::File).get("matrix").unwrap();
    assert!(used.is_in_use() && !other.is_in_use());
    assert!(!used.delete().unwrap() && used.path.exists());
    fixture.cache.max_bytes = used.bytes + other.bytes;
    fixture.cache.make_room(&fixture.cache.folder.join("new"), other.bytes).unwrap();
    assert_eq!(fixture.models(), ["used.gguf"]);
    drop(matrix);
    let copy = open(Place::Memory);
    assert!(!used.is_in_use(), "weights in memory of a process's own need no file");
    drop(copy);
    assert!(used.delete().unwrap() && !used.path.exists());
    assert!(used.delete().unwrap(), "it is gone already");
}

#[test]
fn where_there_is_no_room_nothing_is_deleted() {
    let mut fixture = Fixture::new();
    let [used, other] = [fixture.weights("used.gguf", 9), fixture.weights("other.gguf", 1)];
    let _held = PackedFile::open(&used.path, KEY, Place::File, 1).unwrap();
    fixture.cache.max_bytes = used.bytes + other.bytes;
    let ask = |needed| fixture.cache.make_room(&fixture.cache.folder.join("new"), needed);
    let (max, each) = (fixture.cache.max_bytes, used.bytes);
    let error = ask(max + 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let expected = format!("it would take {} bytes, and the cache may have {max}", max + 1);
    assert_eq!(error.to_string(), expected);
    let error = ask(each + 1).unwrap_err().to_string();
    assert!(error.ends_with(&format!("may have {max}, and {each} are in use")), "{error}");
    assert_eq!(fixture.models(), ["used.gguf", "other.gguf"]);
}

#[test]
fn what_is_not_the_caches_own_stays() {
    let mut fixture = Fixture::new();
    let weights = fixture.weights("a.gguf", 1);
    let sum = "0123456789abcdef";
    let mut others = [
        "notes.txt".to_owned(),
        "x.bitnet-packed".to_owned(),
        "x-0123.bitnet-packed".to_owned(),
        format!("x-{}.bitnet-packed", sum.to_uppercase()),
        format!("x{sum}.bitnet-packed"),
        format!("x-{sum}.bitnet-packed.bak"),
        format!("x-{sum}.bitnet-packed.mine.unfinished"),
        "thesis.unfinished".to_owned(),
        format!("{sum}a.note"),
        "my.note".to_owned(),
    ]
    .map(|name| fixture.other(&name))
    .to_vec();
    let folder = fixture.cache.folder.join(format!("folder-{sum}.bitnet-packed"));
    fs::create_dir(&folder).unwrap();
    others.push(folder);
    #[cfg(unix)]
    {
        let link = fixture.cache.folder.join(format!("link-{sum}.bitnet-packed"));
        std::os::unix::fs::symlink(&weights.path, &link).unwrap();
        others.push(link);
    }
    assert_eq!(fixture.cache.files().unwrap(), [weights]);
    fixture.cache.max_bytes = 1;
    fixture.cache.make_room(&fixture.cache.folder.join("new"), 1).unwrap();
    fixture.cache.clean();
    assert_eq!(fixture.models(), [""; 0]);
    for path in others {
        assert!(path.symlink_metadata().is_ok(), "{}", path.display());
    }
}

#[test]
fn what_is_being_written_is_in_use() {
    let fixture = Fixture::new();
    let name = "x-0123456789abcdef.bitnet-packed.12-0.unfinished";
    let file = File::create(fixture.cache.folder.join(name)).unwrap();
    let found = fixture.cache.files().unwrap().remove(0);
    assert_eq!(found.kind, CachedKind::Unfinished);
    file.lock().unwrap();
    assert!(!found.delete().unwrap());
    drop(file);
    assert!(found.delete().unwrap());
}
