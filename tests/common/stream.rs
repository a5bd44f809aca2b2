//! A client that keeps its connection, reads answers piece by piece, and speaks WebSocket after an
//! upgrade: for what passes through the proxy.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::{Host, TOKEN};

/// One connection to the runner, for many requests.
pub struct Client {
    pub stream: BufReader<TcpStream>,
}

pub struct Head {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn length(&self) -> u64 {
        self.get("content-length").expect("a length").parse().unwrap()
    }
}

impl Client {
    pub fn new(host: &Host) -> Self {
        Self { stream: BufReader::new(host.http().connect().unwrap()) }
    }

    /// Sends a head without authorization; `headers` is whole lines.
    pub fn bare(&mut self, method: &str, path: &str, headers: &str) {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: runner.example:3006\r\n{headers}\r\n");
        self.write(head.as_bytes());
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &str) {
        self.bare(method, path, &format!("X-Daytona-Authorization: Bearer {TOKEN}\r\n{headers}"));
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    #[track_caller]
    pub fn head(&mut self) -> Head {
        let first = self.line();
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status in {first:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else { return Head { status, headers } };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    /// The body of an answer with a length.
    pub fn body(&mut self, head: &Head) -> Vec<u8> {
        let mut body = vec![0; usize::try_from(head.length()).unwrap()];
        self.stream.read_exact(&mut body).unwrap();
        body
    }

    #[track_caller]
    pub fn json(&mut self) -> Value {
        let head = self.head();
        let body = self.body(&head);
        assert_eq!(head.status, 200, "{}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    /// One chunk; empty at the end of the body. `None` when the connection ends instead.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok().filter(|&length| length > 0)?;
        let mut chunk = vec![0; usize::from_str_radix(line.trim(), 16).ok()?];
        self.stream.read_exact(&mut chunk).ok()?;
        self.stream.read_exact(&mut [0; 2]).ok()?;
        Some(chunk)
    }

    /// Reads until nothing more comes; an error counts as an end too.
    pub fn drain(&mut self) -> u64 {
        let (mut total, mut piece) = (0, vec![0; 64 << 10]);
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return total,
                Ok(length) => total += length as u64,
                Err(error) => {
                    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the stream hangs");
                    return total;
                }
            }
        }
    }

    /// A frame of the server: opcode and payload.
    pub fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut start = [0; 2];
        self.stream.read_exact(&mut start).unwrap();
        let extra = match start[1] {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mut length = [0; 8];
        self.stream.read_exact(&mut length[8 - extra..]).unwrap();
        let length = if extra == 0 { u64::from(start[1]) } else { u64::from_be_bytes(length) };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).unwrap();
        (start[0] & 0x0f, payload)
    }
}

/// A masked frame, as clients send it, with the shortest length that it can have (RFC 6455, 5.2).
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short), _) if short < 126 => bytes.push(0x80 | short),
        (_, Ok(medium)) => {
            bytes.push(0x80 | 126);
            bytes.extend(medium.to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    bytes.extend([1, 2, 3, 4]);
    bytes.extend(payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}
