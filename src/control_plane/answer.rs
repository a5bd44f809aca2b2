//! From an HTTP answer to a value or an error: which status means what, and what is not the API at all.

use std::time::{Duration, SystemTime};

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HttpDate};
use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::error::{Cause, Error};

/// Longest pause taken from a Retry-After: an API that recovers sooner shall be noticed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);
/// Longest part of the API's words that is kept.
const MAX_WORDS: usize = 300;

/// Who is calling what; for the texts of errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    /// Method and path.
    pub(super) call: &'a str,
    /// The base URL.
    pub(super) base: &'a str,
    /// True when the path has no id in it, so that 404 cannot mean a missing object.
    pub(super) fixed: bool,
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// The answer itself when it says success, else the error that its status stands for.
    pub(super) fn success(self, target: Target<'_>) -> Result<Self, Error> {
        if self.status.is_success() {
            return Ok(self);
        }
        let (call, message, status) = (target.call.to_owned(), self.message(), self.status.as_u16());
        let retry_after = retry_after(&self.headers, SystemTime::now());
        Err(match status {
            401 => Error::Unauthorized { call, message },
            403 => Error::Forbidden { call, message },
            404 if target.fixed || self.is_html() => target.not_the_api(format!("it answered 404 ({message})")),
            404 => Error::NotFound { call, message },
            409 => Error::Conflict { call, message },
            429 => Error::Limited { call, message, retry_after },
            // An intermediary's 408 says as much about the request as a 504.
            408 | 500..=599 => Error::Server { call, status, message, retry_after },
            300..=399 => target.not_the_api(format!("it redirects to {}", self.location())),
            _ => Error::Rejected { call, status, message },
        })
    }

    /// Reads the body of a success.
    pub(super) fn json<T: DeserializeOwned>(&self, target: Target<'_>) -> Result<T, Error> {
        // First whether it is JSON at all: a page that begins like a number is not "the wrong JSON".
        self.checked::<IgnoredAny>(target)?;
        self.checked(target)
    }

    /// Accepts a success whose body does not matter, provided that it came from the API: a dashboard's page
    /// must not pass for a delivered report.
    pub(super) fn acknowledged(&self, target: Target<'_>) -> Result<(), Error> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        self.checked::<IgnoredAny>(target).map(drop)
    }

    fn checked<T: DeserializeOwned>(&self, target: Target<'_>) -> Result<T, Error> {
        let wrong = |error: serde_json::Error| {
            if error.is_data() || (self.declares("json") && !self.is_html()) {
                return Error::Garbage { call: target.call.to_owned(), source: Cause(error.to_string()) };
            }
            let kind = if self.is_html() { "an HTML page" } else { "something that is not JSON" };
            target.not_the_api(format!("it answered {} with {kind}", self.status.as_u16()))
        };
        serde_json::from_slice(&self.body).map_err(wrong)
    }

    fn declares(&self, kind: &str) -> bool {
        let value = self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.to_ascii_lowercase().contains(kind))
    }

    fn is_html(&self) -> bool {
        self.declares("html") || self.body.trim_ascii_start().starts_with(b"<")
    }

    fn location(&self) -> String {
        let value = self.headers.get(header::LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()));
        one_line(&value.unwrap_or_default())
    }

    /// The `message` of the API's error object (PROTOCOL.md 1), a text or a list of them, else the status.
    fn message(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let words = match &body["message"] {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(list) => {
                list.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join("; ")
            }
            _ => String::new(),
        };
        if words.is_empty() { self.status.to_string() } else { one_line(&words) }
    }
}

impl Target<'_> {
    fn not_the_api(self, found: String) -> Error {
        Error::WrongBaseUrl { call: self.call.to_owned(), base: self.base.to_owned(), found }
    }
}

/// What the server asks to wait. The API names some of these headers with a suffix (`Retry-After-...`), one
/// for each limit; the longest counts.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let named = headers.iter().filter(|(name, _)| name.as_str().starts_with("retry-after"));
    let pauses = named.filter_map(|(_, value)| pause(value.to_str().ok()?, now));
    pauses.max().map(|pause| pause.min(MAX_RETRY_AFTER))
}

/// Seconds, or a date.
fn pause(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date: SystemTime = value.trim().parse::<HttpDate>().ok()?.into();
    Some(date.duration_since(now).unwrap_or_default())
}

/// Foreign words fit for a log line.
fn one_line(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Named = (&'static str, &'static str);

    fn headers(list: &[Named]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(header::HeaderName::from_static(name), header::HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let table: [(&[Named], Option<u64>); 6] = [
            (&[], None),
            (&[("retry-after", "12")], Some(12)),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], Some(7)),
            (&[("retry-after", "3"), ("retry-after-failed-auth", "40")], Some(40)),
            (&[("retry-after", "999999999")], Some(MAX_RETRY_AFTER.as_secs())),
        ];
        for (list, expected) in table {
            assert_eq!(retry_after(&headers(list), now), expected.map(Duration::from_secs), "{list:?}");
        }
    }

    #[test]
    fn foreign_words_become_one_short_line() {
        let answer = |body: &'static str| Answer {
            status: StatusCode::BAD_REQUEST,
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
        };
        assert_eq!(answer(r#"{"message":["a\nb","c"]}"#).message(), "a b; c");
        assert_eq!(answer("<html>").message(), "400 Bad Request");
        assert!(one_line(&"x".repeat(5000)).len() == MAX_WORDS);
    }
}
