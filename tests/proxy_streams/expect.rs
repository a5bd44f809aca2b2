//! `Expect: 100-continue`, from end to end (RFC 9110, 10.1.1), and clients that end their side early.

use std::io::Write;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::common::backend::{Backend, TOOLBOX};
use super::common::origin::{Reader, ok};
use super::common::wire::{End, Reply, Wire};
use super::with_box;

/// Answers by the path: asks for the body, refuses it, or knows nothing of expectations.
fn serve(host: &super::Host) -> Backend {
    Backend::serve(host, "box", TOOLBOX, |mut conn| {
        let mut reader = Reader::default();
        while let Ok(Some(mut request)) = reader.head(&mut conn) {
            match request.target.as_str() {
                "/asks" => drop(conn.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")),
                "/417" => {
                    let _ = conn.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno");
                    return conn.read_to_its_end();
                }
                "/413" => {
                    let _ = conn.write_all(
                        b"HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno",
                    );
                    return;
                }
                _ => {}
            }
            if reader.body(&mut conn, &mut request).is_err() {
                return;
            }
            let told = format!("{} {:?}", request.body.len(), request.all("expect"));
            let _ = conn.write_all(&ok(told.as_bytes()));
        }
    })
}

const EXPECT: &str = "Content-Length: 5\r\nExpect: 100-continue\r\n";

#[test]
fn a_guest_that_asks_for_the_body() {
    let (host, _runner) = with_box();
    let _backend = serve(&host);
    let mut wire = Wire::new(&host);
    for _ in 0..3 {
        wire.request("POST", "/sandboxes/box/toolbox/asks", EXPECT);
        let mut reply = Reply::default();
        wire.head(&mut reply).unwrap();
        assert_eq!(reply.status, 100);
        wire.send("hello");
        let reply = wire.answer().unwrap();
        assert_eq!((reply.status, reply.interim.len()), (200, 0), "one 100 is enough");
        assert!(reply.text().starts_with("5 "), "{}", reply.text());
    }
}

#[test]
fn a_guest_that_refuses_the_body_does_not_get_it() {
    let (host, _runner) = with_box();
    let backend = serve(&host);
    for (path, status) in [("/417", 417), ("/413", 413)] {
        let mut wire = Wire::new(&host);
        wire.request("POST", &format!("/sandboxes/box/toolbox{path}"), EXPECT);
        let reply = wire.answer().unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (status, "no"));
        assert!(reply.interim.is_empty(), "{path}: the client was told to send the body: {:?}", reply.interim);
        // The connection goes on without the body, or ends; the body is not waited for in silence.
        wire.request("GET", "/sandboxes/box/toolbox/next", "");
        match wire.answer() {
            Ok(reply) => assert_eq!(reply.text(), "0 []"),
            Err(end) => assert!(matches!(end, End::Closed | End::Reset), "{end:?}"),
        }
    }
    for seen in backend.seen() {
        assert!(!String::from_utf8_lossy(&seen.bytes).contains("hello"));
    }
}

#[test]
fn a_guest_that_ignores_expectations_hangs_nobody() {
    let (host, _runner) = with_box();
    let _backend = serve(&host);
    let mut wire = Wire::new(&host);
    wire.request("POST", "/sandboxes/box/toolbox/ignores", EXPECT);
    // A careful client waits a little and then sends it all the same.
    wire.stream.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let mut reply = Reply::default();
    match wire.head(&mut reply) {
        Ok(()) => assert_eq!(reply.status, 100),
        Err(end) => assert_eq!(end, End::Silent),
    }
    wire.send("hello");
    let began = Instant::now();
    let reply = wire.answer().unwrap();
    assert!(reply.status == 200 && reply.text().starts_with("5 "), "{}", reply.text());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    // One that does not wait at all, and one whose expectation is another.
    let mut wire = Wire::new(&host);
    wire.request("POST", "/sandboxes/box/toolbox/ignores", EXPECT);
    wire.send("hello");
    assert_eq!(wire.answer().unwrap().status, 200);
    let mut wire = Wire::new(&host);
    wire.request("POST", "/sandboxes/box/toolbox/asks", EXPECT);
    wire.send("hello");
    assert_eq!(wire.answer().unwrap().status, 200);
    let mut wire = Wire::new(&host);
    wire.request("POST", "/sandboxes/box/toolbox/ignores", "Content-Length: 5\r\nExpect: the-unexpected\r\n");
    wire.send("hello");
    assert!([200, 417].contains(&wire.answer().unwrap().status));
    // Nothing is expected of a request without a body (and HTTP/1.0 does not know the word).
    let mut wire = Wire::new(&host);
    wire.request("GET", "/sandboxes/box/toolbox/ignores", "Expect: 100-continue\r\n");
    assert_eq!(wire.answer().unwrap().status, 200);
    let mut wire = Wire::new(&host);
    let old = "POST /sandboxes/box/toolbox/asks HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n";
    wire.send(format!("{old}{}\r\nhello", super::common::wire::key()));
    let reply = wire.answer().unwrap();
    assert_eq!((reply.status, reply.interim.len()), (200, 0), "HTTP/1.0 has no 100");
}

#[test]
fn a_client_that_ends_its_side_gets_its_answer() {
    let (host, _runner) = with_box();
    let (half, closed) = mpsc::channel::<()>();
    let closed = Mutex::new(closed);
    let _backend = Backend::serve(&host, "box", TOOLBOX, move |mut conn| {
        let mut reader = Reader::default();
        let Ok(Some(_)) = reader.request(&mut conn, true) else { return };
        // The answer begins when the client has ended its side, and takes its time.
        closed.lock().unwrap().recv().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let _ = conn.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..10 {
            let _ = conn.write_all(b"5\r\nhello\r\n");
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = conn.write_all(b"0\r\n\r\n");
    });
    let mut wire = Wire::new(&host);
    wire.request("GET", "/sandboxes/box/toolbox/half", "");
    wire.half_close();
    half.send(()).unwrap();
    let reply = wire.answer().unwrap();
    assert_eq!((reply.status, reply.text()), (200, "hello".repeat(10)));
    assert_eq!(wire.ends(), End::Closed);
    // The runner's own answers, too.
    let mut wire = Wire::new(&host);
    wire.request("GET", "/sandboxes", "");
    wire.half_close();
    assert_eq!(wire.answer().unwrap().status, 200);
}
