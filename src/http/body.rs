//! Reading JSON bodies: bounded, and with an error that says what is wrong.

use actix_web::web::Payload;
use bytes::Bytes;

use crate::error::{ErrorCode, Failure};

/// The largest body a command may have, in bytes. The API's own limit is about 100 kB (PROTOCOL.md 1).
pub const LIMIT: usize = 1 << 20;

/// Reads a body as JSON; an empty one is `null`.
pub async fn json(payload: Payload) -> Result<serde_json::Value, Failure> {
    let bytes = bytes(payload).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(serde_json::Value::Null);
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(ErrorCode::BadRequest, format!("the body is not valid JSON: {error}")))
}

async fn bytes(payload: Payload) -> Result<Bytes, Failure> {
    match payload.to_bytes_limited(LIMIT).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(Failure::new(ErrorCode::BadRequest, format!("the body could not be read: {error}"))),
        Err(_) => Err(Failure::new(ErrorCode::BadRequest, format!("the body is larger than {LIMIT} bytes"))),
    }
}
