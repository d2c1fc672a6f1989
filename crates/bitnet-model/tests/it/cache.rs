//! Models whose packed weights are kept in a file compute the same, and no file makes loading fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::packed::Packing;
use bitnet_kernels::cpu::packing::PackingChoice;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::KvType;
use bitnet_model::batch::{Batch, Outputs};
use bitnet_model::decoder::{CacheUse, LoadOptions, Model, PackedCache, Place};
use bitnet_model::format::{Checkpoint, OpenOptions};
use bitnet_model::kv::KvCache;
use tempfile::TempDir;

use crate::reference::testdata;

/// A model and a cache in a folder that goes away.
struct Fixture {
    folder: TempDir,
    model: PathBuf,
    packing: Packing,
    head: HeadType,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.gguf");
        fs::copy(testdata("golden/gguf/bitnet-tiny-I2_S.gguf"), &model).unwrap();
        Self { folder, model, packing: Packing::TwoBits, head: HeadType::Int8 }
    }

    fn cache(&self) -> PackedCache {
        PackedCache { min_bytes: 0, ..PackedCache::new(self.folder.path().join("cache")) }
    }

    fn load_from(&self, model: &Path, cache: Option<&PackedCache>, place: Place) -> Loaded {
        let checkpoint = Checkpoint::open(model, &OpenOptions::default()).unwrap();
        let backend = CpuBackend::new(Isa::best(), 2).unwrap();
        let backend = Arc::new(backend.with_packing(PackingChoice::Fixed(self.packing)));
        let options = LoadOptions { head: self.head, threads: 2, cache, place };
        let (model, cache_use) = Model::load_with(&checkpoint, backend, &options, &|_| {}).unwrap();
        let packed = model.backend().matrices_packed();
        Loaded { logits: logits(&model), packed, cache_use }
    }

    fn load(&self) -> Loaded {
        self.load_from(&self.model, Some(&self.cache()), Place::File)
    }

    /// The files in the cache.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache().folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

struct Loaded {
    logits: Vec<f32>,
    packed: usize,
    cache_use: CacheUse,
}

impl Loaded {
    fn was_read(&self) -> bool {
        self.packed == 0 && matches!(self.cache_use, CacheUse::Read(_))
    }

    fn was_written(&self) -> bool {
        self.packed > 0 && matches!(self.cache_use, CacheUse::Written { .. })
    }
}

fn logits(model: &Model<CpuBackend>) -> Vec<f32> {
    let mut kv = KvCache::new(&**model.backend(), model.config(), KvType::F32, 1);
    let mut batch = Batch::default();
    batch.push(&[1, 5, 9, 2, 7], 0, &[0], Outputs::All);
    model.forward(&batch, &mut kv, &mut model.scratch()).whole().to_vec()
}

#[test]
fn weights_from_a_cache_give_the_same_bits() {
    for (packing, head) in [
        (Packing::TwoBits, HeadType::Int8),
        (Packing::FiveTrits, HeadType::Int8),
        (Packing::TwoBits, HeadType::TwoStage),
        (Packing::TwoBits, HeadType::File),
    ] {
        let fixture = Fixture { packing, head, ..Fixture::new() };
        let without = fixture.load_from(&fixture.model, None, Place::Memory);
        assert!(without.packed > 0 && without.cache_use == CacheUse::None);
        let first = fixture.load();
        assert!(first.was_written() && first.logits == without.logits, "{packing} {head}");
        for place in [Place::File, Place::Memory] {
            let later = fixture.load_from(&fixture.model, Some(&fixture.cache()), place);
            assert!(
                later.was_read() && later.logits == without.logits,
                "{packing} {head} {place:?}"
            );
        }
        assert_eq!(fixture.files().len(), 1);
    }
}

#[test]
fn with_few_layers_in_memory_the_bits_are_the_same() {
    let fixture = Fixture::new();
    let without = fixture.load_from(&fixture.model, None, Place::Memory).logits;
    for most in [1, 2, 9] {
        let place = Place::Layers(most);
        let lazy = fixture.load_from(&fixture.model, Some(&fixture.cache()), place);
        assert!(lazy.logits == without && lazy.cache_use != CacheUse::None, "{most}");
    }
}

