use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::{program, run};

/// A running server, and where it is.
struct Server {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    address: String,
}

impl Server {
    fn start(args: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = program();
        command.args(["serve", "--port", "0", "-t", "1"]).args(args);
        command.envs(variables.iter().copied());
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it ends before it is ready");
            if let Some((_, rest)) = line.split_once("answers at http://") {
                break rest.split('/').next().unwrap().to_owned();
            }
        };
        Self { child, stderr, address }
    }

    fn ask(&self, head: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        let json = "content-type: application/json";
        write!(stream, "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{json}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        stream
    }

    fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }
}

fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn sigterm_finishes_what_has_begun_and_ends_with_code_0() {
    let mut server = Server::start(&[], &[]);
    let body =
        r#"{"prompt": "Once", "max_tokens": 480, "n": 16, "ignore_eos": true, "stream": true}"#;
    let mut stream = server.ask("POST /v1/completions", body);
    stream.read_exact(&mut [0; 400]).unwrap(); // it is under way
    server.terminate();
    assert!(rest(stream).contains("data: [DONE]"));
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let mut said = String::new();
    server.stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("finishing what has begun"), "{said}");
}

#[test]
fn variables_set_what_flags_set() {
    let variables = [("BITNET_SERVED_MODEL_NAME", "story,tale"), ("BITNET_API_KEY", "secret")];
    let mut server = Server::start(&["--workers", "2", "--threads-per-worker", "1"], &variables);
    assert!(rest(server.ask("GET /v1/models", "")).starts_with("HTTP/1.1 401"));
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head =
        "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer secret";
    write!(stream, "{head}\r\n\r\n").unwrap();
    let models = rest(stream);
    assert!(models.contains(r#""id":"story""#) && models.contains(r#""id":"tale""#), "{models}");
    server.terminate();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_address_that_is_taken_is_bad_input() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let run = run(["serve", "--port", &port]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("cannot listen there"), "{}", run.stderr);
}

#[test]
fn a_model_that_is_not_there_ends_the_server() {
    let run = run(["serve", "--port", "0", "-m", "/nowhere.gguf"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
}

#[test]
fn keys_are_read_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let check = |text: &str, message: &str| {
        std::fs::write(&file, text).unwrap();
        let run = run(["serve", "--port", "0", "--api-key-file", file.to_str().unwrap()]);
        assert_eq!(run.code, Some(2));
        assert!(run.stderr.contains(message), "{}", run.stderr);
    };
    check("# none\n\n", "there is no key in it");
    check("one\ntwo jobs\n", "line 2: there is no queue `jobs`");
    check("one two three\n", "line 1: expected KEY or KEY QUEUE");
    std::fs::write(&file, "one # mine\ntwo jobs\n").unwrap();
    let path = file.to_str().unwrap();
    let mut server = Server::start(&["--api-key-file", path, "--queue", "jobs=0.5"], &[]);
    server.terminate();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}
