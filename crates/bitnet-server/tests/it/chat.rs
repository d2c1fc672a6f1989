use serde_json::{Value, json};

use crate::client::Server;

const PATH: &str = "/v1/chat/completions";

fn story(more: Value) -> Value {
    let words = "Write a story with the words tree, rain and happy.";
    let mut body = json!({
        "model": "demo",
        "messages": [{"role": "user", "content": words}],
        "temperature": 0,
        "max_tokens": 12,
    });
    let own = [("model".to_owned(), Value::Null)];
    body.as_object_mut().unwrap().extend(own); // the model's own name
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn an_answer_has_openais_form() {
    let server = Server::start();
    let reply = server.post(PATH, &story(json!({})));
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = reply.json();
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["model"], server.model.info().name.as_str());
    assert!(answer["created"].is_u64() && answer["system_fingerprint"].is_string());
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    assert_eq!(choice["message"]["refusal"], Value::Null);
    assert!(choice.as_object().unwrap().contains_key("logprobs"));
    assert_eq!((&choice["finish_reason"], &choice["index"]), (&json!("length"), &json!(0)));
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(
        usage["total_tokens"].as_u64(),
        usage["prompt_tokens"].as_u64().map(|tokens| tokens + 12)
    );
    assert_eq!(answer["timings"]["predicted_n"], 12);
}

#[test]
fn a_stream_says_the_same_as_the_answer_in_one_piece() {
    let server = Server::start();
    let whole = server.post(PATH, &story(json!({}))).json();
    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    let reply = server.post(PATH, &story(stream));
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let events = reply.events();
    let first = &events[0]["choices"][0];
    assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    let cached = usage["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(cached, Some(0), "the prompt is shorter than a page");
    assert_eq!(usage["usage"], whole["usage"]);
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("length")));
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text.as_str());
    for event in &events {
        assert_eq!(
            (&event["id"], &event["object"]),
            (&events[0]["id"], &json!("chat.completion.chunk"))
        );
        assert!(event["system_fingerprint"].is_string());
    }
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null()));
}

#[test]
fn without_the_option_a_stream_has_no_usage() {
    let events = Server::start().post(PATH, &story(json!({"stream": true}))).events();
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn several_answers_share_the_prompt_and_differ_by_seed() {
    let server = Server::start();
    let body = story(json!({"n": 3, "seed": 5, "temperature": 1.5}));
    let answer = server.post(PATH, &body).json();
    let choices = answer["choices"].as_array().unwrap();
    let text = |choice: &Value| choice["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(
        choices.iter().map(|choice| choice["index"].as_u64()).collect::<Vec<_>>(),
        [Some(0), Some(1), Some(2)]
    );
    assert_ne!(text(&choices[0]), text(&choices[1]));
    assert_eq!(server.post(PATH, &body).json()["choices"], answer["choices"]);
    let one = server.post(PATH, &story(json!({"seed": 6, "temperature": 1.5}))).json();
    assert_eq!(text(&one["choices"][0]), text(&choices[1]));
    assert_eq!(answer["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
}

#[test]
fn several_answers_are_streamed_side_by_side() {
    let body = story(json!({"n": 2, "seed": 5, "temperature": 1.5}));
    let server = Server::start();
    let whole = server.post(PATH, &body).json();
    let mut stream = body.clone();
    stream["stream"] = json!(true);
    let events = server.post(PATH, &stream).events();
    for index in 0..2 {
        let choices = events.iter().map(|event| &event["choices"][0]);
        let own: Vec<_> = choices.filter(|choice| choice["index"] == index).collect();
        let text: String =
            own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(whole["choices"][index as usize]["message"]["content"], text.as_str());
        let ends = own.iter().filter(|choice| !choice["finish_reason"].is_null());
        assert_eq!((own[0]["delta"]["role"].as_str(), ends.count()), (Some("assistant"), 1));
    }
}

#[test]
fn without_a_limit_an_answer_ends_where_it_ends() {
    let server = Server::start();
    let mut body = story(json!({}));
    body.as_object_mut().unwrap().remove("max_tokens");
    let answer = server.post(PATH, &body).json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() > 20);
}

#[test]
fn a_stop_text_is_cut_off() {
    let server = Server::start();
    let whole = server.post(PATH, &story(json!({}))).json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let stop = text.split(' ').nth(3).unwrap();
    for stop_field in [json!(stop), json!(["never there", stop])] {
        let answer = server.post(PATH, &story(json!({"stop": stop_field}))).json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(choice["message"]["content"], text.split_once(stop).unwrap().0);
    }
}

#[test]
fn a_text_in_parts_is_a_text() {
    let server = Server::start();
    let mut parts = story(json!({}));
    let whole = server.post(PATH, &parts).json();
    let text = parts["messages"][0]["content"].take();
    parts["messages"][0]["content"] = json!([{"type": "text", "text": text}]);
    assert_eq!(server.post(PATH, &parts).json()["choices"], whole["choices"]);
}
