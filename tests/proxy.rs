//! Requests for guests (PROTOCOL.md 7): what the guest sees, what the client sees, streams, upgrades,
//! and guests that are not there or go away.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

mod common;
#[path = "proxy/streams.rs"]
mod streams;
#[path = "proxy/waiting.rs"]
mod waiting;

use common::stream::Client;
use common::{Host, Runner, TOKEN, eventually, leftovers};

const STREAM: u64 = 64 << 20;

/// A host with one running sandbox.
fn with_box() -> (Host, Runner) {
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    (host, runner)
}

/// The headers that an echo reports, by lower-case name.
fn seen(echo: &Value, name: &str) -> Vec<String> {
    let headers = echo["headers"].as_array().unwrap().iter();
    let named = headers.filter(|pair| pair[0].as_str().unwrap().eq_ignore_ascii_case(name));
    named.map(|pair| pair[1].as_str().unwrap().to_owned()).collect()
}

fn echo(host: &Host, headers: &str) -> Value {
    let mut client = Client::new(host);
    client.send("GET", "/sandboxes/box/toolbox/echo", headers);
    client.json()
}

fn kill_vmm(host: &Host) {
    let pid = host.http().get("/sandboxes/box").json()["pid"].as_i64().unwrap();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
}

#[test]
fn methods_paths_and_queries_arrive_as_they_were_sent() {
    let (host, _runner) = with_box();
    let mut client = Client::new(&host);
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY"] {
        client.send(method, "/sandboxes/box/toolbox/echo?x=1", "Content-Length: 0\r\n");
        let echo = client.json();
        assert_eq!((&echo["method"], &echo["path"], &echo["query"]), (&json!(method), &json!("/echo"), &json!("x=1")));
    }
    let paths = [
        "",
        "a",
        "a/",
        "a/b",
        "a%2Fb",
        "a%2fb",
        "a%20b",
        "a+b",
        "%2e%2e/x",
        "a/../b",
        "./a",
        "%C3%BC",
        "%25",
        "%00",
        "a;b=c",
        "a:b@c",
        "~x",
        "a//b",
        "/",
        "!$&'()*,=",
        "[x]",
        "toolbox/x",
        "proxy/1/x",
    ];
    for path in paths {
        for prefix in ["/sandboxes/box/toolbox/proxy/8080/", "/sandboxes/box/proxy/8080/"] {
            client.send("GET", &format!("{prefix}{path}"), "");
            let echo = client.json();
            assert_eq!(echo["path"], format!("/proxy/8080/{path}"), "{prefix}{path}");
            assert_eq!(echo["appPath"], format!("/{path}"));
        }
    }
    for query in ["", "a", "a=", "a=1&a=2", "x=%41%2F&y=a+b", "=&&", "u=http://h/p?q", "a=[1]", "%00=%ff"] {
        client.send("GET", &format!("/sandboxes/box/toolbox/echo?{query}"), "");
        assert_eq!(client.json()["query"], query);
    }
    // Without a slash at the end it is the root.
    client.send("GET", "/sandboxes/box/proxy/8080", "");
    assert_eq!(client.json()["appPath"], "/");
    client.send("GET", "/sandboxes/box/toolbox/proxy/8080", "");
    assert_eq!(client.json()["appPath"], "/");
}

#[test]
fn headers_of_the_request() {
    let (host, _runner) = with_box();
    let private = "Connection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n\
        Proxy-Authorization: Basic x\r\nProxy-Connection: keep-alive\r\nTrailer: x\r\n";
    let public = "X-Public: one\r\nX-Public: two\r\nCookie: a=1; b=2\r\nAccept-Encoding: gzip\r\nUser-Agent: test\r\n\
        X-Latin: \u{fc}\r\n";
    let echo = echo(&host, &format!("{private}{public}"));
    for name in [
        "x-private",
        "keep-alive",
        "upgrade",
        "proxy-authorization",
        "proxy-connection",
        "connection",
        "transfer-encoding",
        "x-daytona-authorization",
    ] {
        assert_eq!(seen(&echo, name), Vec::<String>::new(), "{name} ends at the runner: {echo}");
    }
    // Trailers pass, and so does what announces them.
    assert_eq!(seen(&echo, "te"), ["trailers"]);
    assert_eq!(seen(&echo, "trailer"), ["x"]);
    assert_eq!(seen(&echo, "x-public"), ["one", "two"]);
    assert_eq!(seen(&echo, "cookie"), ["a=1; b=2"]);
    assert_eq!(seen(&echo, "accept-encoding"), ["gzip"]);
    assert_eq!(seen(&echo, "user-agent"), ["test"]);
    assert_eq!(seen(&echo, "x-latin"), ["\u{fc}"]);
    assert_eq!(seen(&echo, "host"), ["192.168.0.2:2280"], "the host is the target's");
}

