//! The least HTTP/1.1 client that does: one request, one answer with a length, the connection kept.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// Longer than anything that is measured.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sends a request and reads its answer; the body of a 2xx.
pub fn exchange(
    stream: &mut (impl Read + Write),
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> anyhow::Result<Vec<u8>> {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}{length}\r\n{body}");
    let what = || format!("{method} {path}");
    stream.write_all(request.as_bytes()).with_context(what)?;
    let (head, body) = answer(stream).with_context(what)?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if !status.starts_with('2') {
        bail!("{method} {path}: status {status}: {}", String::from_utf8_lossy(&body));
    }
    Ok(body)
}

fn answer(stream: &mut impl Read) -> anyhow::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        fill(stream, &mut bytes)?;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let length = length.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.map_or(Ok(0), |(_, value)| value.trim().parse())?;
    while bytes.len() < end + length {
        fill(stream, &mut bytes)?;
    }
    Ok((head, bytes[end..end + length].to_vec()))
}

fn fill(stream: &mut impl Read, bytes: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut chunk = [0; 8192];
    match stream.read(&mut chunk)? {
        0 => bail!("the connection ended before the answer did"),
        read => bytes.extend_from_slice(&chunk[..read]),
    }
    Ok(())
}

/// Connects to a unix socket with a deadline for answers.
pub fn unix(path: &std::path::Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The runner's own API.
#[derive(Debug)]
pub struct Runner {
    port: u16,
    token: &'static str,
}

impl Runner {
    /// A client for this port of the loopback address.
    pub fn new(port: u16, token: &'static str) -> Self {
        Self { port, token }
    }

    /// The JSON behind a path.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask("GET", path, "")
    }

    /// Sends JSON; the JSON of the answer.
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.ask("POST", path, &if body.is_null() { String::new() } else { body.to_string() })
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).context("cannot reach the runner")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let headers = format!("Authorization: Bearer {}\r\nConnection: close\r\n", self.token);
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let body = exchange(&mut stream, method, path, &format!("{headers}{kind}"), body)?;
        serde_json::from_slice(&body).with_context(|| format!("{method} {path}: not JSON"))
    }
}
