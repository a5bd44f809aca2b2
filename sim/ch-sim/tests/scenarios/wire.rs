//! HTTP on the socket (cloud-hypervisor.md 2.1, 2.2).

use std::io::{Read, Write};

use super::for_each;
use crate::common::{Vmm, receive, send};

/// The answer of the HTTP layer to something it cannot parse.
fn refusal(text: &str) -> String {
    format!("{{ \"error\": \"{text}\nAll previous unanswered requests will be dropped.\" }}")
}

#[test]
fn answers_have_the_documented_head() {
    for_each(|binary| {
        let vmm = Vmm::start(binary);
        let ping = vmm.request("GET", "vmm.ping", None);
        let length = format!("Content-Length: {}", ping.body.len());
        let common = ["Server: Cloud Hypervisor API", "Connection: keep-alive"];
        let json = "Content-Type: application/json";
        assert_eq!(ping.head, ["HTTP/1.1 200 ", common[0], common[1], json, &length]);
        let body: serde_json::Value = serde_json::from_str(&ping.body).unwrap();
        assert!(body["build_version"].as_str().unwrap().starts_with("v53"));
        assert_eq!(body["version"], "53.0.0");
        assert_eq!(body["pid"], vmm.child.id());
        let deleted = vmm.request("PUT", "vm.delete", None);
        assert_eq!(deleted.head, ["HTTP/1.1 204 ", common[0], common[1]]);
    });
}

