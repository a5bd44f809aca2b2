//! Too much of everything, and strangers who want to keep the runner busy.

use std::io::Write;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::common::wire::{End, Wire, key};
use super::common::{Host, TOKEN};
use super::with_origin;

/// Longer than anybody is listened to whom nobody wants to hear.
const ENDLESS: Duration = Duration::from_secs(8);

/// The runner's memory in bytes.
fn memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Somebody who sends without end: the head, then the piece again and again, until the runner takes no
/// more of it or until the time is up. Tells the status (0 without one), and how long it went on.
fn pour(host: &Host, head: &str, piece: Vec<u8>) -> JoinHandle<(u16, Duration)> {
    let (mut wire, head) = (Wire::new(host), head.to_owned());
    std::thread::spawn(move || {
        let began = Instant::now();
        let mut reading = Wire::of(wire.stream.try_clone().unwrap());
        let answer = std::thread::spawn(move || reading.answer());
        let mut open = wire.send(&head);
        while open && began.elapsed() < ENDLESS {
            open = wire.send(&piece);
        }
        let took = began.elapsed();
        match answer.join().unwrap() {
            Ok(reply) => (reply.status, took),
            Err(End::Closed | End::Reset) => (0, took),
            Err(end) => panic!("{head:.100}: {end:?}"),
        }
    })
}

#[test]
fn large_heads() {
    let (host, runner, origin) = with_origin();
    let before = memory(runner.pid());
    let get = |target: &str, headers: &str| {
        let mut wire = Wire::new(&host);
        wire.send(format!("GET {target} HTTP/1.1\r\nHost: r\r\n{}{headers}\r\n", key()));
        match wire.answer() {
            Ok(reply) => reply.status,
            Err(End::Closed | End::Reset) => 0,
            Err(end) => panic!("{end:?}"),
        }
    };
    let path = |length: usize| format!("/sandboxes/box/toolbox/{}", "a".repeat(length));
    let line = |length: usize| format!("X-Large: {}\r\n", "a".repeat(length));
    let lines = |count: usize| (0..count).map(|n| format!("X-{n}: {n}\r\n")).collect::<String>();
    // What real clients send: 8,000 octets of target at least (RFC 9112, 3), cookies, many headers.
    for (what, target, headers) in [
        ("target of 8,000", path(8000), String::new()),
        ("query of 8,000", format!("{}?{}", path(1), "a".repeat(8000)), String::new()),
        ("cookies of 16 KiB", path(1), line(16 << 10)),
        ("80 headers", path(1), lines(80)),
    ] {
        assert_eq!(get(&target, &headers), 200, "{what}");
        let record = origin.take();
        assert_eq!((record.requests.len(), record.malformed.len()), (1, 0), "{what}: {record:?}");
    }
    // What nobody needs.
    for (what, target, headers, right) in [
        ("target of 1 MiB", path(1 << 20), String::new(), &[400, 414, 431, 0][..]),
        ("a header of 1 MiB", path(1), line(1 << 20), &[400, 413, 431, 0]),
        ("1,000 headers of 1 KiB", path(1), line(1 << 10).repeat(1000), &[400, 413, 431, 0]),
        ("10,000 headers", path(1), lines(10_000), &[400, 413, 431, 0]),
    ] {
        let status = get(&target, &headers);
        assert!(right.contains(&status), "{what}: {status}");
        let record = origin.take();
        assert_eq!(
            (record.requests.len(), record.malformed.len(), record.broken_off.len()),
            (0, 0, 0),
            "{what}: {record:?}"
        );
    }
    // Where it ends nobody says; that there is one clear answer at every size does.
    for length in [32 << 10, 64 << 10, 100 << 10, 128 << 10, 200 << 10, 400 << 10, 512 << 10] {
        for (target, headers) in [(path(length), String::new()), (path(1), line(length))] {
            let status = get(&target, &headers);
            let record = origin.take();
            match status {
                200 => assert_eq!((record.requests.len(), record.malformed.len()), (1, 0), "{length}"),
                0 | 400 | 413 | 414 | 431 => {
                    assert_eq!((record.requests.len(), record.malformed.len()), (0, 0), "{length}")
                }
                status => panic!("{length}: {status}"),
            }
        }
    }
    for count in [96, 100, 101, 128, 200, 300, 1000, 3000] {
        let status = get(&path(1), &lines(count));
        let record = origin.take();
        match status {
            200 => {
                assert_eq!((record.requests[0].headers.len() >= count, record.malformed.len()), (true, 0), "{count}")
            }
            0 | 400 | 413 | 431 => assert!(record.requests.is_empty() && record.malformed.is_empty(), "{count}"),
            status => panic!("{count}: {status}"),
        }
    }
    // Heads without end: cut off, not collected.
    let start = format!("GET /sandboxes/box/toolbox/x HTTP/1.1\r\nHost: r\r\n{}X: ", key());
    let endless = [
        pour(&host, &start, vec![b'a'; 64 << 10]),
        pour(&host, "GET /", vec![b'a'; 64 << 10]),
        pour(&host, &start, b"a\r\nX: ".repeat(10_000)),
    ];
    for thread in endless {
        let (status, took) = thread.join().unwrap();
        assert!([400, 413, 414, 431, 0].contains(&status), "{status}");
        assert!(took < ENDLESS, "it was never cut off");
    }
    assert_eq!(get("/sandboxes/box/toolbox/after", ""), 200);
    let grown = memory(runner.pid()).saturating_sub(before);
    assert!(grown < 48 << 20, "the runner grew by {} MiB", grown >> 20);
}

