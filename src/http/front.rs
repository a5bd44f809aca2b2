//! What stands in front of everything on the HTTP port: hyper reads the requests; those for guests go
//! to [`super::proxy`], all others in-process to the actix application of [`super::configure`].
//!
//! One thread serves a connection from its beginning to its end, so nothing here is locked or sent.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use super::proxy::{Limits, Peer, Proxy, Upgrade};
use super::{State, error};
use crate::error::chain;
pub use answer::Answer;
use io::ClientIo;
pub use io::{Interim, Wire};

mod admin;
mod answer;
mod io;

pub use admin::Admin;

/// How long a connection may be idle between two requests, as in the original (PROTOCOL.md 6).
const IDLE: Duration = Duration::from_secs(70);
/// After the last answer what the client still sends is read for so long: a close with unread bytes is a
/// reset, which would take the answer away from it.
const LINGER: Duration = Duration::from_secs(2);
/// And so many bytes of it.
const LINGER_BYTES: u64 = 16 << 20;

/// Serves the connections of one thread.
#[derive(Clone)]
pub struct Front {
    admin: Admin,
    proxy: Rc<Proxy>,
    builder: http1::Builder,
    /// True when the runner ends: connections finish what they have in hand.
    closing: watch::Receiver<bool>,
}

impl Front {
    /// One for the calling thread, which must run an actix system.
    ///
    /// # Errors
    /// None that is known; actix gives no words.
    pub async fn new(state: State, limits: Limits, closing: watch::Receiver<bool>) -> Result<Self, ()> {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // The time for one head is kept by `ClientIo`; hyper's would count the idle time too.
            .header_read_timeout(IDLE)
            .max_buf_size(limits.buffer())
            .max_header_size(limits.header);
        let admin = Admin::new(state.clone()).await?;
        Ok(Self { admin, proxy: Rc::new(Proxy::new(state, limits)), builder, closing })
    }

    /// Serves one connection until it ends.
    pub async fn serve(self, wire: Wire, peer: SocketAddr) {
        let peer = Rc::new(Peer::new(peer, wire.is_tls()));
        let interim = Interim::default();
        let upgrade: Rc<RefCell<Option<Upgrade>>> = Rc::default();
        let service = service_fn(|request: Request<Incoming>| {
            let (answering, interim) = (interim.request(request.body().is_end_stream()), interim.clone());
            let answered = self.clone().call(request, peer.clone(), interim.clone(), upgrade.clone());
            let answered = answered.map(move |answer| {
                interim.answer_begins();
                Ok::<_, Infallible>(answer.map(|body| body.answering(answering)))
            });
            answered.boxed_local()
        });
        let io = TokioIo::new(ClientIo::new(wire, interim.clone()));
        let mut connection = self.builder.serve_connection(io, service);
        let mut closing = self.closing.clone();
        let mut ends = Some(pin!(async move { closing.wait_for(|closing| *closing).await.is_ok() }));
        let served = poll_fn(|cx| {
            if ends.as_mut().is_some_and(|ends| ends.as_mut().poll(cx).is_ready()) {
                ends = None;
                Pin::new(&mut connection).graceful_shutdown();
            }
            connection.poll_without_shutdown(cx)
        });
        let served = served.await;
        let parts = connection.into_parts();
        let wire = parts.io.into_inner().into_inner();
        let upgrade = upgrade.borrow_mut().take();
        match (served, upgrade) {
            (Ok(()), Some(upgrade)) => upgrade.run(wire, parts.read_buf).await,
            (Ok(()), None) => farewell(wire).await,
            (Err(error), _) => {
                debug!(error = %chain(&error), "a client's connection ended early");
                // hyper has answered what it could not read (400, 431).
                if error.is_parse() {
                    farewell(wire).await;
                }
            }
        }
    }

    async fn call(
        self,
        request: Request<Incoming>,
        peer: Rc<Peer>,
        interim: Interim,
        upgrade: Rc<RefCell<Option<Upgrade>>>,
    ) -> Response<Answer> {
        if let Err(why) = well_formed(&request) {
            return refused(&request, StatusCode::BAD_REQUEST, why);
        }
        match super::proxy::is_for_guest(request.uri().path()) {
            true => self.proxy.forward(request, &peer, &interim, &upgrade).await,
            false => self.admin.call(request, &peer).await,
        }
    }
}

/// Rules that hyper leaves to its users and that keep two readers of the same bytes from seeing two
/// different messages (RFC 9112, 3.2 and 6.3).
fn well_formed(request: &Request<Incoming>) -> Result<(), &'static str> {
    let headers = request.headers();
    let hosts = headers.get_all(header::HOST).iter().count();
    if request.method() == hyper::Method::CONNECT {
        return Err("there are no tunnels here (RFC 9110, 9.3.6)");
    }
    let host = headers.get(header::HOST).map_or(&b""[..], header::HeaderValue::as_bytes);
    if !host.is_empty() && !is_authority(host) {
        return Err("Host is a name or an address, and a port (RFC 9112, 3.2)");
    }
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err("a request has exactly one Host header (RFC 9112, 3.2)");
    }
    let coded = headers.contains_key(header::TRANSFER_ENCODING);
    if coded && headers.contains_key(header::CONTENT_LENGTH) {
        return Err("a request has Content-Length or Transfer-Encoding, not both (RFC 9112, 6.3)");
    }
    let chunked = |value: &header::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if coded && !headers.get_all(header::TRANSFER_ENCODING).iter().all(chunked) {
        return Err("chunked is the only transfer coding that is taken (RFC 9112, 6.1)");
    }
    if headers.get_all(header::TRANSFER_ENCODING).iter().count() > 1 {
        return Err("chunked is applied once (RFC 9112, 6.1)");
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err("a request has one Content-Length (RFC 9112, 6.3)");
    }
    let length = headers.get(header::CONTENT_LENGTH);
    if length.is_some_and(|length| !length.as_bytes().iter().all(u8::is_ascii_digit)) {
        return Err("Content-Length is one number (RFC 9112, 6.2)");
    }
    Ok(())
}

/// `uri-host [ ":" port ]` (RFC 9110, 7.2).
fn is_authority(host: &[u8]) -> bool {
    let port_is_number = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    let (name, port) = match host.iter().rposition(|&byte| byte == b':') {
        Some(colon) if !host.ends_with(b"]") => (&host[..colon], &host[colon + 1..]),
        _ => (host, &b""[..]),
    };
    let in_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(byte);
    let in_address = |byte: &u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
    let address = name.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    port_is_number(port) && address.map_or_else(|| name.iter().all(in_name), |address| address.iter().all(in_address))
}

/// An answer after which nothing more is read from this client.
fn refused(request: &Request<Incoming>, status: StatusCode, why: &str) -> Response<Answer> {
    let problem = error::Problem::new(status.as_u16(), "BAD_REQUEST", why);
    let mut answer = problem.answer(request.method().as_str(), request.uri().path());
    answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    answer
}

/// Ends a connection so that its last answer arrives.
async fn farewell(mut wire: Wire) {
    if wire.shutdown().await.is_err() {
        return;
    }
    let mut wire = wire.take(LINGER_BYTES);
    let mut unread = [0; 4096];
    let drained = async { while matches!(wire.read(&mut unread).await, Ok(read) if read > 0) {} };
    // Whoever goes on sending is cut off then.
    let _ = timeout(LINGER, drained).await;
}
