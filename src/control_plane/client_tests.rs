//! The client against small servers that behave well, badly, or not at all.

use std::cell::RefCell;
use std::rc::Rc;

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::control_plane::{Retry, ServiceHealth};

const KEY: &str = "s3cret-key";
const FAST: Deadlines = Deadlines {
    call: Duration::from_secs(5),
    healthcheck: Duration::from_secs(5),
    poll_floor: Duration::ZERO,
    poll_margin: Duration::from_secs(5),
};

/// A request as the server saw it.
#[derive(Debug, Clone, Default)]
struct Seen {
    line: String,
    headers: Vec<(String, String)>,
    body: Value,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

type Answering = fn() -> HttpResponse;

/// Serves every path with one answer, and passes what was asked to the test.
async fn serve(answer: Answering) -> (AwcControlPlane, tokio::sync::mpsc::UnboundedReceiver<Seen>) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let server = HttpServer::new(move || {
        let sender = sender.clone();
        let handler = move |request: HttpRequest, body: web::Bytes| {
            let header = |(name, value): (&header::HeaderName, &HeaderValue)| {
                (name.to_string(), value.to_str().unwrap_or_default().to_owned())
            };
            let seen = Seen {
                line: format!("{} {}", request.method(), request.uri()),
                headers: request.headers().iter().map(header).collect(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
            };
            // A test that does not look has dropped the receiver.
            let _ = sender.send(seen);
            async move { answer() }
        };
        App::new().default_service(web::to(handler))
    });
    let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
    let address = server.addrs()[0];
    actix_web::rt::spawn(server.run());
    (client(&format!("http://{address}/api/")), receiver)
}

fn client(base: &str) -> AwcControlPlane {
    AwcControlPlane::new(base, KEY, "1.2.3").unwrap().with_deadlines(FAST)
}

/// Serves raw bytes: one entry for each connection, then closes it; `None` closes without an answer.
/// The counter tells how many connections there were.
async fn raw(answers: &'static [Option<&'static [u8]>]) -> (AwcControlPlane, Rc<RefCell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Rc::new(RefCell::new(0));
    let counter = Rc::clone(&count);
    actix_web::rt::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            *counter.borrow_mut() += 1;
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            if let Some(answer) = answer {
                let _ = stream.write_all(answer).await;
            }
        }
    });
    (client(&format!("http://{address}/api")), count)
}

async fn poll(client: &AwcControlPlane) -> Result<Jobs, Error> {
    client.poll(Duration::from_secs(1), 10).await
}

fn job() -> JobId {
    "job-1".parse().unwrap()
}

fn sandbox_id() -> SandboxId {
    "box-1".parse().unwrap()
}

fn health() -> Healthcheck {
    let host = crate::host::HostSnapshot {
        load_per_cpu: 0.1,
        cpu_used_percent: 1.0,
        memory_used_percent: 2.0,
        memory_bytes: 1 << 34,
        cpus: 4,
    };
    let identity = crate::host::Identity { version: "1".into(), domain: Some("h".into()), port: 3006, tls: false };
    let space = crate::disk::Space { total: 1 << 40, available: 1 << 39 };
    crate::host::healthcheck(&host, &space, &Default::default(), &identity, vec![ServiceHealth::healthy("x")])
}

#[actix::test]
async fn a_poll_sends_what_the_api_wants_and_survives_a_broken_element() {
    let (client, mut seen) = serve(|| {
        HttpResponse::Ok().json(json!({"jobs": [
            {"id": "job-1", "type": "STOP_SANDBOX", "status": "IN_PROGRESS", "resourceType": "SANDBOX", "resourceId": "b"},
            {"id": "job-2", "type": 5, "resourceId": "b"},
            {"id": "job-3", "type": "START_SANDBOX", "status": "IN_PROGRESS", "resourceType": "SANDBOX", "resourceId": "b"},
        ]}))
    })
    .await;
    let jobs = client.poll(Duration::from_millis(700), 1000).await.unwrap();
    assert_eq!(jobs.jobs.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["job-1", "job-3"]);
    assert_eq!(jobs.unreadable[0].job_id().unwrap().as_str(), "job-2");
    let seen = seen.recv().await.unwrap();
    assert_eq!(seen.line, "GET /api/jobs/poll?timeout=1&limit=100");
    assert_eq!(seen.header("authorization"), format!("Bearer {KEY}"));
    assert_eq!(seen.header("user-agent"), "runner-ch/1.2.3");
    assert_eq!(seen.header("x-daytona-source"), "runner");
}

