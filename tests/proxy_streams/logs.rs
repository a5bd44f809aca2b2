//! Logs of commands (PROTOCOL.md 7): the daemon follows them by WebSocket, clients get a chunked body.

use std::io::Write;
use std::sync::Mutex;
use std::sync::mpsc;

use super::common::backend::{Backend, TOOLBOX};
use super::common::eventually;
use super::common::origin::Reader;
use super::common::stream::{Client, frame};
use super::common::wire::{End, Reply, Wire};
use super::with_box;

const LINES: [&[u8]; 5] = [
    b"\x01\x01\x01line 1\n",
    b"\x02\x02\x02warning 2\n",
    b"\x01\x01\x01line 3\n",
    b"\x02\x02\x02warning 4\n",
    b"\x01\x01\x01line 5\n",
];

fn path(command: &str) -> String {
    format!("/sandboxes/box/toolbox/process/session/s1/command/{command}/logs")
}

#[test]
fn a_log_is_followed_to_its_end() {
    let (host, _runner) = with_box();
    let mut wire = Wire::new(&host);
    for query in ["follow=true", "follow=true&x=1", "x=1&follow=true"] {
        wire.request("GET", &format!("{}?{query}", path("done")), "");
        let reply = wire.answer().unwrap_or_else(|end| panic!("{query}: {end:?}"));
        assert_eq!((reply.status, reply.body), (200, LINES.concat()), "{query}");
    }
    wire.request("GET", &format!("{}?follow=true", path("done")), "");
    let mut reply = Reply::default();
    wire.head(&mut reply).unwrap();
    assert_eq!(reply.all("content-type"), ["application/octet-stream"]);
    assert_eq!(reply.all("transfer-encoding"), ["chunked"]);
    // Message by message.
    for line in LINES {
        assert_eq!(wire.chunk(&reply).unwrap().unwrap(), line);
    }
    assert_eq!(wire.chunk(&reply).unwrap(), None);
    // Without `follow` it is an ordinary request.
    let mut wire = Wire::new(&host);
    for query in ["", "?follow=false", "?follow"] {
        wire.request("GET", &format!("{}{query}", path("done")), "");
        let reply = wire.answer().unwrap();
        assert_eq!((reply.status, reply.body), (200, LINES.concat()), "{query}");
    }
    // Neither is it one for a command that is not there.
    wire.request("GET", &format!("{}?follow=true", path("unknown")), "");
    let reply = wire.answer().unwrap();
    assert!([404, 502].contains(&reply.status), "{reply:?}");
}

#[test]
fn other_ends_are_no_clean_ends() {
    let (host, _runner) = with_box();
    for command in ["close-1011", "close-1001", "close-4000", "cut"] {
        let mut wire = Wire::new(&host);
        wire.request("GET", &format!("{}?follow=true", path(command)), "");
        let answer = wire.answer();
        match &answer {
            Err(End::Cut(_, length)) => assert_eq!(*length, LINES.concat().len(), "{command}"),
            other => panic!("{command}: {other:?}"),
        }
    }
    // One that has no end: it goes on while the client listens.
    let mut wire = Wire::new(&host);
    wire.request("GET", &format!("{}?follow=true", path("endless")), "");
    let mut reply = Reply::default();
    wire.head(&mut reply).unwrap();
    for number in 0..50 {
        assert_eq!(wire.chunk(&reply).unwrap().unwrap(), LINES[number % LINES.len()]);
    }
}

#[test]
fn a_client_with_a_websocket_gets_the_websocket() {
    let (host, _runner) = with_box();
    let mut client = Client::new(&host);
    let handshake = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    client.send("GET", &format!("{}?follow=true", path("done")), handshake);
    let head = client.head();
    assert_eq!((head.status, head.get("sec-websocket-accept")), (101, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
    for line in LINES {
        assert_eq!(client.frame(), (2, line.to_vec()));
    }
    assert_eq!(client.frame(), (8, 1000_u16.to_be_bytes().to_vec()));
    client.write(&frame(8, &1000_u16.to_be_bytes()));
    assert_eq!(client.drain(), 0);
}

#[test]
fn what_the_daemon_is_told_and_may_say() {
    let (host, _runner) = with_box();
    let (next, go_on) = mpsc::channel::<()>();
    let go_on = Mutex::new(go_on);
    let backend = Backend::serve(&host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(request)) = reader.head(&mut conn) else { return };
        // The accept value is the test's own work to check, so any key is answered rightly.
        let accept = accept(request.all("sec-websocket-key").first().copied().unwrap_or_default());
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        let _ = conn.write_all(head.as_bytes());
        // One message in two fragments with a ping between them, text, an empty one, a large one.
        let _ = conn.write_all(b"\x02\x04frag\x89\x02hi\x80\x04ment\x81\x04text\x82\x00");
        go_on.lock().unwrap().recv().unwrap();
        let large = vec![b'L'; 1 << 20];
        let _ = conn.write_all(&[&[0x82, 127][..], &(large.len() as u64).to_be_bytes(), &large].concat());
        go_on.lock().unwrap().recv().unwrap();
        if request.target.contains("/leaves/") {
            return conn.read_to_its_end();
        }
        let _ = conn.write_all(b"\x88\x02\x03\xe8");
        conn.read_to_its_end();
    });
    for command in ["stays", "leaves"] {
        let mut wire = Wire::new(&host);
        wire.request("GET", &format!("{}?x=1&follow=true&y=2", path(command)), "X-User: 1\r\nCookie: a=b\r\n");
        let mut reply = Reply::default();
        wire.head(&mut reply).unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        let mut came = Vec::new();
        while came.len() < 12 {
            came.extend(wire.chunk(&reply).unwrap().expect("more"));
        }
        assert_eq!(came, b"fragmenttext");
        next.send(()).unwrap();
        let mut large = 0;
        while large < 1 << 20 {
            large += wire.chunk(&reply).unwrap().expect("more").len();
        }
        assert_eq!(large, 1 << 20);
        if command == "leaves" {
            drop(wire);
            next.send(()).unwrap();
        } else {
            next.send(()).unwrap();
            assert_eq!(wire.chunk(&reply).unwrap(), None, "a clean end");
        }
    }
    eventually("the daemon's connections end", || (backend.open() == 0).then_some(()));
    let seen = backend.seen();
    let text = String::from_utf8_lossy(&seen[0].bytes).into_owned();
    let (head, frames) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("GET /process/session/s1/command/stays/logs?follow=true HTTP/1.1\r\n"), "{head}");
    assert!(!head.contains(super::common::TOKEN), "{head}");
    let lower = head.to_ascii_lowercase();
    for line in ["upgrade: websocket", "sec-websocket-version: 13"] {
        assert!(lower.contains(line), "{head}");
    }
    assert!(!frames.is_empty(), "the ping is answered");
    let raw = &seen[0].bytes[head.len() + 4..];
    assert!(raw.windows(2).any(|two| two == [0x8a, 0x82]), "a masked pong: {raw:02x?}");
}

/// The answer to a key (RFC 6455, 4.2.2), by OpenSSL, which the tests need anyway.
fn accept(key: &str) -> String {
    use std::process::{Command, Stdio};
    let run = |arguments: &[&str], input: &[u8]| {
        let mut command = Command::new("openssl");
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("openssl");
        child.stdin.take().expect("stdin").write_all(input).expect("openssl reads");
        child.wait_with_output().expect("openssl").stdout
    };
    let digest = run(&["dgst", "-sha1", "-binary"], format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    String::from_utf8(run(&["base64"], &digest)).expect("text").trim().to_owned()
}