#[test]
fn who_asked_is_forwarded() {
    let (host, _runner) = with_box();
    let direct = echo(&host, "");
    assert_eq!(seen(&direct, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen(&direct, "x-forwarded-host"), ["runner.example:3006"]);
    assert_eq!(seen(&direct, "x-forwarded-proto"), ["http"]);
    let earlier = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2\r\nX-Forwarded-Host: 8080-box.example\r\n\
        X-Forwarded-Proto: https\r\n";
    let behind = echo(&host, earlier);
    assert_eq!(seen(&behind, "x-forwarded-for"), ["192.0.2.1, 192.0.2.2, 127.0.0.1"]);
    assert_eq!(seen(&behind, "x-forwarded-host"), ["8080-box.example"]);
    assert_eq!(seen(&behind, "x-forwarded-proto"), ["https"]);
}

#[test]
fn our_token_never_reaches_the_guest_and_the_users_does() {
    let (host, _runner) = with_box();
    let users = echo(&host, "Authorization: Basic dTpw\r\n");
    assert_eq!(seen(&users, "authorization"), ["Basic dTpw"]);
    let mut client = Client::new(&host);
    let ours = format!("Authorization: Bearer {TOKEN}\r\n");
    client.bare("GET", "/sandboxes/box/toolbox/echo", &ours);
    let with_ours = client.json();
    // Somebody who sends it twice gives it away no more than others.
    let with_both = echo(&host, &ours);
    for echo in [users, with_ours, with_both] {
        assert!(!echo.to_string().contains(TOKEN), "{echo}");
    }
}

#[test]
fn answers_arrive_as_they_were_given() {
    let (host, _runner) = with_box();
    let mut client = Client::new(&host);
    client.send("GET", "/sandboxes/box/toolbox/version", "");
    let head = client.head();
    let length = head.length();
    assert_eq!((head.status, head.get("content-type")), (200, Some("application/json; charset=utf-8")));
    client.body(&head);

    client.send("HEAD", "/sandboxes/box/toolbox/echo", "");
    let head = client.head();
    assert_eq!(head.status, 200);
    assert!(head.length() > 0, "the length of what a GET would answer");
    // The connection is at its next answer, so nothing was sent behind that head.
    client.send("GET", "/sandboxes/box/toolbox/version", "");
    let head = client.head();
    assert_eq!((head.status, head.length()), (200, length));
    client.body(&head);

    // The guest's own errors, in the guest's own shape.
    client.send("GET", "/sandboxes/box/toolbox/no-such-page", "");
    let head = client.head();
    let body = client.body(&head);
    assert_eq!(head.status, 404);
    assert!(String::from_utf8_lossy(&body).contains("404 page not found"));
    client.send("GET", "/sandboxes/box/toolbox/proxy/9999/", "");
    let head = client.head();
    let body = client.body(&head);
    assert_eq!(head.status, 502);
    assert!(String::from_utf8_lossy(&body).contains("dial tcp 127.0.0.1:9999"));

    // No content is no content.
    client.send("POST", "/sandboxes/box/toolbox/files/upload?path=/tmp/f", "Content-Length: 4\r\n");
    client.write(b"data");
    assert_eq!(client.json(), json!({}));
    client.send("DELETE", "/sandboxes/box/toolbox/files?path=/tmp/f", "");
    let head = client.head();
    assert_eq!((head.status, head.get("transfer-encoding")), (204, None));
    client.send("GET", "/sandboxes/box/toolbox/version", "");
    assert!(client.json()["version"].is_string());
}

#[test]
fn one_client_connection_serves_many_requests_and_runs() {
    let (host, _runner) = with_box();
    let mut client = Client::new(&host);
    for n in 0..20_usize {
        client.send("POST", "/sandboxes/box/toolbox/sink", &format!("Content-Length: {}\r\n", n * 1000));
        client.write(&vec![b'x'; n * 1000]);
        assert_eq!(client.json()["bytes"], n * 1000);
    }
    client.send("GET", "/sandboxes/absent/toolbox/version", "");
    let head = client.head();
    client.body(&head);
    assert_eq!(head.status, 404);
    host.completed(&host.api.stop_sandbox("box", None).unwrap());
    client.send("GET", "/sandboxes/box/toolbox/version", "");
    let head = client.head();
    let body = client.body(&head);
    assert_eq!(head.status, 400);
    assert!(String::from_utf8_lossy(&body).contains("Is the Sandbox started?"));
    host.completed(&host.api.start_sandbox("box").unwrap());
    client.send("GET", "/sandboxes/box/toolbox/version", "");
    assert!(client.json()["version"].is_string(), "the same connection reaches the next run");
}

#[test]
fn many_at_once() {
    let (host, _runner) = with_box();
    let threads: Vec<_> = (0..32)
        .map(|n| {
            let mut client = Client::new(&host);
            std::thread::spawn(move || {
                for _ in 0..5 {
                    client.send("GET", &format!("/sandboxes/box/proxy/8080/{n}"), "");
                    assert_eq!(client.json()["appPath"], format!("/{n}"));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_client_that_wants_to_be_asked_for_its_body() {
    let (host, _runner) = with_box();
    let mut client = Client::new(&host);
    client.send("POST", "/sandboxes/box/toolbox/sink", "Content-Length: 5\r\nExpect: 100-continue\r\n");
    assert_eq!(client.head().status, 100);
    client.write(b"hello");
    assert_eq!(client.json()["bytes"], 5);
}

#[test]
fn a_client_that_goes_away_in_the_middle() {
    let (host, _runner) = with_box();
    let mut client = Client::new(&host);
    client.send("POST", "/sandboxes/box/toolbox/sink", "Content-Length: 1000000\r\n");
    client.write(&[b'x'; 1000]);
    drop(client);
    let mut client = Client::new(&host);
    client.send("GET", &format!("/sandboxes/box/toolbox/stream?bytes={STREAM}"), "");
    client.head();
    drop(client);
    let mut client = Client::new(&host);
    client.send("POST", "/sandboxes/box/toolbox/sink", "Content-Length: 3\r\n");
    client.write(b"abc");
    assert_eq!(client.json(), json!({ "bytes": 3, "total": 3 }), "half a body is not a body");
    host.completed(&host.api.destroy_sandbox("box").unwrap());
    leftovers::none(&host);
}

#[test]
fn sandboxes_that_are_not_there_or_do_not_run() {
    let (host, _runner) = with_box();
    host.completed(&host.api.stop_sandbox("box", None).unwrap());
    for rest in ["toolbox/version", "toolbox", "proxy/8080/x", "toolbox/proxy/8080/x"] {
        let answer = host.http().get(&format!("/sandboxes/absent/{rest}"));
        assert_eq!((answer.status, answer.json()["code"].clone()), (404, json!("NOT_FOUND")), "{rest}");
        let answer = host.http().get(&format!("/sandboxes/box/{rest}"));
        assert_eq!((answer.status, answer.json()["code"].clone()), (400, json!("BAD_REQUEST")), "{rest}");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains("it is stopped") && message.contains("Is the Sandbox started?"), "{message}");
    }
}

#[test]
fn a_guest_that_refuses_connections() {
    let mut host = Host::new();
    host.set("DAEMON_START_TIMEOUT_SEC", "0");
    host.faults(json!([{ "when": "toolbox", "action": "never" }]));
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    let refused = eventually("the guest's kernel is up and refuses", || {
        let answer = host.http().get("/sandboxes/box/toolbox/version");
        assert_eq!(answer.status, 502, "{answer:?}");
        answer.body.contains("refused").then_some(answer)
    });
    assert_eq!(refused.json()["code"], "BAD_GATEWAY");
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("sandbox box") && message.contains("192.168.0.2:2280"), "{message}");
}

#[test]
fn a_guest_that_dies_before_it_answers() {
    let (host, _runner) = with_box();
    let body = json!({ "command": "echo begun > /tmp/mark; sleep 50", "timeout": 60 }).to_string();
    let mut client = Client::new(&host);
    let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    client.send("POST", "/sandboxes/box/toolbox/process/execute", &headers);
    client.write(body.as_bytes());
    eventually("the guest works on it", || (host.in_guest("box", "cat /tmp/mark") == "begun").then_some(()));
    kill_vmm(&host);
    let head = client.head();
    let body = client.body(&head);
    assert_eq!(head.status, 502, "{}", String::from_utf8_lossy(&body));
}
