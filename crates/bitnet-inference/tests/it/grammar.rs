//! Grammars that somebody sends to do harm: each is refused or followed, in bounded time, and nothing else happens.

use std::path::Path;
use std::time::{Duration, Instant};

use bitnet_inference::grammar::Vocabulary;
use bitnet_inference::sampler::Sampler;
use bitnet_inference::{Constraint, GenerationConfig, ResponseFormat, SamplingStrategy};
use bitnet_kernels::logits::LogitRow;
use bitnet_model::format::metadata::{Metadata, Value as Field};
use bitnet_model::format::{Checkpoint, OpenOptions, TokenizerSource};
use bitnet_model::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::support::testdata;

/// Less than the engine's thread has.
const ENGINE_STACK: usize = 1 << 20;

fn vocabulary() -> Vocabulary {
    let checkpoint = Checkpoint::open(&testdata("demo-model/packed"), &OpenOptions::default());
    let tokenizer = Tokenizer::from_source(&checkpoint.unwrap().tokenizer_source()).unwrap();
    Vocabulary::new(&tokenizer).unwrap()
}

fn schema(schema: &Value) -> ResponseFormat {
    ResponseFormat::JsonSchema(schema.to_string())
}

#[test]
fn byte_tokens_are_their_bytes_and_sentence_pieces_mark_a_space() {
    let tokens = [
        ("<unk>", 2),
        ("<s>", 3),
        ("</s>", 3),
        ("<0xC3>", 6),
        ("<0xA9>", 6),
        ("▁", 1),
        ("▁a", 1),
        ("a▁", 1),
        ("</s>a", 4),
    ];
    let texts = tokens.iter().map(|(text, _)| (*text).to_owned()).collect();
    let mut metadata = Metadata::default();
    let mut set = |key: &str, value| metadata.0.insert(format!("tokenizer.ggml.{key}"), value);
    set("model", Field::String("llama".into()));
    set("tokens", Field::Strings(texts));
    set("token_type", Field::Ints(tokens.map(|(_, kind)| kind).to_vec()));
    set("scores", Field::Floats(vec![0.0; tokens.len()]));
    let source = TokenizerSource::Gguf(Path::new("test"), &metadata);
    let tokenizer = Tokenizer::from_source(&source).unwrap();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let only_way = |regex: &str| {
        let read = vocabulary.read(&ResponseFormat::Regex(regex.into()));
        let mut sampler = sampler(read.ok()??);
        let mut ids = Vec::new();
        while !sampler.is_complete() {
            ids.push(sampler.draw(LogitRow::All(&[0.0; 9]), &ids, 0).ok()?);
        }
        Some(ids)
    };
    assert_eq!(only_way(" éa "), Some(vec![5, 3, 4, 7]));
    assert_eq!(only_way("</s>a"), Some(vec![8])); // what users define is text
    assert_eq!(only_way("</s>"), None);
    assert_eq!(only_way("é "), Some(vec![3, 4, 5]));
}

/// As many lines as a grammar has room for.
fn lines(line: impl Fn(usize) -> String) -> (String, usize) {
    let mut text = String::new();
    let mut count = 0;
    while text.len() < 127_000 {
        text += &line(count);
        count += 1;
    }
    (text, count)
}

