use serde_json::{Value, json};

use crate::client::Server;

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn question() -> Value {
    json!([{"role": "user", "content": "Write a story with the words tree, rain and happy."}])
}

#[test]
fn tokens_of_a_chat_make_up_its_text() {
    let server = Server::start();
    let body =
        json!({"messages": question(), "temperature": 0, "logprobs": true, "top_logprobs": 3});
    let answer = server.post(CHAT, &body).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop", "the token that ends it is not told");
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(text.trim_start(), choice["message"]["content"].as_str().unwrap().trim_start());
    assert!(!tokens.is_empty());
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(
            (top.len(), &top[0]["token"]),
            (3, &token["token"]),
            "greedy takes the likeliest"
        );
        assert!(token["logprob"].as_f64().unwrap() <= 0.0 && token["bytes"].is_array());
    }
}

#[test]
fn a_stream_tells_the_same_tokens() {
    let server = Server::start();
    let mut body = json!({"messages": question(), "temperature": 0, "logprobs": true});
    let whole = server.post(CHAT, &body).json();
    body["stream"] = json!(true);
    let events = server.post(CHAT, &body).events();
    let tokens: Vec<_> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    let expected = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens, expected.iter().collect::<Vec<_>>());
}

#[test]
fn without_the_wish_nothing_is_told() {
    let server = Server::start();
    let answer = server.post(CHAT, &json!({"messages": question(), "max_tokens": 2})).json();
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
}

