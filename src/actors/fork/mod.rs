//! Copies of sandboxes: the ForkActor sees to it that everything that can be ready before the source is paused
//! is ready, that one pause serves all who ask at the same time, and that nothing is left of what failed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use actix::{Actor, Addr, Context, Handler, Recipient, ResponseFuture};

use super::work::{Rank, Underway};
use super::{Deaths, Work, ended};
use crate::blocking::{LOOK, in_time};
use crate::error::{ErrorCode, Failure};
use crate::fork::{Capture, Ticket};
use crate::ids::SandboxId;
use crate::messages::fork::{Copies, FindSnapshot, Fork, RemoveSnapshot, TakeSnapshot};
use crate::messages::supervisor::{Describe, Order};
use crate::ports::Ports;
use crate::sandbox::{Ask, Record};
use crate::snapshots::{Found, Manifest};
use batch::Batch;

mod batch;
mod copies;
mod snapshot;

/// Most copies of one request. They are made side by side, and each is a process.
pub const MOST_COPIES: usize = 100;

/// What the actor's futures share; all of it lives on one arbiter.
struct Core {
    ports: Ports,
    orders: Recipient<Order>,
    describe: Recipient<Describe>,
    /// Copies that wait for a source's pause, by source.
    open: RefCell<HashMap<SandboxId, Rc<Batch>>>,
    /// Captures of one source are ordered one after the other.
    turns: RefCell<HashMap<SandboxId, Rc<tokio::sync::Mutex<()>>>>,
    work: Work,
}

impl Core {
    /// Counts a request as under way, if not too many are.
    fn begin(&self, verb: &'static str, object: &str, by_job: bool) -> Result<Underway, Failure> {
        self.work.begin(verb, object, if by_job { Rank::LetIn } else { Rank::Usual })
    }

    async fn order(&self, order: Order) -> Result<Option<std::sync::Arc<crate::sandbox::View>>, Failure> {
        self.orders.send(order).await.map_err(|_| shutting_down())?
    }

    async fn describe(&self, id: &SandboxId) -> Result<Box<Record>, Failure> {
        let answered = self.describe.send(Describe(id.clone())).await.map_err(|_| shutting_down())?;
        let missing = || Failure::new(ErrorCode::NotFound, format!("sandbox {id} does not exist on this host"));
        answered?.ok_or_else(missing)
    }

    /// Has a point in time of the source made.
    async fn capture(&self, source: &SandboxId, ticket: &Ticket, by_job: bool) -> Result<(), Failure> {
        // The machine of a sandbox lets one request wait, not many.
        let turn = self.turns.borrow_mut().entry(source.clone()).or_default().clone();
        let held = turn.lock().await;
        let order = Order { ticket: Some(ticket.clone()), by_job, ..Order::new(source.clone(), Ask::Capture) };
        let captured = self.order(order).await.map(drop);
        drop(held);
        // The last one takes the turn's place away: ours, and that in the table.
        if Rc::strong_count(&turn) <= 2 {
            self.turns.borrow_mut().remove(source);
        }
        captured
    }

    /// Nobody needs the point in time any more.
    async fn end(&self, capture: &Capture) {
        let disks = &self.ports.disks;
        let released = in_time("release a frozen disk", LOOK, disks.release(&capture.disk)).await;
        let ended = match &capture.dir {
            Some(dir) => in_time("remove a capture", LOOK, disks.end_capture(dir)).await,
            None => Ok(()),
        };
        for error in [released, ended].into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "what a copy no longer needs could not be removed; the next start does");
        }
    }
}

fn shutting_down() -> Failure {
    Failure::new(ErrorCode::Busy, "the runner is shutting down")
}

/// The actor.
pub struct ForkActor {
    core: Rc<Core>,
    deaths: Deaths,
}

impl ForkActor {
    /// An actor that gives its orders to the supervisor.
    pub fn start_with(
        ports: Ports,
        orders: Recipient<Order>,
        describe: Recipient<Describe>,
        work: Work,
        deaths: Deaths,
    ) -> Addr<Self> {
        let core = Core { ports, orders, describe, open: RefCell::default(), turns: RefCell::default(), work };
        Self { core: Rc::new(core), deaths }.start()
    }
}

impl Actor for ForkActor {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        ended(&self.deaths, "ForkActor");
    }
}

impl Handler<Fork> for ForkActor {
    type Result = ResponseFuture<Result<Copies, Failure>>;

    fn handle(&mut self, fork: Fork, _: &mut Self::Context) -> Self::Result {
        let begun = self.core.begin("copy", fork.source.as_str(), fork.by_job);
        let core = self.core.clone();
        Box::pin(async move {
            let _underway = begun?;
            copies::make(core, fork).await
        })
    }
}

impl Handler<TakeSnapshot> for ForkActor {
    type Result = ResponseFuture<Result<Manifest, Failure>>;

    fn handle(&mut self, take: TakeSnapshot, _: &mut Self::Context) -> Self::Result {
        let begun = self.core.begin("make a snapshot of", take.source.as_str(), take.by_job);
        let core = self.core.clone();
        Box::pin(async move {
            let _underway = begun?;
            snapshot::take(core, take).await
        })
    }
}

impl Handler<FindSnapshot> for ForkActor {
    type Result = ResponseFuture<Result<Option<Found>, Failure>>;

    fn handle(&mut self, find: FindSnapshot, _: &mut Self::Context) -> Self::Result {
        let core = self.core.clone();
        Box::pin(async move {
            let what = format!("look for snapshot {}", find.0);
            in_time(&what, LOOK, core.ports.snapshots.find(&find.0)).await
        })
    }
}

impl Handler<RemoveSnapshot> for ForkActor {
    type Result = ResponseFuture<Result<bool, Failure>>;

    fn handle(&mut self, remove: RemoveSnapshot, _: &mut Self::Context) -> Self::Result {
        let begun = self.core.work.begin("remove snapshot", remove.0.as_str(), Rank::TearDown);
        let core = self.core.clone();
        Box::pin(async move {
            let _underway = begun?;
            snapshot::remove(core, remove.0).await
        })
    }
}
