//! Heads that are no heads, and targets of other forms.

use super::common::wire::key;
use super::table::{Want, case, get, run, smuggled};
use super::{BAD, with_origin};

#[test]
fn header_lines() {
    let (host, _runner, origin) = with_origin();
    let none = || Want::Passed(Vec::new());
    let maybe = || Want::Either(BAD, Vec::new());
    let mut cases = vec![
        case("a header", get("X-Plain: value\r\n"), none()),
        case("an empty value", get("X-Empty:\r\n"), none()),
        case("no space, tabs", get("X-A:b\r\nX-C:\td\t\r\n"), none()),
        case("a value with bytes above 127", get("X-Latin: \u{fc}\r\n"), none()),
        case("bare LF everywhere", get("X-A: b\r\n").replace("\r\n", "\n"), maybe()),
        case("one bare LF", get("X-A: b\nX-C: d\r\n"), maybe()),
        case("CR before CRLF", get("X-A: b\r\r\n"), Want::Refused(BAD)),
        case("CR in a value", get("X-A: b\rc\r\n"), maybe()),
        case(
            "CR hides a header",
            get(&format!("X-A: b\rContent-Length: {}\r\n", smuggled().len())) + &smuggled(),
            Want::Refused(BAD),
        ),
        case("NUL in a value", get("X-A: b\0c\r\n"), maybe()),
        case("an obsolete fold", get("X-A: b\r\n c\r\n"), maybe()),
        case("a fold with a tab", get("X-A: b\r\n\tContent-Length: 5\r\n"), maybe()),
        case("a fold behind the request line", get("").replacen("Host", " X: y\r\nHost", 1), Want::Refused(BAD)),
        case("empty lines first", format!("\r\n\r\n{}", get("")), maybe()),
        case("CR first", format!("\r{}", get("")), maybe()),
        case("a head that ends by CR CR", get("").replace("\r\n\r\n", "\r\r") + "\r\n\r\n", Want::Refused(BAD)),
    ];
    for line in [
        "no colon",
        "X-A",
        ": value",
        ":",
        "X A: b",
        "X-A : b",
        "X-A\t: b",
        "X(A): b",
        "X\"A\": b",
        "X/A: b",
        "X@A: b",
        "X,A: b",
        "X;A: b",
        "X[A]: b",
        "X{A}: b",
        "X\u{fc}: b",
        "X\0A: b",
        "\u{7f}: b",
        "X\rA: b",
        "=: b",
        "<x>: b",
    ] {
        cases.push(case(format!("header line {line:?}"), get(&format!("{line}\r\n")), Want::Refused(BAD)));
    }
    for byte in [1_u8, 8, 0x0b, 0x0c, 0x0e, 0x1b, 0x1f, 0x7f] {
        let bytes = get(&format!("X-A: b{}c\r\n", byte as char));
        cases.push(case(format!("control character {byte:#x} in a value"), bytes, maybe()));
    }
    run(&host, &origin, cases);
}

