//! From failure to HTTP answer: the one place that knows statuses, and the one shape of error bodies.

use actix_web::http::StatusCode;
use actix_web::http::header::RETRY_AFTER;
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use utoipa::ToSchema;

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

/// The answer for a failure.
pub fn answer(request: &HttpRequest, failure: &Failure) -> HttpResponse {
    with_status(request, status(failure.code), &name(failure.code), failure.message.clone())
}

/// An answer with a status that no failure of an operation has (405, 413, 502).
pub fn with_status(request: &HttpRequest, status: StatusCode, code: &str, message: String) -> HttpResponse {
    let body = ErrorBody {
        status_code: status.as_u16(),
        message,
        code: code.to_owned(),
        timestamp: now(),
        path: request.path().to_owned(),
        method: request.method().to_string(),
    };
    let mut response = HttpResponse::build(status);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.insert_header((RETRY_AFTER, RETRY_SECONDS));
    }
    response.json(body)
}

fn now() -> String {
    use time::format_description::well_known::Rfc3339;
    // Formatting a four-digit year cannot fail; an empty text would still be an honest "unknown".
    time::OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}
