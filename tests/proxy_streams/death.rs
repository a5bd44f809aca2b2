//! The hypervisor is killed in the middle of each kind of exchange. A guest that dies says nothing on
//! its connections, so the runner must see it and tell the clients.

use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::backend::{Backend, TOOLBOX};
use super::common::origin::Reader;
use super::common::wire::{End, Reply, Wire};
use super::common::{Host, eventually, leftovers};
use super::with_box;

/// Until every client knows.
const AT_ONCE: Duration = Duration::from_secs(2);

fn kill_vmm(host: &Host) {
    let pid = host.http().get("/sandboxes/box").json()["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
}

/// Whether a WebSocket ended without a word, or with a close frame that says that nobody wanted this.
fn is_abnormal(end: &End) -> bool {
    match end {
        End::Closed | End::Reset => true,
        End::Cut(bytes, length) => {
            // What there is is one frame, and not that of an orderly end (1000).
            let all = *length > 3 && bytes.starts_with("\\x88");
            all && !bytes.contains("\\x03\\xe8")
        }
        _ => false,
    }
}

/// Begins every kind of answer and ends none.
fn serve(host: &Host) -> Backend {
    Backend::serve(host, "box", TOOLBOX, |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(request)) = reader.head(&mut conn) else { return };
        let begin = match request.target.as_str() {
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\npart",
            "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
            "/events" => {
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"
            }
            "/to-the-end" => "HTTP/1.1 200 OK\r\n\r\npart",
            "/ws" => {
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x01\x04part"
            }
            "/head-only" => "HTTP/1.1 200 OK\r\nContent-Le",
            _ => "",
        };
        let _ = conn.write_all(begin.as_bytes());
        conn.read_to_its_end();
    })
}

