mod server;

use std::fs;

use self::server::{COMMIT, Server};
use super::*;
use crate::format::{Checkpoint, OpenOptions};

/// A repository with one large file.
const MODEL: &str = "hf:owner/name";

fn large() -> Vec<u8> {
    (0..50_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn one_model() -> Server {
    Server::start([("README.md", b"# hi".to_vec()), ("m-i2_s.gguf", large())])
}

struct Cache {
    hub: Hub,
    directory: tempfile::TempDir,
}

fn cache_for(endpoint: &str, change: impl FnOnce(&mut HubConfig)) -> Cache {
    let directory = tempfile::tempdir().unwrap();
    let mut config = HubConfig::new(directory.path());
    config.endpoint = endpoint.into();
    config.retry_delay = Duration::from_micros(100);
    change(&mut config);
    Cache { hub: Hub::new(config).unwrap(), directory }
}

impl Cache {
    fn resolve(&self, id: &str) -> Result<Resolved, HubError> {
        self.hub.resolve(&id.parse()?, &mut |_| ())
    }

    fn blobs(&self) -> PathBuf {
        self.directory.path().join("models--owner--name/blobs")
    }

    /// The names below `blobs`.
    fn blob_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.blobs()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn a_downloaded_model_opens_and_is_found_again_without_the_network() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/golden/gguf/");
    let name = "bitnet-tiny-I2_S.gguf";
    let data = fs::read(format!("{golden}{name}")).unwrap();
    let server = Server::start([(name, data.clone())]);
    let cache = cache_for(&server.endpoint, |_| ());
    let found = cache.resolve(MODEL).unwrap();
    assert_eq!((found.downloaded, found.commit.as_str()), (data.len() as u64, COMMIT));
    Checkpoint::open(&found.path, &OpenOptions::default()).unwrap();
    let asked = server.requests("");
    let again = cache.resolve(&format!("{MODEL}/{name}")).unwrap();
    assert_eq!(again, Resolved { downloaded: 0, ..found });
    assert_eq!(server.requests(""), asked);
}

#[test]
fn the_cache_has_the_layout_of_huggingface_hub() {
    let server = one_model();
    let cache = cache_for(&server.endpoint, |_| ());
    let found = cache.resolve(MODEL).unwrap();
    let root = cache.directory.path().join("models--owner--name");
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(found.path, root.join("snapshots").join(COMMIT).join("m-i2_s.gguf"));
    assert_eq!(fs::read(&found.path).unwrap(), large());
    let [blob] = &cache.blob_names()[..] else { panic!("one file was downloaded") };
    if cfg!(unix) {
        let link = PathBuf::from("../../blobs").join(blob);
        assert_eq!(fs::read_link(&found.path).unwrap(), link);
    }
}

#[test]
fn a_connection_that_breaks_is_continued() {
    let server = one_model();
    server.state().cut = Some(30_000);
    let cache = cache_for(&server.endpoint, |_| ());
    let mut seen = Vec::new();
    let id = MODEL.parse().unwrap();
    let found = cache.hub.resolve(&id, &mut |progress| seen.push(progress.done)).unwrap();
    assert_eq!(fs::read(&found.path).unwrap(), large());
    assert_eq!(found.downloaded, 200_000);
    assert_eq!(server.requests("GET /store/m-i2_s.gguf bytes=30000-"), 1);
    assert!(seen.is_sorted() && seen.last() == Some(&200_000), "{seen:?}");
}

#[test]
fn a_download_left_by_an_earlier_run_is_continued() {
    let server = one_model();
    let cache = cache_for(&server.endpoint, |_| ());
    let etag = leave_partial(&cache, &large()[..150_000]);
    assert_eq!(cache.resolve(MODEL).unwrap().downloaded, 50_000);
    assert_eq!(fs::read(cache.blobs().join(etag)).unwrap(), large());
}

#[test]
fn a_damaged_download_of_an_earlier_run_starts_anew() {
    for left in [vec![7; 150_000], vec![7; 200_000], vec![7; 200_001]] {
        let server = one_model();
        let cache = cache_for(&server.endpoint, |_| ());
        let etag = leave_partial(&cache, &left);
        cache.resolve(MODEL).unwrap();
        assert_eq!(fs::read(cache.blobs().join(etag)).unwrap(), large());
    }
}

/// Leaves `data` as what has come of the large file so far, and returns the file's hash.
fn leave_partial(cache: &Cache, data: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, &large());
    let etag: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    fs::create_dir_all(cache.blobs()).unwrap();
    fs::write(cache.blobs().join(format!("{etag}.incomplete")), data).unwrap();
    etag
}

#[test]
fn a_server_without_ranges_sends_the_file_again() {
    let server = one_model();
    server.state().ignores_ranges = true;
    let cache = cache_for(&server.endpoint, |_| ());
    leave_partial(&cache, &large()[..150_000]);
    let found = cache.resolve(MODEL).unwrap();
    assert_eq!((fs::read(found.path).unwrap(), found.downloaded), (large(), 200_000));
}

#[test]
fn a_server_that_always_breaks_off_is_given_up() {
    let server = one_model();
    server.state().cut = Some(0);
    let cache = cache_for(&server.endpoint, |_| ());
    let error = cache.resolve(MODEL).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert_eq!(server.requests("GET /store"), 5);
}

#[test]
fn a_server_that_sends_the_same_beginning_again_is_given_up() {
    let server = one_model();
    server.state().cut = Some(30_000);
    server.state().ignores_ranges = true;
    let error = cache_for(&server.endpoint, |_| ()).resolve(MODEL).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert_eq!(server.requests("GET /store"), 6);
}

#[test]
fn contents_with_another_hash_are_thrown_away() {
    let server = one_model();
    server.state().hash_lie = Some("ab".repeat(32));
    let cache = cache_for(&server.endpoint, |_| ());
    let error = cache.resolve(MODEL).unwrap_err();
    assert!(matches!(&error, HubError::Checksum { algorithm: "SHA-256", .. }), "{error}");
    assert_eq!(cache.blob_names(), [""; 0]);
}

#[test]
fn contents_of_another_length_are_refused() {
    for size_lie in [-1, 1, 1_000_000] {
        let server = one_model();
        server.state().size_lie = size_lie;
        let cache = cache_for(&server.endpoint, |_| ());
        let error = cache.resolve(MODEL).unwrap_err();
        assert!(matches!(error, HubError::Size { found: 200_000, .. }), "{error}");
    }
}

#[test]
fn a_hash_that_could_leave_the_cache_is_refused() {
    let server = one_model();
    server.state().hash_lie = Some("../".repeat(20) + "aaaa");
    let error = cache_for(&server.endpoint, |_| ()).resolve(MODEL).unwrap_err();
    assert!(matches!(error, HubError::Answer { .. }), "{error}");
}

#[test]
fn file_names_that_could_leave_the_cache_are_refused() {
    for name in ["../../x.gguf", "/etc/x.gguf", "a\\b.gguf", "a//b.gguf"] {
        let server = Server::start([(name, large())]);
        let error = cache_for(&server.endpoint, |_| ()).resolve(MODEL).unwrap_err();
        assert!(matches!(error, HubError::Answer { .. }), "{name}: {error}");
    }
}

#[test]
fn safetensors_come_in_all_their_parts() {
    let index =
        br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}"#;
    let server = Server::start([
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", vec![b' '; 1000]),
        ("model.safetensors.index.json", index.to_vec()),
        ("1.safetensors", large()),
        ("2.safetensors", vec![2; 600]),
        ("3.safetensors", vec![3; 600]),
    ]);
    let cache = cache_for(&server.endpoint, |_| ());
    let found = cache.resolve(MODEL).unwrap();
    let mut names: Vec<_> = fs::read_dir(&found.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let index = "model.safetensors.index.json";
    assert_eq!(names, ["1.safetensors", "2.safetensors", "config.json", index, "tokenizer.json"]);
    let asked = server.requests("");
    assert_eq!(cache.resolve(MODEL).unwrap().downloaded, 0);
    assert_eq!(server.requests(""), asked);
    // A part that someone deletes is fetched again.
    fs::remove_file(found.path.join("2.safetensors")).unwrap();
    cache.resolve(MODEL).unwrap();
    assert!(found.path.join("2.safetensors").is_file());
}

#[test]
fn a_passing_failure_is_passed_over() {
    let server = one_model();
    server.state().failing = (3, 503);
    cache_for(&server.endpoint, |_| ()).resolve(MODEL).unwrap();
}

#[test]
fn a_refusal_is_not_repeated_and_says_what_to_try() {
    for (status, hint) in [(401, "token"), (404, "check the owner")] {
        let server = one_model();
        server.state().failing = (1, status);
        let error = cache_for(&server.endpoint, |_| ()).resolve(MODEL).unwrap_err();
        let expected = format!("answered with status {status} (Why)");
        assert!(error.to_string().ends_with(&expected), "{error}");
        assert!(error.help().contains(hint), "{}", error.help());
        assert_eq!(server.requests(""), 1);
    }
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_store() {
    let server = one_model();
    let cache = cache_for(&server.endpoint, |config| config.token = Some("hf_secret".into()));
    cache.resolve(MODEL).unwrap();
    assert_eq!(server.requests("Bearer hf_secret"), server.requests("owner/name"));
    assert!(server.requests("/store/") > 0);
    assert!(!format!("{:?}", cache.hub).contains("hf_secret"));
}

#[test]
fn without_a_network_the_error_says_what_was_looked_for_and_where() {
    let closed = "http://127.0.0.1:9";
    let cache = cache_for(closed, |_| ());
    let error = cache.resolve(MODEL).unwrap_err();
    let root = cache.directory.path().join("models--owner--name");
    let expected = format!(
        "hf:owner/name is not in the cache {} and {closed}/api/models/owner/name/revision/main does not answer",
        root.display()
    );
    assert_eq!(error.to_string(), expected);
    assert!(error.help().contains("fetch owner/name on another machine"));
}

#[test]
fn a_server_that_never_answers_is_given_up_and_every_step_is_told() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let patience = Duration::from_millis(200);
    let mut cache = cache_for(&endpoint, |config| config.patience = patience);
    let (sender, told) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    cache.hub = cache.hub.with_events(move |event| {
        sender.lock().unwrap().send(format!("{event:?}")).unwrap();
    });
    let begin = std::time::Instant::now();
    let error = cache.resolve(MODEL).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(begin.elapsed() < 10 * patience, "{:?}", begin.elapsed());
    assert!(told.try_iter().next().unwrap().contains(&endpoint));
}

#[test]
fn every_repetition_is_told_with_its_reason() {
    let server = one_model();
    server.state().failing = (3, 503);
    let (sender, told) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let mut cache = cache_for(&server.endpoint, |_| ());
    cache.hub = cache.hub.with_events(move |event| {
        if let HubEvent::Retrying { error, .. } = event {
            sender.lock().unwrap().send(error.to_string()).unwrap();
        }
    });
    cache.resolve(MODEL).unwrap();
    let reasons: Vec<_> = told.try_iter().collect();
    assert_eq!(reasons.len(), 3);
    assert!(reasons.iter().all(|reason| reason.contains("status 503")), "{reasons:?}");
}

#[test]
fn offline_asks_nobody() {
    let server = one_model();
    let cache = cache_for(&server.endpoint, |config| config.offline = true);
    let error = cache.resolve(MODEL).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    assert_eq!(server.requests(""), 0);
}

#[test]
fn requests_go_through_the_proxy() {
    let server = one_model();
    let proxy = "http://127.0.0.1:9".to_owned();
    let cache = cache_for(&server.endpoint, |config| config.proxy = Some(proxy));
    let error = cache.resolve(MODEL).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert_eq!(server.requests(""), 0);
}

#[test]
fn two_at_once_download_a_file_once() {
    let server = one_model();
    let cache = cache_for(&server.endpoint, |_| ());
    let paths: Vec<_> = std::thread::scope(|scope| {
        let both: Vec<_> =
            (0..2).map(|_| scope.spawn(|| cache.resolve(MODEL).unwrap().path)).collect();
        both.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(paths[0], paths[1]);
    assert_eq!(server.requests("GET /store/"), 1);
}
