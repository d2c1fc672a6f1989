//! A server for one page: the figures, over HTTP/1.1, one request for each connection.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::MetricsCollector;

/// How long a client may take for its request, and again for the answer. Others wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes that a request may have.
const MOST: usize = 16 << 10;

/// A thread that serves until this is dropped.
pub(super) struct Endpoint {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Serves what `text` gives.
    pub fn open(address: &str, text: impl Fn() -> String + Send + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let work = move || {
            for client in listener.incoming() {
                if end.load(Ordering::Acquire) {
                    return;
                }
                match client {
                    // A client that goes away is none of our troubles.
                    Ok(client) => drop(answer(client, &text)),
                    Err(error) => {
                        tracing::debug!(%error, "no connection to the metrics");
                        std::thread::sleep(Duration::from_millis(50)); // such as no more files
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("bitnet-metrics".into()).spawn(work)?;
        tracing::info!(%address, "metrics are served at /metrics");
        Ok(Self { address, ended, thread: Some(thread) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        let mut address = self.address;
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        // Wakes the thread. Where that cannot be done, it ends with the next client.
        let woken = TcpStream::connect_timeout(&address, PATIENCE).is_ok();
        if let Some(thread) = self.thread.take()
            && woken
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join(); // it has nothing to tell
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.address).finish()
    }
}

fn answer(mut client: TcpStream, text: &dyn Fn() -> String) -> io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    let head = head(&mut client)?;
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = path.split('?').next().unwrap_or("");
    let (status, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => ("200 OK", text()),
        ("GET" | "HEAD", _) => ("404 Not Found", "the figures are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "there is only GET /metrics\n".to_owned()),
    };
    let kind = MetricsCollector::MEDIA_TYPE;
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nAllow: GET, HEAD\r\nConnection: close\r\n\r\n"
    );
    client.write_all(head.as_bytes())?;
    if method != "HEAD" {
        client.write_all(body.as_bytes())?;
    }
    client.flush()
}

/// The first line of a request whose head is complete.
fn head(client: &mut TcpStream) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let (mut head, mut part) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > MOST {
            return Err(io::ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        match client.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => head.extend(&part[..read]),
        }
    }
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    Ok(String::from_utf8_lossy(line).into_owned())
}