#[test]
fn strangers_cost_little() {
    let (host, runner, origin) = with_origin();
    let before = memory(runner.pid());
    let path = "/sandboxes/box/toolbox/x";
    // The body is not asked for, so an honest client does not send it.
    for authorization in ["", "Authorization: Bearer wrong\r\n"] {
        let mut wire = Wire::new(&host);
        wire.send(format!(
            "POST {path} HTTP/1.1\r\nHost: r\r\n{authorization}Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
        ));
        let reply = wire.answer().unwrap();
        assert_eq!((reply.status, reply.interim.len()), (401, 0), "nothing asks for the body");
        // A body that was not sent must not be waited for: either this is the end or the next request.
        wire.request("GET", path, "");
        match wire.answer() {
            Err(End::Closed | End::Reset) => {}
            other => panic!("{other:?}"),
        }
    }
    // Others send it all the same.
    let mut endless = Vec::new();
    for framing in ["Content-Length: 10000000000\r\n", "Transfer-Encoding: chunked\r\n"] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: r\r\n{framing}\r\n");
        let began = Instant::now();
        let mut wire = Wire::new(&host);
        wire.send(&head);
        let reply = wire.answer().unwrap();
        assert_eq!(reply.status, 401, "at once, without the body");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        endless.push(pour(&host, &head, [b"10000\r\n", &[b'x'; 65536][..], b"\r\n"].concat()));
    }
    // A body that is short may be read away, and the connection goes on; or it ends. Never is it a request.
    let mut wire = Wire::new(&host);
    let inner = format!("GET /sandboxes/box/toolbox/smuggled HTTP/1.1\r\nHost: r\r\n{}\r\n", key());
    wire.send(format!("POST {path} HTTP/1.1\r\nHost: r\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()));
    assert_eq!(wire.answer().unwrap().status, 401);
    wire.request("GET", "/sandboxes/box/toolbox/next", "");
    match wire.answer() {
        Ok(reply) => assert_eq!(reply.text(), "/next"),
        Err(End::Closed | End::Reset) => {}
        Err(end) => panic!("{end:?}"),
    }
    let record = origin.take();
    assert!(record.requests.iter().all(|request| request.target == "/next"), "{record:?}");
    assert_eq!((record.malformed.len(), record.broken_off.len()), (0, 0), "{record:?}");
    // The same for requests that would be let in and go nowhere.
    for (target, right) in [("/sandboxes/absent/toolbox/x", 404), ("/no-such-route", 404)] {
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 10000000000\r\n"
        );
        let mut wire = Wire::new(&host);
        wire.send(format!("{head}Expect: 100-continue\r\n\r\n"));
        let reply = wire.answer().unwrap();
        assert_eq!((reply.status, reply.interim.len()), (right, 0), "{target}");
        endless.push(pour(&host, &format!("{head}\r\n"), vec![b'x'; 65536]));
    }
    for thread in endless {
        let (status, took) = thread.join().unwrap();
        assert!([401, 404, 0].contains(&status), "{status}");
        assert!(took < ENDLESS, "it was never cut off");
    }
    let grown = memory(runner.pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "the runner grew by {} MiB", grown >> 20);
}

