//! Requests for guests (PROTOCOL.md 7): the toolbox and the ports behind it. A request is read by hyper
//! and written by hyper, on a kept connection into the sandbox's namespace; bodies stream both ways, and
//! after a 101 the two connections are one tunnel.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{HeaderValue, LOCATION};
use hyper::{Request, Response, Uri};

use super::error::Problem;
use super::front::{Answer, Interim};
use super::{State, auth, error};
use crate::ids::SandboxId;
use access::Entry;
pub use access::{AccessLog, RequestIds};
pub use body::GuestBody;
use body::RequestBody;
use exchange::{Order, Reply};
use pool::Pool;
use target::Target;
pub use target::is_for_guest;
pub use upgrade::Upgrade;

mod access;
mod body;
mod exchange;
mod guest;
mod headers;
mod logs;
mod pool;
mod target;
mod upgrade;
mod wait;

/// Documentation of the toolbox route; [`Proxy::forward`] serves it.
#[utoipa::path(get, path = "/sandboxes/{id}/toolbox/{path}", description = "Any method: the guest's toolbox at this path",
    params(("id" = String, Path, description = "sandbox id"), ("path" = String, Path, description = "path in the guest")),
    responses((status = 200, description = "what the guest answers"), (status = 404, body = error::ErrorBody),
        (status = 502, body = error::ErrorBody), (status = 503, body = error::ErrorBody), (status = 504, body = error::ErrorBody)))]
#[allow(dead_code, reason = "carries the OpenAPI text; utoipa wants a function per documented path")]
fn toolbox() {}

/// Documentation of the port route; [`Proxy::forward`] serves it.
#[utoipa::path(get, path = "/sandboxes/{id}/proxy/{port}/{path}", description = "Any method: a port of the guest",
    params(("id" = String, Path, description = "sandbox id"), ("port" = u16, Path, description = "port in the guest"),
        ("path" = String, Path, description = "path in the guest")),
    responses((status = 200, description = "what the guest answers"), (status = 404, body = error::ErrorBody),
        (status = 502, body = error::ErrorBody), (status = 503, body = error::ErrorBody), (status = 504, body = error::ErrorBody)))]
#[allow(dead_code, reason = "carries the OpenAPI text; utoipa wants a function per documented path")]
fn port() {}

/// What may pass, and how long it may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's or answer's head.
    pub header: usize,
    /// Bytes of a request's body; none: no limit.
    pub body: Option<u64>,
    /// Requests and tunnels of one sandbox at the same time.
    pub connections: usize,
    /// How long a request waits for a sandbox that is paused, being started or being recovered.
    pub wait: Duration,
    /// Whether a request starts a stopped sandbox.
    pub autostart: bool,
    /// What is written to the log.
    pub access: AccessLog,
    /// Time without traffic after which a WebSocket is pinged, on either side.
    pub ping: Duration,
}

impl Limits {
    /// Bytes that hyper may hold of one connection in one direction.
    pub fn buffer(&self) -> usize {
        const USUAL: usize = 64 << 10;
        self.header.max(USUAL)
    }
}

/// Whom a connection is from.
#[derive(Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it came within TLS.
    pub tls: bool,
    /// Its address as a header's value.
    text: HeaderValue,
}

impl Peer {
    /// The peer of a connection.
    pub fn new(address: SocketAddr, tls: bool) -> Self {
        // An address is always a valid value.
        let text = HeaderValue::try_from(address.ip().to_canonical().to_string());
        Self { address, tls, text: text.unwrap_or(HeaderValue::from_static("unknown")) }
    }
}

/// The proxy of one thread.
pub struct Proxy {
    state: State,
    limits: Limits,
    pool: Pool,
    ids: RequestIds,
}

impl Proxy {
    /// A proxy for the calling thread.
    pub fn new(state: State, limits: Limits) -> Self {
        Self { state, limits, pool: Pool::new(limits.buffer()), ids: RequestIds::default() }
    }

