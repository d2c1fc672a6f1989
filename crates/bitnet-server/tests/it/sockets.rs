use std::io::{Read, Write};
use std::time::{Duration, Instant};

use bitnet::InferenceConfig;
use bitnet_server::ServerConfig;
use serde_json::json;

use crate::client::{Reply, Server, request, wait_for};

const TEXT: &str = "/v1/completions";
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// Answers that take a second or so together.
const MANY: u64 = 16;
const TOKENS: u64 = 480;

fn long(stream: bool) -> serde_json::Value {
    let prompt = "Once upon a time";
    json!({"prompt": prompt, "max_tokens": TOKENS, "n": MANY, "ignore_eos": true, "stream": stream})
}

#[test]
fn a_client_that_goes_away_ends_its_request() {
    let server = Server::start();
    for stream in [true, false] {
        let before = server.model.stats().generated_tokens;
        let mut client = server.connect();
        let body = long(stream).to_string();
        client.write_all(&request("POST", TEXT, &JSON, body.as_bytes())).unwrap();
        wait_for("a request that runs", || server.model.stats().generated_tokens > before);
        drop(client);
        server.wait_until_idle();
        let generated = server.model.stats().generated_tokens - before;
        assert!(generated < MANY * TOKENS, "{generated} tokens, stream: {stream}");
        wait_for("the end of the request", || server.server.under_way() == 0);
    }
}

#[test]
fn a_drain_finishes_what_has_begun_and_lets_nothing_in() {
    let mut server = Server::start();
    let mut streaming = server.begin(TEXT, &long(true));
    let mut idle = server.connect();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    idle.read_exact(&mut [0; 10]).unwrap(); // kept alive
    server.stop();
    wait_for("the drain", || server.get("/health").status == 503);
    let refused = server.post(TEXT, &json!({"prompt": "Once"}));
    assert_eq!(refused.error(), (503, "draining".to_owned(), None));
    assert_eq!(refused.header("connection"), Some("close"));
    let events = Reply::read(&mut streaming).events();
    let ends = events.iter().filter(|event| event["choices"][0]["finish_reason"] == "length");
    assert_eq!(ends.count() as u64, MANY);
    server.join();
    idle.read_to_end(&mut Vec::new()).unwrap(); // idle connections are closed
}

#[test]
fn a_slow_body_is_408_and_a_slow_head_is_closed() {
    let config = ServerConfig {
        body_timeout: Duration::from_millis(200),
        header_timeout: Duration::from_millis(200),
        ..Default::default()
    };
    let server = Server::with(config, InferenceConfig::default());
    let begin = Instant::now();
    let mut slow = request("POST", TEXT, &JSON, b"{\"prompt\": \"Once\"}");
    slow.pop();
    assert_eq!(server.raw(&slow).error(), (408, "request_timeout".to_owned(), None));
    let mut half = server.connect();
    half.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: te").unwrap();
    let _ = Reply::read(&mut half);
    let mut nothing = server.connect();
    let _ = Reply::read(&mut nothing);
    assert!(begin.elapsed() < Duration::from_secs(30), "all were closed by the server");
}

#[test]
fn garbage_is_refused_and_what_came_before_it_is_answered() {
    let server = Server::start();
    assert_eq!(server.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").status, 400);
    assert_eq!(server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").status, 0, "closed without a word");
    let long_head = format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(200_000));
    assert_eq!(server.raw(long_head.as_bytes()).status, 431);
    let many = format!("GET /health HTTP/1.1\r\n{}\r\n", "x: a\r\n".repeat(500));
    assert_eq!(server.raw(many.as_bytes()).status, 431);
    let both = b"POST /v1/completions HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n";
    assert_eq!(server.raw(both).status, 400);
    let mut two = b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n".to_vec();
    two.extend(b"\0\0garbage\r\n\r\n");
    let mut stream = server.connect();
    stream.write_all(&two).unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let all = String::from_utf8_lossy(&all).into_owned();
    let first = all.find("HTTP/1.1 200").expect("the first is answered");
    assert!(all[first..].contains("HTTP/1.1 400"), "{all}");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_queued_stream_is_kept_alive_by_comments() {
    let config = ServerConfig { keep_alive: Duration::from_millis(5), ..Default::default() };
    let inference = InferenceConfig { max_batch_size: 1, ..Default::default() };
    let server = Server::with(config, inference);
    let first = server.begin(TEXT, &long(true));
    let mut second = server.connect();
    second.write_all(&request("POST", TEXT, &JSON, long(true).to_string().as_bytes())).unwrap();
    let mut text = String::new();
    while !text.contains(": keep-alive\n\n") {
        let mut part = [0; 1024];
        let read = second.read(&mut part).unwrap();
        assert!(read > 0, "{text}");
        text += std::str::from_utf8(&part[..read]).unwrap();
    }
    drop(first);
}

#[test]
fn a_client_that_reads_nothing_is_given_up() {
    let config = ServerConfig { write_timeout: Duration::from_millis(300), ..Default::default() };
    let server = Server::with(config, InferenceConfig::default());
    let client = server.connect();
    // More answers than the buffers of both sides hold.
    let asked = request("GET", "/v1/models", &[], b"");
    let asked = String::from_utf8(asked).unwrap().replace("connection: close\r\n", "");
    let mut writing = client.try_clone().unwrap();
    writing.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let many = asked.repeat(1000);
    let broken = (0..1000).any(|_| writing.write_all(many.as_bytes()).is_err());
    assert!(broken, "the server closes the connection");
}

#[test]
fn connections_beyond_the_limit_wait() {
    let config = ServerConfig { max_connections: 2, ..Default::default() };
    let server = Server::with(config, InferenceConfig::default());
    let (first, second) = (server.connect(), server.connect());
    std::thread::sleep(Duration::from_millis(50));
    let mut third = server.connect();
    third.write_all(&request("GET", "/health", &[], b"")).unwrap();
    third.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(third.read(&mut [0; 1]).is_err(), "nobody has taken it");
    drop((first, second));
    third.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(Reply::read(&mut third).status, 200);
}
