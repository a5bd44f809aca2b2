//! The control plane over HTTP, with awc. One client per thread: awc's connections do not leave theirs.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::error::ParseError;
use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use awc::error::{ConnectError, SendRequestError};
use bytes::Bytes;
use futures::future::{FutureExt, LocalBoxFuture};
use rustls::ClientConfig;
use serde::Serialize;
use serde_json::Value;

use super::answer::{Answer, Target};
use super::error::{Cause, Error};
use super::settings::{authorization, base, user_agent};
use super::wire::{JobPage, Jobs, PageAnswer, PollAnswer, RemoteSandbox, StateUpdate};
use super::{ControlPlane, Healthcheck, JobReport, tls};
use crate::ids::{JobId, SandboxId};

/// Longest poll the server grants (PROTOCOL.md 2.2).
const MAX_POLL: Duration = Duration::from_secs(60);
/// Most jobs one poll hands out (PROTOCOL.md 2.2).
const MAX_JOBS: u32 = 100;
/// Largest accepted list of jobs, and largest answer to a write.
const JOBS_LIMIT: usize = 4 << 20;
/// Largest accepted list of sandboxes: thousands, at about 2 KiB each.
const SANDBOXES_LIMIT: usize = 16 << 20;
/// Node closes idle connections after 5 s; reusing one just then would cost a request.
const IDLE: Duration = Duration::from_secs(4);
/// A connection that ends sooner than this after sending was most likely closed already.
const STALE_WITHIN: Duration = Duration::from_secs(1);

/// How long calls may take, from connecting to the last byte of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// All calls but the two below.
    pub call: Duration,
    /// The healthcheck (`HEALTHCHECK_TIMEOUT`).
    pub healthcheck: Duration,
    /// A poll waits for its own timeout, but at least this long ...
    pub poll_floor: Duration,
    /// ... and this much on top. Giving up sooner than the server would leave a poll behind that swallows jobs
    /// (PROTOCOL.md 2.2).
    pub poll_margin: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(10),
            healthcheck: Duration::from_secs(10),
            poll_floor: MAX_POLL,
            poll_margin: Duration::from_secs(15),
        }
    }
}

/// The control plane behind a base URL and a key.
pub struct AwcControlPlane {
    http: awc::Client,
    base: String,
    authorization: HeaderValue,
    user_agent: HeaderValue,
    deadlines: Deadlines,
    /// The last call ended on a stale connection: the next one that does is no accident any more.
    was_stale: Cell<bool>,
}

impl fmt::Debug for AwcControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwcControlPlane").field("base", &self.base).finish_non_exhaustive()
    }
}

/// One request to be made.
struct Request<'a> {
    method: Method,
    /// Path and query, below the base.
    path: &'a str,
    /// The path as it appears in errors when it has no ids in it.
    fixed: bool,
    body: Option<Bytes>,
    traceparent: Option<&'a str>,
    deadline: Duration,
    limit: usize,
}

impl AwcControlPlane {
    /// Makes a client; no connection is opened yet.
    ///
    /// # Errors
    /// [`Error::Setup`] for a URL or a key that no request can be made with, [`Error::Certificates`] for
    /// https on a host without trusted certificates.
    pub fn new(base_url: &str, token: &str, runner_version: &str) -> Result<Self, Error> {
        Self::build(base_url, token, runner_version, tls::config)
    }

    fn build(
        base_url: &str,
        token: &str,
        runner_version: &str,
        tls: impl FnOnce() -> Result<Arc<ClientConfig>, Error>,
    ) -> Result<Self, Error> {
        let (base, secure) = base(base_url)?;
        let mut connector = awc::Connector::new().conn_keep_alive(IDLE).timeout(Duration::from_secs(10));
        if secure {
            connector = connector.rustls_0_23(tls()?).handshake_timeout(Duration::from_secs(10));
        }
        // Redirects would carry the key to another host; deadlines are set for whole calls.
        let http = awc::Client::builder().connector(connector).disable_redirects().disable_timeout().finish();
        Ok(Self {
            http,
            base,
            authorization: authorization(token)?,
            user_agent: user_agent(runner_version)?,
            deadlines: Deadlines::default(),
            was_stale: Cell::new(false),
        })
    }

