//! Bodies of both directions: large ones in flat memory, each piece at once, trailers, lengths.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::mpsc;

use super::common::backend::{Backend, TOOLBOX};
use super::common::origin::{Origin, Reader, Then, ok};
use super::common::wire::{Reply, Wire};
use super::with_box;

/// Bytes of a large body.
const LARGE: usize = 256 << 20;
const PIECE: usize = 64 << 10;

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

/// A piece whose bytes are not all the same, so that a lost or doubled one shows.
fn pattern() -> Vec<u8> {
    (0..PIECE).map(|at| (at % 251) as u8).collect()
}

#[test]
fn large_bodies_both_ways_in_flat_memory() {
    let (host, runner) = with_box();
    let _backend = Backend::serve(&host, "box", TOOLBOX, |mut conn| {
        let mut reader = Reader::default();
        while let Ok(Some(request)) = reader.head(&mut conn) {
            let piece = pattern();
            match request.target.as_str() {
                "/down" => {
                    let _ = conn.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes());
                    for _ in 0..LARGE / PIECE {
                        if conn.write_all(&piece).is_err() {
                            return;
                        }
                    }
                }
                "/down-chunked" => {
                    let _ = conn.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    let chunk = [format!("{PIECE:x}\r\n").as_bytes(), &piece, b"\r\n"].concat();
                    for _ in 0..LARGE / PIECE {
                        if conn.write_all(&chunk).is_err() {
                            return;
                        }
                    }
                    let _ = conn.write_all(b"0\r\n\r\n");
                }
                _ => {
                    let right = reader.takes(&mut conn, &request, &piece, LARGE / PIECE);
                    let _ = conn.write_all(&ok(format!("{right:?}").as_bytes()));
                }
            }
        }
    });
    let before = forget_peak(runner.pid());
    let piece = pattern();
    let mut wire = Wire::new(&host);
    wire.request("GET", "/sandboxes/box/toolbox/down", "");
    let mut reply = Reply::default();
    wire.head(&mut reply).unwrap();
    assert_eq!((reply.status, reply.all("content-length")), (200, vec![LARGE.to_string().as_str()]));
    for number in 0..LARGE / PIECE {
        assert!(wire.exactly(PIECE, &reply).unwrap() == piece, "piece {number}");
    }
    wire.request("GET", "/sandboxes/box/toolbox/down-chunked", "");
    let mut reply = Reply::default();
    wire.head(&mut reply).unwrap();
    assert_eq!((reply.status, reply.all("transfer-encoding")), (200, vec!["chunked"]));
    let mut at = 0;
    while let Some(chunk) = wire.chunk(&reply).unwrap() {
        let from = at % PIECE;
        let same = chunk.iter().zip(piece.iter().cycle().skip(from)).all(|(one, other)| one == other);
        assert!(same, "at {at}");
        at += chunk.len();
    }
    assert_eq!(at, LARGE);
    wire = Wire::new(&host);
    wire.request("POST", "/sandboxes/box/toolbox/up", &format!("Content-Length: {LARGE}\r\n"));
    for _ in 0..LARGE / PIECE {
        assert!(wire.send(&piece));
    }
    assert_eq!(wire.answer().unwrap().text(), "Ok(())");
    wire.request("PUT", "/sandboxes/box/toolbox/up", "Transfer-Encoding: chunked\r\n");
    let chunk = [format!("{PIECE:x}\r\n").as_bytes(), &piece, b"\r\n"].concat();
    for _ in 0..LARGE / PIECE {
        assert!(wire.send(&chunk));
    }
    assert!(wire.send("0\r\n\r\n"));
    assert_eq!(wire.answer().unwrap().text(), "Ok(())");
    let grown = peak(runner.pid()).saturating_sub(before);
    println!("grown by {} KiB", grown >> 10);
    assert!(grown < 8 << 20, "the runner grew by {} KiB", grown >> 10);
}

