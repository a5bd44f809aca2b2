//! The runner's own HTTP API (PROTOCOL.md 6): statuses, bodies, tokens, and the one shape of errors.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

mod common;
#[path = "http_api/copies.rs"]
mod copies;
#[path = "http_api/openapi.rs"]
mod openapi;

use common::http::Answer;
use common::{Host, Http, TOKEN, eventually, leftovers};

fn body(id: &str) -> Value {
    json!({ "id": id, "snapshot": "ubuntu-base.1", "cpuQuota": 1, "memoryQuota": 1, "storageQuota": 1 })
}

/// An error of this API in its one shape; returns the message.
#[track_caller]
fn error(answer: &Answer, status: u16, code: &str, path: &str, method: &str) -> String {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    let fields: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["code", "message", "method", "path", "statusCode", "timestamp"]);
    let told = (&body["statusCode"], &body["code"], &body["path"], &body["method"]);
    assert_eq!(told, (&json!(status), &json!(code), &json!(path), &json!(method)));
    let timestamp = body["timestamp"].as_str().unwrap();
    assert!(timestamp.len() >= 20 && timestamp.contains('T') && timestamp.ends_with('Z'), "{timestamp}");
    let message = body["message"].as_str().unwrap();
    assert!(!message.is_empty());
    message.to_owned()
}

fn stranger(host: &Host) -> Http {
    host.http().with_token("")
}

#[test]
fn the_root_is_public_and_has_its_exact_shape() {
    let host = Host::new();
    let _runner = host.runner();
    let answer = stranger(&host).get("/");
    assert_eq!(answer.status, 200);
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(answer.json(), json!({ "status": "ok", "version": version }));
    error(&stranger(&host).post("/", "{}"), 405, "METHOD_NOT_ALLOWED", "/", "POST");
    assert_eq!(stranger(&host).get("/openapi.json").status, 200);
}

#[test]
fn everything_else_wants_the_token() {
    let host = Host::new();
    let _runner = host.runner();
    let routes = [
        ("GET", "/info"),
        ("GET", "/sandboxes"),
        ("POST", "/sandboxes"),
        ("GET", "/sandboxes/box"),
        ("DELETE", "/sandboxes/box"),
        ("POST", "/sandboxes/box/start"),
        ("POST", "/sandboxes/box/stop"),
        ("POST", "/sandboxes/box/destroy"),
        ("POST", "/sandboxes/box/fork"),
        ("POST", "/sandboxes/box/clone"),
        ("POST", "/sandboxes/box/pause"),
        ("POST", "/sandboxes/box/resume"),
        ("POST", "/sandboxes/box/resize"),
        ("POST", "/snapshots/create"),
        ("GET", "/snapshots/exists?ref=a"),
        ("GET", "/snapshots/info?ref=a"),
        ("POST", "/snapshots/remove?ref=a"),
        ("GET", "/sandboxes/box/serial"),
        ("GET", "/sandboxes/box/toolbox/version"),
        ("GET", "/sandboxes/box/proxy/8080/"),
        ("GET", "/no-such-route"),
    ];
    for (method, path) in routes {
        let answer = stranger(&host).request(method, path, "");
        error(&answer, 401, "UNAUTHORIZED", path.split('?').next().unwrap(), method);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{method} {path}");
    }
}

#[test]
fn the_token_is_taken_from_either_header() {
    let host = Host::new();
    let _runner = host.runner();
    let with = |headers: &str| stranger(&host).with_headers("GET", "/info", headers, "");
    let accepted = [
        format!("Authorization: Bearer {TOKEN}\r\n"),
        format!("X-Daytona-Authorization: Bearer {TOKEN}\r\n"),
        format!("X-Daytona-Authorization: Bearer {TOKEN}\r\nAuthorization: Basic dTpw\r\n"),
    ];
    for headers in accepted {
        assert_eq!(with(&headers).status, 200, "{headers}");
    }
    let refused = [
        format!("Authorization: bearer {TOKEN}\r\n"),
        format!("Authorization: {TOKEN}\r\n"),
        format!("Authorization: Basic {TOKEN}\r\n"),
        format!("Authorization: Bearer  {TOKEN}\r\n"),
        format!("Authorization: Bearer {TOKEN} x\r\n"),
        format!("Authorization: Bearer {TOKEN}x\r\n"),
        "Authorization: Bearer \r\n".to_owned(),
        "Authorization: Bearer \u{fc}\r\n".to_owned(),
        // The proxy's header decides where there is one.
        format!("X-Daytona-Authorization: Bearer wrong\r\nAuthorization: Bearer {TOKEN}\r\n"),
    ];
    for headers in refused {
        assert_eq!(with(&headers).status, 401, "{headers}");
    }
    assert_eq!(stranger(&host).get(&format!("/info?token={TOKEN}")).status, 401);
}