#[test]
fn few_layers_in_memory_need_a_file() {
    let fixture = Fixture::new();
    let unwritable = PackedCache::new(fixture.folder.path().join("file"));
    fs::write(&unwritable.folder, "a file").unwrap();
    for cache in [None, Some(&unwritable)] {
        let checkpoint = Checkpoint::open(&fixture.model, &OpenOptions::default()).unwrap();
        let backend = Arc::new(CpuBackend::new(Isa::best(), 1).unwrap());
        let options =
            LoadOptions { head: fixture.head, threads: 1, cache, place: Place::Layers(1) };
        let error = Model::load_with(&checkpoint, backend, &options, &|_| {}).err().unwrap();
        assert!(error.to_string().contains("a bound on the layers in memory"), "{error}");
        assert!(error.help().contains("folder"), "{}", error.help());
    }
}

/// Bytes in memory of the mapped file whose name has this ending.
#[cfg(target_os = "linux")]
fn mapped_in_memory(folder: &Path) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut ours, mut bytes) = (false, 0);
    for line in maps.lines() {
        if let Some(rest) = line.strip_prefix("Rss:") {
            let kilobytes: u64 = rest.trim().trim_end_matches(" kB").parse().unwrap();
            bytes += if ours { kilobytes << 10 } else { 0 };
        } else if line.contains('-') && line.contains(" r") {
            ours = line.contains(folder.to_str().unwrap()) && line.ends_with(".bitnet-packed");
        }
    }
    bytes
}

/// The demo model has six layers of 786 432 weights.
#[cfg(target_os = "linux")]
#[test]
fn no_more_layers_are_in_memory_than_asked_for() {
    let fixture = Fixture::new();
    fs::copy(testdata("demo-model/gguf/demo-tq1_0.gguf"), &fixture.model).unwrap();
    let bytes = |most| {
        let cache = fixture.cache();
        let checkpoint = Checkpoint::open(&fixture.model, &OpenOptions::default()).unwrap();
        let backend = Arc::new(CpuBackend::new(Isa::best(), 1).unwrap());
        let options = LoadOptions {
            head: HeadType::File,
            threads: 1,
            cache: Some(&cache),
            place: Place::Layers(most),
        };
        let (model, _) = Model::load_with(&checkpoint, backend, &options, &|_| {}).unwrap();
        drop(logits(&model));
        let resident = mapped_in_memory(fixture.folder.path());
        drop(logits(&model));
        assert!(mapped_in_memory(fixture.folder.path()) <= resident + (64 << 10));
        resident
    };
    let layer = 4_718_592 / 6 / 4;
    let all = bytes(6);
    assert!(all >= 6 * layer, "{all}");
    for most in [1, 2, 4] {
        let found = bytes(most);
        // The system maps up to 64 KB around a page that is asked for.
        let bound = most as u64 * (layer + (128 << 10));
        assert!(found <= bound && found < all, "{found} bytes for {most} of {layer}, {all} in all");
    }
}

#[test]
fn each_packing_and_head_has_its_file() {
    let mut fixture = Fixture::new();
    for packing in Packing::ALL {
        for head in HeadType::ALL {
            (fixture.packing, fixture.head) = (packing, head);
            assert!(fixture.load().was_written() && fixture.load().was_read(), "{packing} {head}");
        }
    }
    assert_eq!(fixture.files().len(), Packing::ALL.len() * HeadType::ALL.len());
}

/// Changes the file in the cache; the next load makes it anew, the one after that takes it.
fn check_damage(what: &str, change: impl Fn(&Path)) {
    let fixture = Fixture::new();
    let right = fixture.load().logits;
    change(&fixture.files()[0]);
    let next = fixture.load();
    assert!(next.was_written() && next.logits == right, "{what}");
    let later = fixture.load();
    assert!(later.was_read() && later.logits == right, "{what}");
}

#[test]
fn a_damaged_file_is_made_anew() {
    check_damage("it is gone", |path| fs::remove_file(path).unwrap());
    check_damage("it is empty", |path| fs::write(path, []).unwrap());
    check_damage("it is a text", |path| fs::write(path, "no weights".repeat(1000)).unwrap());
    check_damage("it is cut", |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
    for place in [9, 70, 2 << 20, (2 << 20) + 5000] {
        check_damage("a bit is wrong", |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[place] ^= 4;
            fs::write(path, bytes).unwrap();
        });
    }
}

#[test]
fn a_changed_model_is_packed_anew() {
    let fixture = Fixture::new();
    fixture.load();
    // A copy of the same bytes is a file that nobody has compared.
    let bytes = fs::read(&fixture.model).unwrap();
    fs::remove_file(&fixture.model).unwrap();
    fs::write(&fixture.model, bytes).unwrap();
    assert!(fixture.load().was_written() && fixture.load().was_read());
    assert_eq!(fixture.files().len(), 1, "it took the place of the old one");
}