    /// Forwards a request to the guest. When the guest agreed to another protocol, the tunnel is left in
    /// `upgrade`, to be run when the answer is on its way.
    pub async fn forward(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        interim: &Interim,
        upgrade: &RefCell<Option<Upgrade>>,
    ) -> Response<Answer> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let entry = Entry::new(self.limits.access, &self.ids, peer, &request);
        match self.pass(request, peer, interim, upgrade, entry.clone()).await {
            Ok(response) => response,
            Err(problem) => {
                entry.refused(&problem);
                let mut answer = problem.answer(method.as_str(), uri.path());
                answer.headers_mut().insert(access::REQUEST_ID, entry.id().clone());
                answer
            }
        }
    }

    async fn pass(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        interim: &Interim,
        upgrade: &RefCell<Option<Upgrade>>,
        entry: Entry,
    ) -> Result<Response<Answer>, Problem> {
        let header = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes);
        let carrier = auth::check(header(auth::DAYTONA_AUTHORIZATION), header("authorization"), &self.state.token)?;
        let target = Target::read(request.uri())?;
        if let Some(location) = target.novnc(request.method()) {
            return Ok(redirect(&location));
        }
        self.check_size(request.body())?;
        let follow = logs::wanted(&request, &target);
        let route = self.way(&target.id).await?;
        let place = route.enter().ok_or_else(|| {
            let message = format!(
                "sandbox {}: {} requests and tunnels are under way, as many as RUNNER_PROXY_CONNECTIONS allows; \
                 close some or try again later",
                target.id,
                route.limit()
            );
            Problem::new(503, "BUSY", message)
        })?;
        let run = self.pool.run(&target.id, &route);
        if let Some(path) = follow {
            return logs::follow(&run, &route, &target.id, &path, place).await;
        }
        let (mut parts, body) = request.into_parts();
        let wants = headers::wants_upgrade(&parts);
        parts.uri = target.uri()?;
        headers::to_guest(&mut parts, &self.state.token, carrier, peer, wants.as_ref(), entry.id());
        let http11 = parts.version == hyper::Version::HTTP_11;
        parts.version = hyper::Version::HTTP_11;
        let body = RequestBody::new(body, self.limits.body, headers::expects_continue(&parts));
        let order = Order { head: parts, body, interim: http11.then_some(interim) };
        match exchange::send(&run, &route, order).await.map_err(|error| error.problem(&target.id))? {
            Reply::Answer(response, conn) => {
                let (mut head, incoming) = response.into_parts();
                headers::to_client(&mut head);
                entry.answered(head.status);
                let body = GuestBody::new(incoming, conn, run, place, entry);
                Ok(Response::from_parts(head, Answer::guest(body.settle().await)))
            }
            Reply::Switched(mut head, guest, early) => {
                let Some(protocol) = wants else {
                    let message = format!("sandbox {}: the guest switched protocols and was not asked to", target.id);
                    return Err(Problem::new(502, "BAD_GATEWAY", message));
                };
                headers::switched(&mut head, &protocol);
                entry.answered(head.status);
                let websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
                let pings = websocket.then_some(self.limits.ping);
                *upgrade.borrow_mut() = Some(Upgrade::new(guest, early, &route, pings, place, entry));
                Ok(Response::from_parts(head, Answer::whole("")))
            }
        }
    }

    fn check_size(&self, body: &Incoming) -> Result<(), Problem> {
        match self.limits.body {
            Some(limit) if body.size_hint().lower() > limit => Err(body::too_large(limit)),
            _ => Ok(()),
        }
    }
}

fn redirect(location: &str) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(""));
    *response.status_mut() = hyper::StatusCode::FOUND;
    // It is made of a query that was a valid URI.
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn bad_uri(uri: &str, error: impl std::fmt::Display) -> Problem {
    Problem::new(400, "BAD_REQUEST", format!("{uri} cannot be asked of a guest: {error}"))
}

/// A message of the proxy about a sandbox's guest.
fn about(id: &SandboxId, what: &str) -> String {
    format!("sandbox {id}: {what}")
}

/// Origin-form for the guest.
fn origin_form(path: String) -> Result<Uri, Problem> {
    Uri::try_from(path.as_str()).map_err(|error| bad_uri(&path, error))
}