#[test]
fn each_piece_arrives_before_the_next_is_sent() {
    let (host, _runner) = with_box();
    let (arrived, at_guest) = mpsc::channel();
    let (next, go_on) = mpsc::channel::<()>();
    let (arrived, go_on) = (Mutex::new(arrived), Mutex::new(go_on));
    let _backend = Backend::serve(&host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        while let Ok(Some(mut request)) = reader.head(&mut conn) {
            match request.target.as_str() {
                // An answer piece by piece, each when the one before has been seen.
                "/events" | "/raw" => {
                    let chunked = request.target == "/events";
                    let framing = if chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 2000" };
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n\r\n");
                    let _ = conn.write_all(head.as_bytes());
                    for number in 0..100 {
                        let event = format!("data: event {number:06}\n\n");
                        let bytes = if chunked { format!("{:x}\r\n{event}\r\n", event.len()) } else { event };
                        let _ = conn.write_all(bytes.as_bytes());
                        if go_on.lock().unwrap().recv().is_err() {
                            return;
                        }
                    }
                    if chunked {
                        let _ = conn.write_all(b"0\r\n\r\n");
                    }
                }
                // An upload that is told of piece by piece.
                "/up" => {
                    let (told, mut last) = (arrived.lock().unwrap(), 0);
                    let done = reader.watch(&mut conn, &mut request, |body| {
                        if body.len() > last {
                            last = body.len();
                            let _ = told.send(last);
                        }
                    });
                    let _ = conn.write_all(&ok(format!("{} {done:?}", request.body.len()).as_bytes()));
                }
                // Both at once: each piece comes back while the request goes on.
                _ => {
                    let _ = conn.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                    let mut last = 0;
                    let mut second = conn.stream().try_clone().unwrap();
                    let _ = reader.watch(&mut conn, &mut request, |body| {
                        if body.len() > last {
                            let piece = &body[last..];
                            let _ = second
                                .write_all(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
                            last = body.len();
                        }
                    });
                    let _ = conn.write_all(b"0\r\n\r\n");
                }
            }
        }
    });
    // The patience of the client is what would run out.
    let mut wire = Wire::new(&host);
    for path in ["/events", "/raw"] {
        wire.request("GET", &format!("/sandboxes/box/toolbox{path}"), "Accept: text/event-stream\r\n");
        let mut reply = Reply::default();
        wire.head(&mut reply).unwrap();
        assert_eq!((reply.status, reply.all("content-type")), (200, vec!["text/event-stream"]));
        for number in 0..100 {
            let event = format!("data: event {number:06}\n\n");
            let came = match path {
                "/raw" => wire.exactly(event.len(), &reply).unwrap(),
                _ => wire.chunk(&reply).unwrap().unwrap(),
            };
            assert_eq!(String::from_utf8(came).unwrap(), event);
            next.send(()).unwrap();
        }
        if path == "/events" {
            wire.body(&mut reply).unwrap();
            assert!(reply.body.is_empty());
        }
    }
    for framing in ["Transfer-Encoding: chunked\r\n", "Content-Length: 100\r\n"] {
        wire.request("POST", "/sandboxes/box/toolbox/up", framing);
        for number in 1..=100 {
            wire.send(if framing.contains("chunked") { "1\r\nx\r\n" } else { "x" });
            let came = at_guest.recv_timeout(std::time::Duration::from_secs(6));
            assert_eq!(came, Ok(number), "{framing}");
        }
        if framing.contains("chunked") {
            wire.send("0\r\n\r\n");
        }
        assert_eq!(wire.answer().unwrap().text(), "100 Ok(())");
    }
    wire.request("POST", "/sandboxes/box/toolbox/echo", "Transfer-Encoding: chunked\r\n");
    wire.send("5\r\nfirst\r\n");
    let mut reply = Reply::default();
    wire.head(&mut reply).unwrap();
    assert_eq!(wire.chunk(&reply).unwrap().unwrap(), b"first");
    for number in 0..100 {
        let text = format!("{number:04}");
        wire.send(format!("4\r\n{text}\r\n"));
        assert_eq!(wire.chunk(&reply).unwrap().unwrap(), text.as_bytes());
    }
    wire.send("0\r\n\r\n");
    wire.body(&mut reply).unwrap();
}

#[test]
fn trailers_pass_both_ways() {
    let (host, _runner) = with_box();
    let origin = Origin::start(&host, "box", |request, conn| {
        let answer = "HTTP/1.1 200 OK\r\nTrailer: X-Sum, X-Other\r\nTransfer-Encoding: chunked\r\n\r\n\
            5\r\nhello\r\n0\r\nX-Sum: 42\r\nX-Other: y\r\n\r\n";
        let answer = if request.target == "/plain" { ok(b"plain") } else { answer.as_bytes().to_vec() };
        let _ = conn.write_all(&answer);
        Then::Keep
    });
    let mut wire = Wire::new(&host);
    wire.request("POST", "/sandboxes/box/toolbox/plain", "Trailer: X-Up, X-Late\r\nTransfer-Encoding: chunked\r\n");
    wire.send("5\r\nhello\r\n0\r\nX-Up: 1\r\nX-Late: two\r\n\r\n");
    assert_eq!(wire.answer().unwrap().status, 200);
    let record = origin.take();
    assert!(record.malformed.is_empty(), "{record:?}");
    let request = &record.requests[0];
    let trailers: Vec<_> =
        request.trailers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
    assert_eq!(trailers, [("x-up".to_owned(), "1"), ("x-late".to_owned(), "two")]);
    assert_eq!(request.all("trailer").join(", "), "X-Up, X-Late");
    assert_eq!(request.body, b"hello");

    wire.request("GET", "/sandboxes/box/toolbox/sum", "TE: trailers\r\nConnection: TE\r\n");
    let reply = wire.answer().unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
    let trailers: Vec<_> =
        reply.trailers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
    assert_eq!(trailers, [("x-sum".to_owned(), "42"), ("x-other".to_owned(), "y")]);
    assert_eq!(reply.all("trailer").join(", "), "X-Sum, X-Other");
    assert_eq!(origin.take().requests[0].all("te"), ["trailers"], "the guest knows that they are wanted");

    // Without being asked for they may be left out, and the body is whole.
    wire.request("GET", "/sandboxes/box/toolbox/sum", "");
    assert_eq!(wire.answer().unwrap().text(), "hello");
    // Codings that we do not know are not offered.
    wire.request("GET", "/sandboxes/box/toolbox/plain", "TE: gzip;q=1.0, trailers, deflate\r\nConnection: TE\r\n");
    assert_eq!(wire.answer().unwrap().text(), "plain");
    let offered = origin.take().requests.last().unwrap().all("te").join(", ");
    assert!(["", "trailers"].contains(&offered.as_str()), "{offered}");
}