#[test]
fn completions_tell_tokens_in_lists() {
    let server = Server::start();
    let body =
        json!({"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, "logprobs": 2});
    let choice = &server.post(TEXT, &body).json()["choices"][0];
    let lists = &choice["logprobs"];
    let strings = |list: &Value| {
        let list = list.as_array().unwrap();
        list.iter().map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let tokens = strings(&lists["tokens"]);
    assert_eq!(tokens.concat(), choice["text"].as_str().unwrap());
    assert_eq!(lists["text_offset"][1], tokens[0].chars().count());
    assert_eq!(lists["token_logprobs"].as_array().map(Vec::len), Some(8));
    assert_eq!(lists["top_logprobs"][0].as_object().map(serde_json::Map::len), Some(2));
    let mut stream = body.clone();
    stream["stream"] = json!(true);
    let events = server.post(TEXT, &stream).events();
    let list = |name: &str| -> Vec<Value> {
        let lists = events.iter().filter_map(|e| e["choices"][0]["logprobs"][name].as_array());
        lists.flatten().cloned().collect()
    };
    for name in ["tokens", "text_offset", "token_logprobs"] {
        assert_eq!(json!(list(name)), lists[name], "{name}");
    }
}

#[test]
fn an_echo_tells_the_tokens_of_the_prompt_too() {
    let server = Server::start();
    let ids = server.model.encode(&"Once upon a time".into()).unwrap();
    let body =
        json!({"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true});
    let answer = server.post(TEXT, &body).json();
    let lists = &answer["choices"][0]["logprobs"];
    let logprobs = lists["token_logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), &logprobs[0]), (ids.len() + 1, &Value::Null));
    let expected = futures_block_on(server.model.prompt_logprobs(&ids, 1, Default::default()));
    for (found, expected) in logprobs[1..].iter().zip(expected) {
        assert_eq!(found.as_f64().unwrap() as f32, expected.logprob);
    }
    let mut stream = body.clone();
    stream["stream"] = json!(true);
    assert_eq!(server.post(TEXT, &stream).error().2.as_deref(), Some("logprobs"));
}

fn futures_block_on<T>(future: impl Future<Output = Result<T, bitnet::Error>>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future).unwrap()
}

#[test]
fn tokens_are_forced_forbidden_and_end_a_text() {
    let server = Server::start();
    let ask = |more: Value| {
        let mut body = json!({"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post(TEXT, &body).json()
    };
    let text = |answer: &Value| answer["choices"][0]["text"].as_str().unwrap().to_owned();
    let usual = ask(json!({"logprobs": 0}));
    let first = text(&usual).chars().next().unwrap().to_string();
    let id =
        server.post("/tokenize", &json!({"prompt": first, "add_special_tokens": false})).json();
    let id = id["tokens"][0].as_u64().unwrap();
    assert_ne!(text(&ask(json!({"logit_bias": {id.to_string(): -100}})))[..1], first);
    let ended = ask(json!({"stop_token_ids": [id]}));
    assert_eq!(
        (text(&ended).as_str(), &ended["choices"][0]["finish_reason"]),
        ("", &json!("stop"))
    );
    let later = ask(json!({"stop_token_ids": [id], "min_tokens": 3}));
    assert!(later["usage"]["completion_tokens"].as_u64().unwrap() > 1);
}

#[test]
fn wrong_wishes_are_named() {
    let server = Server::start();
    let check = |path: &str, more: Value, param: &str| {
        let mut body = json!({"max_tokens": 4});
        match path {
            CHAT => body["messages"] = question(),
            _ => body["prompt"] = json!("Once"),
        }
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = server.post(path, &body).error();
        assert_eq!((error.0, error.2.as_deref()), (400, Some(param)), "{more}");
    };
    check(CHAT, json!({"logprobs": 5}), "logprobs");
    check(CHAT, json!({"top_logprobs": 5}), "top_logprobs");
    check(CHAT, json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs");
    check(TEXT, json!({"logprobs": true}), "logprobs");
    check(TEXT, json!({"logprobs": 21}), "logprobs");
    check(TEXT, json!({"logit_bias": {"one": 1}}), "logit_bias.one");
    check(TEXT, json!({"logit_bias": {"1": 101}}), "logit_bias");
    check(TEXT, json!({"logit_bias": {"99999999": 1}}), "logit_bias");
    check(TEXT, json!({"logit_bias": [1]}), "logit_bias");
    check(TEXT, json!({"stop_token_ids": vec![1; 2000]}), "stop_token_ids");
    check(TEXT, json!({"stop_token_ids": [99_999_999]}), "stop_token_ids");
    check(TEXT, json!({"min_tokens": 5}), "min_tokens");
    check(CHAT, json!({"response_format": "json"}), "response_format");
    check(CHAT, json!({"response_format": {"type": "xml"}}), "response_format.type");
    check(CHAT, json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema");
    check(CHAT, json!({"regex": "a", "lark": "start: \"a\""}), "lark");
}

#[cfg(not(feature = "grammar"))]
#[test]
fn without_grammars_a_form_is_refused() {
    let server = Server::start();
    let body = json!({"messages": question(), "response_format": {"type": "json_object"}});
    let error = server.post(CHAT, &body).error();
    let expected = (400, "unsupported_parameter".to_owned(), Some("response_format".to_owned()));
    assert_eq!(error, expected);
}

#[cfg(feature = "grammar")]
mod forms {
    use super::*;

    #[test]
    fn an_answer_keeps_to_its_form() {
        let server = Server::start();
        let ask = |more: Value| {
            let mut body =
                json!({"messages": question(), "temperature": 1, "seed": 3, "max_tokens": 200});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = server.post(CHAT, &body).json();
            answer["choices"][0]["message"]["content"]
                .as_str()
                .unwrap_or_else(|| panic!("{answer}"))
                .to_owned()
        };
        let schema = json!({
            "type": "object",
            "properties": {"zoo": {"type": "integer", "minimum": 0, "maximum": 9}, "age": {"enum": ["old", "new"]}},
            "required": ["zoo", "age"],
            "additionalProperties": false,
        });
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
        let found: Value = serde_json::from_str(&ask(json!({"response_format": format}))).unwrap();
        assert!(found["zoo"].as_u64().unwrap() < 10 && found["age"].is_string());
        let yes = ask(json!({"regex": "(yes|no)!"}));
        assert!(["yes!", "no!"].contains(&yes.as_str()), "{yes}");
        assert_eq!(ask(json!({"lark": "start: \"tree\""})), "tree");
        assert!(!ask(json!({"response_format": {"type": "text"}})).is_empty());
    }

    #[test]
    fn a_form_that_cannot_be_is_named() {
        let server = Server::start();
        let check = |more: Value, param: &str, word: &str| {
            let mut body = json!({"messages": question()});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let reply = server.post(CHAT, &body);
            let error = reply.error();
            assert_eq!((error.0, error.2.as_deref()), (400, Some(param)), "{reply:?}");
            assert!(reply.body.contains(word), "{reply:?}");
        };
        let schema = json!({"type": "array", "uniqueItems": true});
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        check(json!({"response_format": format}), "response_format", "uniqueItems");
        check(json!({"regex": "("}), "regex", "regular expression");
        check(json!({"lark": "start: missing"}), "lark", "missing");
    }
}
