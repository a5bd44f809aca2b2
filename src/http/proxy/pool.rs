//! Kept connections into guests, per thread and per run of a sandbox: a new run never meets a
//! connection of an old one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::sleep;

use super::body::RequestBody;
use super::guest::{GuestIo, Live};
use crate::actors::proxy::Route;
use crate::ids::SandboxId;

/// Connections of one run that one thread keeps for later.
const KEPT: usize = 256;
/// How long they are kept. Shorter than the shortest idle time that servers commonly have (5 s), so that
/// a request hardly ever meets the end of one.
const IDLE: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_secs(1);

/// A connection with hyper's two halves of it. Nothing happens on it unless it is polled.
pub(super) struct Conn {
    pub sender: http1::SendRequest<RequestBody>,
    pub connection: http1::Connection<TokioIo<GuestIo>, RequestBody>,
    since: Instant,
}

impl Conn {
    /// A connection that was just made.
    pub fn new(
        sender: http1::SendRequest<RequestBody>,
        connection: http1::Connection<TokioIo<GuestIo>, RequestBody>,
    ) -> Box<Self> {
        Box::new(Self { sender, connection, since: Instant::now() })
    }

    /// How long it has not been used.
    pub fn idle(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether it can carry another request. One that the guest has closed, or on which it has spoken
    /// unasked, cannot.
    pub async fn is_alive(&mut self) -> bool {
        poll_fn(|cx| {
            let ended = self.connection.poll_without_shutdown(cx).is_ready();
            Poll::Ready(!ended && matches!(self.sender.poll_ready(cx), Poll::Ready(Ok(()))))
        })
        .await
    }
}

/// The connections of one run.
pub(super) struct Run {
    #[allow(clippy::vec_box, reason = "they go from hand to hand, and are large")]
    idle: RefCell<Vec<Box<Conn>>>,
    pub live: Rc<Live>,
    /// Bytes that hyper may hold of one connection in one direction.
    pub buffer: usize,
    tended: Cell<bool>,
    /// [`Route::vmms`] when the idle ones were made.
    vmms: Cell<u64>,
}

impl Run {
    /// What is idle was opened under an earlier VMM.
    fn meet(&self, vmms: u64) {
        if self.vmms.replace(vmms) != vmms {
            self.idle.borrow_mut().clear();
        }
    }

    /// The connection that was used last.
    pub async fn take(&self) -> Option<Box<Conn>> {
        loop {
            let mut conn = self.idle.borrow_mut().pop()?;
            if conn.is_alive().await {
                return Some(conn);
            }
        }
    }

    /// Keeps a connection that can carry another request.
    pub fn keep(self: &Rc<Self>, mut conn: Box<Conn>) {
        if self.live.is_over() || self.idle.borrow().len() >= KEPT {
            return;
        }
        conn.since = Instant::now();
        self.idle.borrow_mut().push(conn);
        if !self.tended.replace(true) {
            actix_web::rt::spawn(self.clone().tend());
        }
    }

    /// Closes connections that are not used, until there is none.
    async fn tend(self: Rc<Self>) {
        while !self.idle.borrow().is_empty() {
            sleep(LOOK).await;
            let mut idle = std::mem::take(&mut *self.idle.borrow_mut());
            idle.retain(|conn| conn.idle() < IDLE);
            // None can have come meanwhile: nothing else runs on this thread.
            *self.idle.borrow_mut() = idle;
        }
        self.tended.set(false);
    }

    fn end(&self) {
        self.live.end();
        self.idle.borrow_mut().clear();
    }
}

type Runs = Rc<RefCell<HashMap<SandboxId, (u64, Rc<Run>)>>>;

/// All runs that this thread has connections of.
pub(super) struct Pool {
    runs: Runs,
    buffer: usize,
}

impl Pool {
    /// An empty pool whose connections may hold so many bytes in one direction.
    pub fn new(buffer: usize) -> Self {
        Self { runs: Runs::default(), buffer }
    }

    /// The run behind a route.
    pub fn run(&self, id: &SandboxId, route: &Route) -> Rc<Run> {
        if let Some((_, run)) = self.runs.borrow().get(id).filter(|(number, _)| *number == route.run) {
            run.meet(route.vmms());
            return run.clone();
        }
        let run = Rc::new(Run {
            idle: RefCell::default(),
            live: Rc::default(),
            buffer: self.buffer,
            tended: Cell::new(false),
            vmms: Cell::new(route.vmms()),
        });
        let earlier = self.runs.borrow_mut().insert(id.clone(), (route.run, run.clone()));
        // Its own route tells it the same; this is only sooner.
        if let Some((_, earlier)) = earlier {
            earlier.end();
        }
        let (runs, id, number, closed, ending) =
            (self.runs.clone(), id.clone(), route.run, route.closed(), run.clone());
        actix_web::rt::spawn(async move {
            closed.await;
            ending.end();
            let mut runs = runs.borrow_mut();
            if runs.get(&id).is_some_and(|(found, _)| *found == number) {
                runs.remove(&id);
            }
        });
        run
    }
}
