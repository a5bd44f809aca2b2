//! Several requests on one connection, and upgrades that become none.

use std::io::Write;

use super::common::backend::Conn;
use super::common::origin::{Origin, Request, Then, ok};
use super::common::wire::{End, Wire, key};
use super::{with_box, with_origin};

/// What a client sends for a WebSocket.
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn get(target: &str, headers: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: r\r\n{headers}\r\n")
}

#[test]
fn answers_come_in_the_order_of_the_requests() {
    let (host, _runner, origin) = with_origin();
    let with_key = |target: &str| get(target, &key());
    let mut wire = Wire::new(&host);
    wire.send((0..10).map(|n| with_key(&format!("/sandboxes/box/toolbox/{n}"))).collect::<String>());
    for n in 0..10 {
        assert_eq!(wire.answer().unwrap().text(), format!("/{n}"));
    }
    // Bodies, the runner's own answers, refusals, and guests mixed; in one packet.
    let post = |n: usize, framing: &str, body: &str| {
        format!("POST /sandboxes/box/toolbox/p{n} HTTP/1.1\r\nHost: r\r\n{}{framing}\r\n{body}", key())
    };
    let all = [
        with_key("/sandboxes/box"),
        post(1, "Content-Length: 3\r\n", "one"),
        get("/sandboxes/box/toolbox/stranger", ""),
        with_key("/sandboxes/absent/toolbox/x"),
        post(2, "Transfer-Encoding: chunked\r\n", "3\r\ntwo\r\n0\r\n\r\n"),
        with_key("/no-such-route"),
        with_key("/sandboxes/box/proxy/8080/a"),
        get("/", ""),
        post(3, "Content-Length: 0\r\n", ""),
        with_key("/sandboxes/box/toolbox/last"),
    ];
    wire.send(all.concat());
    let right = [
        (200, "\"box\""),
        (200, "/p1"),
        (401, ""),
        (404, "absent"),
        (200, "/p2"),
        (404, ""),
        (200, "/proxy/8080/a"),
        (200, "ok"),
        (200, "/p3"),
        (200, "/last"),
    ];
    for (number, (status, text)) in right.into_iter().enumerate() {
        let reply = wire.answer().unwrap_or_else(|end| panic!("answer {number}: {end:?}"));
        assert_eq!(reply.status, status, "answer {number}: {}", reply.text());
        assert!(reply.text().contains(text), "answer {number}: {}", reply.text());
    }
    let record = origin.take();
    assert!(record.malformed.is_empty() && record.broken_off.is_empty(), "{record:?}");
    let bodies: Vec<_> =
        record.requests.iter().filter(|request| request.method == "POST").map(|request| request.body.clone()).collect();
    assert_eq!(bodies, [&b"one"[..], b"two", b""]);
    assert!(record.requests.iter().all(|request| request.target != "/stranger"));

    // Behind `close` nothing is answered any more, and nothing is done.
    let mut wire = Wire::new(&host);
    wire.send(
        get("/sandboxes/box/toolbox/closing", &format!("{}Connection: close\r\n", key()))
            + &with_key("/sandboxes/box/toolbox/behind"),
    );
    let reply = wire.answer().unwrap();
    assert_eq!(reply.text(), "/closing");
    assert!(matches!(wire.ends(), End::Closed | End::Reset));
    assert!(origin.take().requests.iter().all(|request| request.target != "/behind"));
}

/// Answers an upgrade with a 426 and everything else with its target.
fn upgrade_required(request: &Request, conn: &mut Conn) -> Then {
    let refused = b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nno!";
    let answer = if request.target == "/ws" { refused.to_vec() } else { ok(request.target.as_bytes()) };
    let _ = conn.write_all(&answer);
    Then::Keep
}

