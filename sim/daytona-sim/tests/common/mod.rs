//! A small blocking HTTP client: one connection per request, so that a test sees exactly what the wire shows.
#![allow(dead_code)] // every test file uses its own part

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use daytona_sim::{Handle, Options, Sim};
use serde_json::{Value, json};

/// Deadline of everything that should happen soon.
pub const SOON: Duration = Duration::from_secs(20);
pub const TOKEN: &str = "test-token";

pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or("").to_owned()
    }
}

pub fn start() -> Handle {
    start_with(|_| ())
}

pub fn start_with(change: impl FnOnce(&mut Options)) -> Handle {
    let mut options = Options::with_token(TOKEN);
    change(&mut options);
    Sim::start(options).unwrap()
}

/// Opens a connection and sends a request head and body.
pub fn send(to: SocketAddr, head: &str, headers: &str, body: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_nodelay(true)?;
    let mut bytes = format!("{head} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n{headers}");
    if !body.is_empty() {
        bytes.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    bytes.push_str("\r\n");
    stream.write_all(&[bytes.as_bytes(), body].concat())?;
    Ok(stream)
}

/// Reads an answer until the server closes the connection.
pub fn receive(mut stream: TcpStream) -> Result<Reply> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(Error::other)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Err(ErrorKind::UnexpectedEof.into());
    };
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let status = status.and_then(|code| code.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Ok(Reply { status: status.ok_or(ErrorKind::InvalidData)?, headers, body: body.to_owned() })
}

/// The simulator seen by a runner.
pub struct Api {
    pub to: SocketAddr,
    pub token: String,
}

impl Api {
    pub fn new(sim: &Handle) -> Self {
        Self::with_token(sim, TOKEN)
    }

    pub fn with_token(sim: &Handle, token: &str) -> Self {
        Self { to: sim.address(), token: token.to_owned() }
    }

    pub fn open(&self, method: &str, path: &str, body: Option<&Value>) -> Result<TcpStream> {
        let mut headers = format!("authorization: Bearer {}\r\n", self.token);
        let mut bytes = Vec::new();
        if let Some(body) = body {
            headers.push_str("content-type: application/json\r\n");
            bytes = body.to_string().into_bytes();
        }
        send(self.to, &format!("{method} {path}"), &headers, &bytes)
    }

    pub fn try_call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Reply> {
        receive(self.open(method, path, body)?)
    }

    pub fn get(&self, path: &str) -> Reply {
        self.try_call("GET", path, None).unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.try_call("POST", path, Some(body)).unwrap()
    }

    pub fn put(&self, path: &str, body: &Value) -> Reply {
        self.try_call("PUT", path, Some(body)).unwrap()
    }

    /// Polls once; the ids of the received jobs.
    pub fn poll(&self, query: &str) -> Vec<String> {
        let reply = self.get(&format!("/api/jobs/poll?{query}"));
        assert_eq!(reply.status, 200, "{}", reply.body);
        ids(&reply.json()["jobs"])
    }

    pub fn report(&self, job: &str, status: &str) -> Reply {
        self.post(&format!("/api/jobs/{job}/status"), &json!({ "status": status }))
    }

    /// Reports with an error message and a result.
    pub fn report_full(&self, job: &str, status: &str, error: &str, result: &Value) -> Reply {
        let body = json!({"status": status, "errorMessage": error, "resultMetadata": result.to_string()});
        self.post(&format!("/api/jobs/{job}/status"), &body)
    }
}

pub fn ids(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list of jobs");
    list.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
}

pub fn metrics() -> Value {
    json!({"currentCpuLoadAverage": 0.42, "currentCpuUsagePercentage": 31.5, "currentMemoryUsagePercentage": 44.0,
        "currentDiskUsagePercentage": 20.0, "currentAllocatedCpu": 12, "currentAllocatedMemoryGiB": 24,
        "currentAllocatedDiskGiB": 300, "currentSnapshotCount": 4, "currentStartedSandboxes": 6,
        "cpu": 48, "memoryGiB": 377, "diskGiB": 438, "gpu": 0})
}