#[test]
fn lengths_and_ranges() {
    let (host, _runner) = with_box();
    let body: Vec<u8> = pattern();
    let content = body.clone();
    let origin = Origin::start(&host, "box", move |request, conn| {
        let range = request.all("range").first().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let numbers = range.and_then(|(from, to)| Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?)));
        let (from, to) = numbers.unwrap_or((0, content.len() - 1));
        let part = &content[from..=to];
        let head = match (numbers, request.all("if-none-match").is_empty()) {
            (_, false) => "HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\nContent-Length: 65536\r\n\r\n".to_owned(),
            (None, _) => format!("HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\n\r\n", part.len()),
            (Some(_), _) => format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{to}/{}\r\nContent-Length: {}\r\n\r\n",
                content.len(),
                part.len()
            ),
        };
        let _ = conn.write_all(head.as_bytes());
        if request.method != "HEAD" && !head.contains(" 304 ") {
            let _ = conn.write_all(part);
        }
        Then::Keep
    });
    let path = "/sandboxes/box/toolbox/file";
    let mut wire = Wire::new(&host);
    for (from, to) in [(0, 0), (0, 999), (1000, 65_535), (65_535, 65_535)] {
        wire.request("GET", path, &format!("Range: bytes={from}-{to}\r\n"));
        let reply = wire.answer().unwrap();
        assert_eq!(
            (reply.status, reply.all("content-range")),
            (206, vec![format!("bytes {from}-{to}/65536").as_str()])
        );
        assert!(reply.body == body[from..=to], "{from}-{to}");
    }
    for (headers, status, length) in
        [("", 200, "65536"), ("Range: bytes=0-9\r\n", 206, "10"), ("If-None-Match: \"1\"\r\n", 304, "65536")]
    {
        wire.request("HEAD", path, headers);
        let reply = wire.answer_to("HEAD").unwrap();
        assert_eq!((reply.status, reply.all("content-length")), (status, vec![length]), "{headers}");
    }
    wire.request("GET", path, "If-None-Match: \"1\"\r\n");
    let reply = wire.answer().unwrap();
    assert_eq!((reply.status, reply.all("etag"), reply.body.len()), (304, vec!["\"1\""], 0));
    wire.request("GET", path, "");
    let reply = wire.answer().unwrap();
    assert!(reply.status == 200 && reply.body == body && reply.all("accept-ranges") == ["bytes"]);
    assert!(origin.take().malformed.is_empty());
}

#[test]
fn slow_readers_and_writers_lose_nothing() {
    let (host, _runner) = with_box();
    let total = 32 << 20;
    let _backend = Backend::serve(&host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(request)) = reader.head(&mut conn) else { return };
        let piece = pattern();
        if request.target == "/down" {
            let _ = conn.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n").as_bytes());
            for _ in 0..total / PIECE {
                let _ = conn.write_all(&piece);
            }
        } else {
            // Takes a piece only now and then.
            let right = reader.takes_slowly(&mut conn, &request, &piece, total / PIECE);
            let _ = conn.write_all(&ok(format!("{right:?}").as_bytes()));
        }
        conn.read_to_its_end();
    });
    let piece = pattern();
    let mut wire = Wire::new(&host);
    wire.request("GET", "/sandboxes/box/toolbox/down", "");
    let mut reply = Reply::default();
    wire.head(&mut reply).unwrap();
    for number in 0..total / PIECE {
        // The client's slowness is what is tried.
        if number % 32 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(wire.exactly(PIECE, &reply).unwrap() == piece, "piece {number}");
    }
    let mut wire = Wire::new(&host);
    wire.request("POST", "/sandboxes/box/toolbox/up", &format!("Content-Length: {total}\r\n"));
    for number in 0..total / PIECE {
        assert!(wire.send(&piece), "piece {number}");
    }
    assert_eq!(wire.answer().unwrap().text(), "Ok(())");
    let mut rest = [0; 1];
    wire.stream.set_read_timeout(Some(std::time::Duration::from_millis(10))).unwrap();
    assert!(wire.stream.read(&mut rest).is_err(), "nothing behind the answer");
}