#[actix::test]
async fn no_jobs_comes_in_three_forms() {
    for answer in [
        (|| HttpResponse::Ok().json(json!({"jobs": []}))) as Answering,
        || HttpResponse::RequestTimeout().finish(),
        || HttpResponse::NoContent().finish(),
    ] {
        let (client, _) = serve(answer).await;
        assert!(poll(&client).await.unwrap().is_empty());
    }
}

#[actix::test]
async fn a_page_of_the_list_is_read() {
    let (client, mut seen) = serve(|| {
        let job =
            json!({"id": "job-1", "type": "A", "status": "IN_PROGRESS", "resourceType": "SANDBOX", "resourceId": "b"});
        HttpResponse::Ok().json(json!({"items": [job, {}], "total": 202, "page": 2, "totalPages": 2}))
    })
    .await;
    let page = client.in_progress(2).await.unwrap();
    assert_eq!((page.jobs.len(), page.unreadable.len()), (1, 1));
    assert_eq!((page.total, page.page, page.total_pages), (202, 2, 2));
    assert_eq!(seen.recv().await.unwrap().line, "GET /api/jobs?status=IN_PROGRESS&page=2&limit=200");
}

#[actix::test]
async fn reports_are_delivered_by_any_success() {
    for answer in [
        (|| HttpResponse::Created().json(json!({"id": "job-1"}))) as Answering,
        || HttpResponse::Ok().finish(),
        || HttpResponse::NoContent().finish(),
    ] {
        let (client, mut seen) = serve(answer).await;
        let trace = json!({"id": "j", "type": "A", "resourceId": "b", "traceContext": {"traceparent": "00-aa-bb-01"}});
        let report = JobReport::failed("disk: No space left on device", true);
        let report = report.traced(&crate::control_plane::Job::from_json(&trace).unwrap());
        client.report(&job(), &report).await.unwrap();
        let seen = seen.recv().await.unwrap();
        assert_eq!(seen.line, "POST /api/jobs/job-1/status");
        assert_eq!((seen.header("content-type"), seen.header("traceparent")), ("application/json", "00-aa-bb-01"));
        assert_eq!(seen.body["status"], "FAILED");
        let inner: Value = serde_json::from_str(seen.body["errorMessage"].as_str().unwrap()).unwrap();
        assert_eq!(inner["recoverable"], true);
    }
}

#[actix::test]
async fn healthcheck_sync_and_state_are_sent() {
    let (client, mut seen) = serve(|| HttpResponse::Created().finish()).await;
    client.healthcheck(&health()).await.unwrap();
    let body = seen.recv().await.unwrap();
    assert_eq!((body.line.as_str(), &body.body["metrics"]["cpu"]), ("POST /api/runners/healthcheck", &json!(4)));
    client.put_state(&sandbox_id(), &StateUpdate::stopped()).await.unwrap();
    let body = seen.recv().await.unwrap();
    assert_eq!((body.line.as_str(), body.body), ("PUT /api/sandbox/box-1/state", json!({"state": "stopped"})));

    let (client, mut seen) =
        serve(|| HttpResponse::Ok().json(json!([{"id": "a", "state": "started", "cpu": 1}, {"id": 5}, {"id": "b"}])))
            .await;
    let ids: Vec<_> =
        client.started_sandboxes().await.unwrap().into_iter().map(|remote| remote.id.to_string()).collect();
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(
        seen.recv().await.unwrap().line,
        "GET /api/sandbox/for-runner?states=started&skipReconcilingSandboxes=true"
    );
}

