//! Paths that try to leave the sandbox they name, and names that are none.

use super::common::origin::Origin;
use super::common::wire::Wire;
use super::{with_box, with_origin};

#[test]
fn a_path_does_not_leave_its_sandbox() {
    let (host, _runner) = with_box();
    host.completed(&host.api.create_sandbox(&host.spec("other")).unwrap());
    let (origin, other) = (Origin::plain(&host, "box"), Origin::plain(&host, "other"));
    // What comes behind the prefix is the guest's, as it came.
    let passed = [
        ("toolbox/../../other/toolbox/x", "/../../other/toolbox/x"),
        ("toolbox/../b", "/../b"),
        ("toolbox/../../../info", "/../../../info"),
        ("toolbox/..", "/.."),
        ("toolbox/.", "/."),
        ("toolbox/%2e%2e/%2e%2e/other/toolbox/x", "/%2e%2e/%2e%2e/other/toolbox/x"),
        ("toolbox/%2E%2E%2f%2E%2E%2Fother", "/%2E%2E%2f%2E%2E%2Fother"),
        ("toolbox/..%2f..%2fother%2ftoolbox", "/..%2f..%2fother%2ftoolbox"),
        ("toolbox/..%5c..%5cother", "/..%5c..%5cother"),
        ("toolbox/.%00./x", "/.%00./x"),
        ("toolbox/..;/..;/other/toolbox", "/..;/..;/other/toolbox"),
        ("toolbox//", "//"),
        ("toolbox//sandboxes/other/toolbox/x", "//sandboxes/other/toolbox/x"),
        ("toolbox///evil.example/x", "///evil.example/x"),
        ("toolbox/http://evil.example/x", "/http://evil.example/x"),
        ("toolbox/x?../../other", "/x?../../other"),
        ("toolbox?x=/../other", "/?x=/../other"),
        ("toolbox/%", "/%"),
        ("toolbox/%zz%1", "/%zz%1"),
        ("toolbox/a%20b%0d%0a", "/a%20b%0d%0a"),
        ("toolbox/%c0%ae%c0%ae/x", "/%c0%ae%c0%ae/x"),
        ("toolbox/%252e%252e/x", "/%252e%252e/x"),
        ("proxy/8080/../../x", "/proxy/8080/../../x"),
        ("proxy/8080//x", "/proxy/8080//x"),
        ("proxy/8080/%2e%2e/2280", "/proxy/8080/%2e%2e/2280"),
        ("toolbox/proxy/8080/../9090/", "/proxy/8080/../9090/"),
    ];
    for (path, inside) in passed {
        let mut wire = Wire::new(&host);
        wire.request("GET", &format!("/sandboxes/box/{path}"), "");
        let reply = wire.answer().unwrap_or_else(|end| panic!("{path}: {end:?}"));
        assert_eq!((reply.status, reply.text().as_str()), (200, inside), "{path}");
        let record = origin.take();
        assert_eq!((record.requests.len(), record.malformed.len()), (1, 0), "{path}: {record:?}");
    }
    // Before it nothing is resolved: these name no sandbox, or none of these.
    let denied = [
        "/sandboxes/box/../other/toolbox/x",
        "/sandboxes/box/%2e%2e/other/toolbox/x",
        "/sandboxes/../sandboxes/box/toolbox/x",
        "/./sandboxes/box/toolbox/x",
        "//sandboxes/box/toolbox/x",
        "/sandboxes//box/toolbox/x",
        "/sandboxes/box//toolbox/x",
        "/sandboxes/box%2ftoolbox/x",
        "/sandboxes/box%2f..%2fother/toolbox/x",
        "/sandboxes/..%2fbox/toolbox/x",
        "/sandboxes%2fbox/toolbox/x",
        "/sandboxes/box;x/toolbox/x",
        "/sandboxes/box%00/toolbox/x",
        "/sandboxes/box%0a/toolbox/x",
        "/sandboxes/box%20/toolbox/x",
        "/sandboxes/./toolbox/x",
        "/sandboxes/../toolbox/x",
        "/sandboxes/%2e%2e/toolbox/x",
        "/sandboxes/%2e/toolbox/x",
        "/sandboxes//toolbox/x",
        "/sandboxes/box\\toolbox\\x",
        "/sandboxes/BOX/toolbox/x",
        "/Sandboxes/box/toolbox/x",
        "/sandboxes/box/Toolbox/x",
        "/sandboxes/box/toolboxes/x",
        "/sandboxes/box/toolbox;x",
        "/sandboxes/box/toolbox%2fx",
        "/sandboxes/box/toolbox%00/x",
        "/sandboxes/b%FFx/toolbox/x",
        "/sandboxes/%/toolbox/x",
        "/sandboxes/%zz/toolbox/x",
        "/sandboxes/*/toolbox/x",
        "/sandboxes/box,other/toolbox/x",
        "/sandboxes/-/toolbox/x",
        "/sandboxes/box:2280/toolbox/x",
        "/sandboxes/box@other/toolbox/x",
        "/sandboxes/box/proxy",
        "/sandboxes/box/proxy/",
        "/sandboxes/box/proxy//x",
        "/sandboxes/box/proxy/0/x",
        "/sandboxes/box/proxy/65536/x",
        "/sandboxes/box/proxy/-1/x",
        "/sandboxes/box/proxy/+80/x",
        "/sandboxes/box/proxy/0x50/x",
        "/sandboxes/box/proxy/80%2f/x",
        "/sandboxes/box/proxy/80;x/x",
        "/sandboxes/box/proxy/80@evil/x",
        "/sandboxes/box/proxy/8080%20/x",
        "/sandboxes/box/proxy/99999999999999999999/x",
        "/sandboxes/box/proxy/\u{0668}/x",
        "/toolbox/x",
        "/proxy/8080/x",
    ];
    let long = format!("/sandboxes/{}/toolbox/x", "a".repeat(65));
    let longer = format!("/sandboxes/{}/toolbox/x", "b".repeat(5000));
    let mut wrong = Vec::new();
    for path in denied.iter().copied().chain([long.as_str(), longer.as_str()]) {
        let mut wire = Wire::new(&host);
        wire.request("GET", path, "");
        let status = wire.answer().map(|reply| reply.status);
        let record = origin.take();
        if !matches!(status, Ok(400 | 404)) || !record.requests.is_empty() {
            wrong.push(format!("{path}: {status:?}, {:?}", record.requests));
        }
    }
    // Bytes that belong encoded may be refused, and pass unchanged if they pass.
    for path in ["toolbox/\u{fc}", "toolbox/x?\u{fc}", "toolbox/<x>", "toolbox/\"", "toolbox/{x}|^`", "toolbox/a\\b"] {
        let mut wire = Wire::new(&host);
        wire.request("GET", &format!("/sandboxes/box/{path}"), "");
        let reply = wire.answer().unwrap();
        let same = reply.text() == path["toolbox".len()..];
        assert!(reply.status == 400 || (reply.status == 200 && same), "{path}: {reply:?}");
        assert!(origin.take().malformed.is_empty(), "{path}");
    }
    // An id with encoded letters is the same id or none.
    for path in [
        "/sandboxes/b%6fx/toolbox/x",
        "/sandboxes/box/%74oolbox/x",
        "/sandboxes/box/proxy/0080/x",
        "/%73andboxes/box/toolbox/x",
    ] {
        let answer = host.http().get(path);
        assert!([200, 400, 404].contains(&answer.status), "{path}: {answer:?}");
    }
    assert!(wrong.is_empty(), "{} paths:\n{}", wrong.len(), wrong.join("\n"));
    let record = other.take();
    assert!(record.requests.is_empty() && other.backend.accepted() == 0, "the other sandbox got {record:?}");
}

