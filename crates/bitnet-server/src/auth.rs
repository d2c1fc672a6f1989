//! API keys: who may ask, and in whose name.

use std::hint::black_box;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};

use crate::error::ApiError;

/// A key, of which only the SHA-256 is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    digest: [u8; 32],
    queue: Option<Arc<str>>,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl ApiKey {
    /// A key.
    pub fn new(key: &str) -> Self {
        Self { digest: digest(key), queue: None }
    }

    /// Has the requests that come with it wait in this queue of the server.
    pub fn with_queue(self, queue: &str) -> Self {
        Self { queue: Some(queue.into()), ..self }
    }

    /// The queue, if it has one.
    pub fn queue(&self) -> Option<&str> {
        self.queue.as_deref()
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Which of the keys it has; none where there are no keys.
    key: Option<usize>,
    /// The queue of this key.
    pub queue: Option<Arc<str>>,
}

impl Client {
    /// Who sends these headers.
    pub fn identify(keys: &[ApiKey], headers: &HeaderMap) -> Result<Self, ApiError> {
        if keys.is_empty() {
            return Ok(Self::default());
        }
        let given = given(headers).ok_or_else(|| ApiError::key(false))?;
        let digest = digest(given);
        // All keys are compared in full, so that the time taken says nothing about any of them.
        let found = keys.iter().enumerate().fold(None, |found, (index, key)| {
            if equal(&key.digest, &digest) { Some(index) } else { found }
        });
        let key = found.ok_or_else(|| ApiError::key(true))?;
        Ok(Self { key: Some(key), queue: keys[key].queue.clone() })
    }

    /// The salt of its prompts: with keys, nobody finds out from the time of an answer what somebody else has asked.
    pub fn salt(&self, own: Option<&str>) -> Option<String> {
        match (self.key, own) {
            (None, own) => own.map(str::to_owned),
            (Some(key), own) => Some(format!("{key}:{}", own.unwrap_or_default())),
        }
    }
}

fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    black_box(a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b))) == 0
}

/// OpenAI's header, or Anthropic's.
fn given(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text(header::AUTHORIZATION).and_then(|value: &str| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [ApiKey; 2] {
        [ApiKey::new("one"), ApiKey::new("two").with_queue("jobs")]
    }

    #[track_caller]
    fn check(name: &'static str, value: &str, expected: Result<Client, ApiError>) {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        assert_eq!(Client::identify(&keys(), &headers), expected);
    }

    #[test]
    fn a_key_is_recognised_in_either_header() {
        let two = Client { key: Some(1), queue: Some("jobs".into()) };
        check("authorization", "Bearer one", Ok(Client { key: Some(0), queue: None }));
        check("authorization", "bearer two", Ok(two.clone()));
        check("x-api-key", "two", Ok(two));
    }

    #[test]
    fn others_are_refused() {
        for value in ["Bearer on", "Bearer onee", "Bearer ", "Bearer One"] {
            check("authorization", value, Err(ApiError::key(true)));
        }
        check("authorization", "Basic one", Err(ApiError::key(false)));
        check("x-other", "one", Err(ApiError::key(false)));
    }

    #[test]
    fn without_keys_everybody_may_and_shares_what_is_cached() {
        let client = Client::identify(&[], &HeaderMap::new()).unwrap();
        assert_eq!((client.salt(None), client.salt(Some("a"))), (None, Some("a".to_owned())));
    }

    #[test]
    fn clients_with_keys_share_nothing() {
        let client = |key| Client { key: Some(key), queue: None };
        assert_ne!(client(0).salt(Some("a")), client(1).salt(Some("a")));
        assert_ne!(client(0).salt(Some("a")), client(0).salt(None));
    }
}
