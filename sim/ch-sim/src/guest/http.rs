//! Requests to the guest's servers: head, framing of the body, answers.

/// Longest head in bytes.
const HEAD_LIMIT: usize = 64 << 10;

/// Head of a request.
#[derive(Debug, Clone)]
pub struct Head {
    pub method: String,
    /// Path and query, exactly as sent.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub keep_alive: bool,
}

/// How the body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
}

impl Head {
    /// Takes a head off the front of `input`. `Ok(None)` needs more bytes; `Err` is no HTTP.
    pub fn take(input: &mut Vec<u8>) -> Result<Option<Self>, ()> {
        let Some(end) = input.windows(4).position(|w| w == b"\r\n\r\n") else {
            return if input.len() > HEAD_LIMIT { Err(()) } else { Ok(None) };
        };
        let head: Vec<u8> = input.drain(..end + 4).collect();
        let text = String::from_utf8_lossy(&head[..end]).into_owned();
        let mut lines = text.split("\r\n");
        let mut first = lines.next().unwrap_or_default().splitn(3, ' ');
        let (Some(method), Some(target), Some(version)) = (first.next(), first.next(), first.next()) else {
            return Err(());
        };
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect();
        let mut head =
            Self { method: method.to_owned(), target: target.to_owned(), headers, keep_alive: version == "HTTP/1.1" };
        if let Some(connection) = head.header("connection") {
            let connection = connection.to_ascii_lowercase();
            head.keep_alive = !connection.contains("close") && version == "HTTP/1.1";
        }
        Ok(Some(head))
    }

    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter();
        let found = found.find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// How the body is delimited.
    pub fn framing(&self) -> Framing {
        let chunked = self.header("transfer-encoding").is_some_and(|v| v.contains("chunked"));
        if chunked {
            return Framing::Chunked;
        }
        let length = self.header("content-length").and_then(|v| v.parse().ok());
        Framing::Length(length.unwrap_or(0))
    }

    /// Path without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Query without the question mark.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// Decoded value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self.query().split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()?;
        Some(percent_decode(&value.replace('+', " ")))
    }

    /// Whether the client wants a WebSocket.
    pub fn wants_websocket(&self) -> bool {
        self.header("upgrade").is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
    }
}

/// Takes decoded body bytes off the input; `Ok(true)` when the body is complete.
pub struct BodyReader {
    framing: Framing,
    /// Bytes left in the body or the current chunk.
    left: u64,
    done: bool,
}

impl BodyReader {
    /// A reader for a body that starts at the next byte.
    pub fn new(framing: Framing) -> Self {
        let left = match framing {
            Framing::Length(length) => length,
            Framing::Chunked => 0,
        };
        Self { framing, left, done: framing == Framing::Length(0) }
    }

    /// Moves what is there of the body from `input` to `sink`.
    pub fn read(&mut self, input: &mut Vec<u8>, mut sink: impl FnMut(&[u8])) -> Result<bool, ()> {
        while !self.done {
            if self.left > 0 {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
                if count == 0 {
                    return Ok(false);
                }
                sink(&input[..count]);
                input.drain(..count);
                self.left -= count as u64;
                self.done = self.left == 0 && self.framing != Framing::Chunked;
            } else if !self.next_chunk(input)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn next_chunk(&mut self, input: &mut Vec<u8>) -> Result<bool, ()> {
        if input.starts_with(b"\r\n") {
            input.drain(..2);
        }
        let Some(end) = input.windows(2).position(|w| w == b"\r\n") else {
            return if input.len() > HEAD_LIMIT { Err(()) } else { Ok(false) };
        };
        let line = String::from_utf8_lossy(&input[..end]).into_owned();
        let size = line.split(';').next().unwrap_or_default().trim();
        self.left = u64::from_str_radix(size, 16).map_err(|_| ())?;
        if self.left > 0 {
            input.drain(..end + 2);
            return Ok(true);
        }
        // The last chunk ends with trailers and an empty line.
        let Some(last) = input.windows(4).position(|w| w == b"\r\n\r\n") else {
            return Ok(false);
        };
        input.drain(..last + 4);
        self.done = true;
        Ok(true)
    }
}

/// Bytes of a complete answer.
pub fn response(status: u16, media_type: &str, body: &[u8], head: &Head) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    if status != 204 {
        text += &format!("Content-Type: {media_type}\r\nContent-Length: {}\r\n", body.len());
    }
    text += if head.keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" };
    let mut bytes = text.into_bytes();
    if head.method != "HEAD" && status != 204 {
        bytes.extend_from_slice(body);
    }
    bytes
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Payload Too Large",
        502 => "Bad Gateway",
        _ => "Internal Server Error",
    }
}

/// Decodes `%xx`.
pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code.filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{BodyReader, Framing, Head};

    #[test]
    fn heads_and_queries() {
        let mut input = b"GET /a/b%20c?x=1&path=%2Fetc+x HTTP/1.1\r\nHost: h\r\n\r\nrest".to_vec();
        let head = Head::take(&mut input).unwrap().unwrap();
        assert_eq!(input, b"rest");
        assert_eq!((head.path(), head.query()), ("/a/b%20c", "x=1&path=%2Fetc+x"));
        assert_eq!(head.parameter("path").as_deref(), Some("/etc x"));
        assert!(head.keep_alive);
    }

    #[test]
    fn chunked_bodies_arrive_in_any_pieces() {
        let wire = b"4\r\nWiki\r\n5;x=y\r\npedia\r\n0\r\n\r\nnext";
        for size in 1..wire.len() {
            let mut reader = BodyReader::new(Framing::Chunked);
            let (mut input, mut body, mut done) = (Vec::new(), Vec::new(), false);
            for piece in wire.chunks(size) {
                input.extend_from_slice(piece);
                if !done {
                    done = reader.read(&mut input, |b| body.extend_from_slice(b)).unwrap();
                }
            }
            assert!(done, "{size}");
            assert_eq!(body, b"Wikipedia");
            assert_eq!(input, b"next");
        }
    }
}
