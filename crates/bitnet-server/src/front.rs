//! What all paths have in common: request ids, keys, origins, the end of the server, and the access log.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};

use crate::auth::Client;
use crate::cors;
use crate::error::ApiError;
use crate::generate::unique;
use crate::routes::{PROBES, counted_as};
use crate::state::{App, UnderWay};

/// By which a request is found again in the logs of all who handled it.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of a request id that is taken over.
const ID_BYTES: usize = 128;

/// Lets a request through, or not.
pub async fn front(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let mut entry = Entry::new(&request, &id);
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match admit(&app, &mut request) {
        Ok(Admitted::Preflight) => cors::preflight(),
        Ok(Admitted::UnderWay(under_way)) => {
            let response = next.run(request).await;
            entry.under_way = under_way;
            response
        }
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    cors::allow(&app.config.cors_origins, origin.as_ref(), headers);
    headers.insert(REQUEST_ID, id);
    if app.drain.begun() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    entry.status = response.status();
    app.counts.count(counted_as(&entry.path), entry.status.as_u16());
    response.map(|body| Body::new(Logged { body, entry }))
}

enum Admitted {
    /// A browser's question whether it may ask.
    Preflight,
    /// A request, and its place among those under way if it has one.
    UnderWay(Option<UnderWay>),
}

fn admit(app: &App, request: &mut Request) -> Result<Admitted, ApiError> {
    if cors::is_preflight(request) && !app.config.cors_origins.is_empty() {
        return Ok(Admitted::Preflight);
    }
    if PROBES.contains(&request.uri().path()) {
        return Ok(Admitted::UnderWay(None));
    }
    let client = Client::identify(&app.config.api_keys, request.headers())?;
    request.extensions_mut().insert(client);
    let asks = *request.method() == Method::POST;
    Ok(Admitted::UnderWay(if asks { Some(app.drain.enter()?) } else { None }))
}

/// The client's own id, if it has a good one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let good = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    let own = headers.get(REQUEST_ID).filter(good).cloned();
    own.unwrap_or_else(|| {
        let id = format!("req-{}", unique());
        HeaderValue::from_str(&id).expect("digits and letters are a header")
    })
}

/// A line of the access log, written when the answer has gone out, or its reader has. It has no prompts and no answers.
struct Entry {
    method: Method,
    path: String,
    id: HeaderValue,
    status: StatusCode,
    begin: Instant,
    bytes: u64,
    complete: bool,
    under_way: Option<UnderWay>,
}

impl Entry {
    fn new(request: &Request, id: &HeaderValue) -> Self {
        Self {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            id: id.clone(),
            status: StatusCode::OK,
            begin: Instant::now(),
            bytes: 0,
            complete: false,
            under_way: None,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        tracing::info!(
            target: "bitnet_server::access",
            method = %self.method,
            path = self.path,
            status = self.status.as_u16(),
            ms = self.begin.elapsed().as_secs_f64() * 1e3,
            bytes = self.bytes,
            complete = self.complete,
            id = ?self.id,
            "request"
        );
    }
}

/// A body that is in the log when it ends, and under way until then.
struct Logged {
    body: Body,
    entry: Entry,
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                self.entry.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.entry.complete = self.body.is_end_stream();
            }
            Poll::Ready(None) => self.entry.complete = true,
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_request_id_is_taken_over() {
        let id = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
            request_id(&headers)
        };
        assert_eq!(id(b"trace-7"), "trace-7");
        for bad in [b"".as_slice(), b"two words", b"\xff", &[b'a'; 129]] {
            assert!(id(bad).to_str().unwrap().starts_with("req-"), "{bad:?}");
        }
    }
}
