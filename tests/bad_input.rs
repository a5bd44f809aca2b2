//! Hostile and broken input, over HTTP and as jobs: a clear error that names the field, nothing made,
//! and the runner goes on.

use std::io::{Read, Write};
use std::net::Shutdown;

use daytona_sim::{JobStatus, Payload, ResourceType};
use serde_json::{Value, json};

mod common;
#[path = "bad_input/copies.rs"]
mod copies;

use common::{Host, TOKEN, leftovers};

/// Texts that would do harm if they got into a path, a command or a log line.
fn hostile() -> Vec<String> {
    let texts = [
        "/",
        "..",
        ".",
        "../x",
        "../../etc/passwd",
        "/etc/passwd",
        "a/../b",
        "a\0b",
        "a\nb",
        "a\r\nX-Injected: 1",
        "it's",
        "\"quoted\"",
        "$(touch /tmp/x)",
        "`id`",
        "a;b",
        "a b",
        "-rf",
        "%2e%2e%2fx",
        "..%2f",
        "%00",
        "b\u{f6}x",
        "\u{202e}xob",
        "\u{1f4a5}",
    ];
    texts.into_iter().map(str::to_owned).chain(["x".repeat(10_000)]).collect()
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// The body of a small sandbox that is not started, with one field changed.
fn body(id: &str, field: &str, value: Value) -> Value {
    let mut body = json!({ "id": id, "cpuQuota": 1, "memoryQuota": 1, "storageQuota": 1, "skipStart": true });
    body[field] = value;
    body
}

/// What came out of a request or a job.
struct Outcome {
    ok: bool,
    message: String,
}

fn over_http(host: &Host, body: &str) -> Outcome {
    let answer = host.http().post("/sandboxes", body);
    assert!([201, 400, 422].contains(&answer.status), "{answer:?}");
    let ok = answer.status == 201;
    Outcome { ok, message: if ok { String::new() } else { answer.json()["message"].as_str().unwrap().to_owned() } }
}

fn job(host: &Host, kind: &str, id: &str, payload: &str) -> Outcome {
    let submitted = host.api.submit(kind, ResourceType::Sandbox, id, Payload::text(payload)).unwrap();
    let job = host.done(&submitted);
    Outcome { ok: job.status == JobStatus::Completed, message: job.error_message.unwrap_or_default() }
}

/// Both ways must fail with these words and leave nothing.
#[track_caller]
fn refused(host: &Host, body: &str, words: &str) {
    for (way, outcome) in [("HTTP", over_http(host, body)), ("a job", job(host, "CREATE_SANDBOX", "box", body))] {
        assert!(!outcome.ok, "accepted over {way}: {body:.200}");
        assert!(outcome.message.contains(words), "over {way}: {words:?} is not in {:?}", outcome.message);
        assert!(outcome.message.len() < 1000, "errors do not repeat everything that came: {}", outcome.message);
        assert!(!outcome.message.contains(['\0', '\n', '\r']), "{:?}", outcome.message);
    }
}

/// Both ways must succeed.
#[track_caller]
fn accepted(host: &Host, body: &Value) {
    let outcome = over_http(host, &body.to_string());
    assert!(outcome.ok, "{body:.200}: {}", outcome.message);
    assert_eq!(host.http().delete("/sandboxes/box").status, 200);
    let outcome = job(host, "CREATE_SANDBOX", "box", &body.to_string());
    assert!(outcome.ok, "{body:.200}: {}", outcome.message);
    assert_eq!(host.http().delete("/sandboxes/box").status, 200);
}

/// Nothing was made, nothing broke: an ordinary sandbox still works.
#[track_caller]
fn goes_on(host: &Host) {
    assert_eq!(host.http().get("/sandboxes").json(), json!([]));
    leftovers::none(host);
    host.completed(&host.api.create_sandbox(&host.spec("after")).unwrap());
    assert_eq!(host.in_guest("after", "echo works"), "works");
    host.completed(&host.api.destroy_sandbox("after").unwrap());
    leftovers::none(host);
    assert!(!host.log().contains("panicked"), "{}", host.log());
}

#[test]
fn sandbox_ids() {
    let host = Host::new();
    let _runner = host.runner();
    for id in hostile().iter().map(String::as_str).chain([""]) {
        let spec = body(id, "name", json!("n")).to_string();
        let outcome = over_http(&host, &spec);
        assert!(!outcome.ok && outcome.message.starts_with("id: expected"), "{id:.50?}: {}", outcome.message);
        // As a job: in the payload, and as the resource.
        refused(&host, &spec, "id: expected");
        for kind in ["CREATE_SANDBOX", "START_SANDBOX", "STOP_SANDBOX", "DESTROY_SANDBOX"] {
            let outcome = job(&host, kind, id, "{}");
            assert!(!outcome.ok && outcome.message.contains("resourceId: expected"), "{id:.50?}: {}", outcome.message);
        }
    }
    goes_on(&host);
}

#[test]
fn sandbox_ids_in_paths() {
    let host = Host::new();
    let _runner = host.runner();
    let routes = [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/start"),
        ("POST", "/stop"),
        ("POST", "/destroy"),
        ("GET", "/serial"),
        ("GET", "/toolbox/version"),
        ("GET", "/proxy/8080/"),
    ];
    for id in hostile() {
        for (method, rest) in routes {
            let answer = host.http().request(method, &format!("/sandboxes/{}{rest}", percent(&id)), "");
            assert!([400, 404].contains(&answer.status), "{id:.50?} {rest}: {answer:?}");
            assert!(answer.json()["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer:?}");
            assert!(answer.header("x-injected").is_none());
        }
    }
    // As they are, where a request line can hold them.
    for path in ["/sandboxes/../info", "/sandboxes/box/../../info", "//info", "/sandboxes/", "/sandboxes//start", "/%"]
    {
        let answer = host.http().get(path);
        assert!([400, 404, 405].contains(&answer.status), "{path}: {answer:?}");
    }
    goes_on(&host);
}

#[test]
fn snapshot_references() {
    let host = Host::new();
    let _runner = host.runner();
    for snapshot in hostile() {
        let spec = body("box", "snapshot", json!(snapshot)).to_string();
        // Names that are merely unknown are refused as such.
        let unknown = ["-rf", "%00"].contains(&snapshot.as_str());
        let words = if unknown { "is not on this host" } else { "snapshot: expected a snapshot reference" };
        refused(&host, &spec, words);
    }
    goes_on(&host);
}

#[test]
fn names_and_remarks_are_only_text() {
    let host = Host::new();
    let _runner = host.runner();
    for text in hostile() {
        accepted(&host, &body("box", "name", json!(text)));
    }
    for field in ["userId", "organizationId", "sandboxClass", "regionId"] {
        accepted(&host, &body("box", field, json!("../../\0$(id)\n'\"")));
    }
    let metadata: serde_json::Map<String, Value> =
        hostile().into_iter().map(|text| (text.clone(), text.into())).collect();
    accepted(&host, &body("box", "metadata", Value::Object(metadata)));
    goes_on(&host);
}

#[test]
fn users_and_variables_of_the_guest() {
    let host = Host::new();
    let _runner = host.runner();
    for text in hostile() {
        refused(&host, &body("box", "osUser", json!(text)).to_string(), "osUser: expected");
        let mut env = serde_json::Map::new();
        env.insert(text, "x".into());
        refused(&host, &body("box", "env", Value::Object(env)).to_string(), "env: expected a variable name");
    }
    refused(&host, &body("box", "env", json!({ "A": "x\0y" })).to_string(), "env.A: expected text without NUL");
    // Values may be nearly anything, and arrive unchanged.
    let value = "it's \"$HOME\" $(id) `id`\n\ttwo: - lines # \\ \u{f6}";
    let spec = json!({ "id": "box", "memoryQuota": 1, "storageQuota": 1, "env": { "A": value } });
    assert_eq!(host.http().post("/sandboxes", &spec.to_string()).status, 201);
    assert_eq!(host.in_guest("box", "printf '%s' \"$A\""), value);
    assert_eq!(host.http().delete("/sandboxes/box").status, 200);
    goes_on(&host);
}

#[test]
fn quotas() {
    let host = Host::new();
    let _runner = host.runner();
    let bad = [json!(-1), json!(1e9), json!(1.5), json!(1e300), json!("2"), json!(true), json!([2]), json!({ "n": 2 })];
    for field in ["cpuQuota", "memoryQuota", "storageQuota"] {
        for value in &bad {
            refused(&host, &body("box", field, value.clone()).to_string(), &format!("{field}: expected"));
        }
    }
    refused(&host, r#"{"id":"box","cpuQuota":99999999999999999999999}"#, "cpuQuota: expected");
    refused(&host, &body("box", "gpuQuota", json!(1)).to_string(), "gpuQuota: expected 0");
    // Possible on some host, not on this one: named all the same.
    refused(&host, &body("box", "cpuQuota", json!(255)).to_string(), "cpuQuota: 255 vCPUs asked for");
    refused(&host, &body("box", "memoryQuota", json!(4096)).to_string(), "memoryQuota: ");

    // Nothing, null and zero ask for the defaults; JSON may write whole numbers with a point.
    for zero in [json!(0), json!(null), json!(0.0)] {
        let spec =
            json!({ "id": "box", "cpuQuota": zero, "memoryQuota": zero, "storageQuota": zero, "skipStart": true });
        assert_eq!(host.http().post("/sandboxes", &spec.to_string()).status, 201);
        let shown = host.http().get("/sandboxes/box").json();
        assert_eq!((&shown["cpu"], &shown["memoryMiB"], &shown["diskGiB"]), (&json!(2), &json!(256), &json!(1)));
        assert_eq!(host.http().delete("/sandboxes/box").status, 200);
    }
    accepted(&host, &body("box", "cpuQuota", json!(2.0)));
    goes_on(&host);
}

#[test]
fn wrong_types_for_every_field() {
    let host = Host::new();
    let _runner = host.runner();
    let text = [json!(1), json!(true), json!([]), json!({})];
    let flag = [json!(1), json!("true"), json!([]), json!({})];
    let list = [json!(1), json!("x"), json!(true), json!({})];
    let object = [json!(1), json!("x"), json!(true), json!([])];
    let table: [(&str, &[Value]); 17] = [
        ("id", &text),
        ("name", &text),
        ("userId", &text),
        ("organizationId", &text),
        ("snapshot", &text),
        ("osUser", &text),
        ("authToken", &text),
        ("domainAllowList", &text),
        ("networkAllowList", &text),
        ("linkedSandboxId", &text),
        ("sandboxClass", &text),
        ("networkBlockAll", &flag),
        ("skipStart", &flag),
        ("volumes", &list),
        ("entrypoint", &list),
        ("env", &object),
        ("metadata", &object),
    ];
    for (field, values) in table {
        for value in values {
            refused(&host, &body("box", field, value.clone()).to_string(), &format!("{field}: expected"));
        }
    }
    // The wrapper of a start, and the flag of a stop, which only a known sandbox gets to.
    let outcome = job(&host, "STOP_SANDBOX", "box", r#"{"force":"yes"}"#);
    assert!(!outcome.ok && outcome.message.contains("force: expected"), "{}", outcome.message);
    let outcome = job(&host, "START_SANDBOX", "box", r#"{"authToken":7}"#);
    assert!(!outcome.ok && outcome.message.contains("authToken: expected"), "{}", outcome.message);
    goes_on(&host);
}

#[test]
fn unknown_fields_are_ignored() {
    let host = Host::new();
    let _runner = host.runner();
    let mut spec = body("box", "fieldOfTomorrow", json!({ "deep": [1, { "er": null }] }));
    spec["__proto__"] = json!("x");
    accepted(&host, &spec);
    goes_on(&host);
}

#[test]
fn broken_and_huge_bodies() {
    let host = Host::new();
    let _runner = host.runner();
    let deep = format!("{{\"id\":\"box\",\"metadata\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let table = [
        ("{", "JSON"),
        ("{\"id\":\"box\"", "JSON"),
        ("{\"id\":\"box\"}}", "JSON"),
        ("{'id':'box'}", "JSON"),
        ("<html></html>", "JSON"),
        ("nul", "JSON"),
        ("{\"id\":\"bo\nx\"}", "JSON"),
        ("{\"id\":\"\\ud800\"}", "JSON"),
        (deep.as_str(), "JSON"),
        ("[]", "object"),
        ("\"box\"", "object"),
        ("1", "object"),
        ("true", "object"),
    ];
    for (text, words) in table {
        refused(&host, text, words);
    }
    for empty in ["", "null", " "] {
        refused(&host, empty, "id: expected a sandbox id");
    }
    // A name of half a MiB is long, not wrong; above the limit nothing is read any more.
    let long = body("box", "name", json!("x".repeat(512 << 10))).to_string();
    assert!(over_http(&host, &long).ok);
    assert_eq!(host.http().delete("/sandboxes/box").status, 200);
    for size in [2 << 20, 16 << 20] {
        let outcome = over_http(&host, &body("box", "name", json!("x".repeat(size))).to_string());
        assert!(outcome.message.contains("larger than 1048576 bytes"), "{}", outcome.message);
    }
    goes_on(&host);
}

#[test]
fn requests_that_are_no_http_or_break_off() {
    let host = Host::new();
    let _runner = host.runner();
    let auth = format!("host: h\r\nauthorization: Bearer {TOKEN}\r\n");
    let create = format!("POST /sandboxes HTTP/1.1\r\n{auth}");
    let table = [
        "\r\n\r\n".to_owned(),
        "GARBAGE\r\n\r\n".to_owned(),
        "\0\0\0\0\r\n\r\n".to_owned(),
        "\u{16}\u{3}\u{1}\0\u{5}hello".to_owned(),
        format!("GET /info\0 HTTP/1.1\r\n{auth}\r\n"),
        format!("GET /in fo HTTP/1.1\r\n{auth}\r\n"),
        format!("GET /{} HTTP/1.1\r\n{auth}\r\n", "x".repeat(200 << 10)),
        format!("GET /info HTTP/9.9\r\n{auth}\r\n"),
        format!("GET /info HTTP/1.1\r\n{auth}x: {}\r\n\r\n", "y".repeat(300 << 10)),
        format!("{create}content-length: 100\r\n\r\n{{\"id\":\"box\"}}"),
        format!("{create}content-length: -1\r\n\r\n"),
        format!("{create}content-length: 2\r\ncontent-length: 20\r\n\r\n{{}}"),
        format!("{create}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{{}}"),
        format!("{create}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"),
        format!("{create}transfer-encoding: chunked\r\n\r\nc\r\n{{\"id\":\"box\"}}\r\n"),
        format!("{create}content-le"),
        "GET /info HT".to_owned(),
        String::new(),
    ];
    for request in table {
        let mut stream = host.http().connect().unwrap();
        // The runner may have refused and closed before all of it is written.
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.shutdown(Shutdown::Write);
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let answer = String::from_utf8_lossy(&bytes);
        let fine = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        assert!(fine, "{request:.120?} was answered with {answer:.300?}");
    }
    goes_on(&host);
}