#[test]
fn request_lines() {
    let (host, _runner, origin) = with_origin();
    let maybe = || Want::Either(BAD, Vec::new());
    let line = |line: &str| format!("{line}\r\nHost: runner\r\n{}\r\n", key());
    // 0.9 has no statuses, and a server that does not speak HTTP/2 may just hang up.
    const VERSION: &[u16] = &[400, 505, 0];
    const METHOD: &[u16] = &[400, 403, 404, 405, 501];
    let mut cases = vec![
        case("a method of the user's", line("BREW {PATH} HTTP/1.1"), Want::Passed(Vec::new())),
        case("a method in small letters", line("get {PATH} HTTP/1.1"), Want::Passed(Vec::new())),
        case("HTTP/1.2", line("GET {PATH} HTTP/1.2"), Want::Either(VERSION, Vec::new())),
        case("two spaces", line("GET  {PATH} HTTP/1.1"), maybe()),
        case("a space at the end", line("GET {PATH} HTTP/1.1 "), maybe()),
        case("tabs", line("GET\t{PATH}\tHTTP/1.1"), maybe()),
        case("HTTP/0.9", "GET {PATH}\r\n", Want::Refused(VERSION)),
        case("HTTP/2 by preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Want::Refused(VERSION)),
        case(
            "CONNECT to elsewhere",
            format!("CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n{}\r\n", key()),
            Want::Denied(METHOD),
        ),
        case(
            "CONNECT to the guest",
            format!("CONNECT 192.168.0.2:2280 HTTP/1.1\r\nHost: 192.168.0.2:2280\r\n{}\r\n", key()),
            Want::Denied(METHOD),
        ),
        case("CONNECT with a path", line("CONNECT {PATH} HTTP/1.1"), Want::Denied(METHOD)),
        case("GET *", line("GET * HTTP/1.1"), Want::Denied(&[400, 404])),
        case("another host in the target", line("GET http://evil.example{PATH} HTTP/1.1"), Want::Passed(Vec::new())),
        case("a scheme that is not ours", line("GET ftp://runner{PATH} HTTP/1.1"), maybe()),
        case("a user in the target", line("GET http://user@runner{PATH} HTTP/1.1"), maybe()),
        case("a target without slash", line("GET sandboxes/box/toolbox/x HTTP/1.1"), Want::Denied(&[400, 404])),
    ];
    for bad in [
        "GET {PATH} HTTP/2.0",
        "GET {PATH} HTTP/9.9",
        "GET {PATH} HTTP/1.10",
        "GET {PATH} HTTP/01.1",
        "GET {PATH} http/1.1",
        "GET {PATH} HTTP/1",
        "GET {PATH} HTTP/1.",
        "GET {PATH} HTTP/ 1.1",
        "GET {PATH} HTTP/-1.1",
        "GET {PATH} HTTP",
        "GET {PATH} XTTP/1.1",
    ] {
        cases.push(case(bad, line(bad), Want::Refused(VERSION)));
    }
    for bad in [
        "G(T {PATH} HTTP/1.1",
        "G\u{fc}T {PATH} HTTP/1.1",
        " {PATH} HTTP/1.1",
        "GET {PATH} x HTTP/1.1",
        "GET  HTTP/1.1",
        "GET HTTP/1.1",
        "GET",
        "GET {PATH}\0 HTTP/1.1",
        "G\0ET {PATH} HTTP/1.1",
        "GET {PATH}\rx HTTP/1.1",
        "{PATH}",
        "\u{16}\u{3}\u{1}\0\u{5}",
    ] {
        cases.push(case(bad, line(bad), Want::Refused(&[400, 0])));
    }
    run(&host, &origin, cases);
}

#[test]
fn hosts_and_versions() {
    let (host, _runner, origin) = with_origin();
    let none = || Want::Passed(Vec::new());
    let hosts = |lines: &str| format!("GET {{PATH}} HTTP/1.1\r\n{lines}{}\r\n", key());
    let old = |lines: &str| format!("GET {{PATH}} HTTP/1.0\r\n{lines}{}\r\n", key());
    let mut cases = vec![
        case("no Host", hosts(""), Want::Refused(BAD)),
        case("two Hosts", hosts("Host: runner\r\nHost: evil.example\r\n"), Want::Refused(BAD)),
        case("the same Host twice", hosts("Host: runner\r\nHost: runner\r\n"), Want::Refused(BAD)),
        case("an empty Host", hosts("Host:\r\n"), Want::Either(BAD, Vec::new())),
        case("a Host with port", hosts("Host: runner:3006\r\n"), none()),
        case("an IPv6 Host", hosts("Host: [::1]:3006\r\n"), none()),
        case("HTTP/1.0 without Host", old(""), Want::EitherEnds(&[], Vec::new())),
        case("HTTP/1.0 with Host", old("Host: runner\r\n"), Want::EitherEnds(&[], Vec::new())),
        case("HTTP/1.0 that is kept", old("Connection: keep-alive\r\n"), none()),
        case("HTTP/1.0 with two Hosts", old("Host: a\r\nHost: b\r\n"), Want::Refused(BAD)),
    ];
    for bad in ["a b", "a/b", "user@runner", "run\\ner", "runner:port", "<x>", "a?b", "a#b", "[::1"] {
        cases.push(case(format!("Host {bad:?}"), hosts(&format!("Host: {bad}\r\n")), Want::Denied(BAD)));
    }
    run(&host, &origin, cases);
}

#[test]
fn line_breaks_that_are_encoded_stay_so() {
    let (host, _runner, origin) = with_origin();
    let injected = "%0d%0aX-Injected:%201%0d%0a%0d%0aGET%20/smuggled";
    for path in [
        format!("/a{injected}"),
        format!("/a?b={injected}"),
        "/a%0aX-Injected:1".to_owned(),
        "/%E5%98%8D%E5%98%8A".to_owned(),
    ] {
        let answer = host.http().with_headers(
            "GET",
            &format!("/sandboxes/box/toolbox{path}"),
            &format!("X-Value: a{injected}\r\n"),
            "",
        );
        assert_eq!((answer.status, &answer.body), (200, &path));
        let record = origin.take();
        assert_eq!((record.requests.len(), record.malformed.len()), (1, 0), "{record:?}");
        assert_eq!(record.requests[0].target, path);
        assert_eq!(record.requests[0].all("x-injected"), [""; 0]);
        assert_eq!(record.requests[0].all("x-value"), [format!("a{injected}")]);
    }
}
