//! Incremental parser of requests with the limits of the program's HTTP library.

use std::os::fd::OwnedFd;

/// Longest request or header line, and the size of one read, in bytes.
pub const LINE_LIMIT: usize = 1024;
/// Longest request body in bytes.
pub const BODY_LIMIT: usize = 51_200;

/// The methods that are not refused outright.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Put,
    Patch,
}

/// A whole request.
#[derive(Debug)]
pub struct Request {
    pub method: Method,
    /// Absolute path with query, as sent.
    pub path: String,
    /// `None` when the request had no body (or an empty one).
    pub body: Option<Vec<u8>>,
    /// Descriptors that came with the bytes (SCM_RIGHTS).
    pub files: Vec<OwnedFd>,
}

/// Text of a parse failure, as the answer quotes it.
pub type ParseError = String;

/// Steps that feeding bytes can lead to.
#[derive(Debug)]
pub enum Step {
    /// A request is complete.
    Ready(Request),
    /// The client waits for "100 Continue".
    Continue,
}

enum State {
    RequestLine,
    Headers(Head),
    Body(Head, Vec<u8>),
}

struct Head {
    method: Method,
    path: String,
    length: usize,
    expect: bool,
}

/// Parser of one connection.
pub struct Parser {
    /// Bytes read but not yet understood: less than one line.
    pending: Vec<u8>,
    state: State,
    files: Vec<OwnedFd>,
}

impl Default for Parser {
    fn default() -> Self {
        Self { pending: Vec::new(), state: State::RequestLine, files: Vec::new() }
    }
}

impl Parser {
    /// How many bytes may be read next: a line must fit into the buffer.
    pub fn room(&self) -> usize {
        LINE_LIMIT - self.pending.len()
    }

    /// Takes descriptors that came with the bytes fed next.
    pub fn add_files(&mut self, files: Vec<OwnedFd>) {
        self.files.extend(files);
    }

    /// Takes newly read bytes; returns the steps they complete, in order.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Step>, ParseError> {
        self.pending.extend_from_slice(bytes);
        let mut steps = Vec::new();
        let mut input = std::mem::take(&mut self.pending);
        let mut at = 0;
        let outcome = loop {
            match self.advance(&input, &mut at, &mut steps) {
                Ok(true) => {}
                Ok(false) => break Ok(steps),
                Err(error) => break Err(error),
            }
        };
        // After a failure the rest of this read is gone; what the client sends later is parsed on.
        if outcome.is_ok() {
            self.pending = input.split_off(at);
        }
        outcome
    }

    /// Understands one more piece of the input; false when more bytes are needed.
    fn advance(&mut self, input: &[u8], at: &mut usize, steps: &mut Vec<Step>) -> Result<bool, ParseError> {
        match std::mem::replace(&mut self.state, State::RequestLine) {
            State::Body(head, mut body) => {
                let missing = head.length - body.len();
                let taken = missing.min(input.len() - *at);
                body.extend_from_slice(&input[*at..*at + taken]);
                *at += taken;
                if taken < missing {
                    self.state = State::Body(head, body);
                    return Ok(false);
                }
                steps.push(self.ready(head, Some(body)));
                Ok(true)
            }
            State::RequestLine => {
                let Some(line) = next_line(input, at) else {
                    let whole = *at == 0 && input.len() >= LINE_LIMIT;
                    return if whole { Err("Invalid request.".into()) } else { Ok(false) };
                };
                self.state = State::Headers(request_line(line)?);
                Ok(true)
            }
            State::Headers(mut head) => {
                let Some(line) = next_line(input, at) else {
                    return self.unfinished_header(head, input, *at);
                };
                if line.is_empty() {
                    self.end_of_headers(head, steps)?;
                } else {
                    // A refused header does not end the request: later lines still belong to it.
                    let taken = header(&mut head, line);
                    self.state = State::Headers(head);
                    taken?;
                }
                Ok(true)
            }
        }
    }

    fn unfinished_header(&mut self, head: Head, input: &[u8], at: usize) -> Result<bool, ParseError> {
        self.state = State::Headers(head);
        if at == 0 && input.len() >= LINE_LIMIT {
            let line = String::from_utf8_lossy(input);
            return Err(format!("Invalid header. Reason: Invalid content length. Header: {line}"));
        }
        Ok(false)
    }

    fn end_of_headers(&mut self, head: Head, steps: &mut Vec<Step>) -> Result<(), ParseError> {
        if head.length == 0 {
            steps.push(self.ready(head, None));
            return Ok(());
        }
        if head.length > BODY_LIMIT {
            let size = head.length;
            self.state = State::Headers(head);
            return Err(format!(
                "Request payload with size {size} is larger than the limit of {BODY_LIMIT} \
                 allowed by server."
            ));
        }
        if head.expect {
            steps.push(Step::Continue);
        }
        let body = Vec::with_capacity(head.length);
        self.state = State::Body(head, body);
        Ok(())
    }

    fn ready(&mut self, head: Head, body: Option<Vec<u8>>) -> Step {
        Step::Ready(Request { method: head.method, path: head.path, body, files: std::mem::take(&mut self.files) })
    }
}

