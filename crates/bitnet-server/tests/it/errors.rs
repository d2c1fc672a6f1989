use std::io::Write;

use bitnet::InferenceConfig;
use bitnet_server::{BitNetServer, ServerConfig};
use serde_json::{Value, json};

use crate::client::{Server, demo, wait_for};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// The status, code and field of the error that a completion of "Once" with this gets.
#[track_caller]
fn check(server: &Server, more: Value, status: u16, code: &str, param: &str) {
    let mut body = json!({"prompt": "Once", "max_tokens": 4});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let reply = server.post(TEXT, &body);
    assert_eq!(reply.error(), (status, code.to_owned(), Some(param.to_owned())), "{reply:?}");
}

#[test]
fn a_field_that_is_wrong_is_named() {
    let server = Server::start();
    let wrong = |more, code, param| check(&server, more, 400, code, param);
    wrong(json!({"temperature": "hot"}), "invalid_type", "temperature");
    wrong(json!({"temperature": -1}), "invalid_value", "temperature");
    wrong(json!({"temperature": 1e300}), "invalid_value", "temperature");
    wrong(json!({"top_p": 0}), "invalid_value", "top_p");
    wrong(json!({"min_p": 2}), "invalid_value", "min_p");
    wrong(json!({"top_k": -2}), "invalid_value", "top_k");
    wrong(json!({"presence_penalty": 3}), "invalid_value", "presence_penalty");
    wrong(json!({"n": 0}), "invalid_value", "n");
    wrong(json!({"n": 1000000}), "invalid_value", "n");
    wrong(json!({"seed": 1.5}), "invalid_type", "seed");
    wrong(json!({"max_tokens": 0}), "invalid_value", "max_tokens");
    wrong(json!({"max_tokens": 4, "max_completion_tokens": 5}), "invalid_value", "max_tokens");
    wrong(json!({"stop": [1]}), "invalid_type", "stop");
    wrong(json!({"stop": ""}), "invalid_value", "stop");
    wrong(json!({"stop": vec!["a"; 100_000]}), "invalid_value", "stop");
    wrong(json!({"stop": "a".repeat(2000)}), "invalid_value", "stop");
    wrong(json!({"stream": "yes"}), "invalid_type", "stream");
    wrong(json!({"stream_options": {}}), "invalid_value", "stream_options");
    wrong(json!({"prompt": []}), "invalid_value", "prompt");
    wrong(json!({"prompt": [4096000]}), "invalid_value", "prompt");
    wrong(json!({"prompt": [-1]}), "invalid_value", "prompt[0]");
    wrong(json!({"prompt": ["a", 5]}), "invalid_type", "prompt[1]");
    wrong(json!({"prompt": vec!["a"; 1000]}), "invalid_value", "prompt");
    wrong(json!({"prompt": null}), "missing_required_parameter", "prompt");
    wrong(json!({"suffix": "end"}), "unsupported_parameter", "suffix");
    wrong(json!({"priority": 1000}), "invalid_value", "priority");
    wrong(json!({"service_tier": "gold"}), "invalid_value", "service_tier");
    wrong(json!({"colour": "red"}), "unknown_parameter", "colour");
}

#[test]
fn too_many_tokens_are_an_error_with_the_numbers() {
    let server = Server::start();
    let context = server.model.info().context_length;
    check(&server, json!({"max_tokens": 1_000_000_000}), 400, "context_length_exceeded", "prompt");
    let long = json!({"prompt": vec![5; context], "max_tokens": 1});
    check(&server, long, 400, "context_length_exceeded", "prompt");
    let messages = json!([{"role": "user", "content": "story ".repeat(context)}]);
    let reply = server.post(CHAT, &json!({"messages": messages}));
    let expected = (400, "context_length_exceeded".to_owned(), Some("messages".to_owned()));
    assert_eq!(reply.error(), expected);
    assert!(reply.body.contains(&format!("maximum context length is {context} tokens")));
}

#[test]
fn an_unknown_model_is_not_found() {
    let server = Server::start();
    check(&server, json!({"model": "gpt-9"}), 404, "model_not_found", "model");
    assert_eq!(server.get("/v1/models/gpt-9").error().0, 404);
    let name = server.model.info().name.clone();
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], name.as_str());
    let one = server.get(&format!("/v1/models/{name}")).json();
    assert_eq!((&one["owned_by"], &one["object"]), (&json!("bitnet"), &json!("model")));
    assert_eq!(one["max_model_len"], server.model.info().context_length);
}

#[test]
fn names_given_to_the_model_are_its_names() {
    let model_names = vec!["org/story".to_owned(), "other".to_owned()];
    let config = ServerConfig { model_names, ..Default::default() };
    let server = Server::with(config, InferenceConfig::default());
    assert_eq!(server.get("/v1/models/org/story").json()["id"], "org/story");
    let body = |name: &str| json!({"model": name, "prompt": "Once", "max_tokens": 2});
    assert_eq!(server.post(TEXT, &body("other")).json()["model"], "org/story");
    assert_eq!(server.post(TEXT, &body("demo")).status, 404);
}

