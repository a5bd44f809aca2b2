//! Guests that never answer or never stop, and clients that go away meanwhile.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::common::backend::{Backend, TOOLBOX};
use super::common::origin::{Reader, ok};
use super::common::wire::{End, Reply, Wire, key};
use super::common::{eventually, leftovers};
use super::with_box;

fn memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_guest_that_never_answers() {
    let (host, _runner) = with_box();
    let ended = Arc::new(AtomicU64::new(0));
    let counter = ended.clone();
    let backend = Backend::serve(&host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        while let Ok(Some(request)) = reader.request(&mut conn, true) {
            if request.target == "/never" {
                conn.read_to_its_end();
                counter.fetch_add(1, Ordering::SeqCst);
                return;
            }
            let _ = conn.write_all(&ok(request.target.as_bytes()));
        }
    });
    // Of each kind one that waits: alone, with a body, for an upgrade, for HEAD.
    let kinds = [
        ("GET", "", ""),
        ("POST", "Content-Length: 5\r\n", "hello"),
        ("HEAD", "", ""),
        (
            "GET",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            "",
        ),
    ];
    let mut waiting = Vec::new();
    for (method, headers, body) in kinds {
        let mut wire = Wire::new(&host);
        wire.request(method, "/sandboxes/box/toolbox/never", headers);
        wire.send(body);
        waiting.push(wire);
    }
    let arrived = || backend.seen().iter().filter(|seen| seen.bytes.windows(7).any(|part| part == b" /never")).count();
    eventually("all of them have reached the guest", || (arrived() == 4).then_some(()));
    for number in 0..10 {
        let answer = host.http().get(&format!("/sandboxes/box/toolbox/{number}"));
        assert_eq!((answer.status, answer.body), (200, format!("/{number}")), "others are served");
    }
    assert_eq!(ended.load(Ordering::SeqCst), 0, "they have waited until now");
    let began = Instant::now();
    drop(waiting);
    eventually("the connections of those who have gone away end", || (ended.load(Ordering::SeqCst) == 4).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(backend);
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn a_guest_that_never_stops() {
    let (host, runner) = with_box();
    let written = Arc::new(AtomicU64::new(0));
    let counter = written.clone();
    let backend = Backend::serve(&host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(request)) = reader.request(&mut conn, true) else { return };
        let (head, piece): (&str, Vec<u8>) = match request.target.as_str() {
            "/chunks" => (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                [&b"8000\r\n"[..], &[b'x'; 0x8000], b"\r\n"].concat(),
            ),
            "/headers" => ("HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n".repeat(1000)),
            "/hundreds" => ("", b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000)),
            _ => ("HTTP/1.1 200 OK\r\n\r\n", vec![b'x'; 0x8000]),
        };
        let mut open = conn.write_all(head.as_bytes()).is_ok();
        while open {
            open = conn.write_all(&piece).is_ok();
            counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    });
    let before = memory(runner.pid());
    for path in ["/chunks", "/plain"] {
        written.store(0, Ordering::Relaxed);
        let mut wire = Wire::new(&host);
        wire.request("GET", &format!("/sandboxes/box/toolbox{path}"), "");
        let mut reply = Reply::default();
        wire.head(&mut reply).unwrap();
        assert_eq!(reply.status, 200);
        // The client takes nothing: the guest is stopped by that, not the runner filled.
        let mut last = 0;
        eventually("the guest cannot go on", || {
            std::thread::sleep(Duration::from_millis(200));
            let now = written.load(Ordering::Relaxed);
            let stands = now == last && now > 0;
            last = now;
            stands.then_some(())
        });
        assert!(last < 64 << 20, "{path}: {} MiB went into the runner", last >> 20);
        let grown = memory(runner.pid()).saturating_sub(before);
        assert!(grown < 8 << 20, "{path}: the runner grew by {} MiB", grown >> 20);
        // It goes on when the client does.
        let mut taken = vec![0; 1 << 20];
        for _ in 0..64 {
            wire.stream.read_exact(&mut taken).unwrap();
        }
        drop(wire);
        let began = Instant::now();
        eventually("the guest's connection ends", || (backend.open() == 0).then_some(()));
        assert!(began.elapsed() < Duration::from_secs(5), "{path}: {:?}", began.elapsed());
    }
    // A head without end is given up; informational answers without end may be waited for.
    for path in ["/headers", "/hundreds"] {
        let mut wire = Wire::new(&host);
        wire.stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        wire.request("GET", &format!("/sandboxes/box/toolbox{path}"), "");
        let mut reply = Reply::default();
        let mut last = wire.head(&mut reply);
        for _ in 0..100_000 {
            if last.is_err() || reply.status != 100 {
                break;
            }
            reply = Reply::default();
            last = wire.head(&mut reply);
        }
        let waits = path == "/hundreds" && (last == Err(End::Silent) || reply.status == 100);
        assert!(waits || reply.status == 502, "{path}: {last:?} {reply:?}");
        drop(wire);
        eventually("the guest's connection ends", || (backend.open() == 0).then_some(()));
        let grown = memory(runner.pid()).saturating_sub(before);
        assert!(grown < 16 << 20, "{path}: the runner grew by {} MiB", grown >> 20);
    }
}

#[test]
fn a_client_that_goes_away_takes_its_upload_along() {
    let (host, _runner) = with_box();
    let backend = Backend::serve(&host, "box", TOOLBOX, |mut conn| conn.read_to_its_end());
    for framing in ["Content-Length: 1000000\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut wire = Wire::new(&host);
        wire.send(format!("POST /sandboxes/box/toolbox/up HTTP/1.1\r\nHost: r\r\n{}{framing}\r\n", key()));
        wire.send("5\r\nhello\r\n");
        eventually("some of it has reached the guest", || {
            backend.seen().last().filter(|seen| seen.bytes.windows(5).any(|part| part == b"hello")).map(|_| ())
        });
        drop(wire);
        eventually("the guest's connection ends", || (backend.open() == 0).then_some(()));
        // An upload that breaks off is not an upload that is complete.
        let seen = backend.seen().pop().unwrap();
        assert!(!seen.bytes.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&seen.bytes));
    }
}
