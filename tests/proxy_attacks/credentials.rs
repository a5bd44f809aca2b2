//! Our token stays here, whatever a client does with it, and no header takes protection away.

use super::common::origin::{Origin, Request};
use super::common::wire::{Wire, key};
use super::common::{Host, TOKEN};
use super::with_origin;

/// Sends a GET with these whole header lines and returns the status and what the guest got.
#[track_caller]
fn pass(host: &Host, origin: &Origin, target: &str, headers: &str) -> (u16, Vec<Request>) {
    let mut wire = Wire::new(host);
    wire.send(format!("GET {target} HTTP/1.1\r\nHost: runner.example\r\n{headers}\r\n"));
    let reply = wire.answer().unwrap_or_else(|end| panic!("{headers:?}: {end:?}"));
    let record = origin.take();
    assert!(record.malformed.is_empty(), "{headers:?}: {record:?}");
    for seen in origin.backend.seen() {
        let text = String::from_utf8_lossy(&seen.bytes).into_owned();
        assert!(!text.contains(TOKEN), "the guest got the token: {headers:?} became {text}");
    }
    (reply.status, record.requests)
}

#[test]
fn the_token_never_reaches_the_guest() {
    let (host, _runner, origin) = with_origin();
    let target = "/sandboxes/box/toolbox/x";
    let ours = format!("Bearer {TOKEN}");
    let daytona = "X-Daytona-Authorization";
    // Who is let in, and how much of his Authorization the guest gets.
    let accepted: [(&str, Vec<&str>); 16] = [
        (&format!("{daytona}: {ours}\r\n"), vec![]),
        (&format!("Authorization: {ours}\r\n"), vec![]),
        (&format!("{daytona}: {ours}\r\nAuthorization: Bearer user\r\n"), vec!["Bearer user"]),
        (&format!("Authorization: Bearer user\r\n{daytona}: {ours}\r\n"), vec!["Bearer user"]),
        (&format!("{daytona}: {ours}\r\nAuthorization: {ours}\r\n"), vec![]),
        (&format!("{daytona}: {ours}\r\nAuthorization: Bearer user\r\nAuthorization: {ours}\r\n"), vec!["Bearer user"]),
        (&format!("{daytona}: {ours}\r\nAuthorization: bearer {TOKEN}\r\n"), vec![]),
        (&format!("{daytona}: {ours}\r\nAuthorization: {TOKEN}\r\n"), vec![]),
        (&format!("{daytona}: {ours}\r\nAuthorization: Bearer  {TOKEN}\r\n"), vec![]),
        (&format!("{daytona}: {ours}\r\nAuthorization: Bearer\t{TOKEN}\r\n"), vec![]),
        (&format!("{daytona}: {ours}\r\nAuthorization: Bearer {TOKEN},\r\n"), vec![]),
        (&format!("{daytona}: {ours}\r\nProxy-Authorization: {ours}\r\n"), vec![]),
        (&format!("x-daytona-authorization: {ours}\r\n"), vec![]),
        (&format!("X-DAYTONA-AUTHORIZATION:{ours}   \r\n"), vec![]),
        (&format!("{daytona}: {ours}\r\n{daytona}: {ours}\r\n"), vec![]),
        (&format!("{daytona}: {ours}\r\nConnection: {daytona}\r\n"), vec![]),
    ];
    for (headers, passed) in accepted {
        let (status, requests) = pass(&host, &origin, target, headers);
        // The same twice may be refused, too.
        if status == 400 || (status == 401 && headers.matches(daytona).count() > 1) {
            assert!(requests.is_empty(), "{headers:?}");
            continue;
        }
        assert_eq!((status, requests.len()), (200, 1), "{headers:?}");
        // Where one of several is ours, the others may go with it.
        let mixed = headers.matches(TOKEN).count() > 1 && passed == ["Bearer user"];
        let authorization = requests[0].all("authorization");
        assert!(authorization == passed || (mixed && authorization.is_empty()), "{headers:?}: {authorization:?}");
        assert!(requests[0].all("proxy-authorization").is_empty() && requests[0].all(daytona).is_empty());
    }
}

#[test]
fn only_the_token_in_its_place_lets_in() {
    let (host, _runner, origin) = with_origin();
    let ours = format!("Bearer {TOKEN}");
    let refused = [
        (String::new(), String::new()),
        (String::new(), format!("Proxy-Authorization: {ours}\r\n")),
        (String::new(), format!("Cookie: authorization={ours}\r\n")),
        (String::new(), format!("X-Daytona-Authorization: Bearer x\r\nAuthorization: {ours}\r\n")),
        (String::new(), format!("X_Daytona_Authorization: {ours}\r\n")),
        (String::new(), format!("X-Authorization: {ours}\r\n")),
        (String::new(), format!("X-Daytona-Authorization: Bearer {TOKEN}x\r\n")),
        (String::new(), format!("X-Daytona-Authorization: Bearer {}\r\n", &TOKEN[..TOKEN.len() - 1])),
        (String::new(), format!("X-Daytona-Authorization: Bearer {}\r\n", TOKEN.to_ascii_uppercase())),
        (String::new(), "X-Daytona-Authorization: Bearer \r\n".to_owned()),
        (format!("?token={TOKEN}"), String::new()),
        (format!("?access_token={TOKEN}&Authorization={TOKEN}"), String::new()),
    ];
    for (query, headers) in refused {
        let (status, requests) = pass(&host, &origin, &format!("/sandboxes/box/toolbox/x{query}"), &headers);
        assert_eq!((status, requests.len()), (401, 0), "{query} {headers:?}");
    }
    // Two that differ: whichever counts, the guest gets neither.
    for (first, second) in [("Bearer x", ours.as_str()), (ours.as_str(), "Bearer x")] {
        let headers = format!("X-Daytona-Authorization: {first}\r\nX-Daytona-Authorization: {second}\r\n");
        let (status, requests) = pass(&host, &origin, "/sandboxes/box/toolbox/x", &headers);
        assert!([200, 400, 401].contains(&status), "{status}");
        assert!(requests.iter().all(|request| request.all("x-daytona-authorization").is_empty()));
    }
}

