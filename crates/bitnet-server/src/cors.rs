//! Which web pages may read answers: none, unless the server is told so.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;

/// Whether a browser asks if it may ask.
pub fn is_preflight(request: &Request) -> bool {
    *request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to that, but for the headers of [`allow`].
pub fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "*, authorization"),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Tells the browser that a page of this origin may read the answer, if it may.
pub fn allow(origins: &[String], origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    if origins.is_empty() {
        return;
    }
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let Some(origin) = origin else { return };
    if origins.iter().any(|known| known == "*" || known.as_bytes() == origin.as_bytes()) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        let exposed = HeaderValue::from_static("x-request-id, retry-after");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(origins: &[&str], origin: &'static str, expected: Option<&str>) {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let mut headers = HeaderMap::new();
        allow(&origins, Some(&HeaderValue::from_static(origin)), &mut headers);
        let found = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        assert_eq!(found.and_then(|value| value.to_str().ok()), expected);
    }

    #[test]
    fn pages_of_known_origins_may_read_answers() {
        check(&[], "https://a.org", None);
        check(&["https://a.org", "https://b.org"], "https://b.org", Some("https://b.org"));
        check(&["https://a.org"], "https://a.org.evil", None);
        check(&["*"], "https://b.org", Some("https://b.org"));
    }
}
