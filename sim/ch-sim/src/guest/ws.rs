//! WebSocket echo (RFC 6455).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::http::Head;

/// Appended to the client's key before hashing (RFC 6455, 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Longest frame that is echoed, in bytes.
const FRAME_LIMIT: usize = 16 << 20;

/// Answer that accepts a WebSocket.
pub fn accept(head: &Head) -> Vec<u8> {
    let key = head.header("sec-websocket-key").unwrap_or_default();
    let token = STANDARD.encode(Sha1::digest(format!("{key}{GUID}")));
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {token}\r\n\r\n"
    )
    .into_bytes()
}

/// What to do after a look at the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Echo {
    /// Bytes are missing.
    Wait,
    /// A frame to send.
    Send(Vec<u8>),
    /// A last frame to send before the connection ends.
    Close(Vec<u8>),
}

/// Takes one frame off the input and says how it is answered.
pub fn echo(input: &mut Vec<u8>) -> Echo {
    let Some((header, length)) = frame_length(input) else {
        return Echo::Wait;
    };
    if length > FRAME_LIMIT {
        return Echo::Close(frame(0x88, &1009u16.to_be_bytes()));
    }
    let masked = input[1] & 0x80 != 0;
    let start = header + if masked { 4 } else { 0 };
    if input.len() < start + length {
        return Echo::Wait;
    }
    let first = input[0];
    let mask: Vec<u8> = input[header..start].to_vec();
    let mut payload: Vec<u8> = input.drain(..start + length).skip(start).collect();
    for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    match first & 0x0f {
        0x8 => Echo::Close(frame(0x88, &payload)),
        0x9 => Echo::Send(frame(0x8a, &payload)),
        0xa => Echo::Send(Vec::new()),
        _ => Echo::Send(frame(first & 0x8f, &payload)),
    }
}

/// Bytes of the header without mask, and the payload's length.
fn frame_length(input: &[u8]) -> Option<(usize, usize)> {
    match input.get(1)? & 0x7f {
        126 => Some((4, usize::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?)))),
        127 => {
            let length = u64::from_be_bytes(input.get(2..10)?.try_into().ok()?);
            Some((10, usize::try_from(length).unwrap_or(usize::MAX)))
        }
        short => Some((2, usize::from(short))),
    }
}

/// An unmasked frame, as servers send it.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short), _) if short < 126 => bytes.push(short),
        (_, Ok(medium)) => {
            bytes.push(126);
            bytes.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            bytes.push(127);
            bytes.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::{Echo, accept, echo};
    use crate::guest::http::Head;

    #[test]
    fn the_key_is_answered_as_in_the_rfc() {
        let mut wire = b"GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".to_vec();
        let head = Head::take(&mut wire).unwrap().unwrap();
        let text = String::from_utf8(accept(&head)).unwrap();
        assert!(text.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{text}");
    }

    #[test]
    fn frames_come_back_unmasked() {
        let mut input = vec![0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1];
        assert_eq!(echo(&mut input), Echo::Wait);
        input.push(b'i' ^ 2);
        assert_eq!(echo(&mut input), Echo::Send(vec![0x81, 2, b'h', b'i']));
        assert!(input.is_empty());
        assert_eq!(echo(&mut vec![0x89, 0]), Echo::Send(vec![0x8a, 0]));
        assert_eq!(echo(&mut vec![0x88, 0]), Echo::Close(vec![0x88, 0]));
    }
}
