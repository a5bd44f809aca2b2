//! A plain HTTP/1.1 client for tests: one connection per request, nothing hidden, also able to send
//! what no library would.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub struct Http {
    port: u16,
    token: String,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

impl Http {
    pub fn new(port: u16, token: &str) -> Self {
        Self { port, token: token.to_owned() }
    }

    /// The same server without or with another token.
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = token.to_owned();
        self
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "")
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.request("POST", path, body)
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.request("DELETE", path, "")
    }

    pub fn try_get(&self, path: &str) -> Option<Answer> {
        self.raw(&self.head("GET", path, "", "")).ok()
    }

    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: &str) -> Answer {
        self.with_headers(method, path, "", body)
    }

    /// `headers` is a text of whole lines, each ended by CRLF.
    #[track_caller]
    pub fn with_headers(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let request = self.head(method, path, headers, body);
        self.raw(&request).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn head(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let auth = match self.token.as_str() {
            "" => String::new(),
            token => format!("authorization: Bearer {token}\r\n"),
        };
        format!("{method} {path} HTTP/1.1\r\nhost: runner\r\nconnection: close\r\n{auth}{headers}{length}\r\n{body}")
    }

    pub fn raw(&self, request: &str) -> std::io::Result<Answer> {
        let mut stream = self.connect()?;
        let sent = stream.write_all(request.as_bytes());
        let mut bytes = Vec::new();
        match sent.and(stream.read_to_end(&mut bytes).map(drop)) {
            // A server that refuses a body may reset the connection behind its answer.
            Err(error) if bytes.is_empty() => return Err(error),
            _ => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no answer"))?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("no status in {head:?}")))?;
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if chunked { unchunk(body) } else { body.to_owned() };
        Ok(Answer { status, head: head.to_owned(), body })
    }

    pub fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stream)
    }
}

fn unchunk(mut text: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        body.push_str(rest.get(..size).unwrap_or(rest));
        text = rest.get(size + 2..).unwrap_or("");
    }
    body
}
