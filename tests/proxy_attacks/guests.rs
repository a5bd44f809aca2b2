//! Guests whose answers are wrong: the client gets the truth or an error, and the next one is not harmed.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use super::common::Host;
use super::common::origin::{Origin, Then, ok};
use super::common::wire::{End, Reply, Wire, key};
use super::with_box;

/// How a guest ends its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Keep,
    End,
    Reset,
}

/// What is right for the client.
#[derive(Debug, Clone)]
enum Want {
    /// 502 of the runner's own.
    Bad,
    /// An end that is visibly none: a body that breaks off, or not even a head.
    Cut,
    /// This status with this body.
    Whole(u16, &'static str),
    BadOrWhole(u16, &'static str),
    BadOrCut,
}

struct Lie {
    name: String,
    bytes: Vec<u8>,
    last: Last,
    want: Want,
}

fn lie(name: impl Into<String>, bytes: impl Into<Vec<u8>>, last: Last, want: Want) -> Lie {
    Lie { name: name.into(), bytes: bytes.into(), last, want }
}

fn lies() -> Vec<Lie> {
    use Last::{End, Keep, Reset};
    use Want::{Bad, BadOrCut, BadOrWhole, Cut, Whole};
    let head = |lines: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}");
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let chunked = |body: &str| head("Transfer-Encoding: chunked\r\n", body);
    let mut all = vec![
        lie("an honest answer", head("Content-Length: 5\r\n", "hello"), Keep, Whole(200, "hello")),
        lie("longer than told", head("Content-Length: 5\r\n", "helloMORE"), Keep, Whole(200, "hello")),
        lie(
            "a second answer behind",
            head("Content-Length: 5\r\n", &format!("hello{poison}")),
            Keep,
            Whole(200, "hello"),
        ),
        lie(
            "a second answer behind chunks",
            chunked(&format!("5\r\nhello\r\n0\r\n\r\n{poison}")),
            Keep,
            Whole(200, "hello"),
        ),
        lie("shorter than told", head("Content-Length: 50\r\n", "hello"), End, Cut),
        lie("shorter than told, reset", head("Content-Length: 50\r\n", "hello"), Reset, BadOrCut),
        lie("nothing of what was told", head("Content-Length: 50\r\n", ""), End, BadOrCut),
        lie("two lengths", head("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"), End, Bad),
        lie("a list of lengths", head("Content-Length: 5, 6\r\n", "hello!"), End, Bad),
        lie(
            "the same length twice",
            head("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
            Keep,
            BadOrWhole(200, "hello"),
        ),
        lie(
            "length and chunks",
            head("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
            Keep,
            BadOrWhole(200, "hello"),
        ),
        lie(
            "chunks and length",
            head("Transfer-Encoding: chunked\r\nContent-Length: 30\r\n", &format!("5\r\nhello\r\n0\r\n\r\n{poison}")),
            Keep,
            BadOrWhole(200, "hello"),
        ),
        lie(
            "the connection names its length",
            head("Connection: Content-Length\r\nContent-Length: 5\r\n", "hello"),
            Keep,
            Whole(200, "hello"),
        ),
        lie("chunks", chunked("2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"), Keep, Whole(200, "hello")),
        lie("a chunk size that is none", chunked("5\r\nhello\r\nzz\r\nx\r\n0\r\n\r\n"), End, Cut),
        lie("a chunk too large for a number", chunked("5\r\nhello\r\n10000000000000005\r\nx\r\n0\r\n\r\n"), End, Cut),
        lie("a chunk without its end", chunked("5\r\nhelloMORE\r\n0\r\n\r\n"), End, Cut),
        lie("an end in a chunk", chunked("50\r\nhello"), End, Cut),
        lie("an end between chunks", chunked("5\r\nhello\r\n"), End, Cut),
        lie("an end in the last chunk", chunked("5\r\nhello\r\n0\r\n"), End, Cut),
        lie("a reset between chunks", chunked("5\r\nhello\r\n"), Reset, BadOrCut),
        lie("by the end of the connection", head("", "hello"), End, Whole(200, "hello")),
        lie("by the end of the connection, 1.0", "HTTP/1.0 200 OK\r\n\r\nhello", End, Whole(200, "hello")),
        lie("1.0 with length", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", End, Whole(200, "hello")),
        lie("1.0 that is shorter than told", "HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\nhello", End, Cut),
        lie("a reset is no end", head("", "hello"), Reset, BadOrCut),
        lie("an end before the head", "", End, Bad),
        lie("a reset before the head", "", Reset, Bad),
        lie("an end in the status line", "HTTP/1.1 20", End, Bad),
        lie("an end in the head", "HTTP/1.1 200 OK\r\nContent-Len", End, Bad),
        lie("a reset in the head", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", Reset, Bad),
        lie("HTTP/0.9", "hello", End, Bad),
        lie("HTML without a head", "<html>\r\n\r\n</html>", End, Bad),
        lie("HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", End, Bad),
        lie("ICY", "ICY 200 OK\r\nContent-Length: 5\r\n\r\nhello", End, Bad),
        lie("TLS", b"\x15\x03\x01\x00\x02\x02\x46".to_vec(), End, Bad),
        lie("an SSH server", "SSH-2.0-OpenSSH_9.2p1\r\n", End, Bad),
        lie(
            "an upgrade that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nxx",
            Keep,
            Bad,
        ),
        lie("a fold", head("X-A: b\r\n c\r\nContent-Length: 5\r\n", "hello"), Keep, BadOrWhole(200, "hello")),
        lie(
            "a header of 1 MiB",
            head(&format!("X: {}\r\nContent-Length: 5\r\n", "a".repeat(1 << 20)), "hello"),
            Keep,
            BadOrWhole(200, "hello"),
        ),
        lie(
            "10,000 headers",
            head(&format!("{}Content-Length: 5\r\n", "X: y\r\n".repeat(10_000)), "hello"),
            Keep,
            BadOrWhole(200, "hello"),
        ),
        lie("a NUL in a value", head("X: a\0b\r\nContent-Length: 5\r\n", "hello"), Keep, BadOrWhole(200, "hello")),
        lie("a CR in a value", head("X: a\rY: b\r\nContent-Length: 5\r\n", "hello"), Keep, BadOrWhole(200, "hello")),
        lie(
            "a space before the colon",
            head("X : a\r\nContent-Length: 5\r\n", "hello"),
            Keep,
            BadOrWhole(200, "hello"),
        ),
        lie(
            "a space before the length's colon",
            head("Content-Length : 5\r\n", "hello"),
            End,
            BadOrWhole(200, "hello"),
        ),
        lie("a header without colon", head("X\r\nContent-Length: 5\r\n", "hello"), Keep, BadOrWhole(200, "hello")),
        lie("a header without name", head(": x\r\nContent-Length: 5\r\n", "hello"), Keep, BadOrWhole(200, "hello")),
        lie("an unknown coding", head("Transfer-Encoding: x\r\n", "hello"), End, BadOrWhole(200, "hello")),
        lie("bare LFs", "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", Keep, BadOrWhole(200, "hello")),
        lie("a body with 204", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", Keep, BadOrWhole(204, "")),
        lie(
            "chunks with 204",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Keep,
            BadOrWhole(204, ""),
        ),
        lie(
            "an answer in a 204",
            format!("HTTP/1.1 204 No Content\r\nContent-Length: {}\r\n\r\n{poison}", poison.len()),
            Keep,
            BadOrWhole(204, ""),
        ),
        lie(
            "a body with 304",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
            Keep,
            BadOrWhole(304, ""),
        ),
        lie(
            "an answer in a 304",
            format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n{poison}"),
            Keep,
            BadOrWhole(304, ""),
        ),
        lie(
            "1,000 times 100",
            format!("{}{}", "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000), head("Content-Length: 5\r\n", "hello")),
            Keep,
            BadOrWhole(200, "hello"),
        ),
        lie("only 100", "HTTP/1.1 100 Continue\r\n\r\n".repeat(10), End, Bad),
        lie(
            "200 behind an own 102",
            format!("HTTP/1.1 102 Processing\r\n\r\n{}", head("Content-Length: 5\r\n", "hello")),
            Keep,
            Whole(200, "hello"),
        ),
    ];
    for status in ["099", "000", "1000", "2OO", "20", "-20", "+200", "2e2", "", " 200", "200.5"] {
        let bytes = format!("HTTP/1.1 {status} OK\r\nContent-Length: 5\r\n\r\nhello");
        all.push(lie(format!("status {status:?}"), bytes, End, Bad));
    }
    for length in ["+5", "-5", "0x5", "5 5", "", "five", "99999999999999999999999", "5;", "5_0"] {
        all.push(lie(format!("length {length:?}"), head(&format!("Content-Length: {length}\r\n"), "hello"), End, Bad));
    }
    for length in ["18446744073709551615", "18446744073709551614", "9223372036854775807"] {
        all.push(lie(
            format!("length {length}"),
            head(&format!("Content-Length: {length}\r\n"), "hello"),
            End,
            BadOrCut,
        ));
    }
    for status in [418, 599, 600, 999] {
        let bytes = format!("HTTP/1.1 {status} Odd\r\nContent-Length: 5\r\n\r\nhello");
        all.push(lie(format!("status {status}"), bytes, Keep, BadOrWhole(status, "hello")));
    }
    all
}

type Scripts = Arc<Mutex<HashMap<String, (Vec<u8>, Last)>>>;

/// A guest that answers `/lie-N` by its script and everything else with the target.
fn liar(host: &Host, scripts: &Scripts) -> Origin {
    let scripts = scripts.clone();
    Origin::start(host, "box", move |request, conn| {
        let script = scripts.lock().expect("no panic").get(&request.target).cloned();
        let Some((bytes, last)) = script else {
            let _ = conn.write_all(&ok(request.target.as_bytes()));
            return Then::Keep;
        };
        let _ = conn.write_all(&bytes);
        match last {
            Last::Keep => return Then::Keep,
            Last::End => {}
            Last::Reset => {
                let now = libc::linger { l_onoff: 1, l_linger: 0 };
                nix::sys::socket::setsockopt(conn.stream(), nix::sys::socket::sockopt::Linger, &now)
                    .expect("SO_LINGER");
            }
        }
        Then::End
    })
}

#[test]
fn what_a_lying_guest_says() {
    let (host, _runner) = with_box();
    let scripts = Scripts::default();
    let _origin = liar(&host, &scripts);
    let mut wrong = Vec::new();
    for (number, lie) in lies().into_iter().enumerate() {
        let path = format!("/lie-{number}");
        scripts.lock().unwrap().insert(path.clone(), (lie.bytes, lie.last));
        for (method, body) in [("GET", ""), ("POST", "Content-Length: 4\r\n")] {
            let mut wire = Wire::new(&host);
            wire.request(method, &format!("/sandboxes/box/toolbox{path}"), body);
            if !body.is_empty() {
                wire.send("body");
            }
            let outcome = wire.answer();
            println!("{} ({method}): {}", lie.name, told(&outcome));
            let mut fault = |why: String| wrong.push(format!("{} ({method}): {}; {why}", lie.name, told(&outcome)));
            if let Err(why) = judge(&lie.want, &outcome) {
                fault(why);
            }
            // The next request of this client, and that of another, get their own answers.
            if outcome.is_ok() {
                wire.request("GET", "/sandboxes/box/toolbox/next", "");
                match wire.answer() {
                    Ok(reply) if (reply.status, reply.text().as_str()) == (200, "/next") => {}
                    Err(End::Closed | End::Reset) => {}
                    other => fault(format!("the next request got {other:?}")),
                }
            }
            for _ in 0..2 {
                let answer = host.http().get("/sandboxes/box/toolbox/other");
                if (answer.status, answer.body.as_str()) != (200, "/other") {
                    fault(format!("another client got {answer:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} faults:\n{}", wrong.len(), wrong.join("\n"));
}

fn told(outcome: &Result<Reply, End>) -> String {
    match outcome {
        Ok(reply) => format!("{} with {:?}", reply.status, reply.text().chars().take(300).collect::<String>()),
        Err(End::Cut(_, length)) => format!("cut off after {length} bytes"),
        Err(end) => format!("{end:?}"),
    }
}

fn judge(want: &Want, outcome: &Result<Reply, End>) -> Result<(), String> {
    let bad = matches!(outcome, Ok(reply) if reply.status == 502 && !reply.text().contains("hello"));
    let cut = matches!(outcome, Err(End::Cut(..)));
    // The head may wait for the body's first byte, which does not come.
    let gone = matches!(outcome, Err(End::Closed | End::Reset));
    let whole =
        |status: u16, body: &str| matches!(outcome, Ok(reply) if reply.status == status && reply.text() == body);
    let right = match want {
        Want::Bad => bad,
        Want::Cut => cut || gone,
        Want::Whole(status, body) => whole(*status, body),
        Want::BadOrWhole(status, body) => bad || whole(*status, body),
        Want::BadOrCut => bad || cut || gone,
    };
    if let Ok(reply) = outcome {
        if reply.status == 204 && !reply.all("content-length").is_empty() {
            return Err("a length with 204".to_owned());
        }
        if reply.headers.iter().any(|(_, value)| value.contains(['\r', '\n', '\0'])) {
            return Err(format!("{:?}", reply.headers));
        }
    }
    if right { Ok(()) } else { Err(format!("wanted {want:?}")) }
}

#[test]
fn answers_to_head_have_no_body() {
    let (host, _runner) = with_box();
    let scripts = Scripts::default();
    let _origin = liar(&host, &scripts);
    for (number, bytes) in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 44\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/head-{number}");
        scripts.lock().unwrap().insert(path.clone(), (bytes.as_bytes().to_vec(), Last::Keep));
        let mut wire = Wire::new(&host);
        wire.request("HEAD", &format!("/sandboxes/box/toolbox{path}"), "");
        let reply = wire.answer_to("HEAD").unwrap();
        assert_eq!(reply.status, 200, "{bytes:?}");
        if bytes.contains("Length: 5") {
            assert_eq!(reply.all("content-length"), ["5"], "the length of what a GET would answer");
        }
        wire.request("GET", "/sandboxes/box/toolbox/next", "");
        match wire.answer() {
            Ok(reply) => assert_eq!(reply.text(), "/next", "{bytes:?}"),
            Err(end) => assert!(matches!(end, End::Closed | End::Reset), "{bytes:?}: {end:?}"),
        }
        assert_eq!(host.http().get("/sandboxes/box/toolbox/other").body, "/other", "{bytes:?}");
    }
}

#[test]
fn what_an_old_client_gets() {
    let (host, _runner) = with_box();
    let scripts = Scripts::default();
    let _origin = liar(&host, &scripts);
    let answers = [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ];
    for (number, bytes) in answers.into_iter().enumerate() {
        let path = format!("/old-{number}");
        scripts.lock().unwrap().insert(path.clone(), (bytes.as_bytes().to_vec(), Last::Keep));
        let mut wire = Wire::new(&host);
        wire.send(format!("GET /sandboxes/box/toolbox{path} HTTP/1.0\r\n{}\r\n", key()));
        let reply = wire.answer().unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, "hello"), "{bytes:?}");
        assert!(reply.all("transfer-encoding").is_empty(), "HTTP/1.0 has no chunks: {reply:?}");
        assert!(reply.interim.is_empty(), "HTTP/1.0 has no informational answers");
        assert!(matches!(wire.ends(), End::Closed | End::Reset));
    }
}

#[test]
fn early_hints_reach_the_client() {
    let (host, _runner) = with_box();
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";
    let (hinted, go_on) = std::sync::mpsc::channel::<()>();
    let go_on = Mutex::new(go_on);
    let _origin = Origin::start(&host, "box", move |request, conn| {
        if request.target == "/at-once" {
            let _ = conn.write_all(&[hints.as_bytes(), &ok(b"hello")].concat());
            return Then::Keep;
        }
        // The answer waits until the hints have been seen.
        let _ = conn.write_all(hints.as_bytes());
        let _ = go_on.lock().unwrap().recv();
        let _ = conn.write_all(&ok(b"hello"));
        Then::Keep
    });
    let is_passed = |headers: &[(String, String)]| {
        headers.iter().any(|(name, value)| name.eq_ignore_ascii_case("link") && value == "</style.css>; rel=preload")
    };
    let mut wire = Wire::new(&host);
    for _ in 0..5 {
        wire.request("GET", "/sandboxes/box/toolbox/hints", "");
        let mut reply = Reply::default();
        wire.head(&mut reply).unwrap();
        assert!(reply.status == 103 && is_passed(&reply.headers), "{reply:?}");
        hinted.send(()).unwrap();
        assert_eq!(wire.answer().unwrap().text(), "hello");
    }
    // A proxy must forward them (RFC 9110, 15.2), also when the answer is right behind.
    wire.request("GET", "/sandboxes/box/toolbox/at-once", "");
    let reply = wire.answer().unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
    let passed = reply.interim.iter().any(|(status, headers)| *status == 103 && is_passed(headers));
    assert!(passed, "no 103 came: {:?}", reply.interim);
}
