//! Connections to the guest that are kept: what is on them belongs to one request only, and a request
//! is never carried out twice.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::common::backend::{Backend, TOOLBOX};
use super::common::eventually;
use super::common::origin::{Origin, Reader, Then, ok};
use super::common::wire::Wire;
use super::with_box;

#[test]
fn what_comes_unasked_is_nobodys_answer() {
    let (host, _runner) = with_box();
    let (told, poisoned) = std::sync::mpsc::channel();
    let told = Mutex::new(told);
    let _origin = Origin::start(&host, "box", move |request, conn| {
        let _ = conn.write_all(&ok(request.target.as_bytes()));
        if request.target.contains("poison") {
            // When the answer has surely been passed on.
            std::thread::sleep(Duration::from_millis(5));
            let _ = conn.write_all(&ok(b"poison"));
            told.lock().unwrap().send(()).unwrap();
        }
        Then::Keep
    });
    for round in 0..20 {
        assert_eq!(host.http().get("/sandboxes/box/toolbox/poison").body, "/poison");
        poisoned.recv().unwrap();
        let path = format!("/round-{round}");
        let answer = host.http().get(&format!("/sandboxes/box/toolbox{path}"));
        assert_eq!((answer.status, answer.body), (200, path));
    }
}

#[test]
fn a_connection_that_the_guest_has_closed_harms_nobody() {
    let (host, _runner) = with_box();
    // It says that it keeps the connection and does not.
    let origin = Origin::start(&host, "box", move |request, conn| {
        let _ = conn.write_all(&ok(request.target.as_bytes()));
        Then::End
    });
    let mut wire = Wire::new(&host);
    for round in 0..40 {
        let path = format!("/round-{round}");
        let (method, framing, body) = match round % 4 {
            0 => ("GET", "", ""),
            1 => ("POST", "Content-Length: 5\r\n", "small"),
            2 => ("DELETE", "", ""),
            _ => ("POST", "Transfer-Encoding: chunked\r\n", "5\r\nsmall\r\n0\r\n\r\n"),
        };
        // Then it is surely not sent on that connection.
        eventually("the guest has closed", || (origin.backend.open() == 0).then_some(()));
        wire.request(method, &format!("/sandboxes/box/toolbox{path}"), framing);
        wire.send(body);
        let reply = wire.answer().unwrap_or_else(|end| panic!("{path} {method}: {end:?}"));
        assert_eq!((reply.status, reply.text()), (200, path), "{method} {framing}");
    }
    let record = origin.record();
    let mut targets: Vec<_> = record.requests.iter().map(|request| request.target.as_str()).collect();
    assert_eq!(targets.len(), 40, "each arrived once: {targets:?}");
    targets.sort_unstable();
    targets.dedup();
    assert_eq!(targets.len(), 40);
}

#[test]
fn what_may_have_arrived_is_not_sent_twice() {
    let (host, _runner) = with_box();
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let seen = arrived.clone();
    let backend = Backend::serve(&host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        loop {
            let mut begin = [0; 64];
            let length = conn.stream().peek(&mut begin).unwrap_or(0);
            if String::from_utf8_lossy(&begin[..length]).contains("/unread") {
                // It has arrived and is thrown away, which resets the connection.
                return seen.lock().unwrap().push("unread".to_owned());
            }
            let Ok(Some(mut request)) = reader.head(&mut conn) else { return };
            if request.target != "/warm" {
                seen.lock().unwrap().push(request.target.clone());
            }
            if reader.body(&mut conn, &mut request).is_err() || request.target == "/read" {
                return;
            }
            let _ = conn.write_all(&ok(request.target.as_bytes()));
        }
    });
    for path in ["/read", "/unread"] {
        for (method, framing, body) in [
            ("POST", "Content-Length: 5\r\n", "small"),
            ("PATCH", "Transfer-Encoding: chunked\r\n", "5\r\nsmall\r\n0\r\n\r\n"),
            ("POST", "Content-Length: 0\r\n", ""),
        ] {
            // One client's requests meet the same kept connection.
            let mut wire = Wire::new(&host);
            wire.request("GET", "/sandboxes/box/toolbox/warm", "");
            assert_eq!(wire.answer().unwrap().text(), "/warm");
            let accepted = backend.accepted();
            arrived.lock().unwrap().clear();
            wire.request(method, &format!("/sandboxes/box/toolbox{path}"), framing);
            wire.send(body);
            let reply = wire.answer().unwrap_or_else(|end| panic!("{path} {method}: {end:?}"));
            let arrived = arrived.lock().unwrap().clone();
            assert_eq!(reply.status, 502, "{path} {method} {framing}: {}; {arrived:?}", reply.text());
            assert_eq!(arrived.len(), 1, "{path} {method} {framing}: {arrived:?}");
            assert_eq!(backend.accepted(), accepted, "no second try on another connection");
        }
    }
}

