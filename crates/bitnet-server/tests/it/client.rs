//! A server on a free port, and a client that can do what no library would.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bitnet::{BitNetModel, InferenceConfig, MetricsCollector, ModelConfig};
use bitnet_server::{BitNetServer, ServerConfig};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// The demo model behind HTTP, until this is dropped.
pub struct Server {
    pub address: SocketAddr,
    pub model: BitNetModel,
    pub server: BitNetServer,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The demo model on one thread.
pub fn demo(inference: InferenceConfig) -> BitNetModel {
    BitNetModel::demo()
        .with_config(ModelConfig { threads: 1, ..Default::default() })
        .with_inference_config(inference)
        .with_metrics(MetricsCollector::new())
        .load()
        .unwrap()
}

impl Server {
    pub fn start() -> Self {
        Self::with(ServerConfig::default(), InferenceConfig::default())
    }

    pub fn with(config: ServerConfig, inference: InferenceConfig) -> Self {
        let model = demo(inference);
        let server = BitNetServer::builder().config(config).build(&model).unwrap();
        Self::serve(server, model)
    }

    /// Serves `server`, whose model is, or will be, `model`.
    pub fn serve(server: BitNetServer, model: BitNetModel) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (sender, address) = std::sync::mpsc::channel();
        let serving = server.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                let shutdown = async {
                    let _ = stopped.await;
                };
                serving.serve(listener, shutdown).await.unwrap();
            });
        });
        let (address, stop, thread) = (address.recv().unwrap(), Some(stop), Some(thread));
        Self { address, model, server, stop, thread }
    }

    /// A connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes and reads all that comes.
    pub fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes); // the server may have heard enough
        Reply::read(&mut stream)
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.raw(&request(method, path, headers, body))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_with(path, &[], body)
    }

    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        let headers = [&[("content-type", "application/json")], headers].concat();
        self.send("POST", path, &headers, body.to_string().as_bytes())
    }

    /// Sends a request for a stream, and gives the connection when the first bytes of the answer are there.
    pub fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        let json = [("content-type", "application/json")];
        stream.write_all(&request("POST", path, &json, body.to_string().as_bytes())).unwrap();
        wait_for("an answer", || {
            let mut bytes = [0; 4096];
            let read = stream.peek(&mut bytes).unwrap();
            bytes[..read].windows(5).any(|part| part == b"data:")
        });
        stream
    }

    /// Asks it to end.
    pub fn stop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
    }

    /// Waits for its end.
    pub fn join(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    /// Waits until the engine has nothing to do.
    pub fn wait_until_idle(&self) {
        wait_for("an idle engine", || {
            let stats = self.model.stats();
            stats.running + stats.waiting == 0
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if !std::thread::panicking()
            && let Some(thread) = self.thread.take()
        {
            thread.join().unwrap();
        }
    }
}

#[track_caller]
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "no {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A request after which the connection is closed.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    if !body.is_empty() {
        head += &format!("content-length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Reply {
    /// Reads until the connection is closed.
    pub fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        let mut part = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut part) {
            bytes.extend_from_slice(&part[..read]);
        }
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).unwrap_or("0").parse().unwrap();
        let head = head.to_ascii_lowercase();
        let body = match head.contains("transfer-encoding: chunked") {
            true => unchunk(body),
            false => body.to_owned(),
        };
        Self { status, head, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The events of a stream, without the last, which is `[DONE]`.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> =
            self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{self:?}");
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// Status, code and param of an error object, which has all four fields.
    #[track_caller]
    pub fn error(&self) -> (u16, String, Option<String>) {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("{self:?}"));
        let mut names: Vec<_> = error.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["code", "message", "param", "type"]);
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(self.header("content-type"), Some("application/json"));
        let param = error["param"].as_str().map(str::to_owned);
        (self.status, error["code"].as_str().unwrap().to_owned(), param)
    }
}

fn unchunk(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let Some(part) = rest.get(..size) else { break };
        whole.push_str(part);
        text = rest[size..].trim_start_matches("\r\n");
    }
    whole
}