/// A schema that refers to one that refers to another, and so on.
fn references(link: impl Fn(String) -> String) -> ResponseFormat {
    let refer = |index: usize| format!(r##"{{"$ref":"#/$defs/a{index}"}}"##);
    let (links, count) = lines(|i| format!(r#""a{i}":{},"#, link(refer(i + 1))));
    ResponseFormat::JsonSchema(format!(
        r#"{{"$defs":{{{links}"a{count}":{{}}}},"items":{}}}"#,
        refer(0)
    ))
}

#[test]
fn grammars_that_would_take_for_ever_are_refused_or_read_in_time() {
    let nested = |open: &str, close: &str, count: usize| {
        ResponseFormat::JsonSchema(open.repeat(count) + "true" + &close.repeat(count))
    };
    let words: Vec<String> = (0..8000u64).map(|i| format!("{:x}", i * 7_919_777)).collect();
    let any =
        |key: &str| json!({ key: (0..40).map(|i| json!({"minimum": i})).collect::<Vec<_>>() });
    let products = json!({"allOf": (0..12).map(|_| any("anyOf")).collect::<Vec<_>>()});
    let lark = |text: String| ResponseFormat::Lark(text);
    let regex = |text: &str| ResponseFormat::Regex(text.into());
    let all = [
        ("references", references(|next| next)),
        ("references in items", references(|next| format!(r#"{{"items":{next}}}"#))),
        ("references in objects", references(|next| format!(r#"{{"properties":{{"a":{next}}}}}"#))),
        (
            "references in choices",
            references(|next| format!(r#"{{"anyOf":[{next},{{"type":"null"}}]}}"#)),
        ),
        ("nested items", nested(r#"{"items":"#, "}", 60)),
        ("nested past the limit", nested(r#"{"items":"#, "}", 5000)),
        ("nested objects", nested(r#"{"properties":{"a":"#, "}}", 30)),
        ("many words", schema(&json!({"enum": words}))),
        ("products", schema(&products)),
        ("a billion items", schema(&json!({"type": "array", "minItems": 1_000_000_000}))),
        ("a billion characters", schema(&json!({"type": "string", "minLength": 1_000_000_000}))),
        (
            "a pattern of many",
            schema(&json!({"pattern": "^(.{1,1000}){1,1000}$", "maxLength": 900_000})),
        ),
        (
            "a type that is cut inside a character",
            schema(&json!({"$ref": ["x".to_owned() + &"ä".repeat(100)]})),
        ),
        ("itself", schema(&json!({"$ref": "#"}))),
        ("itself twice", schema(&json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}))),
        ("repetitions", regex("((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}")),
        ("much looking back", regex("(a|b)*a(a|b){300}c")),
        ("brackets", regex(&("(".repeat(240) + "a" + &")*".repeat(240)))),
        ("too many brackets", regex(&("(".repeat(60_000) + &")".repeat(60_000)))),
        ("a long chain", regex(&"[ab].".repeat(20_000))),
        ("alternatives", regex(&words.join("|"))),
        ("rules", lark(rules("start: r0\n", "r"))),
        ("nested rules", lark(format!("start: {}\"a\"{}", "(".repeat(60_000), ")".repeat(60_000)))),
        ("optional rules", lark(format!("start: {}\"a\"{}", "[".repeat(500), "]".repeat(500)))),
        ("terminals", lark(rules("start: T0\n", "T"))),
        ("ambiguity", lark("start: a\na: a a | a a a | \"x\" | ".into())),
        ("counting", lark("start: x{1,1000000000}\nx: \"a\" y{0,1000000000}\ny: \"b\"".into())),
    ];
    let vocabulary = vocabulary();
    for (what, format) in all {
        let begin = Instant::now();
        let read = vocabulary.read(&format);
        let time = begin.elapsed();
        let message = read.as_ref().err().map(ToString::to_string);
        println!("{what}: {time:?} {message:?}"); // for whoever looks
        assert!(time < Duration::from_secs(20), "{what}: {time:?}");
        assert!(message.is_none_or(|message| message.len() < 1500));
        if let Ok(Some(constraint)) = read {
            let steps = std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().stack_size(ENGINE_STACK);
                thread.spawn_scoped(scope, || follow(constraint)).unwrap().join().unwrap()
            });
            let longest = steps.iter().max().copied().unwrap_or_default();
            println!("    {} tokens, the longest took {longest:?}", steps.len());
            assert!(longest < Duration::from_secs(2), "{what}: {longest:?}");
        }
    }
}

/// Draws a hundred tokens, all as likely, and tells how long each took.
fn follow(constraint: Constraint) -> Vec<Duration> {
    let mut sampler = sampler(constraint);
    let (mut tokens, mut times) = (Vec::new(), Vec::new());
    while times.len() < 100 && !sampler.is_complete() {
        let begin = Instant::now();
        match sampler.draw(LogitRow::All(&[0.0; 4096]), &tokens, 0) {
            Ok(token) => tokens.push(token),
            Err(_) => break,
        }
        times.push(begin.elapsed());
    }
    times
}

fn sampler(constraint: Constraint) -> Sampler {
    let config = GenerationConfig {
        sampling_strategy: SamplingStrategy::Temperature,
        temperature: 1.0,
        seed: Some(1),
        ..Default::default()
    };
    Sampler::new(config.sampling().unwrap().constrained(constraint))
}

/// Lark rules each of which is the next one, after `first`.
fn rules(first: &str, name: &str) -> String {
    let (lines, count) = lines(|i| format!("{name}{i}: {name}{} \"a\"\n", i + 1));
    format!("{first}{lines}{name}{count}: \"x\"\n")
}
