//! The client against a server that answers what it is told to, byte by byte.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::error::{Certainty, ErrorCode};

/// What the server does with one connection.
enum Then {
    /// Read one request, answer these bytes, keep the connection open.
    Answer(&'static str),
    /// Answer without reading, then close.
    TurnAway(&'static str),
    /// Read the request, close without an answer.
    Close,
    /// Read the request, never answer.
    Hang,
}

struct Server {
    dir: tempfile::TempDir,
    requests: mpsc::Receiver<String>,
    /// Connections are kept open until the test ends, as the hypervisor does.
    _worker: thread::JoinHandle<Vec<StdStream>>,
}

impl Server {
    fn start(script: Vec<Then>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("api.sock")).unwrap();
        let (seen, requests) = mpsc::channel();
        let worker = thread::spawn(move || {
            let mut open = Vec::new();
            for then in script {
                let (mut stream, _) = listener.accept().unwrap();
                match then {
                    Then::Answer(bytes) => {
                        seen.send(request(&mut stream)).unwrap();
                        stream.write_all(bytes.as_bytes()).unwrap();
                        open.push(stream);
                    }
                    Then::TurnAway(bytes) => stream.write_all(bytes.as_bytes()).unwrap(),
                    Then::Close => seen.send(request(&mut stream)).unwrap(),
                    Then::Hang => {
                        seen.send(request(&mut stream)).unwrap();
                        open.push(stream);
                    }
                }
            }
            open
        });
        Self { dir, requests, _worker: worker }
    }

    fn api(&self) -> Api {
        Api::new(self.dir.path().join("api.sock"), Deadlines::default())
    }

    fn request(&self) -> String {
        self.requests.recv_timeout(Duration::from_secs(10)).unwrap()
    }
}

/// Reads one request with its body.
fn request(stream: &mut StdStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        let count = stream.read(&mut buffer).unwrap();
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8(bytes.clone()).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |n| n.parse().unwrap()) {
            return text;
        }
        assert!(count > 0, "the client went away in mid-request: {text}");
    }
}

async fn refused(answer: &'static str) -> Error {
    Server::start(vec![Then::Answer(answer)]).api().put(Call::Boot).await.unwrap_err()
}

