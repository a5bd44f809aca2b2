//! The access log: one line for each request that went to a guest, or was to go there.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tracing::info;

use super::Peer;
use crate::http::error::Problem;
use crate::http::tunnel::Ended;

/// Names a request across all who handle it.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer names are somebody's data.
const LONGEST: usize = 128;

/// What is written to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// Nothing.
    Off,
    /// What the runner had to answer itself, and what broke off.
    Errors,
    /// Everything.
    All,
}

/// Names for requests that have none: unique on this host, and cheap.
#[derive(Debug)]
pub struct RequestIds {
    start: u64,
    number: Cell<u64>,
}

impl Default for RequestIds {
    fn default() -> Self {
        let (start, _) = uuid::Uuid::new_v4().as_u64_pair();
        Self { start, number: Cell::new(0) }
    }
}

impl RequestIds {
    fn next(&self) -> HeaderValue {
        let number = self.number.get() + 1;
        self.number.set(number);
        // Hexadecimal digits are a valid value.
        HeaderValue::try_from(format!("{:016x}-{number:x}", self.start)).unwrap_or(HeaderValue::from_static("-"))
    }
}

/// The line of one request; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    id: HeaderValue,
    log: Option<Rc<Line>>,
}

#[derive(Debug)]
struct Line {
    which: AccessLog,
    id: HeaderValue,
    method: Method,
    /// Without the query, which may carry secrets.
    path: String,
    peer: HeaderValue,
    begun: Instant,
    status: Cell<Option<StatusCode>>,
    bytes: Cell<u64>,
    complete: Cell<bool>,
}

impl Entry {
    pub fn new(which: AccessLog, ids: &RequestIds, peer: &Peer, request: &Request<Incoming>) -> Self {
        let given = request.headers().get(REQUEST_ID);
        let sane = |value: &&HeaderValue| value.len() <= LONGEST && value.as_bytes().iter().all(u8::is_ascii_graphic);
        let id = given.filter(sane).cloned().unwrap_or_else(|| ids.next());
        let line = || Line {
            which,
            id: id.clone(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            peer: peer.text.clone(),
            begun: Instant::now(),
            status: Cell::new(None),
            bytes: Cell::new(0),
            complete: Cell::new(false),
        };
        let log = (which != AccessLog::Off).then(|| Rc::new(line()));
        Self { id, log }
    }

    /// The request's name.
    pub fn id(&self) -> &HeaderValue {
        &self.id
    }

    /// The guest has answered.
    pub fn answered(&self, status: StatusCode) {
        if let Some(line) = &self.log {
            line.status.set(Some(status));
        }
    }

    /// Bytes of the answer's body went by.
    pub fn passed(&self, bytes: u64) {
        if let Some(line) = &self.log {
            line.bytes.set(line.bytes.get() + bytes);
        }
    }

    /// The answer is complete.
    pub fn complete(&self) {
        if let Some(line) = &self.log {
            line.complete.set(true);
        }
    }

    /// The runner answers itself.
    pub fn refused(&self, problem: &Problem) {
        if let Some(line) = &self.log {
            line.complete.set(true);
            info!(
                target: "runner_ch::access", id = ?line.id, peer = ?line.peer, method = %line.method, path = line.path,
                status = problem.status, millis = line.millis(), reason = problem.message, "refused"
            );
        }
    }

    /// A tunnel has ended.
    pub fn tunnelled(&self, ended: &Ended) {
        let logged = |line: &&Rc<Line>| line.which == AccessLog::All || ended.aborted();
        if let Some(line) = self.log.as_ref().filter(logged) {
            info!(
                target: "runner_ch::access", id = ?line.id, peer = ?line.peer, method = %line.method, path = line.path,
                status = 101, millis = line.millis(), to_guest = ended.to_guest, to_client = ended.to_client,
                reason = %ended.reason, "tunnel"
            );
        }
    }
}

impl Line {
    fn millis(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(status) = self.status.get().filter(|status| *status != StatusCode::SWITCHING_PROTOCOLS) else {
            return;
        };
        let complete = self.complete.get();
        if self.which == AccessLog::All || !complete {
            info!(
                target: "runner_ch::access", id = ?self.id, peer = ?self.peer, method = %self.method, path = self.path,
                status = status.as_u16(), millis = self.millis(), bytes = self.bytes.get(), complete, "request"
            );
        }
    }
}