#[test]
fn what_is_safe_is_asked_again_when_a_kept_connection_breaks() {
    let (host, _runner) = with_box();
    // The second request on each connection is seen and not read, and the connection is reset, as by a
    // server that has just ended it for being idle.
    let backend = Backend::serve(&host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(request)) = reader.request(&mut conn, true) else { return };
        let body = if request.method == "HEAD" { "" } else { request.target.as_str() };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", request.target.len());
        let _ = conn.write_all(head.as_bytes());
        let _ = conn.stream().peek(&mut [0; 1]);
    });
    for (number, method) in ["GET", "HEAD", "OPTIONS", "GET"].into_iter().enumerate() {
        let mut wire = Wire::new(&host);
        wire.request("GET", "/sandboxes/box/toolbox/warm", "");
        assert_eq!(wire.answer().unwrap().text(), "/warm");
        // It has been idle, which is what makes it likely to break.
        std::thread::sleep(Duration::from_millis(500));
        let before = backend.accepted();
        wire.request(method, &format!("/sandboxes/box/toolbox/{number}"), "");
        let reply = wire.answer_to(method).unwrap_or_else(|end| panic!("{method}: {end:?}"));
        assert_eq!(reply.status, 200, "{method}: {}", reply.text());
        assert!(backend.accepted() <= before + 1, "one more connection is enough");
    }
}

#[test]
fn a_guest_that_answers_before_it_has_read_all() {
    let (host, _runner) = with_box();
    let (leave, gone) = std::sync::mpsc::channel();
    let gone = Mutex::new(gone);
    let backend = Backend::serve(&host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(request)) = reader.head(&mut conn) else { return };
        let kind = request.target.as_str();
        let answer = match kind {
            "/early-200" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly",
            _ => "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge",
        };
        let _ = conn.write_all(answer.as_bytes());
        match kind {
            // Reads nothing more until the client has gone.
            "/stalls-413" => {
                let _ = gone.lock().unwrap().recv();
                conn.read_to_its_end();
            }
            // An end that lets the answer arrive: ends its side, reads on for a while.
            "/polite-413" => {
                let _ = conn.stream().shutdown(std::net::Shutdown::Write);
                let _ = conn.read_exact(&mut vec![0; 1 << 20]);
            }
            _ => {}
        }
    });
    let uploads = [("/polite-413", 413), ("/stalls-413", 413), ("/closes-413", 413), ("/early-200", 200)];
    let threads = uploads.map(|(path, status)| {
        let wire = Wire::new(&host);
        std::thread::spawn(move || uploads_to_one_who_has_answered(wire, path, status))
    });
    let wrong: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
    leave.send(()).unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
    eventually("all connections to the guest have ended", || (backend.open() == 0).then_some(()));
}

/// Uploads without end, and tells what is wrong with the answer or with the upload's end.
fn uploads_to_one_who_has_answered(mut wire: Wire, path: &str, status: u16) -> Option<String> {
    wire.request("POST", &format!("/sandboxes/box/toolbox{path}"), "Transfer-Encoding: chunked\r\n");
    let mut upload = wire.stream.try_clone().unwrap();
    let began = Instant::now();
    let sending = std::thread::spawn(move || {
        let piece = [b"10000\r\n", &[b'x'; 64 << 10][..], b"\r\n"].concat();
        while began.elapsed() < Duration::from_secs(8) && upload.write_all(&piece).is_ok() {}
        began.elapsed()
    });
    let answer = wire.answer();
    let after = began.elapsed();
    // It is over: the runner does not go on taking what nobody wants.
    let took = sending.join().unwrap();
    // A guest that ends with bytes unread resets the connection, which may overtake its answer.
    let resets = ["/closes-413", "/early-200"].contains(&path);
    match &answer {
        Ok(reply) if reply.status != status && !(resets && reply.status == 502) => Some(format!("{path}: {reply:?}")),
        Err(end) => Some(format!("{path}: {end:?}")),
        _ if after > Duration::from_secs(2) => Some(format!("{path}: the answer came after {after:?}")),
        _ if took > Duration::from_secs(7) => Some(format!("{path}: the upload was taken for {took:?}")),
        _ => None,
    }
}
