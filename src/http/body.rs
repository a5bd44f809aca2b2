//! Reading JSON bodies: bounded, and with an error that says what is wrong.

use actix_web::web::Payload;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::error::{ErrorCode, Failure};

/// The largest body a command may have, in bytes. The API's own limit is about 100 kB (PROTOCOL.md 1).
pub const LIMIT: usize = 1 << 20;

/// Reads a body that must be a JSON object; none at all, and `null`, are an object without fields.
pub async fn object(payload: Payload) -> Result<Map<String, Value>, Failure> {
    let bytes = bytes(payload).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err(bad("the body is JSON, but not an object; expected fields in { }".to_owned())),
        Err(error) => Err(bad(format!("the body is not valid JSON: {error}"))),
    }
}

async fn bytes(payload: Payload) -> Result<Bytes, Failure> {
    match payload.to_bytes_limited(LIMIT).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(bad(format!("the body could not be read: {error}"))),
        Err(_) => Err(bad(format!("the body is larger than {LIMIT} bytes"))),
    }
}

fn bad(message: String) -> Failure {
    Failure::new(ErrorCode::BadRequest, message)
}
