//! Streams through the proxy: their memory, their pace, their upgrades, and their end with the guest's.

use std::io::Read;
use std::time::{Duration, Instant};

use super::common::stream::{Client, frame};
use super::common::{Host, eventually, leftovers};
use super::{STREAM, kill_vmm, with_box};

/// The most memory in bytes that a process has had since [`forget_peak`].
fn peak(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn forget_peak(pid: i32) -> u64 {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    peak(pid)
}

#[test]
fn large_bodies_stream_in_flat_memory() {
    let (host, runner) = with_box();
    // A client that takes nothing of what it asked for, all the while.
    let mut stalled = Client::new(&host);
    stalled.send("GET", &format!("/sandboxes/box/toolbox/stream?bytes={STREAM}"), "");
    assert_eq!(stalled.head().status, 200);
    let before = forget_peak(runner.pid());

    let mut client = Client::new(&host);
    client.send("GET", &format!("/sandboxes/box/toolbox/stream?bytes={STREAM}"), "");
    let head = client.head();
    assert_eq!((head.status, head.length()), (200, STREAM));
    let mut piece = vec![0; 1 << 16];
    let mut at = 0;
    while at < STREAM {
        client.stream.read_exact(&mut piece).unwrap();
        // The guest sends pieces of 16 KiB that each begin with an a.
        assert!(piece[..4] == *b"abcd" && piece[16 << 10..][..4] == *b"abcd", "at {at}");
        at += piece.len() as u64;
    }

    client.send("POST", "/sandboxes/box/toolbox/sink", &format!("Content-Length: {STREAM}\r\n"));
    for _ in 0..STREAM / (1 << 16) {
        client.write(&piece);
    }
    assert_eq!(client.json()["bytes"], STREAM);
    client.send("PUT", "/sandboxes/box/toolbox/sink", "Transfer-Encoding: chunked\r\n");
    for _ in 0..STREAM / (1 << 16) {
        client.write(b"10000\r\n");
        client.write(&piece);
        client.write(b"\r\n");
    }
    client.write(b"0\r\n\r\n");
    assert_eq!(client.json()["bytes"], STREAM);

    let grown = peak(runner.pid()).saturating_sub(before);
    assert!(grown < 8 << 20, "the runner grew by {} KiB for {} MiB", grown >> 10, STREAM >> 20);
}

#[test]
fn events_pass_at_once() {
    let (host, _runner) = with_box();
    for path in ["/sandboxes/box/toolbox/sse", "/sandboxes/box/proxy/8080/sse"] {
        let mut client = Client::new(&host);
        client.send("GET", path, "Accept: text/event-stream\r\n");
        let head = client.head();
        assert_eq!((head.status, head.get("content-type")), (200, Some("text/event-stream")));
        assert_eq!(head.get("cache-control"), Some("no-cache"));
        let began = Instant::now();
        let mut text = String::new();
        while !text.contains("data: 4\n\n") {
            text.push_str(&String::from_utf8(client.chunk().expect("more events")).unwrap());
        }
        // The guest sends one each 50 ms; a buffer would hold back hundreds.
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        assert!(text.starts_with("event: tick\ndata: 0\n\n"), "{text}");
    }
}

fn websocket(host: &Host, path: &str) -> Client {
    let mut client = Client::new(host);
    let handshake = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    client.send("GET", path, handshake);
    let head = client.head();
    assert_eq!(head.status, 101);
    assert_eq!(head.get("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(head.get("upgrade").map(str::to_ascii_lowercase).as_deref(), Some("websocket"));
    assert_eq!(head.get("connection").map(str::to_ascii_lowercase).as_deref(), Some("upgrade"));
    client
}

#[test]
fn websockets_are_tunnelled() {
    let (host, _runner) = with_box();
    for path in ["/sandboxes/box/toolbox/ws", "/sandboxes/box/proxy/8080/any", "/sandboxes/box/toolbox/proxy/8080/x"] {
        let mut client = websocket(&host, path);
        for n in 0..50 {
            let text = format!("message {n}");
            client.write(&frame(1, text.as_bytes()));
            assert_eq!(client.frame(), (1, text.into_bytes()));
        }
        let large: Vec<u8> = (0..1 << 20).map(|n| n as u8).collect();
        client.write(&frame(2, &large));
        assert!(client.frame() == (2, large), "1 MiB came back unchanged");
        client.write(&frame(9, b"alive?"));
        assert_eq!(client.frame(), (10, b"alive?".to_vec()));
        client.write(&frame(8, &1000_u16.to_be_bytes()));
        assert_eq!(client.frame(), (8, 1000_u16.to_be_bytes().to_vec()));
        assert_eq!(client.drain(), 0, "the guest's end is the client's end");
    }
    // A request for an upgrade that the guest does not take is an ordinary one.
    let mut client = Client::new(&host);
    client.send("GET", "/sandboxes/box/toolbox/version", "Connection: Upgrade\r\nUpgrade: websocket\r\n");
    let head = client.head();
    assert_eq!(head.status, 200);
}

#[test]
fn a_guest_that_dies_ends_its_streams_with_an_error() {
    let (host, _runner) = with_box();
    let mut download = Client::new(&host);
    download.send("GET", &format!("/sandboxes/box/toolbox/stream?bytes={}", STREAM * 1000), "");
    let length = download.head().length();
    let mut events = Client::new(&host);
    events.send("GET", "/sandboxes/box/toolbox/sse", "");
    events.head();
    assert!(events.chunk().is_some());
    let mut socket = websocket(&host, "/sandboxes/box/toolbox/ws");
    let mut upload = Client::new(&host);
    upload.send("POST", "/sandboxes/box/toolbox/sink", "Content-Length: 1000000\r\n");
    upload.write(b"some");

    kill_vmm(&host);
    let began = Instant::now();
    assert!(download.drain() < length, "cut short, and the client can tell");
    let (opcode, reason) = socket.frame();
    assert_eq!((opcode, &reason[..2]), (8, &1001u16.to_be_bytes()[..]), "it is told that the guest goes away");
    assert_eq!(socket.drain(), 0);
    let last = std::iter::from_fn(|| events.chunk()).find(Vec::is_empty);
    assert!(last.is_none(), "no regular end of the body");
    // Unless the guest was gone before the request got to it.
    assert!([400, 502, 503].contains(&upload.head().status));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    eventually("it is seen to be stopped", || {
        (host.http().get("/sandboxes/box").json()["state"] == "stopped").then_some(())
    });
    host.completed(&host.api.start_sandbox("box").unwrap());
    assert_eq!(host.in_guest("box", "echo again"), "again");
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn a_destroy_does_not_wait_for_open_streams() {
    let (host, _runner) = with_box();
    let mut events = Client::new(&host);
    events.send("GET", "/sandboxes/box/toolbox/sse", "");
    events.head();
    let mut socket = websocket(&host, "/sandboxes/box/toolbox/ws");
    let mut stalled = Client::new(&host);
    stalled.send("GET", &format!("/sandboxes/box/toolbox/stream?bytes={STREAM}"), "");
    stalled.head();
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
    assert!(std::iter::from_fn(|| events.chunk()).all(|chunk| !chunk.is_empty()));
    let (opcode, reason) = socket.frame();
    assert_eq!((opcode, &reason[..2]), (8, &1001u16.to_be_bytes()[..]), "it is told that the guest goes away");
    assert_eq!(socket.drain(), 0);
    assert!(stalled.drain() < STREAM);
}