#[test]
fn wrong_tokens_get_a_constant_answer() {
    let host = Host::new();
    let _runner = host.runner();
    let answer = |token: &str| {
        let answer = host.http().with_token(token).get("/info");
        error(&answer, 401, "UNAUTHORIZED", "/info", "GET")
    };
    let first = answer("x");
    for token in ["a-token-for-tests-onlx", "a-token-for-tests-onl", "a-token-for-tests-only-", &"y".repeat(5000)] {
        assert_eq!(answer(token), first);
        assert!(!first.contains(token) && !first.contains(TOKEN));
    }
}

#[test]
fn info_has_what_the_healthcheck_says() {
    let host = Host::new();
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    let info = eventually("the first healthcheck is done", || {
        let info = host.http().get("/info").json();
        (info["api"]["reachable"] == true).then_some(info)
    });
    assert_eq!((&info["type"], &info["sandboxes"]), (&json!("cloud-hypervisor"), &json!(1)));
    assert_eq!(info["appVersion"], format!("v{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(info["serviceHealth"], json!([{ "serviceName": "cloud-hypervisor", "healthy": true }]));
    let metrics = &info["metrics"];
    let number = |name: &str| metrics[name].as_f64().unwrap_or_else(|| panic!("{name} in {metrics}"));
    let load: f64 = std::fs::read_to_string("/proc/loadavg").unwrap().split(' ').nth(2).unwrap().parse().unwrap();
    let cpus = number("cpu");
    assert!((number("currentCpuLoadAverage") - load / cpus).abs() < 0.5, "15 minutes' load per CPU: {metrics}");
    for name in ["currentCpuUsagePercentage", "currentMemoryUsagePercentage", "currentDiskUsagePercentage"] {
        assert!((0.0..=100.0).contains(&number(name)), "{name}: {metrics}");
    }
    // One sandbox of 1 vCPU, 1 GiB and 1 GiB runs.
    for name in
        ["currentAllocatedCpu", "currentAllocatedMemoryGiB", "currentAllocatedDiskGiB", "currentStartedSandboxes"]
    {
        assert_eq!(number(name), 1.0, "{name}: {metrics}");
    }
    assert_eq!(number("currentSnapshotCount"), 1.0, "the base image");
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib: f64 = memory.lines().next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((number("memoryGiB") - kib / f64::from(1 << 20)).abs() <= 1.0, "GiB of {kib} KiB: {metrics}");
    assert!(cpus >= 1.0 && number("diskGiB") >= 1.0, "{metrics}");

    host.completed(&host.api.stop_sandbox("box", None).unwrap());
    let metrics = host.http().get("/info").json()["metrics"].clone();
    assert_eq!((&metrics["currentAllocatedCpu"], &metrics["currentAllocatedDiskGiB"]), (&json!(0), &json!(1)));
}

#[test]
fn a_sandbox_over_http_from_create_to_delete() {
    let host = Host::new();
    let _runner = host.runner();
    let http = host.http();
    let created = http.post("/sandboxes", &body("box").to_string());
    assert_eq!((created.status, created.header("content-type")), (201, Some("application/json")));
    let version = http.get("/sandboxes/box/toolbox/version").json()["version"].clone();
    assert_eq!(created.json(), json!({ "daemonVersion": version }));

    let shown = http.get("/sandboxes/box").json();
    assert_eq!((&shown["state"], &shown["backupState"]), (&json!("started"), &json!("NONE")));
    assert_eq!((&shown["id"], &shown["daemonVersion"]), (&json!("box"), &version));
    assert_eq!((&shown["cpu"], &shown["memoryMiB"], &shown["diskGiB"]), (&json!(1), &json!(1024), &json!(1)));
    assert_eq!(http.get("/sandboxes").json(), json!([shown]));
    // Making what is there is success and changes nothing.
    assert_eq!(http.post("/sandboxes", &body("box").to_string()).status, 201);
    assert_eq!(http.get("/sandboxes/box").json()["pid"], shown["pid"]);

    let answers = [
        ("/sandboxes/box/stop", "", json!("Sandbox stopped"), "stopped"),
        ("/sandboxes/box/stop", "", json!("Sandbox stopped"), "stopped"),
        ("/sandboxes/box/start?token=t", r#"{"a":"b"}"#, json!({ "daemonVersion": version }), "started"),
        ("/sandboxes/box/start", "", json!({ "daemonVersion": version }), "started"),
        ("/sandboxes/box/stop", r#"{"force":true}"#, json!("Sandbox stopped"), "stopped"),
    ];
    for (path, body, expected, state) in answers {
        let answer = http.post(path, body);
        assert_eq!((answer.status, answer.json()), (200, expected), "{path}");
        assert_eq!(http.get("/sandboxes/box").json()["state"], state, "after {path}");
    }
    for _ in 0..2 {
        let answer = http.post("/sandboxes/box/destroy", "");
        assert_eq!((answer.status, answer.json()), (200, json!("Sandbox destroyed")), "not there is success");
    }
    assert_eq!(http.post("/sandboxes", &body("box").to_string()).status, 201);
    let answer = http.delete("/sandboxes/box");
    assert_eq!((answer.status, answer.json()), (200, json!("Sandbox removed")));
    assert_eq!(http.get("/sandboxes").json(), json!([]));
    leftovers::none(&host);
}

#[test]
fn errors_have_one_shape() {
    let host = Host::new();
    let _runner = host.runner();
    let http = host.http();
    let mut wrong = body("box");
    wrong["cpuQuota"] = json!(-1);
    let too_large = json!({ "id": "box", "memoryQuota": 4096 });
    let absent = json!({ "id": "box", "snapshot": "org/absent" });
    let table = [
        ("POST", "/sandboxes", wrong.to_string(), 400, "BAD_REQUEST", "cpuQuota"),
        ("POST", "/sandboxes", "{broken".to_owned(), 400, "BAD_REQUEST", "not valid JSON"),
        ("POST", "/sandboxes", "[1]".to_owned(), 400, "BAD_REQUEST", "not an object"),
        ("POST", "/sandboxes", String::new(), 400, "BAD_REQUEST", "id: expected a sandbox id"),
        ("POST", "/sandboxes", " ".repeat(2 << 20), 400, "BAD_REQUEST", "larger than 1048576 bytes"),
        ("POST", "/sandboxes", too_large.to_string(), 422, "UNPROCESSABLE_ENTITY", "memoryQuota"),
        ("POST", "/sandboxes", absent.to_string(), 422, "UNPROCESSABLE_ENTITY", "org/absent"),
        ("GET", "/sandboxes/box", String::new(), 404, "NOT_FOUND", "sandbox box does not exist"),
        ("POST", "/sandboxes/box/start", String::new(), 404, "NOT_FOUND", "sandbox box"),
        ("POST", "/sandboxes/box/stop", String::new(), 404, "NOT_FOUND", "sandbox box"),
        ("POST", "/sandboxes/box/stop", r#"{"force":1}"#.to_owned(), 400, "BAD_REQUEST", "force: expected"),
        ("POST", "/sandboxes/box/stop", "[]".to_owned(), 400, "BAD_REQUEST", "not an object"),
        ("GET", "/sandboxes/box/serial", String::new(), 404, "NOT_FOUND", "sandbox box"),
        ("GET", "/sandboxes/box/toolbox/x", String::new(), 404, "NOT_FOUND", "sandbox box"),
        ("GET", "/sandboxes/box/proxy/0/x", String::new(), 400, "BAD_REQUEST", "port: expected"),
        ("GET", "/sandboxes/%ff", String::new(), 400, "BAD_REQUEST", "id: sandbox id has"),
        ("GET", "/no/such/route", String::new(), 404, "NOT_FOUND", "/openapi.json"),
        ("GET", "/sandboxes/box/backup", String::new(), 404, "NOT_FOUND", "/openapi.json"),
        ("PUT", "/sandboxes", String::new(), 405, "METHOD_NOT_ALLOWED", "method PUT"),
        ("PATCH", "/sandboxes/box", String::new(), 405, "METHOD_NOT_ALLOWED", "method PATCH"),
        ("GET", "/sandboxes/box/start", String::new(), 405, "METHOD_NOT_ALLOWED", "method GET"),
        ("DELETE", "/info", String::new(), 405, "METHOD_NOT_ALLOWED", "method DELETE"),
    ];
    for (method, path, body, status, code, words) in table {
        let message = error(&http.request(method, path, &body), status, code, path, method);
        assert!(message.contains(words), "{method} {path}: {words:?} is not in {message:?}");
    }
    // What the framework refuses before a handler sees it.
    let answer = http.post("/sandboxes/box/start?token=a&token=b", "");
    error(&answer, 400, "BAD_REQUEST", "/sandboxes/box/start", "POST");
    leftovers::none(&host);
}

#[test]
fn overtaken_requests_get_a_conflict() {
    let host = Host::new();
    host.faults(json!([{ "when": "toolbox", "action": "never" }]));
    let _runner = host.runner();
    let http = host.http();
    let creating = std::thread::spawn(move || http.post("/sandboxes", &body("box").to_string()));
    eventually("its VMM runs", || host.http().get("/sandboxes/box").json().get("pid").map(drop));
    assert_eq!(host.http().post("/sandboxes/box/destroy", "").status, 200);
    let message = error(&creating.join().unwrap(), 409, "INTERRUPTED", "/sandboxes", "POST");
    assert!(message.contains("box"), "{message}");
    leftovers::none(&host);
}

#[test]
fn a_full_host_is_busy_and_says_when_to_come_back() {
    let mut host = Host::new();
    host.set("RUNNER_NETWORK_POOL", "10.220.0.0/28");
    let _runner = host.runner();
    let create = |n: usize| {
        let body = json!({ "id": format!("box-{n}"), "storageQuota": 1 });
        host.http().post("/sandboxes", &body.to_string())
    };
    let refused = (0..17).map(create).find(|answer| answer.status != 201).expect("a /28 has no room for 17 sandboxes");
    let message = error(&refused, 503, "BUSY", "/sandboxes", "POST");
    assert!(message.contains("RUNNER_NETWORK_POOL"), "{message}");
    let seconds: u32 = refused.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=60).contains(&seconds));
    let all = host.http().get("/sandboxes").json();
    assert!(all.as_array().unwrap().len() >= 8, "{all}");
    // One that goes makes room.
    assert_eq!(host.http().delete("/sandboxes/box-0").status, 200);
    assert_eq!(create(0).status, 201);
}

#[test]
fn the_serial_console_is_bounded_and_survives_restarts() {
    let host = Host::new();
    let runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    let text = host.http().get("/sandboxes/box/serial");
    assert_eq!(text.status, 200);
    assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(text.header("x-content-type-options"), Some("nosniff"));
    assert!(text.body.contains("kernel"), "{text:?}");

    // A guest that prints much: what a VMM would have written.
    let dir = host.path("boxes/box");
    let log = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let log = log.into_iter().find(|path| path.to_string_lossy().contains("serial")).expect("a serial log");
    let mut file = std::fs::OpenOptions::new().append(true).open(log).unwrap();
    std::io::Write::write_all(&mut file, &[b'x'; 200 << 10]).unwrap();
    std::io::Write::write_all(&mut file, b"the last line\n").unwrap();
    let read = || host.http().get("/sandboxes/box/serial").body;
    let before = read();
    assert_eq!(before.len(), 64 << 10);
    assert!(before.ends_with("xthe last line\n"));

    assert!(runner.stop().success());
    let runner = host.runner();
    assert!(read() == before, "the same after an orderly restart");
    runner.murder();
    let _runner = host.runner();
    assert!(read() == before, "the same after SIGKILL");
    host.completed(&host.api.stop_sandbox("box", None).unwrap());
    assert!(!read().is_empty(), "still there when the sandbox is stopped");
}

#[test]
fn reads_do_not_queue_behind_commands() {
    let host = Host::new();
    host.faults(json!([{ "when": "vm.boot", "action": "hang" }]));
    let _runner = host.runner();
    let jobs: Vec<String> = (0..8).map(|n| host.api.create_sandbox(&host.spec(&format!("box-{n}"))).unwrap()).collect();
    eventually("a boot hangs", || (!leftovers::vmms(&host.path("sock")).is_empty()).then_some(()));
    for path in ["/", "/sandboxes", "/sandboxes/box-0", "/info"] {
        // The middle one of several, as this machine may be busy with something else.
        let mut times: Vec<Duration> = (0..11)
            .map(|_| {
                let began = Instant::now();
                assert_eq!(host.http().get(path).status, 200, "{path}");
                began.elapsed()
            })
            .collect();
        times.sort();
        assert!(times[5] < Duration::from_millis(100), "{path}: {times:?}");
    }
    for job in &jobs {
        assert!(host.api.wait_job(job, Duration::ZERO).is_none(), "the creates still hang");
    }
}