    /// The same with other deadlines.
    #[must_use]
    pub fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// The base URL in use, without trailing slashes.
    pub fn base(&self) -> &str {
        &self.base
    }

    fn get<'a>(&self, path: &'a str, limit: usize) -> Request<'a> {
        Request {
            method: Method::GET,
            path,
            fixed: true,
            body: None,
            traceparent: None,
            deadline: self.deadlines.call,
            limit,
        }
    }

    fn write<'a>(&self, method: Method, path: &'a str, body: &impl Serialize) -> Result<Request<'a>, Error> {
        let call = format!("{method} {path}");
        let body = serde_json::to_vec(body);
        let body = body.map_err(|error| Error::Garbage { call, source: Cause(error.to_string()) })?;
        let get = self.get(path, JOBS_LIMIT);
        Ok(Request { method, fixed: false, body: Some(body.into()), ..get })
    }

    /// Makes the request and takes its answer; a GET on a stale connection is made once more.
    async fn ask<T>(
        &self,
        request: &Request<'_>,
        read: impl FnOnce(Answer, Target<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let path = request.path.split('?').next().unwrap_or_default();
        let call = format!("{} {path}", request.method);
        let attempts = async {
            match self.attempt(request, &call).await {
                Err(Error::Disconnected { stale: true, .. }) if request.method == Method::GET => {
                    self.attempt(request, &call).await
                }
                outcome => outcome,
            }
        };
        let late = |_| Err(Error::Timeout { call: call.clone(), after: request.deadline });
        let answer = tokio::time::timeout(request.deadline, attempts).await.unwrap_or_else(late)?;
        read(answer, Target { call: &call, base: &self.base, fixed: request.fixed })
    }

    async fn attempt(&self, request: &Request<'_>, call: &str) -> Result<Answer, Error> {
        let begun = Instant::now();
        let outcome = match self.send(request).await {
            Ok(response) => receive(response, request.limit, call).await,
            Err(error) => Err(self.unsent(error, call, begun.elapsed())),
        };
        self.was_stale.set(matches!(outcome, Err(Error::Disconnected { stale: true, .. })));
        outcome
    }

    async fn send(&self, request: &Request<'_>) -> Result<awc::ClientResponse, SendRequestError> {
        let url = format!("{}{}", self.base, request.path);
        let mut builder = self
            .http
            .request(request.method.clone(), url)
            .insert_header((header::AUTHORIZATION, self.authorization.clone()))
            .insert_header((header::USER_AGENT, self.user_agent.clone()))
            .insert_header((header::ACCEPT, "application/json"))
            .insert_header(("X-Daytona-Source", "runner"));
        if let Some(traceparent) = request.traceparent.and_then(|text| HeaderValue::from_str(text).ok()) {
            builder = builder.insert_header(("traceparent", traceparent));
        }
        match &request.body {
            Some(body) => {
                builder.insert_header((header::CONTENT_TYPE, "application/json")).send_body(body.clone()).await
            }
            None => builder.send().await,
        }
    }

    /// What went wrong before the head of an answer was there.
    fn unsent(&self, error: SendRequestError, call: &str, elapsed: Duration) -> Error {
        let (call, base) = (call.to_owned(), self.base.clone());
        let source = Cause(error.to_string());
        let stale = elapsed < STALE_WITHIN && !self.was_stale.get();
        match error {
            // awc's own words for it are about connecting, which had worked.
            SendRequestError::Connect(ConnectError::Disconnected) => {
                Error::Disconnected { call, stale, source: Cause("the server closed it".to_owned()) }
            }
            SendRequestError::Send(_) | SendRequestError::Response(ParseError::Io(_)) => {
                Error::Disconnected { call, stale, source }
            }
            SendRequestError::Connect(ConnectError::Io(cause)) if is_tls(&cause) => {
                Error::Handshake { call, base, source: Cause(cause.to_string()) }
            }
            SendRequestError::Connect(cause) => Error::Connect { call, base, source: Cause(cause.to_string()) },
            _ => Error::Network { call, source },
        }
    }
}