#[actix::test]
async fn what_is_not_the_api_is_called_a_wrong_base_url() {
    for answer in [
        (|| HttpResponse::Ok().content_type("text/html").body("<!doctype html><p>hello")) as Answering,
        || HttpResponse::Ok().body("  <html>"),
        || HttpResponse::Ok().content_type("text/plain").body("welcome"),
        || HttpResponse::NotFound().content_type("text/html").body("<html>"),
        || HttpResponse::Found().insert_header(("location", "https://elsewhere/api")).finish(),
    ] {
        let (client, _) = serve(answer).await;
        let report = JobReport::completed(None);
        for error in [poll(&client).await.unwrap_err(), client.report(&job(), &report).await.unwrap_err()] {
            assert!(matches!(error, Error::WrongBaseUrl { .. }), "{error:?}");
            assert!(error.to_string().contains("SERVER_URL must contain /api"), "{error}");
            assert_eq!(error.retry(), Retry::Backoff, "a proxy shows such pages while the API restarts");
        }
    }
}

#[actix::test]
async fn statuses_become_errors_with_a_retry_decision() {
    let (client, _) = serve(|| HttpResponse::Unauthorized().json(json!({"message": "Invalid\nkey"}))).await;
    let error = poll(&client).await.unwrap_err();
    assert!(matches!(&error, Error::Unauthorized { message, .. } if message == "Invalid key"), "{error:?}");

    let (client, _) = serve(|| HttpResponse::TooManyRequests().insert_header(("Retry-After", "17")).finish()).await;
    assert_eq!(poll(&client).await.unwrap_err().retry(), Retry::After(Duration::from_secs(17)));

    let report = JobReport::completed(None);
    for (answer, retry, text) in [
        (
            (|| HttpResponse::Forbidden().json(json!({"message": "m"}))) as Answering,
            Retry::After(Duration::from_secs(60)),
            "runner's (m)",
        ),
        (|| HttpResponse::NotFound().json(json!({"message": "Job not found"})), Retry::Never, "Job not found"),
        (
            || HttpResponse::Conflict().json(json!({"message": "Invalid job status transition"})),
            Retry::Never,
            "transition",
        ),
        (|| HttpResponse::BadRequest().json(json!({"message": ["a", "b"]})), Retry::Never, "400 (a; b)"),
        (|| HttpResponse::InternalServerError().finish(), Retry::Backoff, "status 500"),
        (|| HttpResponse::BadGateway().content_type("text/html").body("<html>"), Retry::Backoff, "status 502"),
        (|| HttpResponse::RequestTimeout().finish(), Retry::Backoff, "status 408"),
        (
            || HttpResponse::ServiceUnavailable().insert_header(("Retry-After", "5")).finish(),
            Retry::After(Duration::from_secs(5)),
            "status 503",
        ),
    ] {
        let (client, _) = serve(answer).await;
        let error = client.report(&job(), &report).await.unwrap_err();
        assert_eq!(error.retry(), retry, "{error}");
        assert!(
            error.to_string().contains(text) && error.to_string().starts_with("POST /jobs/job-1/status"),
            "{error}"
        );
    }
}

#[actix::test]
async fn garbage_is_told_apart() {
    let (client, _) = serve(|| HttpResponse::Ok().json(json!({"jobs": 5}))).await;
    assert!(matches!(poll(&client).await.unwrap_err(), Error::Garbage { .. }));
    let (client, _) = serve(|| HttpResponse::Ok().content_type("application/json").body("{\"jobs\":[")).await;
    assert!(matches!(poll(&client).await.unwrap_err(), Error::Garbage { .. }));
    let (client, _) = raw(&[Some(b"\x16\x03\x01 this is no HTTP at all\r\n\r\n")]).await;
    let error = poll(&client).await.unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error:?}");
    let (client, _) = raw(&[Some(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"jobs\":[]}")]).await;
    let error = poll(&client).await.unwrap_err();
    assert!(
        matches!(&error, Error::Network { source, .. } if source.to_string() == "11 of 500 bytes came"),
        "{error:?}"
    );
}

