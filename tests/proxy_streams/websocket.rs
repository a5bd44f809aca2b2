//! WebSockets: the handshake passes as it is, then bytes pass as they are.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::common::backend::{Backend, Conn, TOOLBOX};
use super::common::eventually;
use super::common::origin::Reader;
use super::common::stream::{Client, frame};
use super::common::wire::{End, Reply, Wire, key};
use super::{Host, with_box};

const HANDSHAKE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

/// Accepts every upgrade with these header lines, and leaves the connection to `after`.
fn serve(host: &Host, lines: &'static str, after: impl Fn(&mut Conn) + Send + Sync + 'static) -> Backend {
    Backend::serve(host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(_)) = reader.head(&mut conn) else { return };
        let _ = conn.write_all(format!("{ACCEPTED}{lines}\r\n").as_bytes());
        after(&mut conn);
    })
}

/// Sends back what comes.
fn echo(conn: &mut Conn) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(length) = conn.read(&mut piece) {
        if length == 0 || conn.write_all(&piece[..length]).is_err() {
            return;
        }
    }
}

#[track_caller]
fn upgraded(host: &Host, headers: &str) -> (Wire, Reply) {
    let mut wire = Wire::new(host);
    wire.request("GET", "/sandboxes/box/toolbox/ws", &format!("{HANDSHAKE}{headers}"));
    let mut reply = Reply::default();
    wire.head(&mut reply).unwrap();
    assert_eq!(reply.status, 101, "{reply:?}");
    (wire, reply)
}

#[test]
fn what_is_agreed_on_in_the_handshake_passes() {
    let (host, _runner) = with_box();
    let agreed = "Sec-WebSocket-Protocol: superchat\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n\
        Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Guest: yes\r\n";
    let backend = serve(&host, agreed, echo);
    let offered = "Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Protocol: third\r\n\
        Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nOrigin: https://app.example\r\nCookie: c=3\r\n";
    let (_wire, reply) = upgraded(&host, offered);
    assert_eq!(reply.all("sec-websocket-protocol"), ["superchat"]);
    assert_eq!(reply.all("sec-websocket-extensions"), ["permessage-deflate; server_no_context_takeover"]);
    assert_eq!(reply.all("sec-websocket-accept"), ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]);
    assert_eq!((reply.all("set-cookie"), reply.all("x-guest")), (vec!["a=1", "b=2"], vec!["yes"]));
    assert_eq!(reply.all("upgrade").join(",").to_ascii_lowercase(), "websocket");
    assert_eq!(reply.all("connection").join(",").to_ascii_lowercase(), "upgrade");
    assert!(reply.all("content-length").is_empty() && reply.all("transfer-encoding").is_empty(), "{reply:?}");
    let head = String::from_utf8(backend.seen()[0].bytes.clone()).unwrap();
    let lower = head.to_ascii_lowercase();
    for line in [
        "sec-websocket-protocol: chat, superchat",
        "sec-websocket-protocol: third",
        "sec-websocket-extensions: permessage-deflate; client_max_window_bits",
        "origin: https://app.example",
        "cookie: c=3",
        "sec-websocket-version: 13",
        "upgrade: websocket",
        "connection: upgrade",
    ] {
        assert_eq!(lower.matches(&format!("{line}\r\n")).count(), 1, "{line} in {head}");
    }
    assert!(head.contains("dGhlIHNhbXBsZSBub25jZQ=="), "{head}");
    assert!(!lower.contains("x-daytona-authorization"));
}

#[test]
fn data_that_comes_with_the_handshake() {
    let (host, _runner) = with_box();
    // The guest's first frames are in one packet with its 101.
    let backend = Backend::serve(&host, "box", TOOLBOX, |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(_)) = reader.head(&mut conn) else { return };
        let _ = conn.write_all(&[ACCEPTED.as_bytes(), b"\r\n", b"\x81\x05first\x81\x06second"].concat());
        let rest = reader.rest(&mut conn, 11);
        let _ = conn.write_all(&rest);
        conn.read_to_its_end();
    });
    // The client's are in one packet with its request.
    for _ in 0..20 {
        let mut wire = Wire::new(&host);
        let early = frame(1, b"early");
        let request = format!("GET /sandboxes/box/toolbox/ws HTTP/1.1\r\nHost: r\r\n{}{HANDSHAKE}\r\n", key());
        wire.send([request.as_bytes(), &early[..11]].concat());
        let mut reply = Reply::default();
        wire.head(&mut reply).unwrap();
        assert_eq!(reply.status, 101);
        assert_eq!(wire.exactly(15, &reply).unwrap(), b"\x81\x05first\x81\x06second");
        assert_eq!(wire.exactly(11, &reply).unwrap(), &early[..11], "what was sent early comes back");
    }
    eventually("all have ended", || (backend.open() == 0).then_some(()));
}