fn is_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// Reads the body, and notices when it is shorter than announced: awc takes the end of the connection for
/// the end of the body.
async fn receive(mut response: awc::ClientResponse, limit: usize, call: &str) -> Result<Answer, Error> {
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.body().limit(limit).await.map_err(|error| match error {
        awc::error::PayloadError::Overflow => Error::TooLarge { call: call.to_owned(), limit },
        other => Error::Network { call: call.to_owned(), source: Cause(other.to_string()) },
    })?;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    match announced.and_then(|text| text.parse::<usize>().ok()) {
        Some(length) if length != body.len() && status != StatusCode::NO_CONTENT => Err(Error::Network {
            call: call.to_owned(),
            source: Cause(format!("{} of {length} bytes came", body.len())),
        }),
        _ => Ok(Answer { status, headers, body }),
    }
}

impl ControlPlane for AwcControlPlane {
    fn poll(&self, timeout: Duration, limit: u32) -> LocalBoxFuture<'_, Result<Jobs, Error>> {
        async move {
            let timeout = timeout.clamp(Duration::from_secs(1), MAX_POLL);
            let path = format!("/jobs/poll?timeout={}&limit={}", timeout.as_secs(), limit.clamp(1, MAX_JOBS));
            let deadline = timeout.max(self.deadlines.poll_floor) + self.deadlines.poll_margin;
            let request = Request { deadline, ..self.get(&path, JOBS_LIMIT) };
            self.ask(&request, |answer, target| match answer.status.as_u16() {
                204 | 408 => Ok(Jobs::default()),
                _ => Ok(Jobs::from_list(&answer.success(target)?.json::<PollAnswer>(target)?.jobs)),
            })
            .await
        }
        .boxed_local()
    }

    fn in_progress(&self, page: u32) -> LocalBoxFuture<'_, Result<JobPage, Error>> {
        async move {
            let path = format!("/jobs?status=IN_PROGRESS&page={}&limit=200", page.max(1));
            let read = |answer: Answer, target: Target<'_>| answer.success(target)?.json::<PageAnswer>(target);
            Ok(self.ask(&self.get(&path, JOBS_LIMIT), read).await?.into())
        }
        .boxed_local()
    }

    fn report<'a>(&'a self, job: &'a JobId, report: &'a JobReport) -> LocalBoxFuture<'a, Result<(), Error>> {
        async move {
            let path = format!("/jobs/{job}/status");
            let request = Request { traceparent: report.traceparent(), ..self.write(Method::POST, &path, report)? };
            self.ask(&request, |answer, target| answer.success(target)?.acknowledged(target)).await
        }
        .boxed_local()
    }

    fn healthcheck<'a>(&'a self, body: &'a Healthcheck) -> LocalBoxFuture<'a, Result<(), Error>> {
        async move {
            let write = self.write(Method::POST, "/runners/healthcheck", body)?;
            let request = Request { fixed: true, deadline: self.deadlines.healthcheck, ..write };
            self.ask(&request, |answer, target| answer.success(target)?.acknowledged(target)).await
        }
        .boxed_local()
    }

    fn started_sandboxes(&self) -> LocalBoxFuture<'_, Result<Vec<RemoteSandbox>, Error>> {
        async move {
            let path = "/sandbox/for-runner?states=started&skipReconcilingSandboxes=true";
            let read = |answer: Answer, target: Target<'_>| answer.success(target)?.json::<Vec<Value>>(target);
            let list = self.ask(&self.get(path, SANDBOXES_LIMIT), read).await?;
            Ok(list.into_iter().filter_map(sandbox).collect())
        }
        .boxed_local()
    }

    fn put_state<'a>(&'a self, id: &'a SandboxId, update: &'a StateUpdate) -> LocalBoxFuture<'a, Result<(), Error>> {
        async move {
            let path = format!("/sandbox/{id}/state");
            let request = self.write(Method::PUT, &path, update)?;
            self.ask(&request, |answer, target| answer.success(target)?.acknowledged(target)).await
        }
        .boxed_local()
    }
}

/// An element whose id cannot be read names no sandbox that this runner can have made.
fn sandbox(value: Value) -> Option<RemoteSandbox> {
    serde_json::from_value(value)
        .inspect_err(|error| tracing::warn!(%error, "skipped a sandbox of the API that cannot be read"))
        .ok()
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
