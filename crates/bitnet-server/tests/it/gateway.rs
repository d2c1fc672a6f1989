use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::client::Server;

const TEXT: &str = "/v1/completions";

#[test]
fn loads_are_those_of_the_engine() {
    let server = Server::start();
    let body = json!({"prompt": "Once upon a time", "max_tokens": 480, "n": 32, "ignore_eos": true, "stream": true});
    let _running = server.begin(TEXT, &body);
    let found = server.get("/v1/loads?include=core,disagg,queues,memory").json();
    assert_eq!(
        (&found["dp_rank_count"], found["loads"].as_array().map(Vec::len)),
        (&json!(1), Some(1))
    );
    let load = &found["loads"][0];
    let (running, waiting) = (&load["num_running_reqs"], &load["num_waiting_reqs"]);
    assert!(running.as_u64() > Some(0), "{load}");
    assert_eq!(
        load["num_total_reqs"].as_u64(),
        Some(running.as_u64().unwrap() + waiting.as_u64().unwrap())
    );
    assert_eq!(load["max_running_requests"], server.model.limits().max_batch_size);
    assert!(load["token_usage"].as_f64().unwrap() > 0.0);
    assert!(load["num_used_tokens"].as_u64() <= load["max_total_num_tokens"].as_u64());
}

#[test]
fn a_gateway_finds_what_it_asks_for() {
    let server = Server::start();
    let info = server.get("/server_info").json();
    assert_eq!(info["context_length"], server.model.info().context_length);
    assert_eq!(info["max_running_requests"], server.model.limits().max_batch_size);
    assert_eq!(info["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["served_model_name"], server.get("/v1/models").json()["data"][0]["id"]);
    let model = server.get("/model_info").json();
    assert_eq!(model["is_generation"], true);
    assert!(model["architectures"][0].is_string());
}

/// Samples by name and labels; fails on what is not Prometheus's text format.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut types = Vec::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(!types.contains(&name), "{name} comes twice");
            types.push(name);
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let family = name.split('{').next().unwrap();
            let family = types.last().filter(|known| family.starts_with(**known));
            assert!(family.is_some(), "{line} is of no family");
            assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{line}");
        }
    }
    samples
}

#[test]
fn metrics_count_requests_and_tokens() {
    let server = Server::start();
    let body = json!({"prompt": "Once", "max_tokens": 5, "ignore_eos": true});
    for _ in 0..3 {
        assert_eq!(server.post(TEXT, &body).status, 200);
    }
    assert_eq!(server.post(TEXT, &json!({"prompt": 1})).status, 400);
    assert_eq!(server.get("/../etc/passwd").status, 404);
    let reply = server.get("/metrics");
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let samples = samples(&reply.body);
    let name = &server.model.info().name;
    let of = |family: &str, more: &str| {
        samples[&format!("{family}{{model_name=\"{name}\",engine=\"0\"{more}}}")]
    };
    assert_eq!(of("bitnet_generation_tokens_total", ""), 15.0);
    assert_eq!(of("vllm:generation_tokens_total", ""), 15.0);
    assert_eq!(of("vllm:request_success_total", ",finished_reason=\"length\""), 3.0);
    assert_eq!(of("vllm:num_requests_waiting", ""), 0.0);
    assert!(samples.keys().any(|name| name.starts_with("vllm:kv_cache_usage_perc")));
    let http = |path: &str, status: u16| {
        samples[&format!("bitnet_http_requests_total{{path=\"{path}\",status=\"{status}\"}}")]
    };
    assert_eq!((http(TEXT, 200), http(TEXT, 400), http("other", 404)), (3.0, 1.0, 1.0));
}

#[test]
fn tokens_are_those_that_completions_use() {
    let server = Server::start();
    let prompt = "Once upon a time";
    let tokens =
        server.post("/tokenize", &json!({"prompt": prompt, "return_token_strs": true})).json();
    let ids = server.model.encode(&prompt.into()).unwrap();
    assert_eq!((&tokens["tokens"], &tokens["count"]), (&json!(ids), &json!(ids.len())));
    assert_eq!(tokens["token_strs"].as_array().unwrap().len(), ids.len());
    assert_eq!(tokens["max_model_len"], server.model.info().context_length);
    let bare =
        server.post("/tokenize", &json!({"prompt": prompt, "add_special_tokens": false})).json();
    let text = server.post("/detokenize", &json!({"tokens": bare["tokens"]})).json();
    assert_eq!(text["prompt"], prompt);
}

#[test]
fn tokens_of_a_conversation_are_those_of_its_prompt() {
    let server = Server::start();
    let messages = json!([{"role": "user", "content": "Write a story."}]);
    let tokens = server.post("/tokenize", &json!({"messages": messages})).json();
    let chat = json!({"messages": messages, "max_tokens": 1});
    let answer = server.post("/v1/chat/completions", &chat).json();
    assert_eq!(tokens["count"], answer["usage"]["prompt_tokens"]);
}

#[test]
fn what_cannot_be_tokens_is_named() {
    let server = Server::start();
    let check = |path: &str, body: Value, param: &str| {
        let error = server.post(path, &body).error();
        assert_eq!((error.0, error.2.as_deref()), (400, Some(param)));
    };
    check("/tokenize", json!({}), "prompt");
    check("/tokenize", json!({"prompt": 5}), "prompt");
    check("/tokenize", json!({"prompt": "a", "messages": []}), "messages");
    check("/detokenize", json!({"tokens": [4_000_000_000_u32]}), "tokens[0]");
    check("/detokenize", json!({"tokens": "a"}), "tokens");
}