#[test]
fn a_folder_that_cannot_be_written_is_no_error() {
    let fixture = Fixture::new();
    fs::write(fixture.cache().folder, "a file").unwrap();
    let loaded = fixture.load();
    assert!(loaded.packed > 0 && loaded.cache_use == CacheUse::None);
}

#[test]
fn small_models_are_not_kept() {
    let fixture = Fixture::new();
    let cache = PackedCache::new(fixture.cache().folder);
    let loaded = fixture.load_from(&fixture.model, Some(&cache), Place::File);
    assert!(loaded.packed > 0 && loaded.cache_use == CacheUse::None);
    assert!(!cache.folder.exists());
}

#[test]
fn files_of_models_that_are_gone_are_deleted() {
    let fixture = Fixture::new();
    let other = fixture.folder.path().join("other.gguf");
    fs::copy(&fixture.model, &other).unwrap();
    fixture.load_from(&other, Some(&fixture.cache()), Place::File);
    let unfinished = fixture.cache().folder.join("x-0123456789abcdef.bitnet-packed.1-0.unfinished");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 3600);
    fs::File::create(&unfinished).unwrap().set_modified(old).unwrap();
    let foreign = fixture.cache().folder.join("notes.txt");
    fs::write(&foreign, "mine").unwrap();
    fs::remove_file(&other).unwrap();
    fixture.load();
    let mut files = fixture.files();
    files.retain(|path| *path != foreign);
    assert!(foreign.exists() && files.len() == 1, "{files:?}");
    let name = files[0].file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("model-") && name.ends_with(".bitnet-packed"), "{name}");
}

#[test]
fn where_there_is_room_for_one_model_it_is_the_one_used_last() {
    let fixture = Fixture::new();
    let models = ["a", "b", "c"].map(|name| fixture.folder.path().join(format!("{name}.gguf")));
    for model in &models {
        fs::copy(&fixture.model, model).unwrap();
    }
    let load = |index: usize, cache: &PackedCache| {
        thread::sleep(std::time::Duration::from_millis(20)); // times of files are that coarse
        fixture.load_from(&models[index], Some(cache), Place::File)
    };
    let cache = fixture.cache();
    assert!(load(0, &cache).was_written() && load(1, &cache).was_written());
    let bytes: u64 = fixture.files().iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let cache = PackedCache { max_bytes: bytes, ..cache };
    assert!(load(0, &cache).was_read(), "and so it is the one used last");
    assert!(load(2, &cache).was_written());
    assert!(load(0, &cache).was_read() && load(2, &cache).was_read());
    assert_eq!(fixture.files().len(), 2);
    let small = PackedCache { max_bytes: bytes / 2 - 1, ..cache };
    let loaded = load(1, &small);
    assert!(loaded.packed > 0 && loaded.cache_use == CacheUse::None);
    assert_eq!(fixture.files().len(), 2, "nothing went for what is not kept");
}

#[test]
fn a_model_on_a_disk_that_is_not_there_now_keeps_its_file() {
    let fixture = Fixture::new();
    let disk = fixture.folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let there = disk.join("there.gguf");
    fs::copy(&fixture.model, &there).unwrap();
    fixture.load_from(&there, Some(&fixture.cache()), Place::File);
    fs::rename(&disk, fixture.folder.path().join("elsewhere")).unwrap();
    fixture.load();
    assert_eq!(fixture.files().len(), 2);
}

#[test]
fn many_may_load_at_once() {
    let fixture = Fixture::new();
    let right = fixture.load_from(&fixture.model, None, Place::Memory).logits;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let loaded = fixture.load();
                    assert_eq!(loaded.logits, right);
                    assert_ne!(loaded.cache_use, CacheUse::None);
                }
            });
        }
    });
    assert!(fixture.load().was_read());
    assert_eq!(fixture.files().len(), 1);
}

#[test]
fn answers_are_remembered_for_their_question() {
    let fixture = Fixture::new();
    let cache = fixture.cache();
    assert_eq!(cache.remembered("which"), None);
    cache.remember("which", "this");
    cache.remember("what", "that");
    assert_eq!(cache.remembered("which").as_deref(), Some("this"));
    cache.remember("which", "another");
    assert_eq!(cache.remembered("which").as_deref(), Some("another"));
    for file in fixture.files() {
        fs::write(file, "rubbish").unwrap();
    }
    assert_eq!(cache.remembered("which"), None);
}
