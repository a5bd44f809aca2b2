//! From failure to HTTP answer: the one place that knows statuses, and the one shape of error bodies.

use actix_web::http::StatusCode;
use actix_web::http::header::RETRY_AFTER;
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use utoipa::ToSchema;

use super::front::Answer;
use crate::error::{ErrorCode, Failure};

/// Seconds after which a busy runner may be asked again.
const RETRY_SECONDS: &str = "2";

/// Body of every error answer (PROTOCOL.md 6).
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// The HTTP status.
    pub status_code: u16,
    /// What was tried, on which object, why it failed, what to do.
    pub message: String,
    /// Kind of failure, in upper case.
    #[schema(example = "NOT_FOUND")]
    pub code: String,
    /// ISO 8601, UTC.
    pub timestamp: String,
    /// The request's path.
    pub path: String,
    /// The request's method.
    pub method: String,
}

fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Conflict | ErrorCode::Interrupted => StatusCode::CONFLICT,
        ErrorCode::UnprocessableEntity => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::Busy => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn name(code: ErrorCode) -> String {
    match serde_json::to_value(code) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "INTERNAL".to_owned(),
    }
}

impl ErrorBody {
    fn new(status: u16, code: &str, message: String, method: &str, path: &str) -> Self {
        let (code, path, method) = (code.to_owned(), path.to_owned(), method.to_owned());
        Self { status_code: status, message, code, timestamp: now(), path, method }
    }
}

/// The answer for a failure.
pub fn answer(request: &HttpRequest, failure: &Failure) -> HttpResponse {
    with_status(request, status(failure.code), &name(failure.code), failure.message.clone())
}

/// An answer with a status that no failure of an operation has (405, 413).
pub fn with_status(request: &HttpRequest, status: StatusCode, code: &str, message: String) -> HttpResponse {
    let body = ErrorBody::new(status.as_u16(), code, message, request.method().as_str(), request.path());
    let mut response = HttpResponse::build(status);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.insert_header((RETRY_AFTER, RETRY_SECONDS));
    }
    response.json(body)
}

/// What is answered before or instead of the actix application, in the same shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Kind of failure, in upper case.
    pub code: String,
    /// What was tried, on which object, why it failed, what to do.
    pub message: String,
}

impl Problem {
    /// A problem of a kind that no failure of an operation has.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    /// The answer to a request with this method and path.
    pub fn answer(self, method: &str, path: &str) -> hyper::Response<Answer> {
        let status = self.status;
        let body = ErrorBody::new(status, &self.code, self.message, method, path);
        // These fields always have a JSON form.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut builder = hyper::Response::builder().status(status).header("content-type", "application/json");
        if status == 503 {
            builder = builder.header("retry-after", RETRY_SECONDS);
        }
        if status == 401 {
            builder = builder.header("www-authenticate", "Bearer");
        }
        builder.body(Answer::whole(body)).unwrap_or_else(|_| hyper::Response::new(Answer::whole("")))
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self { status: status(failure.code).as_u16(), code: name(failure.code), message: failure.message }
    }
}

fn now() -> String {
    use time::format_description::well_known::Rfc3339;
    // Formatting a four-digit year cannot fail; an empty text would still be an honest "unknown".
    time::OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}