#[actix::test]
async fn an_answer_beyond_the_limit_is_refused() {
    let (client, _) =
        serve(|| HttpResponse::Ok().content_type("application/json").body("x".repeat(JOBS_LIMIT + 1))).await;
    assert!(matches!(poll(&client).await.unwrap_err(), Error::TooLarge { .. }));
}

#[actix::test]
async fn a_server_that_never_answers_meets_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deadlines = Deadlines { call: Duration::from_millis(50), healthcheck: Duration::from_millis(60), ..FAST };
    let client = client(&format!("http://{}/api", listener.local_addr().unwrap())).with_deadlines(deadlines);
    let error = client.in_progress(1).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { after, .. } if after == deadlines.call), "{error:?}");
    assert_eq!(error.retry(), Retry::Backoff);
    let error = client.healthcheck(&health()).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { after, .. } if after == deadlines.healthcheck), "{error:?}");
}

#[test]
fn a_poll_outlasts_the_server() {
    let deadlines = Deadlines::default();
    assert!(deadlines.poll_floor + deadlines.poll_margin > MAX_POLL + Duration::from_secs(10));
}

#[actix::test]
async fn a_get_on_a_closed_connection_is_made_once_more() {
    const EMPTY: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{\"jobs\":[]}";
    let (client, count) = raw(&[None, Some(EMPTY), None, None, Some(EMPTY)]).await;
    assert!(poll(&client).await.unwrap().is_empty());
    assert_eq!(*count.borrow(), 2);
    let error = poll(&client).await.unwrap_err();
    assert!(matches!(error, Error::Disconnected { stale: false, .. }), "{error:?}");
    assert_eq!((error.retry(), *count.borrow()), (Retry::Backoff, 4));
    assert!(poll(&client).await.unwrap().is_empty(), "the pool recovers by itself");
}

#[actix::test]
async fn a_report_on_a_closed_connection_is_left_to_the_caller() {
    let (client, count) = raw(&[None, None, Some(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")]).await;
    let report = JobReport::completed(None);
    assert_eq!(client.report(&job(), &report).await.unwrap_err().retry(), Retry::Now);
    assert_eq!(*count.borrow(), 1);
    assert_eq!(client.report(&job(), &report).await.unwrap_err().retry(), Retry::Backoff, "never twice in a row");
    client.report(&job(), &report).await.unwrap();
}

#[actix::test]
async fn nobody_listening_is_surely_nothing_done() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = client(&format!("http://{address}/api")).report(&job(), &JobReport::completed(None)).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    assert_eq!((error.certainty(), error.retry()), (crate::error::Certainty::NotDone, Retry::Backoff));
}

#[actix::test]
async fn a_failed_handshake_is_no_failed_connection() {
    let (plain, _) = raw(&[Some(b"HTTP/1.1 400 Bad Request\r\n\r\n")]).await;
    let trusting_none = || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Ok(Arc::new(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()))
    };
    let url = plain.base().replace("http:", "https:");
    let client = AwcControlPlane::build(&url, KEY, "1", trusting_none).unwrap().with_deadlines(FAST);
    let error = poll(&client).await.unwrap_err();
    assert!(matches!(error, Error::Handshake { .. }), "{error:?}");
    assert_eq!(error.certainty(), crate::error::Certainty::NotDone);
}

#[test]
fn settings_that_cannot_work_are_named() {
    for url in
        ["", "localhost:3000/api", "ftp://h/api", "http://", "http://u:p@h/api", "http://h/api?x=1", "http://h /api"]
    {
        let error = AwcControlPlane::new(url, KEY, "1").unwrap_err();
        assert!(matches!(error, Error::Setup { setting: "SERVER_URL", .. }), "{url:?}: {error:?}");
    }
    for token in ["", "a b", "a\nb", "ü"] {
        let error = AwcControlPlane::new("http://h/api", token, "1").unwrap_err();
        assert!(matches!(error, Error::Setup { setting: "API_TOKEN", .. }), "{error:?}");
    }
    let client = client("http://h/api//");
    assert_eq!(client.base(), "http://h/api");
    assert!(!format!("{client:?}").contains(KEY));
}
