//! Forms of answers: JSON, the API's error body, and the dashboard's HTML (PROTOCOL.md 1).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::http::StatusCode;
use actix_web::http::header::{ContentType, HeaderName, RETRY_AFTER};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Value, json};

use crate::clock::Timestamp;
use crate::state::Core;

/// Why a request fails: status and message of the error body.
#[derive(Debug)]
pub(crate) struct Failure {
    pub status: u16,
    pub message: String,
    /// Limit and seconds for the headers of an answer to a blocked address.
    throttle: Option<(u32, u64)>,
}

impl Failure {
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), throttle: None }
    }

    /// The answer after too many failed logins.
    pub fn throttled(limit: u32, left: Duration) -> Self {
        let seconds = left.as_secs_f64().ceil().max(1.0) as u64;
        let message = "ThrottlerException: Too Many Requests".to_owned();
        Self { status: 429, message, throttle: Some((limit, seconds)) }
    }
}

/// A JSON answer.
pub(crate) fn json_reply(status: u16, body: &Value) -> HttpResponse {
    HttpResponse::build(code(status)).content_type(ContentType::json()).body(body.to_string())
}

/// An answer without a body.
pub(crate) fn empty_reply(status: u16) -> HttpResponse {
    HttpResponse::build(code(status)).finish()
}

fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The API's error body.
pub(crate) fn error_reply(req: &HttpRequest, failure: &Failure) -> HttpResponse {
    let status = code(failure.status);
    let body = json!({
        "path": req.uri().to_string(),
        "timestamp": Timestamp::now(),
        "statusCode": status.as_u16(),
        "error": status.canonical_reason().unwrap_or("Error"),
        "message": failure.message,
    });
    let mut reply = json_reply(status.as_u16(), &body);
    if let Some((limit, seconds)) = failure.throttle {
        add_throttle_headers(&mut reply, limit, seconds);
    }
    reply
}

fn add_throttle_headers(reply: &mut HttpResponse, limit: u32, seconds: u64) {
    let headers = reply.headers_mut();
    headers.insert(RETRY_AFTER, seconds.into());
    for (name, value) in [
        ("x-ratelimit-limit-failed-auth", u64::from(limit)),
        ("x-ratelimit-remaining-failed-auth", 0),
        ("x-ratelimit-reset-failed-auth", seconds),
    ] {
        headers.insert(HeaderName::from_static(name), value.into());
    }
}

/// What every path outside the API shows.
pub(crate) fn dashboard_reply() -> HttpResponse {
    HttpResponse::Ok()
        .content_type(ContentType::html())
        .body("<!doctype html><html><head><title>Daytona</title></head><body><div id=\"root\"></div></body></html>")
}

/// A poll answer that notes the moment at which its last byte is handed to the connection's write buffer, which is
/// flushed in the same turn.
pub(crate) fn poll_reply(core: &Arc<Core>, ids: Vec<String>, body: &Value) -> HttpResponse {
    let stamped = Stamped { bytes: Some(Bytes::from(body.to_string())), core: Arc::clone(core), ids };
    HttpResponse::Ok().content_type(ContentType::json()).body(BoxBody::new(stamped))
}

struct Stamped {
    bytes: Option<Bytes>,
    core: Arc<Core>,
    ids: Vec<String>,
}

impl MessageBody for Stamped {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Poll::Ready(self.bytes.take().map(Ok))
    }
}

impl Drop for Stamped {
    fn drop(&mut self) {
        // A body that was never asked for was not written.
        if self.bytes.is_none() && !self.ids.is_empty() {
            self.core.answered(&self.ids);
        }
    }
}