#[test]
fn refused_requests() {
    let rows: &[(&str, &str, Option<&str>, u16, &str)] = &[
        ("GET", "/api/v1/nope", None, 404, r#"["Not Found"]"#),
        ("GET", "/api/v1/vmm.ping/", None, 404, r#"["Not Found"]"#),
        ("GET", "/api/v1/vmm.ping?x=1", None, 404, r#"["Not Found"]"#),
        ("GET", "/", None, 404, r#"["Not Found"]"#),
        ("PUT", "/api/v1/vmm.ping", None, 400, r#"["Bad Request"]"#),
        ("GET", "/api/v1/vm.boot", None, 400, r#"["Bad Request"]"#),
        ("GET", "/api/v1/vm.create", None, 400, r#"["Bad Request"]"#),
        ("PUT", "/api/v1/vm.info", None, 400, r#"["Bad Request"]"#),
        ("PUT", "/api/v1/vm.boot", Some("{}"), 400, r#"["Bad Request"]"#),
        ("PUT", "/api/v1/vm.pause", Some("null"), 400, r#"["Bad Request"]"#),
        ("PUT", "/api/v1/vm.snapshot", None, 400, r#"["Bad Request"]"#),
        ("PUT", "/api/v1/vm.create", None, 400, ""),
        ("PATCH", "/api/v1/vm.boot", None, 400, ""),
        ("PATCH", "/api/v1/vm.info", None, 400, r#"["Bad Request"]"#),
    ];
    for_each(|binary| {
        let vmm = Vmm::start(binary);
        for (method, path, body, status, wanted) in rows {
            let mut stream = vmm.connect();
            send(&mut stream, method, path, *body);
            let reply = receive(&mut stream);
            assert_eq!((reply.status, reply.body.as_str()), (*status, *wanted), "{method} {path}");
        }
    });
}

#[test]
fn bad_json_is_quoted_with_its_place() {
    let rows = [
        ("{", "EOF while parsing an object at line 1 column 1"),
        ("{} x", "trailing characters at line 1 column 4"),
        ("[]", "invalid length 2, expected struct VmConfig with 34 elements"),
        (r#"{"cpus":{"boot_vcpus":1}}"#, "missing field `max_vcpus` at line 1 column 24"),
        (r#"{"memory":{"size":"big"}}"#, "invalid type: string \"big\", expected u64 at line 1 column 23"),
        (r#"{"memory":{"size":1,"size":2}}"#, "duplicate field `size` at line 1 column 26"),
        (
            r#"{"disks":[{"image_type":"raw"}]}"#,
            "unknown variant `raw`, expected one of `FixedVhd`, `Qcow2`, `Raw`, `Vhdx`, `Unknown` at line 1 column 29",
        ),
        (
            r#"{"serial":{"mode":"file"}}"#,
            "unknown variant `file`, expected one of `Off`, `Pty`, `Tty`, `File`, `Socket`, `Null` at line 1 column 25",
        ),
    ];
    for_each(|binary| {
        let vmm = Vmm::start(binary);
        for (body, text) in rows {
            let reply = vmm.request("PUT", "vm.create", Some(body));
            let texts: Vec<String> = serde_json::from_str(&reply.body).unwrap();
            assert_eq!(reply.status, 400);
            // How many members the structure has is nobody's business.
            let cut = |text: &str| text.split(" with ").next().unwrap().to_owned();
            assert_eq!(texts[0], "Failed to deserialize JSON");
            assert_eq!(cut(&texts[1]), cut(text), "{body}");
        }
    });
}

#[test]
fn the_http_layer_answers_for_itself() {
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1100));
    let big = "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 51201\r\n\r\n";
    let rows: &[(&str, &str)] = &[
        ("POST / HTTP/1.1\r\n\r\n", "Invalid HTTP Method: Unsupported HTTP method."),
        ("HEAD /api/v1/vmm.ping HTTP/1.1\r\n\r\n", "Invalid HTTP Method: Unsupported HTTP method."),
        ("GET /api/v1/vmm.ping HTTP/2.0\r\n\r\n", "Invalid HTTP Version: Unsupported HTTP version."),
        ("GET\r\n\r\n", "Invalid request."),
        (&long, "Invalid request."),
        (
            "GET / HTTP/1.1\r\nnonsense\r\n\r\n",
            "Invalid header. Reason: Header is incorrectly formatted. Key: nonsense",
        ),
        (
            "GET / HTTP/1.1\r\nAccept-Encoding: identity;q=0\r\n\r\n",
            "Invalid header. Reason: Invalid value. Key:Accept-Encoding; Value:identity;q=0",
        ),
        (big, "Request payload with size 51201 is larger than the limit of 51200 allowed by server."),
    ];
    for_each(|binary| {
        let vmm = Vmm::start(binary);
        for (wire, text) in rows {
            let mut stream = vmm.connect();
            stream.write_all(wire.as_bytes()).unwrap();
            let reply = receive(&mut stream);
            assert_eq!(reply.body, refusal(text), "{wire:?}");
            assert_eq!(reply.head[1], "Server: Firecracker API");
        }
    });
}

#[test]
fn bodies_up_to_the_limit_pass() {
    for_each(|binary| {
        let vmm = Vmm::start(binary);
        let padding = " ".repeat(51_200 - 2);
        let reply = vmm.request("PUT", "vm.create", Some(&format!("{{{padding}}}")));
        assert_eq!(reply.status, 204, "{reply:?}");
    });
}

#[test]
fn connections_are_kept_and_requests_may_be_pipelined() {
    for_each(|binary| {
        let vmm = Vmm::start(binary);
        let mut stream = vmm.connect();
        for _ in 0..3 {
            send(&mut stream, "GET", "/api/v1/vmm.ping", None);
            assert_eq!(receive(&mut stream).status, 200);
        }
        let ping = "GET /api/v1/vmm.ping HTTP/1.0\r\nConnection: close\r\n\r\n";
        let info = "GET /api/v1/vm.info HTTP/1.1\r\n\r\n";
        stream.write_all(format!("{ping}{info}{ping}").as_bytes()).unwrap();
        let statuses: Vec<u16> = (0..3).map(|_| receive(&mut stream).status).collect();
        assert_eq!(statuses, [200, 404, 200]);
        // The connection is still open although the client asked for an end.
        send(&mut stream, "GET", "/api/v1/vmm.ping", None);
        assert_eq!(receive(&mut stream).status, 200);
    });
}

#[test]
fn the_client_may_wait_before_it_sends_its_body() {
    for_each(|binary| {
        let vmm = Vmm::start(binary);
        let mut stream = vmm.connect();
        let head = "PUT /api/v1/vm.create HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        assert_eq!(receive(&mut stream).status, 100);
        stream.write_all(b"{}").unwrap();
        assert_eq!(receive(&mut stream).status, 204);
    });
}

#[test]
fn the_eleventh_connection_is_turned_away() {
    for_each(|binary| {
        let vmm = Vmm::start(binary);
        let mut streams: Vec<_> = (0..10).map(|_| vmm.connect()).collect();
        for stream in &mut streams {
            send(stream, "GET", "/api/v1/vmm.ping", None);
            assert_eq!(receive(stream).status, 200);
        }
        let mut eleventh = vmm.connect();
        let mut text = String::new();
        eleventh.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 503\r\n"), "{text}");
        assert!(text.ends_with(r#"{ "error": "Too many open connections" }"#), "{text}");
        streams.pop();
        crate::common::wait_for("a free place", || {
            let mut stream = vmm.connect();
            // A refused connection may break while the request is written.
            stream.write_all(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n").ok()?;
            let mut head = [0; 12];
            stream.read_exact(&mut head).ok()?;
            (&head == b"HTTP/1.1 200").then_some(())
        });
    });
}