/// The next line without its CRLF; advances past it.
fn next_line<'a>(input: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let rest = &input[*at..];
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    *at += end + 2;
    Some(&rest[..end])
}

fn request_line(line: &[u8]) -> Result<Head, ParseError> {
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let (Some(method), Some(uri), Some(version)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("Invalid request.".into());
    };
    let method = match method {
        b"GET" => Method::Get,
        b"PUT" => Method::Put,
        b"PATCH" => Method::Patch,
        _ => return Err("Invalid HTTP Method: Unsupported HTTP method.".into()),
    };
    if uri.is_empty() {
        return Err("Invalid URI: Empty URI not allowed.".into());
    }
    let Ok(uri) = std::str::from_utf8(uri) else {
        return Err("Invalid URI: Cannot parse URI as UTF-8.".into());
    };
    if !matches!(version, b"HTTP/1.0" | b"HTTP/1.1") {
        return Err("Invalid HTTP Version: Unsupported HTTP version.".into());
    }
    Ok(Head { method, path: absolute_path(uri).to_owned(), length: 0, expect: false })
}

/// Path of an absolute or relative URI; empty when there is none.
fn absolute_path(uri: &str) -> &str {
    match uri.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("", |slash| &rest[slash..]),
        None if uri.starts_with('/') => uri,
        None => "",
    }
}

fn header(head: &mut Head, line: &[u8]) -> Result<(), ParseError> {
    let invalid = |text: String| Err(format!("Invalid header. Reason: {text}"));
    let Ok(line) = std::str::from_utf8(line) else {
        return invalid("Header contains invalid characters. Key: invalid utf-8".to_owned());
    };
    let Some((name, value)) = line.split_once(':') else {
        return invalid(format!("Header is incorrectly formatted. Key: {line}"));
    };
    match name.trim().to_ascii_lowercase().as_str() {
        "content-length" => match value.trim().parse::<u32>() {
            Ok(length) => head.length = length as usize,
            Err(_) => return invalid(format!("Invalid value. Key:{name}; Value:{value}")),
        },
        "expect" if value.trim() == "100-continue" => head.expect = true,
        "accept-encoding" => {
            let accepts_identity = value.contains("identity");
            for encoding in value.split(',').map(str::trim) {
                if encoding == "identity;q=0" || (encoding == "*;q=0" && !accepts_identity) {
                    return invalid(format!("Invalid value. Key:Accept-Encoding; Value:{encoding}"));
                }
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Method, Parser, Step};

    fn requests(parser: &mut Parser, bytes: &[u8]) -> Vec<(Method, String, Option<Vec<u8>>)> {
        let mut found = Vec::new();
        for piece in bytes.chunks(7) {
            for step in parser.feed(piece).unwrap() {
                if let Step::Ready(r) = step {
                    found.push((r.method, r.path, r.body));
                }
            }
        }
        found
    }

    #[test]
    fn pipelined_requests_come_out_in_order() {
        let mut parser = Parser::default();
        let wire = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nPUT http://h/b HTTP/1.0\r\ncontent-length: 3\r\n\r\nxyz";
        let found = requests(&mut parser, wire);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], (Method::Get, "/a".to_owned(), None));
        assert_eq!(found[1], (Method::Put, "/b".to_owned(), Some(b"xyz".to_vec())));
    }

    #[test]
    fn limits_and_refusals() {
        let refused = |wire: &[u8]| Parser::default().feed(wire).unwrap_err();
        assert_eq!(refused(b"POST / HTTP/1.1\r\n\r\n"), "Invalid HTTP Method: Unsupported HTTP method.");
        assert_eq!(refused(b"GET / HTTP/2.0\r\n\r\n"), "Invalid HTTP Version: Unsupported HTTP version.");
        assert_eq!(
            refused(b"PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n"),
            "Request payload with size 51201 is larger than the limit of 51200 allowed by server."
        );
        assert_eq!(refused(&[b'a'; 1024]), "Invalid request.");
        assert!(Parser::default().feed(b"PUT / HTTP/1.1\r\nContent-Length: 51200\r\n\r\n").is_ok());
    }
}