#[tokio::test(flavor = "current_thread")]
async fn an_empty_reason_phrase_and_no_length() {
    let server = Server::start(vec![Then::Answer(
        "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n",
    )]);
    server.api().put(Call::Boot).await.unwrap();
    let request = server.request().to_ascii_lowercase();
    assert!(request.starts_with("put /api/v1/vm.boot http/1.1\r\n"), "{request}");
    assert!(!request.contains("transfer-encoding"), "{request}");
    assert!(!request.contains("content-length: 1"), "{request}");
    assert!(request.ends_with("\r\n\r\n"), "no body: {request}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_json_answer_and_a_200_without_body() {
    let server = Server::start(vec![
        Then::Answer(
            "HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n{\"state\":\"Running\"}",
        ),
        Then::Answer("HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n"),
    ]);
    let api = server.api();
    let info: crate::hypervisor::wire::VmInfo = api.get(Call::Info).await.unwrap();
    assert_eq!(info.state, crate::hypervisor::VmState::Running);
    assert!(server.request().starts_with("GET /api/v1/vm.info HTTP/1.1\r\n"));
    api.put(Call::Shutdown).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_body_has_a_length_and_is_bounded() {
    let server = Server::start(vec![Then::Answer("HTTP/1.1 204 \r\n\r\n")]);
    let api = server.api();
    // A string of n characters is n + 2 bytes of JSON.
    let fits = "x".repeat(MAX_BODY - 2);
    let error = api.put_json(Call::Create, &format!("{fits}x")).await.unwrap_err();
    assert!(matches!(error, Error::BodyTooLarge { len: 51_201, max: 51_200, .. }), "{error}");
    api.put_json(Call::Create, &fits).await.unwrap();
    let request = server.request();
    assert!(request.contains("content-length: 51200\r\n"), "{}", &request[..200]);
}

#[tokio::test(flavor = "current_thread")]
async fn errors_in_every_form() {
    let array = refused(
        "HTTP/1.1 500 \r\nContent-Type: application/json\r\nContent-Length: 67\r\n\r\n\
         [\"Error from API\",\"The VM could not boot\",\"VM is already created\"]  ",
    )
    .await;
    assert!(array.to_string().ends_with("answered 500: Error from API: The VM could not boot: VM is already created"));
    let plain = refused("HTTP/1.1 500 \r\nContent-Length: 14\r\n\r\nVM is too cold").await;
    assert!(plain.says("too cold"), "{plain}");
    let raw_newline = refused("HTTP/1.1 400 \r\nContent-Length: 23\r\n\r\n{ \"error\": \"one\ntwo\" } ").await;
    assert!(raw_newline.says("one two"), "{raw_newline}");
    let empty = refused("HTTP/1.1 400 \r\nContent-Length: 0\r\n\r\n").await;
    assert!(empty.to_string().ends_with("answered 400: no reason given"), "{empty}");
    assert_eq!(empty.certainty(), Certainty::NotDone);
}

#[tokio::test(flavor = "current_thread")]
async fn saving_calls_and_their_deadlines() {
    let server = Server::start((0..5).map(|_| Then::Answer("HTTP/1.1 204 \r\n\r\n")).collect());
    let api = server.api();
    let body = serde_json::json!({"destination_url": "file:///a dir"});
    api.put(Call::Pause).await.unwrap();
    api.put_json(Call::Snapshot, &body).await.unwrap();
    api.put(Call::Resume).await.unwrap();
    api.put_json(Call::Restore, &body).await.unwrap();
    api.put_json(Call::Resize, &body).await.unwrap();
    for (name, body) in [("pause", ""), ("snapshot", "\"}"), ("resume", ""), ("restore", "\"}"), ("resize", "\"}")] {
        let request = server.request();
        assert!(request.starts_with(&format!("PUT /api/v1/vm.{name} HTTP/1.1\r\n")), "{request}");
        assert!(request.ends_with(body) && body.is_empty() == request.ends_with("\r\n\r\n"), "{request}");
    }
    let limits = Deadlines::default();
    for (call, seconds) in
        [(Call::Pause, 60), (Call::Resume, 10), (Call::Snapshot, 120), (Call::Restore, 120), (Call::Resize, 10)]
    {
        assert_eq!(call.limit(&limits), Duration::from_secs(seconds), "{}", call.name());
    }
}

const FULL: &str = "HTTP/1.1 503 \r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n\
                    { \"error\": \"Too many open connections\" }";

#[tokio::test(flavor = "current_thread")]
async fn a_full_connection_table_is_tried_again() {
    let server = Server::start(vec![Then::TurnAway(FULL), Then::TurnAway(FULL), Then::Answer("HTTP/1.1 204 \r\n\r\n")]);
    server.api().put(Call::Boot).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_table_that_stays_full_is_an_error() {
    let server = Server::start((0..500).map(|_| Then::TurnAway(FULL)).collect());
    let error = server.api().put(Call::Boot).await.unwrap_err();
    assert!(error.says("Too many open connections"), "{error}");
    assert_eq!((error.code(), error.certainty()), (ErrorCode::Busy, Certainty::NotDone));
}

#[tokio::test(flavor = "current_thread")]
async fn no_answer_ends_with_the_deadline() {
    let server = Server::start(vec![Then::Hang, Then::Answer("HTTP/1.1 204 \r\n\r\n")]);
    let deadlines = Deadlines { boot: Duration::from_millis(50), ..Deadlines::default() };
    let api = Api::new(server.api().socket().to_owned(), deadlines);
    let error = api.put(Call::Boot).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { call: "vm.boot", sent: true, .. }), "{error}");
    assert_eq!((error.code(), error.certainty()), (ErrorCode::Timeout, Certainty::Unknown));
    api.put(Call::Delete).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_broken_connection_and_nobody_there() {
    let server = Server::start(vec![Then::Close]);
    let error = server.api().put(Call::Boot).await.unwrap_err();
    assert!(matches!(error, Error::Exchange { .. }), "{error}");
    assert_eq!(error.certainty(), Certainty::Unknown);

    let nobody = Api::new(server.dir.path().join("none.sock"), Deadlines::default());
    let error = nobody.put(Call::Boot).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert_eq!(error.certainty(), Certainty::NotDone);
}

#[tokio::test(flavor = "current_thread")]
async fn one_request_at_a_time() {
    let server = Server::start(vec![Then::Hang, Then::Answer("HTTP/1.1 204 \r\n\r\n")]);
    let deadlines = Deadlines { boot: Duration::from_millis(80), ..Deadlines::default() };
    let api = Api::new(server.api().socket().to_owned(), deadlines);
    let (first, second) = tokio::join!(api.put(Call::Boot), api.put(Call::PowerButton));
    assert!(matches!(first, Err(Error::Deadline { .. })));
    second.unwrap();
    assert!(server.request().contains("vm.boot"));
    assert!(server.request().contains("vm.power-button"));
}
