//! One request and its answer on a connection into the guest.

use std::error::Error as _;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::http::{request, response};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::about;
use super::body::{Fault, Gate, RequestBody, too_large};
use super::guest::{GuestIo, Unreached};
use super::pool::{Conn, Run};
use crate::actors::proxy::Route;
use crate::error::chain;
use crate::http::error::Problem;
use crate::http::front::Interim;
use crate::ids::SandboxId;
use crate::net;

/// A connection that was used so recently is not about to be closed for being idle. One that was not may
/// be closed by the guest in the moment in which it is used.
const FRESH: Duration = Duration::from_millis(100);
/// Interim answers of one request that are passed on; a guest that sends more is talking to itself.
const INTERIM: usize = 16;
/// Headers of an answer; hyper's own number is 100.
const HEADERS: usize = 256;

/// A request for the guest.
pub(super) struct Order<'a> {
    pub head: request::Parts,
    pub body: RequestBody,
    /// Where interim answers go, if the client knows such.
    pub interim: Option<&'a Interim>,
}

/// What the guest said.
pub(super) enum Reply {
    /// An answer; its body comes over the connection.
    Answer(Response<Incoming>, Box<Conn>),
    /// It speaks another protocol now, and these were its first bytes.
    Switched(response::Parts, GuestIo, Bytes),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Unreached(#[from] Unreached),
    #[error("the guest did not answer")]
    Broken(#[source] hyper::Error),
}

impl Error {
    /// As the client is told.
    pub fn problem(&self, id: &SandboxId) -> Problem {
        if let Self::Broken(error) = self {
            match error.source().and_then(|source| source.downcast_ref()) {
                Some(Fault::TooLarge(limit)) => return too_large(*limit),
                Some(fault @ Fault::Client(_)) => {
                    return Problem::new(
                        400,
                        "BAD_REQUEST",
                        about(id, &format!("the request's body: {}", chain(fault))),
                    );
                }
                None => {}
            }
        }
        let (status, code) = match self {
            Self::Unreached(Unreached::Over) => (503, "UNAVAILABLE"),
            Self::Unreached(Unreached::Connect(net::Error::ConnectTimeout { .. })) => (504, "GATEWAY_TIMEOUT"),
            _ => (502, "BAD_GATEWAY"),
        };
        let message = about(id, &format!("{}; see GET /sandboxes/{id} and its serial output", chain(self)));
        Problem::new(status, code, message)
    }
}

/// Asks the guest. A request is sent a second time only if the first was surely not sent, or if it is one
/// that may be repeated (RFC 9110, 9.2.2) and the connection had been idle.
pub(super) async fn send(run: &Rc<Run>, route: &Route, order: Order<'_>) -> Result<Reply, Error> {
    let Order { head, body, interim } = order;
    let news = Arc::new(News { gate: body.gate(), heads: Mutex::default() });
    let mut request = Request::from_parts(head, body);
    if interim.is_some() || news.gate.is_some() {
        let news = news.clone();
        hyper::ext::on_informational(&mut request, move |head| news.hear(head.status(), head.headers()));
    }
    if let Some(mut conn) = run.take().await {
        let again = (conn.idle() > FRESH).then(|| repeatable(&request)).flatten();
        match exchange(&mut conn, request, &news, interim).await {
            Ok(response) => return reply(conn, response).await,
            Err((error, unsent)) => match (unsent, again) {
                (Some(unsent), _) if unsent.body().is_untouched() => request = unsent,
                (None, Some(again)) => request = again,
                _ => return Err(Error::Broken(error)),
            },
        }
    }
    let mut conn = connect(run, route).await?;
    match exchange(&mut conn, request, &news, interim).await {
        Ok(response) => reply(conn, response).await,
        Err((error, _)) => Err(Error::Broken(error)),
    }
}

/// Why there is no answer, and the request if nothing of it was sent.
type Refused = (hyper::Error, Option<Request<RequestBody>>);

async fn connect(run: &Run, route: &Route) -> Result<Box<Conn>, Error> {
    let io = GuestIo::connect(route, &run.live).await?;
    let mut builder = http1::Builder::new();
    builder.max_headers(HEADERS).max_buf_size(run.buffer);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(Error::Broken)?;
    Ok(Conn::new(sender, connection))
}

/// The same request once more, if it has no body and may be repeated.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.method().is_idempotent() || !request.body().is_none() || request.headers().contains_key("upgrade") {
        return None;
    }
    let mut again = Request::new(RequestBody::none());
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

/// Sends a request and waits for the head of its answer, with the connection polled by this task.
async fn exchange(
    conn: &mut Conn,
    request: Request<RequestBody>,
    news: &News,
    interim: Option<&Interim>,
) -> Result<Response<Incoming>, Refused> {
    let mut answer = pin!(conn.sender.try_send_request(request));
    let connection = &mut conn.connection;
    let mut ended = false;
    poll_fn(|cx| {
        // The connection first: it is what brings the answer, and the reason why there is none.
        if !ended {
            ended = connection.poll_without_shutdown(cx).is_ready();
        }
        if let Some(interim) = interim {
            news.tell(interim);
        }
        answer.as_mut().poll(cx)
    })
    .await
    .map_err(|mut refused| {
        let unsent = refused.take_message();
        (refused.into_error(), unsent)
    })
}

async fn reply(mut conn: Box<Conn>, response: Response<Incoming>) -> Result<Reply, Error> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Reply::Answer(response, conn));
    }
    let ended = poll_fn(|cx| conn.connection.poll_without_shutdown(cx));
    ended.await.map_err(Error::Broken)?;
    let parts = conn.connection.into_parts();
    Ok(Reply::Switched(response.into_parts().0, parts.io.into_inner(), parts.read_buf))
}

/// Interim answers, between hyper's connection, which hears them, and the client.
struct News {
    gate: Option<Gate>,
    /// Heads that were not passed on yet, and how many there have been.
    heads: Mutex<(Vec<u8>, usize)>,
}

impl News {
    fn hear(&self, status: StatusCode, headers: &hyper::HeaderMap) {
        if status == StatusCode::CONTINUE {
            // The client gets a 100 of its own when its body is read.
            return if let Some(gate) = &self.gate {
                gate.open()
            };
        }
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.1 += 1;
        if heads.1 > INTERIM {
            return;
        }
        let head = &mut heads.0;
        let reason = status.canonical_reason().unwrap_or_default();
        head.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
        let ends_here = ["connection", "keep-alive", "upgrade", "content-length", "transfer-encoding"];
        for (name, value) in headers.iter().filter(|(name, _)| !ends_here.contains(&name.as_str())) {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
    }

    fn tell(&self, interim: &Interim) {
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        if !heads.0.is_empty() {
            interim.send(&std::mem::take(&mut heads.0));
        }
    }
}
