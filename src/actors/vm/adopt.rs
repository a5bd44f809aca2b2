//! Finding a stored sandbox again on the host, without touching its guest.

use std::rc::Rc;
use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use tokio::time::timeout;
use tracing::{info, warn};

use super::perform::socket_path;
use super::{Tools, VmActor};
use crate::error::chain;
use crate::hypervisor::{Exit, Launch, Vmm};
use crate::messages::proxy::OpenRoute;
use crate::net::Namespace;
use crate::sandbox::recovery::{Continue, Evidence, decide};
use crate::sandbox::{Action, Ask, Machine, Op, Phase, Record, Rest};

/// Between two looks at a sandbox of which it could not be found out whether it runs.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What was found of a stored sandbox.
#[derive(Default)]
pub struct Adopted {
    pub(super) vmm: Option<Rc<dyn Vmm>>,
    pub(super) netns: Option<Namespace>,
    /// How its VMM ended meanwhile, if it should still be there.
    pub(super) end: Option<Exit>,
    /// Why something could not be found out.
    pub(super) trouble: Option<String>,
}

impl Adopted {
    /// There is surely no VMM.
    pub fn is_gone(&self) -> bool {
        self.vmm.is_none() && self.trouble.is_none()
    }
}

/// Looks for the record's VMM and namespace.
pub async fn adopt(tools: &Tools, record: &Record) -> Adopted {
    let mut adopted = Adopted::default();
    let reachable = reachable(record.phase);
    let Some(known) = &record.vmm else {
        adopted.end = reachable.then_some(Exit::Unknown);
        return adopted;
    };
    if let Some(slot) = record.slot {
        let plan = tools.slots.borrow().plan(&record.id, slot);
        match tools.ports.network.open(&plan).await {
            Ok(netns) => adopted.netns = Some(netns),
            Err(error) => adopted.trouble = Some(chain(&error)),
        }
    }
    let launch = Launch {
        sandbox: record.id.clone(),
        socket: socket_path(tools, record),
        dir: tools.ports.disks.dir(&record.id),
        netns: adopted.netns.clone(),
    };
    match tools.ports.hypervisor.adopt(&launch, known).await {
        Ok(Some(vmm)) => adopted.vmm = Some(vmm),
        // Without a VMM it does not matter what became of the namespace: it is removed.
        Ok(None) => {
            adopted.trouble = None;
            if reachable {
                // It reads files, and a dead volume must not keep the runner from coming up.
                let end = timeout(LOOK_AGAIN, tools.ports.hypervisor.post_mortem(&launch, known)).await;
                adopted.end = Some(end.unwrap_or(Exit::Unknown));
            }
        }
        Err(error) => adopted.trouble = Some(chain(&error)),
    }
    adopted
}

/// Opens the way into a guest that was found running.
pub async fn open_route(tools: &Tools, record: &Record, found: &Adopted) {
    if let (Some(_), Some(netns)) = (&found.vmm, &found.netns) {
        let open = OpenRoute { id: record.id.clone(), run: record.run, netns: netns.clone() };
        if reachable(record.phase) && tools.proxy.send(open).await.is_err() {
            warn!(sandbox = %record.id, "the proxy is gone; the runner ends");
        }
    }
}

/// What is stored of it says that its guest could be reached.
fn reachable(phase: Phase) -> bool {
    matches!(phase, Phase::Started | Phase::Pausing | Phase::Paused | Phase::Capturing | Phase::Waking)
}

/// The machine of a stored sandbox and what it does first.
pub(super) fn machine(record: &Record, adopted: &Adopted) -> (Machine, Vec<Action>) {
    let evidence = match (&adopted.trouble, &adopted.vmm) {
        (Some(_), _) => Evidence::Unknown,
        (None, Some(_)) => Evidence::Alive,
        (None, None) => Evidence::Gone,
    };
    let at = |rest| Machine::resting(rest, record.disks.is_some()).with_checkpoint(record.checkpoint.is_some());
    let (op, then) = match decide(record.phase, evidence) {
        Continue::Rest(rest) => return (at(rest), Vec::new()),
        // A stop that was asked for takes the reason of an end away; this one was not.
        Continue::Do(Op::Stop(_)) if record.phase == Phase::Stopping && record.error.is_some() => (Op::Clear, None),
        Continue::LeaveAlone => return (at(Rest::Unknown), Vec::new()),
        Continue::Do(op) => (op, None),
        Continue::Then(op, ask) => (op, Some(if record.restarts.paused { Ask::Recall } else { ask })),
    };
    // A VM that lives and does not take its pause or resume lives on.
    let lives = evidence == Evidence::Alive && matches!(op, Op::Pause | Op::Awake);
    let mut machine = at(if lives { Rest::Started } else { Rest::Broken });
    let first = machine.begin(op, then);
    (machine, first)
}

impl VmActor {
    /// What could not be found out may be found out later.
    pub(super) fn look_again_later(&mut self, ctx: &mut Context<Self>) {
        if self.machine.rest() == Some(Rest::Unknown) {
            ctx.run_later(LOOK_AGAIN, Self::look_again);
        }
    }

    fn look_again(&mut self, ctx: &mut Context<Self>) {
        if self.machine.rest() != Some(Rest::Unknown) {
            return;
        }
        // As it is stored: the words of the last look are no part of it.
        let record = self.saved.clone().unwrap_or_else(|| self.record.clone());
        let tools = self.tools.clone();
        let look = async move {
            let adopted = adopt(&tools, &record).await;
            (record, adopted)
        };
        ctx.spawn(look.into_actor(self).map(|(record, adopted), act, ctx| {
            // A stop or destroy came meanwhile, and finds out in its own way.
            if act.machine.rest() != Some(Rest::Unknown) || act.performing {
                return act.look_again_later(ctx);
            }
            if let Some(reason) = adopted.trouble {
                act.record.error = Some(reason);
                act.publish();
                return act.look_again_later(ctx);
            }
            info!(sandbox = %act.record.id, runs = adopted.vmm.is_some(), "the sandbox can be looked at again");
            act.found(record, adopted, ctx);
        }));
    }
}