#[test]
fn an_upgrade_that_the_guest_refuses_opens_no_tunnel() {
    let (host, _runner) = with_box();
    let origin = Origin::start(&host, "box", upgrade_required);
    for version in ["13", "12", "777", "x", ""] {
        let mut wire = Wire::new(&host);
        let upgrade = UPGRADE.replace(": 13", &format!(": {version}"));
        // What is behind it in the same packet is a stranger's request, not bytes for the guest.
        wire.send(
            get("/sandboxes/box/toolbox/ws", &format!("{}{upgrade}", key()))
                + &get("/sandboxes/box/toolbox/smuggled", ""),
        );
        let reply = wire.answer().unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (426, "no!"), "{version}");
        match wire.answer() {
            Ok(reply) => assert_eq!(reply.status, 401, "{}", reply.text()),
            Err(End::Closed | End::Reset) => {}
            Err(end) => panic!("{version}: {end:?}"),
        }
        let record = origin.take();
        assert_eq!((record.requests.len(), record.malformed.len()), (1, 0), "{version}: {record:?}");
        assert_eq!(record.requests[0].all("sec-websocket-version"), [version]);
    }
    // The same from a client that waits and goes on with the key.
    let mut wire = Wire::new(&host);
    wire.request("GET", "/sandboxes/box/toolbox/ws", UPGRADE);
    assert_eq!(wire.answer().unwrap().status, 426);
    wire.request("GET", "/sandboxes/box/toolbox/next", "");
    match wire.answer() {
        Ok(reply) => assert_eq!((reply.status, reply.text().as_str()), (200, "/next")),
        Err(End::Closed | End::Reset) => {}
        Err(end) => panic!("{end:?}"),
    }
}

#[test]
fn other_upgrades_and_odd_ones() {
    let (host, _runner, origin) = with_origin();
    let path = "/sandboxes/box/toolbox/x";
    // HTTP/2 would be a way past the proxy: the guest is not offered it (RFC 9113, 3.1).
    let settings =
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";
    let lists = [
        "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
    ];
    for headers in [
        settings,
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Upgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: H2C\r\n",
        lists[0],
        lists[1],
        lists[2],
    ] {
        let mut wire = Wire::new(&host);
        wire.request("GET", path, headers);
        let reply = wire.answer().unwrap();
        assert!([200, 400].contains(&reply.status), "{headers}: {reply:?}");
        for request in origin.take().requests {
            let told = format!("{:?}", request.headers).to_ascii_lowercase();
            assert!(!told.contains("h2c") && !told.contains("http2-settings"), "{headers} became {told}");
        }
    }
    // Upgrades that are none are ordinary requests, or refused.
    let upgrade = |from: &str, to: &str| UPGRADE.replace(from, to);
    for headers in [
        upgrade("Connection: Upgrade\r\n", ""),
        upgrade("Upgrade: websocket\r\n", ""),
        upgrade("Connection: Upgrade", "Connection: Upgrad"),
        upgrade("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""),
        upgrade("dGhlIHNhbXBsZSBub25jZQ==", "x"),
        format!("{UPGRADE}Content-Length: 0\r\n"),
    ] {
        let mut wire = Wire::new(&host);
        wire.request("GET", path, &headers);
        let reply = wire.answer().unwrap();
        assert!([200, 400].contains(&reply.status), "{headers}: {reply:?}");
        let record = origin.take();
        assert!(record.malformed.is_empty(), "{headers}: {record:?}");
        if reply.status == 200 {
            wire.request("GET", "/sandboxes/box/toolbox/next", "");
            match wire.answer() {
                Ok(reply) => assert_eq!(reply.text(), "/next", "{headers}"),
                end => assert!(matches!(end, Err(End::Closed | End::Reset)), "{headers}: {end:?}"),
            }
        }
    }
    origin.take();
    // With a body it is the body that counts.
    for framing in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        let body = if framing.contains("chunked") { "5\r\nhello\r\n0\r\n\r\n" } else { "hello" };
        let mut wire = Wire::new(&host);
        wire.request("POST", path, &format!("{UPGRADE}{framing}"));
        wire.send(body);
        let reply = wire.answer().unwrap();
        let record = origin.take();
        assert!(record.malformed.is_empty() && record.broken_off.is_empty(), "{record:?}");
        match reply.status {
            200 => assert_eq!((record.requests.len(), &record.requests[0].body[..]), (1, &b"hello"[..])),
            status => assert!(status == 400 && record.requests.is_empty(), "{status}"),
        }
    }
    // HTTP/1.0 knows no upgrades (RFC 9110, 7.8).
    let mut wire = Wire::new(&host);
    wire.send(format!("GET {path} HTTP/1.0\r\nHost: r\r\n{}{UPGRADE}\r\n", key()));
    assert!([200, 400].contains(&wire.answer().unwrap().status));
    assert!(origin.take().requests.iter().all(|request| request.all("upgrade").is_empty()));
    // A stranger gets none either.
    let mut wire = Wire::new(&host);
    wire.send(get(path, UPGRADE));
    assert_eq!(wire.answer().unwrap().status, 401);
    assert!(origin.take().requests.is_empty());
}
