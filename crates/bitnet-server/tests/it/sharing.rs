use bitnet::{GenerationConfig, InferenceConfig, Queue};
use bitnet_server::{ApiKey, BitNetServer, ServerConfig};
use serde_json::json;

use crate::client::{Server, demo};

const TEXT: &str = "/v1/completions";

fn with(config: ServerConfig) -> Server {
    Server::with(config, InferenceConfig::default())
}

#[test]
fn keys_are_needed_at_all_paths_but_the_probes() {
    let api_keys = vec![ApiKey::new("secret"), ApiKey::new("other")];
    let server = with(ServerConfig { api_keys, ..Default::default() });
    let paths = ["/v1/models", "/metrics", "/server_info", "/nowhere", TEXT];
    for path in paths {
        let reply = server.get(path);
        assert_eq!(reply.error().0, 401, "{path}");
        assert_eq!(reply.header("www-authenticate"), Some("bearer"));
    }
    assert_eq!((server.get("/health").status, server.get("/ready").status), (200, 200));
    let body = json!({"prompt": "Once", "max_tokens": 2});
    assert_eq!(server.post(TEXT, &body).error().1, "invalid_api_key");
    for (key, status) in [("Bearer secret", 200), ("Bearer other", 200), ("Bearer secre", 401)] {
        let reply = server.post_with(TEXT, &[("authorization", key)], &body);
        assert_eq!(reply.status, status, "{key}");
    }
}

#[test]
fn clients_with_different_keys_share_no_cache() {
    let api_keys = vec![ApiKey::new("a"), ApiKey::new("b")];
    let server = with(ServerConfig { api_keys, ..Default::default() });
    let body = json!({"prompt": "Once upon a time there was. ".repeat(30), "max_tokens": 1});
    let cached = |key| {
        let answer = server.post_with(TEXT, &[("authorization", key)], &body).json();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached("Bearer a"), 0);
    assert!(cached("Bearer a") > 0);
    assert_eq!(cached("Bearer b"), 0);
}

#[test]
fn request_ids_are_taken_over_and_returned() {
    let server = Server::start();
    let reply = server.send("GET", "/health", &[("x-request-id", "trace-1")], b"");
    assert_eq!(reply.header("x-request-id"), Some("trace-1"));
    assert!(server.get("/nowhere").header("x-request-id").unwrap().starts_with("req-"));
}

#[test]
fn other_origins_are_let_in_only_when_the_server_is_told_so() {
    let origin = [("origin", "https://a.org"), ("access-control-request-method", "POST")];
    let closed = Server::start();
    let reply = closed.send("OPTIONS", TEXT, &origin, b"");
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (405, None));
    let cors_origins = vec!["https://a.org".to_owned()];
    let open = with(ServerConfig { cors_origins, ..Default::default() });
    let reply = open.send("OPTIONS", TEXT, &origin, b"");
    let allowed = reply.header("access-control-allow-origin");
    assert_eq!((reply.status, allowed), (204, Some("https://a.org")));
    let other = open.send("GET", "/v1/models", &[("origin", "https://b.org")], b"");
    assert_eq!(other.header("access-control-allow-origin"), None);
}

#[test]
fn workers_have_the_same_answers_and_health_does_not_wait_for_them() {
    let model = demo(InferenceConfig::default());
    let server =
        BitNetServer::builder().max_workers(3).threads_per_worker(1).build(&model).unwrap();
    let server = Server::serve(server, model);
    let long = json!({
        "prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": true, "n": 64, "stream": true,
    });
    let streams = [0; 3].map(|_| server.begin(TEXT, &long));
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.server.under_way(), 3, "all of them are still under way");
    let stats = server.model.stats();
    assert!((1..=64).contains(&(stats.running + stats.waiting)), "each has an engine of its own");
    let short = json!({"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0});
    let texts = [0; 6].map(|_| server.post(TEXT, &short).json()["choices"].to_string());
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    drop(streams);
}

#[test]
fn a_server_answers_without_http_as_well() {
    let model = demo(InferenceConfig::default());
    let server = BitNetServer::builder().build(&model).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = GenerationConfig { max_new_tokens: 8, ..Default::default() };
    let output = runtime.block_on(server.handle_request("Once upon a time", &config)).unwrap();
    assert_eq!(output.text, ", there was a little girl named Lily");
    let waiting = BitNetServer::waiting(ServerConfig::default());
    assert!(runtime.block_on(waiting.handle_request("Once", &config)).is_err());
}

#[test]
fn priorities_come_from_field_header_or_tier() {
    let queues = vec![Queue::new("jobs", 0.5)];
    let server = with(ServerConfig { queues, ..Default::default() });
    let body = json!({"prompt": "Once", "max_tokens": 1});
    let status = |headers: &[(&str, &str)]| server.post_with(TEXT, headers, &body).status;
    for good in ["bulk", "default", "interactive", "system", "7", "-100", "jobs"] {
        assert_eq!(status(&[("x-priority", good)]), 200, "{good}");
        assert_eq!(status(&[("x-smg-priority", good)]), 200, "{good}");
    }
    for bad in ["urgent", "101", "", "2147483648"] {
        let reply = server.post_with(TEXT, &[("x-priority", bad)], &body);
        assert_eq!(reply.error().2.as_deref(), Some("x-priority"), "{bad}");
    }
    for (tier, served) in [("auto", "default"), ("flex", "flex"), ("priority", "priority")] {
        let body = json!({"prompt": "Once", "max_tokens": 1, "service_tier": tier});
        assert_eq!(server.post(TEXT, &body).json()["service_tier"], served);
    }
}
