//! The limits that an operator sets: what is beyond them is refused, and only that.

use std::io::Write;

use super::common::backend::{Backend, TOOLBOX};
use super::common::origin::{Origin, Reader, ok};
use super::common::wire::{Reply, Wire};
use super::common::{Host, Runner, eventually};

fn with_setting(name: &str, value: &str) -> (Host, Runner) {
    let mut host = Host::new();
    host.set(name, value);
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    (host, runner)
}

#[test]
fn exchanges_of_one_sandbox() {
    let (host, _runner) = with_setting("RUNNER_PROXY_CONNECTIONS", "4");
    host.completed(&host.api.create_sandbox(&host.spec("other")).unwrap());
    let other = Origin::plain(&host, "other");
    let _backend = Backend::serve(&host, "box", TOOLBOX, |mut conn| {
        let mut reader = Reader::default();
        while let Ok(Some(request)) = reader.request(&mut conn, true) {
            match request.target.as_str() {
                "/never" => return conn.read_to_its_end(),
                "/begins" => {
                    let _ = conn.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart");
                    return conn.read_to_its_end();
                }
                "/ws" => {
                    let _ = conn.write_all(
                        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
                    );
                    return conn.read_to_its_end();
                }
                target => drop(conn.write_all(&ok(target.as_bytes()))),
            }
        }
    });
    let begin = |path: &str, headers: &str| {
        let mut wire = Wire::new(&host);
        wire.request("GET", &format!("/sandboxes/box/toolbox{path}"), headers);
        wire
    };
    // One that waits, two that have begun, one tunnel: each of them counts, to its end.
    let waiting = begin("/never", "");
    let mut begun: Vec<Wire> = (0..2).map(|_| begin("/begins", "")).collect();
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut tunnel = begin("/ws", websocket);
    for wire in begun.iter_mut().chain([&mut tunnel]) {
        wire.head(&mut Reply::default()).unwrap();
    }
    for _ in 0..3 {
        let reply = begin("/more", "").answer().unwrap();
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert_eq!(reply.all("retry-after").len(), 1, "{reply:?}");
        assert!(reply.text().contains("RUNNER_PROXY_CONNECTIONS"), "{}", reply.text());
    }
    let answer = host.http().get("/sandboxes/other/toolbox/free");
    assert_eq!((answer.status, answer.body.as_str()), (200, "/free"), "another sandbox has places of its own");
    assert_eq!(host.http().get("/sandboxes/box").status, 200, "and so has administration");
    assert_eq!(other.take().requests.len(), 1);
    // Whatever ends makes room, and one that was refused has taken none.
    drop(tunnel);
    let free = || (begin("/free", "").answer().unwrap().status == 200).then_some(());
    eventually("the tunnel's end makes room", free);
    drop(waiting);
    drop(begun);
    for _ in 0..10 {
        eventually("all places are free again", free);
    }
}

#[test]
fn length_of_a_body() {
    let (host, _runner) = with_setting("RUNNER_PROXY_MAX_BODY_MB", "1");
    let origin = Origin::plain(&host, "box");
    let (limit, path) = (1 << 20, "/sandboxes/box/toolbox/up");
    let body = vec![b'x'; limit];
    let chunked = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n0\r\n\r\n"].concat();
    // Just as long as it may be.
    for (framing, bytes) in [
        (format!("Content-Length: {limit}\r\n"), body.clone()),
        ("Transfer-Encoding: chunked\r\n".to_owned(), chunked(&body)),
    ] {
        let mut wire = Wire::new(&host);
        wire.request("POST", path, &framing);
        wire.send(bytes);
        assert_eq!(wire.answer().unwrap().status, 200, "{framing}");
        assert_eq!(origin.take().requests[0].body.len(), limit);
    }
    // Announced to be longer: refused before it is sent, whether the client would wait or not.
    for headers in [
        format!("Content-Length: {}\r\n", limit + 1),
        "Content-Length: 10000000000\r\nExpect: 100-continue\r\n".to_owned(),
    ] {
        let mut wire = Wire::new(&host);
        wire.request("POST", path, &headers);
        let reply = wire.answer().unwrap();
        assert_eq!((reply.status, reply.interim.len()), (413, 0), "{headers}");
    }
    let record = origin.take();
    assert!(record.requests.is_empty() && record.broken_off.is_empty(), "{record:?}");
    // Longer without a word: the guest never sees it as a whole one.
    let longer = [&body[..], b"y"].concat();
    let mut wire = Wire::new(&host);
    wire.request("POST", path, "Transfer-Encoding: chunked\r\n");
    wire.send(chunked(&longer));
    assert_eq!(wire.answer().unwrap().status, 413);
    eventually("the guest sees that it breaks off", || {
        let record = origin.record();
        assert!(record.requests.is_empty(), "{:?}", record.requests.len());
        (!record.broken_off.is_empty()).then_some(())
    });
    assert_eq!(host.http().get("/sandboxes/box/toolbox/after").body, "/after");
}

#[test]
fn length_of_a_head() {
    let (host, _runner) = with_setting("RUNNER_PROXY_MAX_HEADER_KB", "16");
    let origin = Origin::start(&host, "box", |request, conn| {
        let length: usize = request.target.trim_start_matches('/').parse().unwrap_or(0);
        let _ = conn.write_all(
            format!("HTTP/1.1 200 OK\r\nX-Large: {}\r\nContent-Length: 2\r\n\r\nok", "a".repeat(length)).as_bytes(),
        );
        super::common::origin::Then::Keep
    });
    let status = |answered: usize, sent: usize| {
        let mut wire = Wire::new(&host);
        wire.request(
            "GET",
            &format!("/sandboxes/box/toolbox/{answered}"),
            &format!("X-Large: {}\r\n", "b".repeat(sent)),
        );
        wire.answer().map(|reply| reply.status)
    };
    assert_eq!(status(0, 12 << 10), Ok(200));
    assert_eq!(status(12 << 10, 0), Ok(200));
    assert_eq!(origin.take().requests.len(), 2);
    assert_eq!(status(0, 20 << 10), Ok(431), "the client's is too long");
    assert!(origin.take().requests.is_empty());
    // Reading ahead may take some more than the limit, but not many times as much.
    assert_eq!(status(200 << 10, 0), Ok(502), "the guest's is too long");
    assert_eq!(status(0, 0), Ok(200));
}
