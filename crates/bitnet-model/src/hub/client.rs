//! The hub's HTTP interface: what a repository has, what a file should be, and its bytes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::Path,
    time::{Duration, Instant},
};

use ring::digest;
use serde_json::Value;
use ureq::{
    Agent, Body, Proxy,
    config::RedirectAuthHeaders,
    http::{HeaderMap, Method, Request, Response},
};

use super::{
    HubConfig, HubError, HubEvent, HubId, HubProgress,
    id::{check_file, is_commit, is_hex, percent_encoded},
};

/// How often in a row a request may fail in passing.
const ATTEMPTS: u32 = 5;

/// Without a byte for this long a connection is given up.
const STALLED: Duration = Duration::from_secs(30);

/// Longest list of files that is read.
const MAX_LISTING: u64 = 16 << 20;

/// Redirects that are followed by hand.
const MAX_REDIRECTS: usize = 5;

pub struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    retry_delay: Duration,
    patience: Duration,
    pub tell: Tell,
}

/// Who is told what happens.
pub type Tell = Box<dyn Fn(HubEvent<'_>) + Send + Sync>;

/// What a repository has.
pub struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// What the hub says of a file.
#[derive(Debug)]
pub struct Remote {
    url: String,
    name: String,
    /// The contents' hash: SHA-256 for large files, else git's SHA-1 of a blob.
    pub etag: String,
    size: Option<u64>,
}

impl Client {
    pub fn new(config: &HubConfig) -> Result<Self, HubError> {
        let proxy = match &config.proxy {
            None => None,
            Some(given) => {
                Some(Proxy::new(given).map_err(|_| HubError::Proxy { given: given.clone() })?)
            }
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(config.endpoint.starts_with("https:"))
            .proxy(proxy)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(config.patience))
            .timeout_recv_response(Some(config.patience))
            .timeout_per_read(Some(STALLED))
            .user_agent(concat!("bitnet/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Ok(Self {
            agent,
            endpoint: config.endpoint.trim_end_matches('/').into(),
            token: config.token.clone(),
            retry_delay: config.retry_delay,
            patience: config.patience,
            tell: Box::new(|_| ()),
        })
    }

    /// The commit of a revision and its files.
    pub fn listing(&self, id: &HubId) -> Result<Listing, HubError> {
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, id.repo(), id.revision);
        (self.tell)(HubEvent::Asking { url: &url });
        let text = self.retry(&mut || {
            let mut text = Vec::new();
            let body = self.send(&Method::GET, &url, None, true)?.into_body();
            let read = body.into_reader().take(MAX_LISTING + 1).read_to_end(&mut text);
            read.map(|_| text).map_err(|source| HubError::Connection { url: url.clone(), source })
        })?;
        let wrong = |found: String, expected: &str| HubError::Answer {
            url: url.clone(),
            found,
            expected: expected.into(),
        };
        if text.len() as u64 > MAX_LISTING {
            return Err(wrong(format!("more than {MAX_LISTING} bytes"), "a list of files"));
        }
        let json: Value =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string(), "JSON"))?;
        let commit = json.get("sha").and_then(Value::as_str).unwrap_or_default();
        if !is_commit(commit) {
            return Err(wrong(format!("the commit {commit:?}"), "40 hexadecimal digits as `sha`"));
        }
        let siblings = json.get("siblings").and_then(Value::as_array);
        let names = siblings.ok_or_else(|| wrong("no `siblings`".into(), "a list of files"))?;
        let name = |sibling: &Value| match sibling.get("rfilename").and_then(Value::as_str) {
            Some(name) => check_file(name)
                .map(|()| name.to_owned())
                .map_err(|problem| wrong(format!("the file name {name:?}"), problem)),
            None => Err(wrong("a file without `rfilename`".into(), "a list of files")),
        };
        let files = names.iter().map(name).collect::<Result<_, _>>()?;
        Ok(Listing { commit: commit.into(), files })
    }

    /// What a file is, without its contents.
    pub fn remote(&self, id: &HubId, commit: &str, file: &str) -> Result<Remote, HubError> {
        let path = format!("{}/resolve/{commit}/{}", id.repo(), percent_encoded(file));
        let url = format!("{}/{path}", self.endpoint);
        let headers = self.retry(&mut || self.head(&url))?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let etag = text("x-linked-etag").or(text("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !matches!(etag.len(), 40 | 64) || !is_hex(&etag) {
            let found = format!("the etag {etag:?}");
            let expected = "a hash of 40 or 64 hexadecimal digits".into();
            return Err(HubError::Answer { url, found, expected });
        }
        let size = text("x-linked-size").or(text("content-length"));
        let size = size.and_then(|size| size.parse().ok());
        Ok(Remote { url, name: file.into(), etag, size })
    }

    /// The headers of a file. Redirects within the hub are followed; one to a store of large files has their headers itself.
    fn head(&self, url: &str) -> Result<HeaderMap, HubError> {
        let mut current = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let response = self.send(&Method::HEAD, &current, None, false)?;
            let location = response.headers().get("location").and_then(|to| to.to_str().ok());
            match location.filter(|_| response.status().is_redirection()) {
                Some(path) if path.starts_with('/') && !path.starts_with("//") => {
                    current = format!("{}{path}", origin(&self.endpoint));
                }
                _ => return Ok(response.into_parts().0.headers),
            }
        }
        let found = format!("more than {MAX_REDIRECTS} redirects");
        Err(HubError::Answer { url: url.into(), found, expected: "a file".into() })
    }

    /// One request. A status that is neither success nor (where it is not followed) a redirect is an error.
    fn send(
        &self,
        method: &Method,
        url: &str,
        from: Option<u64>,
        follow: bool,
    ) -> Result<Response<Body>, HubError> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let broken =
            |error: ureq::Error| HubError::Connection { url: url.into(), source: into_io(error) };
        let request = request.body(()).map_err(|error| broken(error.into()))?;
        let redirects = if follow { 10 } else { 0 };
        let request = self.agent.configure_request(request).max_redirects(redirects).build();
        let response = self.agent.run(request).map_err(broken)?;
        let status = response.status();
        if status.is_success() || status == 416 || (status.is_redirection() && !follow) {
            return Ok(response);
        }
        let reason = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        Err(HubError::Status {
            url: url.into(),
            status: status.as_u16(),
            reason: reason.map(Into::into),
        })
    }

    fn retry<T>(&self, attempt: &mut dyn FnMut() -> Result<T, HubError>) -> Result<T, HubError> {
        let begin = Instant::now();
        for failures in 0..ATTEMPTS - 1 {
            match attempt() {
                Err(error) if error.is_passing() && begin.elapsed() < self.patience => {
                    self.wait(failures, &error);
                }
                result => return result,
            }
        }
        attempt()
    }

    fn wait(&self, failures: u32, error: &HubError) {
        let wait = self.retry_delay * 2_u32.pow(failures);
        (self.tell)(HubEvent::Retrying { error, wait });
        std::thread::sleep(wait);
    }

    /// Downloads what is missing of a file and compares length and hash. Returns how many bytes came.
    pub fn fetch(
        &self,
        remote: &Remote,
        partial: &Path,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<u64, HubError> {
        let mut file = open(partial)?;
        let old = length(&file, partial)?;
        let (mut came, mut failures, mut furthest) = (0, 0, old);
        loop {
            match self.append(remote, &mut file, partial, &mut came, progress) {
                Ok(()) => break,
                Err(error) if error.is_passing() && failures + 1 < ATTEMPTS => {
                    self.wait(failures, &error);
                    // A server without ranges may send the same beginning for ever, which is no progress.
                    let reached = length(&file, partial)?;
                    failures = if reached > furthest { 0 } else { failures + 1 };
                    furthest = furthest.max(reached);
                }
                Err(error) => return Err(error),
            }
        }
        match check(remote, &mut file, partial) {
            Ok(()) => Ok(came),
            Err(error) => {
                drop(file);
                fs::remove_file(partial).map_err(HubError::io(partial))?;
                match error {
                    // What an earlier run left may have been damaged: once more, from the start.
                    HubError::Checksum { .. } if old > 0 => self.fetch(remote, partial, progress),
                    error => Err(error),
                }
            }
        }
    }

    /// Asks for the bytes from the end of `file` on and writes them.
    fn append(
        &self,
        remote: &Remote,
        file: &mut File,
        partial: &Path,
        came: &mut u64,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<(), HubError> {
        let mut at = length(file, partial)?;
        if remote.size == Some(at) && at > 0 {
            return Ok(());
        }
        if remote.size.is_some_and(|size| at > size) {
            at = restart(file, partial)?;
        }
        let response = self.send(&Method::GET, &remote.url, (at > 0).then_some(at), true)?;
        match response.status().as_u16() {
            206 if starts_at(response.headers(), at) => {}
            200 => at = restart(file, partial)?, // the whole file, whatever was asked for
            status => {
                restart(file, partial)?;
                let found = format!("status {status} and another range");
                let expected = format!("the bytes from {at} on");
                return Err(HubError::Answer { url: remote.url.clone(), found, expected });
            }
        }
        let announced = response.body().content_length().map(|rest| at + rest);
        if let (Some(expected), Some(found)) = (remote.size, announced)
            && expected != found
        {
            return Err(HubError::Size { file: remote.url.clone(), found, expected });
        }
        self.copy(remote, response.into_body(), file, partial, at, came, progress)
    }

    #[expect(clippy::too_many_arguments, reason = "the loop of `append`, taken out")]
    fn copy(
        &self,
        remote: &Remote,
        body: Body,
        file: &mut File,
        partial: &Path,
        mut at: u64,
        came: &mut u64,
        progress: &mut dyn FnMut(HubProgress<'_>),
    ) -> Result<(), HubError> {
        let broken = |source| HubError::Connection { url: remote.url.clone(), source };
        let (mut body, mut buffer) = (body.into_reader(), vec![0; 256 << 10]);
        file.seek(io::SeekFrom::Start(at)).map_err(HubError::io(partial))?;
        loop {
            progress(HubProgress { file: &remote.name, done: at, total: remote.size });
            let read = match body.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error)),
            };
            if read == 0 {
                break;
            }
            at += read as u64;
            *came += read as u64;
            if let Some(expected) = remote.size.filter(|&size| at > size) {
                let file = remote.url.clone();
                return Err(HubError::Size { file, found: at, expected });
            }
            file.write_all(&buffer[..read]).map_err(HubError::io(partial))?;
        }
        match remote.size {
            Some(size) if at < size => Err(broken(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(()),
        }
    }
}

/// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |colon| colon + 3);
    let end = url[host..].find('/').map_or(url.len(), |slash| host + slash);
    &url[..end]
}