#[test]
fn wrong_paths_methods_types_and_sizes_get_error_objects() {
    let config = ServerConfig { max_body_bytes: 1000, ..Default::default() };
    let server = Server::with(config, InferenceConfig::default());
    let json = [("content-type", "application/json")];
    let code = |reply: crate::client::Reply| (reply.error().0, reply.error().1);
    assert_eq!(code(server.get("/v2")), (404, "unknown_url".to_owned()));
    assert_eq!(code(server.get("/version")), (404, "unknown_url".to_owned()));
    let wrong = server.get(CHAT);
    assert_eq!(wrong.header("allow"), Some("post"));
    assert_eq!(code(wrong), (405, "method_not_allowed".to_owned()));
    let text = [("content-type", "text/plain")];
    assert_eq!(server.send("POST", CHAT, &text, b"{}").error().0, 415);
    assert_eq!(server.send("POST", CHAT, &[], b"{}").error().0, 415);
    assert_eq!(server.send("POST", CHAT, &json, &[b' '; 1001]).error().0, 413);
    let chunked = [json[0], ("transfer-encoding", "chunked")];
    let body = format!("3e9\r\n{}\r\n0\r\n\r\n", " ".repeat(1001));
    let mut request = crate::client::request("POST", CHAT, &chunked, b"");
    request.extend(body.as_bytes());
    assert_eq!(server.raw(&request).error().0, 413);
}

#[test]
fn bodies_that_are_no_json_are_refused() {
    let server = Server::start();
    let json = [("content-type", "application/json")];
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_object = format!("{{\"messages\": {}", "{\"a\":".repeat(100_000));
    for body in [
        b"{".as_slice(),
        b"",
        b"\xff\xfe",
        b"{\"prompt\": \"\xff\"}",
        b"{\"temperature\": NaN}",
        b"{\"temperature\": 1e999}",
        b"{\"prompt\": \"\\ud800\"}",
        b"{} {}",
        deep.as_bytes(),
        deep_object.as_bytes(),
    ] {
        let reply = server.send("POST", TEXT, &json, body);
        let error = reply.error();
        assert_eq!((error.0, error.1.as_str()), (400, "invalid_json"), "{reply:?}");
    }
    for body in [b"[]".as_slice(), b"5", b"null", b"\"text\""] {
        let error = server.send("POST", TEXT, &json, body).error();
        assert_eq!(error, (400, "invalid_type".to_owned(), Some("body".to_owned())));
    }
}

#[test]
fn a_full_queue_is_429_and_says_when_to_come_again() {
    let inference = InferenceConfig { max_batch_size: 1, max_waiting: 1, ..Default::default() };
    let server = Server::with(ServerConfig::default(), inference);
    let body = json!({"prompt": "Once", "max_tokens": 400, "ignore_eos": true, "stream": true});
    let json = [("content-type", "application/json")];
    let request = crate::client::request("POST", TEXT, &json, body.to_string().as_bytes());
    wait_for("a refusal", || {
        // One runs, one waits, and the others are too many, unless the first is done already.
        let mut streams = [0; 4].map(|_| server.connect());
        streams.iter_mut().for_each(|stream| stream.write_all(&request).unwrap());
        let last = server.post(TEXT, &body);
        if last.status == 200 {
            return false;
        }
        assert_eq!(last.error(), (429, "queue_full".to_owned(), None));
        assert_eq!(last.header("retry-after"), Some("1"));
        true
    });
    server.wait_until_idle();
    assert_eq!(server.post(TEXT, &json!({"prompt": "Once"})).status, 200);
}

#[test]
fn a_request_for_several_answers_is_refused_as_a_whole() {
    let inference = InferenceConfig { max_batch_size: 1, max_waiting: 2, ..Default::default() };
    let server = Server::with(ServerConfig::default(), inference);
    let body = json!({"prompt": "Once", "max_tokens": 100, "ignore_eos": true, "n": 8});
    assert_eq!(server.post(TEXT, &body).error().0, 429);
    server.wait_until_idle();
}

#[test]
fn while_the_model_is_loaded_the_answer_is_503() {
    let waiting = BitNetServer::waiting(ServerConfig::default());
    let server = Server::serve(waiting.clone(), demo(InferenceConfig::default()));
    for reply in [
        server.get("/health"),
        server.get("/ready"),
        server.get("/v1/models"),
        server.post(TEXT, &json!({"prompt": "Once"})),
    ] {
        assert_eq!(reply.error(), (503, "loading".to_owned(), None));
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    waiting.ready(vec![server.model.clone()]);
    assert_eq!((server.get("/health").status, server.get("/ready").status), (200, 200));
    assert_eq!(server.post(TEXT, &json!({"prompt": "Once"})).status, 200);
}

#[test]
fn an_answer_that_is_late_is_408() {
    let server = Server::start();
    let body = json!({"prompt": "Once", "max_tokens": 400, "ignore_eos": true});
    let late = [("x-request-timeout", "0.001")];
    assert_eq!(
        server.post_with(TEXT, &late, &body).error(),
        (408, "deadline_exceeded".to_owned(), None)
    );
    let mut stream = body.clone();
    stream["stream"] = json!(true);
    let events = server.post_with(TEXT, &late, &stream).events();
    assert_eq!(events.last().unwrap()["error"]["code"], "deadline_exceeded");
    for wrong in ["soon", "0", "-1", "inf", "1e99"] {
        let reply = server.post_with(TEXT, &[("x-request-timeout", wrong)], &body);
        assert_eq!(reply.error().0, 400, "{wrong}");
    }
    let enough = [("x-request-timeout", "60")];
    assert_eq!(server.post_with(TEXT, &enough, &json!({"prompt": "Once"})).status, 200);
}