#[test]
fn slow_heads_are_cut_off_and_slow_bodies_are_not() {
    let (host, _runner, origin) = with_origin();
    let head =
        format!("GET /sandboxes/box/toolbox/slow HTTP/1.1\r\nHost: r\r\n{}X: {}\r\n\r\n", key(), "a".repeat(200));
    // 10 s for a head (PROTOCOL.md 6), whoever it is from, and whatever came before on the connection.
    let slow = |first: bool, head: String, pause: Duration| {
        let mut wire = Wire::new(&host);
        if first {
            wire.request("GET", "/sandboxes/box/toolbox/first", "");
            assert_eq!(wire.answer().unwrap().text(), "/first");
        }
        move || {
            let began = Instant::now();
            wire.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            for byte in head.as_bytes() {
                if wire.stream.write_all(&[*byte]).is_err() {
                    return (began.elapsed(), 0);
                }
                // Time is what is tried here: the pause is the client's slowness.
                std::thread::sleep(pause);
                match wire.answer() {
                    Err(End::Silent) => {}
                    Ok(reply) => return (began.elapsed(), reply.status),
                    Err(_) => return (began.elapsed(), 0),
                }
            }
            panic!("the whole head was taken after {:?}", began.elapsed());
        }
    };
    let byte = Duration::from_millis(70);
    let lines = head.clone();
    let strange = format!("GET /info HTTP/1.1\r\nHost: r\r\nX: {}\r\n\r\n", "b".repeat(250));
    let threads =
        [slow(false, lines.clone(), byte), slow(true, lines, byte), slow(false, strange, byte)].map(std::thread::spawn);
    let silent = std::thread::spawn({
        let mut wire = Wire::new(&host);
        wire.stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        move || {
            let began = Instant::now();
            wire.send("GET /sandboxes/box/toolbox/slow HTTP/1.1\r\n");
            (began.elapsed(), wire.answer().map_or(0, |reply| reply.status), began.elapsed())
        }
    });
    // Idle is not slow: 70 s may pass between two requests.
    let mut idle = Wire::new(&host);
    idle.request("GET", "/sandboxes/box/toolbox/idle", "");
    assert_eq!(idle.answer().unwrap().text(), "/idle");
    // No limit on a body as long as something comes, and none on the pause between two pieces.
    let mut wire = Wire::new(&host);
    wire.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    wire.request("POST", "/sandboxes/box/toolbox/body", "Content-Length: 26\r\n");
    for byte in b'a'..=b'z' {
        assert!(wire.send([byte]), "the upload was cut off");
        std::thread::sleep(Duration::from_millis(450));
    }
    assert_eq!(wire.answer().unwrap().text(), "/body");
    for thread in threads {
        let (after, status) = thread.join().unwrap();
        assert!([408, 0].contains(&status), "{status}");
        assert!((8.0..13.0).contains(&after.as_secs_f64()), "cut off after {after:?}");
    }
    let (_, status, after) = silent.join().unwrap();
    assert!([408, 0].contains(&status), "{status}");
    assert!((8.0..13.0).contains(&after.as_secs_f64()), "cut off after {after:?}");
    idle.request("GET", "/sandboxes/box/toolbox/idle", "");
    assert_eq!(idle.answer().map(|reply| reply.text()), Ok("/idle".to_owned()), "after more than 10 s");
    let record = origin.take();
    let mut targets: Vec<_> = record.requests.iter().map(|request| request.target.as_str()).collect();
    targets.sort_unstable();
    assert_eq!(targets, ["/body", "/first", "/idle", "/idle"]);
    assert_eq!(
        record.requests.iter().find(|request| request.target == "/body").unwrap().body,
        b"abcdefghijklmnopqrstuvwxyz"
    );
}

#[test]
fn idle_connections_are_in_nobodys_way() {
    let (host, _runner, _origin) = with_origin();
    // Some have said nothing, some half a head, some have an answer behind them.
    let mut idle: Vec<Wire> = (0..500).map(|_| Wire::new(&host)).collect();
    for (number, wire) in idle.iter_mut().enumerate() {
        match number % 3 {
            0 => {}
            1 => assert!(wire.send("GET /sandboxes/box/toolbox/x HTTP/1.1\r\nHost:")),
            _ => {
                wire.request("GET", "/sandboxes/box/toolbox/idle", "");
                assert_eq!(wire.answer().unwrap().text(), "/idle");
            }
        }
    }
    let mut slowest = Duration::ZERO;
    for number in 0..50 {
        let began = Instant::now();
        let answer = host.http().get(&format!("/sandboxes/box/toolbox/{number}"));
        assert_eq!((answer.status, answer.body), (200, format!("/{number}")));
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    for wire in idle.iter_mut().skip(2).step_by(3) {
        wire.request("GET", "/sandboxes/box/toolbox/again", "");
        assert_eq!(wire.answer().unwrap().text(), "/again");
    }
}