#[test]
fn every_kind_of_exchange_ends_with_the_guest() {
    let (host, _runner) = with_box();
    let backend = serve(&host);
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let begin = |method: &str, path: &str, headers: &str, body: &str| {
        let mut wire = Wire::new(&host);
        wire.request(method, &format!("/sandboxes/box/toolbox{path}"), headers);
        wire.send(body);
        wire
    };
    // Those that have a head already, and have seen `part`.
    let mut begun: Vec<(&str, Wire, Reply)> = ["/length", "/chunks", "/events", "/to-the-end", "/ws"]
        .into_iter()
        .map(|path| {
            let mut wire = begin("GET", path, if path == "/ws" { websocket } else { "" }, "");
            let mut reply = Reply::default();
            wire.head(&mut reply).unwrap_or_else(|end| panic!("{path}: {end:?}"));
            let chunked = !reply.all("transfer-encoding").is_empty();
            let part = if chunked {
                wire.chunk(&reply).unwrap().unwrap()
            } else {
                wire.exactly(if path == "/ws" { 6 } else { 4 }, &reply).unwrap()
            };
            assert!(part.ends_with(b"part"), "{path}");
            (path, wire, reply)
        })
        .collect();
    // Those that wait for one.
    let waiting = [
        ("an answer", begin("GET", "/never", "", "")),
        ("the rest of a head", begin("GET", "/head-only", "", "")),
        ("an answer to HEAD", begin("HEAD", "/never", "", "")),
        ("an answer to a whole body", begin("POST", "/never", "Content-Length: 4\r\n", "body")),
        ("the rest of an upload", begin("POST", "/never", "Content-Length: 1000000\r\n", "body")),
        ("the rest of chunks", begin("PUT", "/never", "Transfer-Encoding: chunked\r\n", "4\r\nbody\r\n")),
        ("a 101", begin("GET", "/never", websocket, "")),
        ("a 100", begin("POST", "/never", "Content-Length: 4\r\nExpect: 100-continue\r\n", "")),
    ];
    let all = begun.len() + waiting.len();
    eventually("all have reached the guest", || {
        (backend.seen().iter().filter(|seen| seen.bytes.windows(4).any(|part| part == b"\r\n\r\n")).count() == all)
            .then_some(())
    });

    kill_vmm(&host);
    let began = Instant::now();
    let mut wrong = Vec::new();
    for (path, wire, reply) in &mut begun {
        let chunked = !reply.all("transfer-encoding").is_empty();
        let end = match (*path, chunked) {
            ("/ws", _) => wire.ends_after_all(),
            (_, true) => match wire.chunk(reply) {
                Ok(more) => End::Malformed(format!("{more:?}")),
                Err(end) => end,
            },
            _ => wire.exactly(100_000, reply).expect_err("no more than there was"),
        };
        // Without chunks and length only a reset is no orderly end.
        let delimited = chunked || !reply.all("content-length").is_empty();
        let right = match *path {
            "/ws" => is_abnormal(&end),
            _ => matches!(end, End::Cut(..)) && delimited,
        };
        println!("{path}: {end:?} after {:?}", began.elapsed());
        if !right || began.elapsed() > AT_ONCE {
            wrong.push(format!("{path}: {end:?} after {:?}", began.elapsed()));
        }
    }
    for (what, mut wire) in waiting {
        let method = if what == "an answer to HEAD" { "HEAD" } else { "GET" };
        let answer = wire.answer_to(method);
        println!("waiting for {what}: {:?} after {:?}", answer.as_ref().map(|reply| reply.status), began.elapsed());
        let right = matches!(&answer, Ok(reply) if [502, 503].contains(&reply.status));
        if !right || began.elapsed() > AT_ONCE {
            wrong.push(format!("waiting for {what}: {answer:?} after {:?}", began.elapsed()));
        }
    }
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));

    // Nothing of all that holds the sandbox, which starts again and goes away.
    eventually("it is seen to be stopped", || {
        (host.http().get("/sandboxes/box").json()["state"] == "stopped").then_some(())
    });
    drop(begun);
    eventually("the namespace is gone", || backend.stand_in.is_cut_off().then_some(()));
    drop(backend);
    host.completed(&host.api.start_sandbox("box").unwrap());
    assert_eq!(host.in_guest("box", "echo again"), "again");
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn a_guest_that_dies_while_its_buffers_are_full() {
    let (host, _runner) = with_box();
    // Takes nothing of what is sent, so that the runner holds bytes for it that nobody will ever take.
    let backend = Backend::serve(&host, "box", TOOLBOX, |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(request)) = reader.head(&mut conn) else { return };
        if request.target == "/ws" {
            let _ = conn
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
        }
        std::thread::sleep(Duration::from_secs(20));
    });
    let fill = |mut wire: Wire| {
        wire.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let piece = vec![b'x'; 64 << 10];
        let mut sent = 0_usize;
        while sent < 1 << 30 && wire.send(&piece) {
            sent += piece.len();
        }
        assert!(sent < 64 << 20, "{} MiB went nowhere", sent >> 20);
        wire
    };
    let mut upload = Wire::new(&host);
    upload.request("POST", "/sandboxes/box/toolbox/up", "Content-Length: 10000000000\r\n");
    let mut upload = fill(upload);
    let mut socket = Wire::new(&host);
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    socket.request("GET", "/sandboxes/box/toolbox/ws", websocket);
    let mut reply = Reply::default();
    socket.head(&mut reply).unwrap();
    assert_eq!(reply.status, 101);
    let mut socket = fill(socket);
    kill_vmm(&host);
    let began = Instant::now();
    match upload.answer() {
        Ok(reply) => assert!([502, 503].contains(&reply.status), "{reply:?}"),
        // The answer may be lost where the rest of the upload is refused by a reset.
        Err(end) => assert!(matches!(end, End::Closed | End::Reset), "{end:?}"),
    }
    let end = socket.ends_after_all();
    assert!(is_abnormal(&end), "{end:?}");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
    // What the runner had to send, and nobody took, does not keep the network.
    eventually("the namespace is gone", || backend.stand_in.is_cut_off().then_some(()));
    drop(backend);
}

#[test]
fn a_sandbox_that_is_stopped_or_destroyed_ends_them_too() {
    let (host, _runner) = with_box();
    for way in ["stop", "destroy"] {
        let backend = serve(&host);
        let mut download = Wire::new(&host);
        download.request("GET", "/sandboxes/box/toolbox/chunks", "");
        let mut reply = Reply::default();
        download.head(&mut reply).unwrap();
        assert_eq!(download.chunk(&reply).unwrap().unwrap(), b"part");
        let mut waiting = Wire::new(&host);
        waiting.request("GET", "/sandboxes/box/toolbox/never", "");
        eventually("both have reached the guest", || (backend.accepted() == 2).then_some(()));
        match way {
            "stop" => host.completed(&host.api.stop_sandbox("box", None).unwrap()),
            _ => host.completed(&host.api.destroy_sandbox("box").unwrap()),
        };
        assert!(matches!(download.chunk(&reply), Err(End::Cut(..))), "{way}");
        let answer = waiting.answer();
        assert!(matches!(&answer, Ok(reply) if [502, 503].contains(&reply.status)), "{way}: {answer:?}");
        drop(backend);
        if way == "stop" {
            host.completed(&host.api.start_sandbox("box").unwrap());
        }
    }
    leftovers::none(&host);
}
