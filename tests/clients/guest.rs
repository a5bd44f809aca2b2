//! A small HTTP/1.1 server for a guest's place, so that clients which come with every machine need nothing else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::common::backend::Conn;

/// Length of the file that it serves.
pub const FILE: usize = 8 << 20;
/// What `/gzip` says, to those who take gzip.
pub const GZIP_TEXT: &str = "what was small is large again\n";

/// Content that tells where it is from.
pub fn file() -> Vec<u8> {
    (0..FILE / 8).flat_map(|n| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn read(from: &mut BufReader<Conn>) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut first = lines.first()?.split(' ');
        let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        Some(Self { method, path, headers })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// First and last byte that are asked for.
    fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let last = last.parse().unwrap_or(FILE - 1);
        match first.parse() {
            Ok(first) => Some((first, last.min(FILE - 1))),
            Err(_) => Some((FILE - last, FILE - 1)),
        }
    }
}

/// Serves a connection until one side ends it.
pub fn serve(conn: Conn) {
    let mut stream = BufReader::with_capacity(64 << 10, conn);
    while let Some(request) = Request::read(&mut stream) {
        if answer(&request, &mut stream).is_none() {
            return;
        }
    }
}

/// `None` when the connection is to end.
fn answer(request: &Request, stream: &mut BufReader<Conn>) -> Option<()> {
    let path = request.path.split('?').next()?;
    let path = path.strip_prefix("/proxy/8080").unwrap_or(path);
    match path {
        "/file" => serve_file(request, stream, FILE),
        "/broken" => {
            let whole = request.range().is_some();
            serve_file(request, stream, if whole { FILE } else { FILE / 3 })?;
            whole.then_some(())
        }
        "/early" => {
            respond(request, stream, "413 Content Too Large", "Connection: close\r\n", b"too much\n")?;
            // What still comes is read: a reset could overtake the answer.
            let _ = stream.get_ref().stream().shutdown(Shutdown::Write);
            stream.get_mut().read_to_its_end();
            None
        }
        "/upload" => {
            let asked = request.get("expect").is_some();
            if asked {
                stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
            }
            let (bytes, sum, trailers) = read_body(request, stream)?;
            let seen = json!({
                "method": request.method, "bytes": bytes, "sha256": sum, "asked": asked, "trailers": trailers,
                "chunked": request.get("transfer-encoding").is_some(), "type": request.get("content-type"),
            });
            respond(request, stream, "200 OK", "Content-Type: application/json\r\n", seen.to_string().as_bytes())
        }
        "/gzip" if request.get("accept-encoding").is_some_and(|accepted| accepted.contains("gzip")) => {
            respond(request, stream, "200 OK", "Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n", &gzip())
        }
        "/gzip" => respond(request, stream, "200 OK", "Vary: Accept-Encoding\r\n", GZIP_TEXT.as_bytes()),
        "/trailers" => chunks(stream, "Trailer: X-Checksum\r\n", 3, "X-Checksum: of-three\r\n"),
        "/chunks" => chunks(stream, "", 1000, ""),
        "/moved" => respond(request, stream, "302 Found", "Location: chunks?moved=1\r\n", b""),
        "/nothing" => plain(stream, "HTTP/1.1 204 No Content\r\n\r\n"),
        "/unchanged" => plain(stream, "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n"),
        "/until-the-end" => {
            plain(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")?;
            None
        }
        "/small" => respond(request, stream, "200 OK", "Content-Type: text/plain\r\n", &[b'x'; 96]),
        _ => respond(request, stream, "404 Not Found", "", b"no such page\n"),
    }
}

fn plain(stream: &mut BufReader<Conn>, text: &str) -> Option<()> {
    stream.get_mut().write_all(text.as_bytes()).ok()
}

fn respond(request: &Request, stream: &mut BufReader<Conn>, status: &str, headers: &str, body: &[u8]) -> Option<()> {
    let mut bytes = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    if request.method != "HEAD" {
        bytes.extend(body);
    }
    stream.get_mut().write_all(&bytes).ok()
}

/// The file or the part of it that is asked for, of which only `most` bytes are sent.
fn serve_file(request: &Request, stream: &mut BufReader<Conn>, most: usize) -> Option<()> {
    let common = "Accept-Ranges: bytes\r\nETag: \"1\"\r\nContent-Type: application/octet-stream\r\n";
    let (head, first, last) = match request.range() {
        None => (format!("HTTP/1.1 200 OK\r\n{common}"), 0, FILE - 1),
        Some((first, last)) if first <= last => {
            let range = format!("Content-Range: bytes {first}-{last}/{FILE}\r\n");
            (format!("HTTP/1.1 206 Partial Content\r\n{common}{range}"), first, last)
        }
        Some(_) => {
            let size = format!("Content-Range: bytes */{FILE}\r\n");
            return respond(request, stream, "416 Range Not Satisfiable", &size, b"");
        }
    };
    plain(stream, &format!("{head}Content-Length: {}\r\n\r\n", last + 1 - first))?;
    if request.method == "HEAD" {
        return Some(());
    }
    stream.get_mut().write_all(&file()[first..=last.min(most.saturating_sub(1).max(first))]).ok()
}

fn chunks(stream: &mut BufReader<Conn>, headers: &str, count: usize, trailers: &str) -> Option<()> {
    plain(stream, &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"))?;
    for n in 0..count {
        let piece = format!("piece {n}\n");
        plain(stream, &format!("{:x}\r\n{piece}\r\n", piece.len()))?;
    }
    plain(stream, &format!("0\r\n{trailers}\r\n"))
}

/// How much came, its checksum, and the trailers behind it.
fn read_body(request: &Request, stream: &mut BufReader<Conn>) -> Option<(u64, String, String)> {
    let mut sum = Sha256::new();
    let (mut total, mut trailers) = (0, String::new());
    if request.get("transfer-encoding").is_none() {
        let length = request.get("content-length").map_or(Some(0), |length| length.parse().ok())?;
        total += take(stream, length, &mut sum)?;
    } else {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let length = u64::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
            if length == 0 {
                break;
            }
            total += take(stream, length, &mut sum)?;
            stream.read_exact(&mut [0; 2]).ok()?;
        }
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            trailers += line.trim();
        }
    }
    Some((total, sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), trailers))
}

/// Reads so many bytes into the checksum; `None` when the connection ends before.
fn take(stream: &mut BufReader<Conn>, length: u64, sum: &mut Sha256) -> Option<u64> {
    let read = std::io::copy(&mut stream.take(length), sum).ok()?;
    (read == length).then_some(read)
}

fn gzip() -> Vec<u8> {
    let mut child = Command::new("gzip").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
    child.stdin.take().expect("an input").write_all(GZIP_TEXT.as_bytes()).expect("gzip reads");
    child.wait_with_output().expect("gzip").stdout
}
