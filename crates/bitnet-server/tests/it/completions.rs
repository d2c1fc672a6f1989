use serde_json::{Value, json};

use crate::client::Server;

const PATH: &str = "/v1/completions";
const CONTINUED: &str = ", there was a little girl named Lily";

fn ask(server: &Server, prompt: Value, more: Value) -> Value {
    let mut body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 8});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let reply = server.post(PATH, &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().unwrap();
    choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[test]
fn a_prompt_is_a_text_or_tokens_or_several() {
    let server = Server::start();
    let ids = server.model.encode(&"Once upon a time".into()).unwrap();
    let one = ask(&server, json!("Once upon a time"), json!({}));
    assert_eq!((one["object"].as_str(), texts(&one)), (Some("text_completion"), vec![CONTINUED]));
    assert_eq!(texts(&ask(&server, json!(ids), json!({}))), [CONTINUED]);
    let both = ask(&server, json!(["Once upon a time", "Lily"]), json!({}));
    assert_eq!(texts(&both)[0], CONTINUED);
    assert_eq!(both["choices"][1]["index"], 1);
    assert_eq!(texts(&ask(&server, json!([ids, ids]), json!({}))), [CONTINUED, CONTINUED]);
}

#[test]
fn several_answers_to_several_prompts_are_in_order_and_count_prompts_once() {
    let server = Server::start();
    let prompts = json!(["Once upon a time", "Lily"]);
    let single = ask(&server, prompts.clone(), json!({}));
    let answer = ask(&server, prompts, json!({"n": 2}));
    let (single_texts, all) = (texts(&single), texts(&answer));
    assert_eq!(all, [single_texts[0], single_texts[0], single_texts[1], single_texts[1]]);
    assert_eq!(answer["usage"]["prompt_tokens"], single["usage"]["prompt_tokens"]);
    assert_eq!(answer["usage"]["completion_tokens"], 32);
}

#[test]
fn an_echo_is_the_prompt_before_the_answer() {
    let server = Server::start();
    let prompt = "Once upon a time";
    let expected = format!("{prompt}{CONTINUED}");
    let ids = server.model.encode(&prompt.into()).unwrap();
    for prompt in [json!(prompt), json!(ids)] {
        let answer = ask(&server, prompt.clone(), json!({"echo": true}));
        assert_eq!(texts(&answer), [&expected]);
        let body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 8, "echo": true, "stream": true});
        let events = server.post(PATH, &body).events();
        let text: String = events.iter().flat_map(texts).collect();
        assert_eq!(text, expected);
    }
}

#[test]
fn what_is_cached_is_counted() {
    let server = Server::start();
    let prompt = json!("Once upon a time there was a little girl. ".repeat(20));
    let cached = |more: Value| {
        let answer = ask(&server, prompt.clone(), more);
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(json!({})), 0);
    assert!(cached(json!({})) >= 64);
    assert_eq!(cached(json!({"cache_salt": "mine"})), 0, "a salt of its own shares nothing");
    assert!(cached(json!({"cache_salt": "mine"})) >= 64);
}

#[test]
fn sampling_is_the_librarys() {
    use bitnet::{GenerationConfig, SamplingStrategy};
    let server = Server::start();
    let config = GenerationConfig {
        sampling_strategy: SamplingStrategy::TopP,
        temperature: 0.9,
        top_p: 0.8,
        top_k: 30,
        min_p: 0.01,
        repetition_penalty: 1.2,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        seed: Some(11),
        max_new_tokens: 20,
        ignore_eos: true,
        ..Default::default()
    };
    let expected = server.model.generate_blocking("Once", &config).unwrap();
    let body = json!({
        "prompt": "Once", "temperature": 0.9, "top_p": 0.8, "top_k": 30, "min_p": 0.01,
        "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "seed": 11, "max_completion_tokens": 20, "ignore_eos": true, "user": "me",
    });
    let answer = server.post(PATH, &body).json();
    assert_eq!(texts(&answer), [&expected.text]);
}

#[test]
fn nobody_says_how_many_tokens_is_sixteen() {
    let answer = Server::start()
        .post(PATH, &json!({"prompt": "Once upon a time", "ignore_eos": true}))
        .json();
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}