#[test]
fn frames_of_every_kind_and_size() {
    let (host, _runner) = with_box();
    let mut client = Client::new(&host);
    client.send("GET", "/sandboxes/box/toolbox/ws", HANDSHAKE);
    assert_eq!(client.head().status, 101);
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 1 << 20] {
        let payload: Vec<u8> = (0..length).map(|at| (at % 253) as u8).collect();
        client.write(&frame(2, &payload));
        let (opcode, came) = client.frame();
        assert!((opcode, came.len()) == (2, length) && came == payload, "{length} bytes");
    }
    client.write(&frame(1, "\u{20ac} and \u{1f600}".as_bytes()));
    assert_eq!(client.frame(), (1, "\u{20ac} and \u{1f600}".as_bytes().to_vec()));
    // Fragments with a ping between them: opcode and FIN pass as they are.
    let part = |first: u8, payload: &[u8]| {
        let mut bytes = frame(0, payload);
        bytes[0] = first;
        bytes
    };
    client.write(&[part(0x01, b"one "), frame(9, b"between"), part(0x00, b"two "), part(0x80, b"three")].concat());
    for (opcode, payload) in [(1, &b"one "[..]), (10, b"between"), (0, b"two "), (0, b"three")] {
        assert_eq!(client.frame(), (opcode, payload.to_vec()));
    }
    client.write(&frame(9, &[b'p'; 125]));
    assert_eq!(client.frame(), (10, vec![b'p'; 125]));
    for code in [1000_u16, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999] {
        let mut client = Client::new(&host);
        client.send("GET", "/sandboxes/box/toolbox/ws", HANDSHAKE);
        assert_eq!(client.head().status, 101);
        let close = [&code.to_be_bytes()[..], b"because"].concat();
        client.write(&frame(8, &close));
        assert_eq!(client.frame(), (8, close), "{code}");
        assert_eq!(client.drain(), 0);
    }
}

#[test]
fn a_frame_of_16_mib() {
    let (host, _runner) = with_box();
    let _backend = serve(&host, "", echo);
    let (mut wire, reply) = upgraded(&host, "");
    let payload: Vec<u8> = (0..16 << 20).map(|at| (at % 253) as u8).collect();
    let bytes = frame(2, &payload);
    let (mut second, sent) = (wire.stream.try_clone().unwrap(), bytes.clone());
    let sending = std::thread::spawn(move || second.write_all(&sent).unwrap());
    assert!(wire.exactly(bytes.len(), &reply).unwrap() == bytes, "it came back as it was");
    sending.join().unwrap();
}

#[test]
fn each_side_can_end_alone() {
    let (host, _runner) = with_box();
    let backend = serve(&host, "", |conn| {
        let mut byte = [0; 1];
        let _ = conn.read_exact(&mut byte);
        match byte[0] {
            // The client ends first; the guest says more then.
            b'c' => {
                let mut rest = Vec::new();
                let _ = conn.read_to_end(&mut rest);
                let _ = conn.write_all(&rest);
                let _ = conn.write_all(b"the end");
            }
            // The guest ends first; the client says more then.
            b'g' => {
                let _ = conn.write_all(b"bye");
                let _ = conn.stream().shutdown(Shutdown::Write);
                conn.read_to_its_end();
            }
            _ => {}
        }
    });
    let (mut wire, reply) = upgraded(&host, "");
    wire.send("cmore");
    wire.half_close();
    assert_eq!(wire.exactly(11, &reply).unwrap(), b"morethe end");
    assert_eq!(wire.ends(), End::Closed);

    let (mut wire, reply) = upgraded(&host, "");
    wire.send("g");
    assert_eq!(wire.exactly(3, &reply).unwrap(), b"bye");
    assert_eq!(wire.ends(), End::Closed);
    assert!(wire.send("still there"));
    eventually("what the client says afterwards arrives", || {
        backend.seen().last().filter(|seen| seen.bytes.ends_with(b"gstill there")).map(|_| ())
    });
    drop(wire);
    eventually("both have ended", || (backend.open() == 0).then_some(()));
}

#[test]
fn an_end_without_a_word_is_passed_on() {
    let (host, _runner) = with_box();
    let backend = serve(&host, "", |conn| {
        let mut byte = [0; 1];
        let _ = conn.read_exact(&mut byte);
        if byte[0] == b'r' {
            let now = libc::linger { l_onoff: 1, l_linger: 0 };
            nix::sys::socket::setsockopt(conn.stream(), nix::sys::socket::sockopt::Linger, &now).expect("SO_LINGER");
            return;
        }
        conn.read_to_its_end();
    });
    let (mut wire, _) = upgraded(&host, "");
    wire.send("r");
    let began = Instant::now();
    assert!(matches!(wire.ends(), End::Closed | End::Reset));
    assert!(began.elapsed() < Duration::from_secs(1));
    // The client's reset.
    let (mut wire, _) = upgraded(&host, "");
    wire.send("x");
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&wire.stream, nix::sys::socket::sockopt::Linger, &now).unwrap();
    drop(wire);
    eventually("the guest's side ends", || (backend.open() == 0).then_some(()));
}

#[test]
fn silence_is_no_reason_to_end() {
    let (host, _runner) = with_box();
    let backend = serve(&host, "", echo);
    let (mut wire, reply) = upgraded(&host, "");
    // Longer than the time for a head.
    std::thread::sleep(Duration::from_secs(12));
    wire.send("still here");
    assert_eq!(wire.exactly(10, &reply).unwrap(), b"still here");
    assert_eq!(backend.accepted(), 1);
}