#[test]
fn tricks_with_the_path_do_no_administration() {
    let (host, _runner, origin) = with_origin();
    for method in ["GET", "DELETE", "POST", "PUT"] {
        for path in [
            "/sandboxes/box/toolbox/..",
            "/sandboxes/box/toolbox/../",
            "/sandboxes/box/toolbox/../stop",
            "/sandboxes/box/toolbox/../destroy",
            "/sandboxes/box/toolbox/%2e%2e/destroy",
            "/sandboxes/box/toolbox/..%2fdestroy",
            "/sandboxes/box/toolbox/../../../drain",
        ] {
            let mut wire = Wire::new(&host);
            wire.request(method, path, "Content-Length: 0\r\n");
            let reply = wire.answer().unwrap();
            assert_eq!(
                (reply.status, reply.text()),
                (200, path["/sandboxes/box/toolbox".len()..].to_owned()),
                "{method} {path}"
            );
        }
    }
    // Without the token a path is worth nothing, wherever it points to.
    for path in [
        "/sandboxes/box/toolbox/x",
        "/sandboxes/box/toolbox",
        "/sandboxes/box/proxy/8080/",
        "/sandboxes/box/toolbox/../../../",
        "/sandboxes/box/toolbox/../../../openapi.json",
        "/openapi.json/../sandboxes/box/toolbox/x",
        "/../sandboxes/box/toolbox/x",
        "//sandboxes/box/toolbox/x",
        "/./sandboxes",
        "/sandboxes/",
        "/sandboxes/box/x",
        "/SANDBOXES/box",
        "/%73andboxes",
        "/?/sandboxes/box/toolbox/x",
        "/openapi.json/x",
    ] {
        let mut wire = Wire::new(&host);
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: r\r\n\r\n"));
        let reply = wire.answer().unwrap();
        let free = path.starts_with("/?");
        assert!(if free { reply.status == 200 } else { [400, 401, 404].contains(&reply.status) }, "{path}: {reply:?}");
    }
    let record = origin.take();
    assert_eq!((record.requests.len(), record.malformed.len()), (28, 0));
    let shown = host.http().get("/sandboxes/box").json();
    assert_eq!(shown["state"], "started", "{shown}");
    assert_eq!(host.http().get("/drain").status, 200);
}