#[test]
fn connection_options_take_only_what_is_the_clients() {
    let (host, _runner, origin) = with_origin();
    let target = "/sandboxes/box/toolbox/x";
    let get = |headers: &str| {
        let (status, requests) = pass(&host, &origin, target, &format!("{}{headers}", key()));
        assert_eq!((status, requests.len()), (200, 1), "{headers:?}");
        requests.into_iter().next().unwrap()
    };
    for option in
        ["Host", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Connection", "Upgrade", "close, Host"]
    {
        let seen = get(&format!("Connection: {option}\r\nX-Forwarded-For: 203.0.113.7\r\n"));
        assert_eq!(seen.all("host").len(), 1, "{option}");
        let through = seen.all("x-forwarded-for").join(", ");
        assert!(through.ends_with("127.0.0.1"), "{option}: {through}");
        assert_eq!(seen.all("x-forwarded-host").len(), 1, "{option}: {seen:?}");
        assert_eq!(seen.all("x-forwarded-proto").len(), 1, "{option}: {seen:?}");
    }
    let seen =
        get("Connection: X-One, x-two\r\nConnection: X-Three\r\nX-One: 1\r\nX-Two: 2\r\nX-Three: 3\r\nX-Four: 4\r\n");
    let left: Vec<_> = seen.headers.iter().filter(|(_, value)| value.len() == 1).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(seen.all("x-four"), ["4"]);

    // What says where the body ends is not the client's to take away.
    for (framing, body) in
        [("Content-Length: 5\r\n", "hello"), ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n")]
    {
        let name = framing.split(':').next().unwrap();
        let mut wire = Wire::new(&host);
        wire.send(format!("POST {target} HTTP/1.1\r\nHost: r\r\nConnection: {name}\r\n{}{framing}\r\n{body}", key()));
        let reply = wire.answer().unwrap();
        let record = origin.take();
        assert_eq!((reply.status, record.requests.len(), record.malformed.len()), (200, 1, 0), "{name}: {record:?}");
        assert_eq!(record.requests[0].body, b"hello", "{name}");
    }
}

#[test]
fn forged_forwarding_headers() {
    let (host, _runner, origin) = with_origin();
    let target = "/sandboxes/box/toolbox/x";
    let get = |headers: &str| {
        let (status, requests) = pass(&host, &origin, target, &format!("{}{headers}", key()));
        assert_eq!((status, requests.len()), (200, 1), "{headers:?}");
        requests.into_iter().next().unwrap()
    };
    let through = |headers: &str| get(headers).all("x-forwarded-for").join(", ");
    assert_eq!(through(""), "127.0.0.1");
    // The last one is who really came.
    assert_eq!(through("X-Forwarded-For: 203.0.113.7\r\n"), "203.0.113.7, 127.0.0.1");
    assert_eq!(through("X-Forwarded-For: a, b\r\nx-forwarded-for: c\r\n"), "a, b, c, 127.0.0.1");
    assert!(through("X-Forwarded-For: 127.0.0.1\r\n").ends_with(", 127.0.0.1"));
    assert!(through("X-Forwarded-For: \u{fc}\r\n").ends_with("127.0.0.1"));
    // The proxy in front tells host and scheme; without one they are those of the request.
    let seen = get("X-Forwarded-Host: preview.example\r\nX-Forwarded-Proto: https\r\n");
    assert_eq!((seen.all("x-forwarded-host"), seen.all("x-forwarded-proto")), (vec!["preview.example"], vec!["https"]));
    let seen = get("");
    assert_eq!((seen.all("x-forwarded-host"), seen.all("x-forwarded-proto")), (vec!["runner.example"], vec!["http"]));
}

#[test]
fn trailers_are_no_way_around_the_headers() {
    let (host, _runner, origin) = with_origin();
    let forbidden = format!(
        "X-Daytona-Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\nHost: evil\r\nContent-Length: 9\r\n\
         Transfer-Encoding: chunked\r\nX-Forwarded-For: 1.2.3.4\r\nConnection: close\r\nTrailer: x\r\n"
    );
    let mut wire = Wire::new(&host);
    wire.request("POST", "/sandboxes/box/toolbox/x", "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n");
    wire.send(format!("5\r\nhello\r\n0\r\nX-Sum: 1\r\n{forbidden}\r\n"));
    let status = wire.answer().map(|reply| reply.status);
    let record = origin.take();
    assert!(record.malformed.is_empty(), "{record:?}");
    for request in &record.requests {
        for (name, value) in &request.trailers {
            assert!(name.eq_ignore_ascii_case("x-sum"), "{name}: {value} reached the guest as a trailer");
        }
        assert_eq!((request.all("host").len(), &request.body[..]), (1, &b"hello"[..]));
    }
    // In a trailer the token lets nobody in.
    let mut wire = Wire::new(&host);
    wire.send("POST /sandboxes/box/toolbox/x HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n");
    wire.send(format!("0\r\nX-Daytona-Authorization: Bearer {TOKEN}\r\n\r\n"));
    assert_eq!(wire.answer().map(|reply| reply.status), Ok(401));
    assert!(origin.take().requests.is_empty());
    assert!(matches!(status, Ok(200 | 400)), "{status:?}");
}