fn starts_at(headers: &HeaderMap, at: u64) -> bool {
    let range = headers.get("content-range").and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {at}-")))
}

fn into_io(error: ureq::Error) -> io::Error {
    match error {
        ureq::Error::HostNotFound => io::Error::new(io::ErrorKind::NotFound, error),
        error => error.into_io(),
    }
}

fn open(partial: &Path) -> Result<File, HubError> {
    OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(partial)
        .map_err(HubError::io(partial))
}

fn length(file: &File, partial: &Path) -> Result<u64, HubError> {
    file.metadata().map(|metadata| metadata.len()).map_err(HubError::io(partial))
}

fn restart(file: &File, partial: &Path) -> Result<u64, HubError> {
    file.set_len(0).map(|()| 0).map_err(HubError::io(partial))
}

/// Compares a whole download with what was announced.
fn check(remote: &Remote, file: &mut File, partial: &Path) -> Result<(), HubError> {
    let found = length(file, partial)?;
    if let Some(expected) = remote.size.filter(|&size| size != found) {
        return Err(HubError::Size { file: remote.url.clone(), found, expected });
    }
    let (algorithm, name) = match remote.etag.len() {
        64 => (&digest::SHA256, "SHA-256"),
        _ => (&digest::SHA1_FOR_LEGACY_USE_ONLY, "SHA-1"),
    };
    let mut context = digest::Context::new(algorithm);
    if remote.etag.len() == 40 {
        context.update(format!("blob {found}\0").as_bytes()); // what git hashes
    }
    let mut buffer = vec![0; 1 << 20];
    file.rewind().map_err(HubError::io(partial))?;
    loop {
        match file.read(&mut buffer).map_err(HubError::io(partial))? {
            0 => break,
            read => context.update(&buffer[..read]),
        }
    }
    let digest = context.finish();
    let found: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == remote.etag {
        return Ok(());
    }
    let (file, expected) = (remote.url.clone(), remote.etag.clone());
    Err(HubError::Checksum { file, algorithm: name, found, expected })
}
