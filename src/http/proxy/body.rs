//! Bodies on their way through: of requests, which may have to wait for the guest's word, and of
//! answers, which carry the guest's connection with them.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

use super::access::Entry;
use super::pool::{Conn, Run};
use crate::actors::proxy::Place;
use crate::http::error::Problem;

/// A server that does not know `Expect` never says 100; whoever waits for it sends then (RFC 9110, 10.1.1).
const PATIENCE: Duration = Duration::from_secs(1);

/// The answer to a body that is larger than the limit.
pub(super) fn too_large(limit: u64) -> Problem {
    let message = format!("the body is larger than {limit} bytes (RUNNER_PROXY_MAX_BODY_MB)");
    Problem::new(413, "CONTENT_TOO_LARGE", message)
}

/// Why a request's body did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the client broke off")]
    Client(#[source] hyper::Error),
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
}

/// Opened by the guest's 100.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<AtomicBool>);

impl Gate {
    /// The client may send.
    pub fn open(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A client's body for the guest.
pub(super) struct RequestBody {
    /// Nothing where there is no body.
    body: Option<Incoming>,
    limit: Option<u64>,
    passed: u64,
    begun: bool,
    gate: Option<(Gate, Pin<Box<Sleep>>)>,
}

impl RequestBody {
    /// A body that passes up to the limit, and when the client waits for a 100 only after one.
    pub fn new(body: Incoming, limit: Option<u64>, waits: bool) -> Self {
        let body = Some(body).filter(|body| !body.is_end_stream());
        let gate = (waits && body.is_some()).then(|| (Gate::default(), Box::pin(sleep(PATIENCE))));
        Self { body, limit, gate, ..Self::none() }
    }

    /// No body.
    pub fn none() -> Self {
        Self { body: None, limit: None, passed: 0, begun: false, gate: None }
    }

    /// What the guest's 100 opens, if the client waits for one.
    pub fn gate(&self) -> Option<Gate> {
        self.gate.as_ref().map(|(gate, _)| gate.clone())
    }

    /// Whether nothing of it has been read, so that it can be sent once more.
    pub fn is_untouched(&self) -> bool {
        !self.begun
    }

    /// Whether there is no body.
    pub fn is_none(&self) -> bool {
        self.body.is_none()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if let Some((gate, patience)) = &mut self.gate {
            // The connection that brings the 100 is polled by the same task as this.
            if !gate.0.load(Ordering::Acquire) {
                ready!(patience.as_mut().poll(cx));
            }
            self.gate = None;
        }
        self.begun = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if let (Some(Ok(frame)), Some(limit)) = (&frame, self.limit) {
            self.passed += frame.data_ref().map_or(0, |data| data.len() as u64);
            if self.passed > limit {
                return Poll::Ready(Some(Err(Fault::TooLarge(limit))));
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Fault::Client)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// A guest's body for the client. The connection is polled with it, and kept for the next request once
/// the body is complete.
pub struct GuestBody {
    incoming: Incoming,
    conn: Option<Box<Conn>>,
    run: Rc<Run>,
    entry: Entry,
    /// The request is under way until its body is.
    _place: Place,
}

impl GuestBody {
    pub(super) fn new(incoming: Incoming, conn: Box<Conn>, run: Rc<Run>, place: Place, entry: Entry) -> Self {
        Self { incoming, conn: Some(conn), run, entry, _place: place }
    }

    /// Keeps the connection at once where there is nothing to come.
    pub(super) async fn settle(mut self) -> Self {
        if self.incoming.is_end_stream() {
            poll_fn(|cx| {
                self.finish(cx);
                Poll::Ready(())
            })
            .await;
        }
        self
    }

    /// Lets hyper go on with the connection; one that has ended is gone then.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(conn) = &mut self.conn
            && conn.connection.poll_without_shutdown(cx).is_ready()
        {
            self.conn = None;
        }
    }

    /// The answer is complete: the connection can be used again unless the guest said that it closes it,
    /// or is still being sent a body that it has not waited for.
    fn finish(&mut self, cx: &mut Context<'_>) {
        self.entry.complete();
        self.drive(cx);
        if let Some(mut conn) = self.conn.take()
            && matches!(conn.sender.poll_ready(cx), Poll::Ready(Ok(())))
        {
            self.run.keep(conn);
        }
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        this.drive(cx);
        let mut frame = Pin::new(&mut this.incoming).poll_frame(cx);
        if frame.is_pending() {
            // Only now it knows that somebody wants to have more.
            this.drive(cx);
            frame = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match &frame {
            Poll::Ready(Some(Ok(data))) => {
                this.entry.passed(data.data_ref().map_or(0, |data| data.len() as u64));
                if this.incoming.is_end_stream() {
                    this.finish(cx);
                }
            }
            Poll::Ready(None) => this.finish(cx),
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
