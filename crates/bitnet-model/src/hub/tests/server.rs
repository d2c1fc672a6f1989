//! A hub on 127.0.0.1 that does what the real one does, and on demand what it should not.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
};

use ring::digest;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub has and how it misbehaves.
#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Every request: method, path, range and authorization.
    pub log: Vec<String>,
    /// Bytes after which a body breaks off.
    pub cut: Option<usize>,
    /// Sends whole files whatever range is asked for.
    pub ignores_ranges: bool,
    /// Added to every announced size of a large file.
    pub size_lie: i64,
    /// Announced instead of the hash of a large file.
    pub hash_lie: Option<String>,
    /// Requests that get this status first.
    pub failing: (usize, u16),
}

pub struct Server {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start(files: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.into_iter().map(|(name, data)| (name.to_owned(), data)).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let (shared, base) = (state.clone(), endpoint.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(&stream, &mut shared.lock().unwrap(), &base); // the client may have gone
            }
        });
        Self { endpoint, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many requests had this text in them.
    pub fn requests(&self, text: &str) -> usize {
        self.state().log.iter().filter(|line| line.contains(text)).count()
    }
}

struct Asked {
    method: String,
    path: String,
    from: Option<usize>,
}

fn read(stream: &TcpStream, state: &mut State) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned())))
        .collect();
    let header = |name: &str| headers.get(name).map_or("-", String::as_str);
    state.log.push(format!("{method} {path} {} {}", header("range"), header("authorization")));
    let from = header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
    Some(Asked { method, path, from: from.and_then(|from| from.parse().ok()) })
}

fn answer(mut stream: &TcpStream, state: &mut State, base: &str) -> std::io::Result<()> {
    let Some(asked) = read(stream, state) else { return Ok(()) };
    let mut reply = |status: &str, headers: &[(&str, String)], body: &[u8], cut: Option<usize>| {
        write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\n")?;
        if !headers.iter().any(|(name, _)| *name == "content-length") {
            write!(stream, "content-length: {}\r\n", body.len())?;
        }
        headers.iter().try_for_each(|(name, value)| write!(stream, "{name}: {value}\r\n"))?;
        write!(stream, "\r\n")?;
        let sent =
            if asked.method == "HEAD" { 0 } else { cut.unwrap_or(usize::MAX).min(body.len()) };
        stream.write_all(&body[..sent])
    };
    if state.failing.0 > 0 {
        state.failing.0 -= 1;
        return reply(
            &format!("{} No", state.failing.1),
            &[("x-error-code", "Why".into())],
            b"",
            None,
        );
    }
    if asked.path == "/api/models/owner/name/revision/main" {
        let files: Vec<_> =
            state.files.keys().map(|file| serde_json::json!({ "rfilename": file })).collect();
        let json = serde_json::json!({ "sha": COMMIT, "siblings": files }).to_string();
        return reply("200 OK", &[], json.as_bytes(), None);
    }
    let at = |prefix: &str| {
        asked.path.strip_prefix(prefix).and_then(|file| state.files.get_key_value(file))
    };
    if let Some((file, data)) = at(&format!("/owner/name/resolve/{COMMIT}/")) {
        if data.len() < 500 {
            let to = format!("/api/resolve-cache/{file}");
            return reply("307 Temporary Redirect", &[("location", to)], b"", None);
        }
        let etag = state.hash_lie.clone().unwrap_or_else(|| hex(&digest::SHA256, &[data]));
        let store = base.replace("127.0.0.1", "localhost"); // another host by its name
        let headers = [
            ("location", format!("{store}/store/{file}")),
            ("x-linked-etag", format!("\"{etag}\"")),
            ("x-linked-size", (data.len() as i64 + state.size_lie).to_string()),
        ];
        return reply("302 Found", &headers, b"", None);
    }
    if let Some((_, data)) = at("/api/resolve-cache/") {
        let head = format!("blob {}\0", data.len());
        let etag = hex(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[head.as_bytes(), data]);
        return reply("200 OK", &[("etag", format!("W/\"{etag}\""))], data, None);
    }
    match (at("/store/"), asked.from) {
        (Some((_, data)), Some(from)) if !state.ignores_ranges && from < data.len() => {
            let range = format!("bytes {from}-{}/{}", data.len() - 1, data.len());
            reply("206 Partial Content", &[("content-range", range)], &data[from..], state.cut)
        }
        (Some((_, data)), _) => reply("200 OK", &[], data, state.cut),
        (None, _) => reply("404 Not Found", &[("x-error-code", "RepoNotFound".into())], b"", None),
    }
}

fn hex(algorithm: &'static digest::Algorithm, parts: &[&[u8]]) -> String {
    let mut context = digest::Context::new(algorithm);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
