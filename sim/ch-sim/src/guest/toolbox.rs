//! Routes of the toolbox (port 2280) and of the application behind it (port 8080).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::files::{self, WORK_DIR};
use super::http::Head;
use super::log::{self, Log};
use super::machine::Machine;
use super::shell::Job;

/// Port of the toolbox.
pub const TOOLBOX_PORT: u16 = 2280;
/// Port of the application that echoes.
pub const APP_PORT: u16 = 8080;
/// Time a command may take by default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How a request is answered.
pub enum Reply {
    /// A whole answer.
    Full { status: u16, media_type: &'static str, body: Vec<u8> },
    /// This many bytes of a pattern.
    Stream(u64),
    /// Server-sent events until the client leaves.
    Events,
    /// A WebSocket that echoes.
    WebSocket,
    /// A command's log that is followed by a WebSocket.
    Log(Log),
    /// The result of a job.
    Run(Job),
}

impl Reply {
    /// A JSON answer.
    pub fn json(status: u16, value: &Value) -> Self {
        Self::Full { status, media_type: "application/json; charset=utf-8", body: value.to_string().into_bytes() }
    }

    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        Self::Full { status, media_type: "text/plain", body: Vec::new() }
    }

    /// Bytes with status 200.
    pub fn bytes(media_type: &'static str, body: Vec<u8>) -> Self {
        Self::Full { status: 200, media_type, body }
    }

    /// A failure in the toolbox's form.
    pub fn error(status: u16, message: &str, head: &Head) -> Self {
        let code = match status {
            404 => "NOT_FOUND",
            400 => "BAD_REQUEST",
            _ => "ERROR",
        };
        Self::json(
            status,
            &json!({
                "statusCode": status,
                "message": message,
                "code": code,
                "path": head.path(),
                "method": head.method,
            }),
        )
    }
}

#[derive(Deserialize)]
struct ExecuteRequest {
    command: String,
    cwd: Option<String>,
    #[serde(default)]
    envs: BTreeMap<String, String>,
    timeout: Option<u64>,
}

/// Answers a request on a port. `length` is the length of the whole body, `body` what was kept of it.
pub fn answer(port: u16, head: &Head, body: &[u8], length: u64, machine: &mut Machine) -> Reply {
    if port == APP_PORT {
        return application(head.path(), head, length);
    }
    if let Some(rest) = head.path().strip_prefix("/proxy/") {
        return proxied(rest, head, length);
    }
    if let Some(reply) = files::answer(head, body, &mut machine.state.files) {
        return reply;
    }
    if let Some(reply) = log::answer(head) {
        return reply;
    }
    match (head.method.as_str(), head.path()) {
        ("GET", "/version") => Reply::json(200, &json!({"version": machine.version()})),
        ("POST", "/init") => {
            let given: Option<Value> = serde_json::from_slice(body).ok();
            let token = given.as_ref().and_then(|v| v.get("token")?.as_str().map(str::to_owned));
            match token {
                Some(token) => machine.state.token = Some(token),
                None => return Reply::error(400, "token is required", head),
            }
            Reply::json(200, &json!({"message": "Auth token set and telemetry initialized successfully"}))
        }
        ("GET", "/work-dir") => Reply::json(200, &json!({"dir": WORK_DIR})),
        ("GET", "/user-home-dir") => Reply::json(200, &json!({"dir": WORK_DIR})),
        ("POST", "/process/execute") => execute(head, body, machine),
        ("GET", "/port") => Reply::json(200, &json!({"ports": [APP_PORT]})),
        ("GET", "/counter") => Reply::json(
            200,
            &json!({
                "counter": machine.clock.ticks(),
                "runningMs": machine.clock.running_ms(),
                "bootId": machine.state.boot_id,
            }),
        ),
        ("POST" | "PUT", "/sink") => {
            machine.state.sunk += length;
            Reply::json(200, &json!({"bytes": length, "total": machine.state.sunk}))
        }
        ("GET", "/ws") if head.wants_websocket() => Reply::WebSocket,
        ("GET", "/sse") => Reply::Events,
        ("GET", "/stream") => stream(head),
        (_, "/echo") => echo("", head, length),
        _ => Reply::error(404, "404 page not found", head),
    }
}

fn execute(head: &Head, body: &[u8], machine: &Machine) -> Reply {
    match serde_json::from_slice::<ExecuteRequest>(body) {
        Ok(request) if !request.command.trim().is_empty() => {
            let timeout = request.timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
            let (cwd, envs) = (request.cwd, request.envs);
            Reply::Run(Job::new(&request.command, cwd, envs, timeout, machine))
        }
        Ok(_) => Reply::error(400, "command is required", head),
        Err(error) => Reply::error(400, &error.to_string(), head),
    }
}

/// `/proxy/{port}/{path}`: only the application listens.
fn proxied(rest: &str, head: &Head, length: u64) -> Reply {
    let (port, path) = rest.split_once('/').unwrap_or((rest, ""));
    match port.parse::<u16>() {
        Ok(APP_PORT) => application(&format!("/{path}"), head, length),
        Ok(port) => Reply::error(502, &format!("dial tcp 127.0.0.1:{port}: connect: connection refused"), head),
        Err(_) => Reply::error(400, "invalid port", head),
    }
}

/// The application: streams, WebSockets, and an echo of everything else.
fn application(path: &str, head: &Head, length: u64) -> Reply {
    if head.wants_websocket() {
        return Reply::WebSocket;
    }
    match path {
        "/sse" => Reply::Events,
        "/stream" => stream(head),
        _ => echo(path, head, length),
    }
}

fn stream(head: &Head) -> Reply {
    let bytes = head.parameter("bytes").and_then(|bytes| bytes.parse().ok());
    bytes.map_or_else(|| Reply::error(400, "bytes is required", head), Reply::Stream)
}

/// What the server saw, as JSON. `proxied` is the path inside the application.
fn echo(proxied: &str, head: &Head, length: u64) -> Reply {
    let headers = head.headers.iter().map(|(name, value)| json!([name, value]));
    Reply::json(
        200,
        &json!({
            "method": head.method,
            "path": head.path(),
            "appPath": proxied,
            "query": head.query(),
            "headers": headers.collect::<Vec<_>>(),
            "bodyLength": length,
        }),
    )
}
