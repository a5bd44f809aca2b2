//! One order: admit it, find or make the sandbox's actor, and see that the caller gets an answer even
//! if that actor dies under it.

use std::rc::Rc;
use std::sync::Arc;

use actix::Addr;
use tokio::sync::oneshot;
use tracing::warn;

use super::{Child, Core, VmActor};
use crate::error::{Certainty, ErrorCode, Failure};
use crate::messages::supervisor::Order;
use crate::messages::vm::{Blueprint, Command};
use crate::ports::unix_millis;
use crate::sandbox::admission::{self, Verdict};
use crate::sandbox::{Ask, Record, View};

/// A command is repeated on the rebuilt actor at most this often: all commands are idempotent, but
/// one that always kills its actor must end some time.
const ATTEMPTS: u32 = 3;

pub(super) async fn carry_out(core: Rc<Core>, order: Order) -> Result<Option<Arc<View>>, Failure> {
    for _ in 0..ATTEMPTS {
        match admission::decide(order.ask, core.situation(&order)) {
            Verdict::Admit => {}
            Verdict::Done => return Ok(None),
            Verdict::Refuse(failure) => return Err(named(failure, &order)),
        }
        let blueprint = blueprint(&core, &order).map_err(|failure| named(failure, &order))?;
        let addr = child(&core, &order, blueprint.as_deref()).await?;
        let (reply, answer) = oneshot::channel();
        let command = Command { ask: order.ask, blueprint, auth_token: order.auth_token.clone(), reply };
        // A closed mailbox drops the reply, and so does the death of the actor.
        let sent = addr.send(command).await;
        if let (Ok(()), Ok(answer)) = (sent, answer.await) {
            return answer.map_err(|failure| named(failure, &order));
        }
        warn!(sandbox = %order.id, ask = ?order.ask, "the sandbox's actor ended before it answered; asking the next one");
        // Its end is reported by message; let that message be handled.
        tokio::task::yield_now().await;
    }
    Err(Failure {
        code: ErrorCode::Internal,
        message: format!(
            "sandbox {}: the runner failed {ATTEMPTS} times while it carried out this request; see its log",
            order.id
        ),
        certainty: Certainty::Unknown,
    })
}

fn named(failure: Failure, order: &Order) -> Failure {
    let ask = match order.ask {
        Ask::Create { .. } => "create",
        Ask::Start => "start",
        Ask::Stop { .. } => "stop",
        Ask::Destroy => "destroy",
    };
    failure.during(&format!("cannot {ask} sandbox {}", order.id))
}

fn blueprint(core: &Core, order: &Order) -> Result<Option<Box<Blueprint>>, Failure> {
    let Some(spec) = order.spec.as_deref() else { return Ok(None) };
    admission::supported(spec)?;
    let (cpus, memory) = core.host;
    let size = admission::size(spec, core.defaults, cpus, memory)?;
    Ok(Some(Box::new(Blueprint { spec: spec.clone(), size })))
}

async fn child(core: &Core, order: &Order, blueprint: Option<&Blueprint>) -> Result<Addr<VmActor>, Failure> {
    loop {
        // Registered before the look, so that a rebuild in between is not missed.
        let rebuilt = core.rebuilt.notified();
        match core.children.borrow().get(&order.id) {
            Some(Child::Live { addr, .. }) => return Ok(addr.clone()),
            Some(Child::Rebuilding) => {}
            Some(Child::Lost(reason)) => {
                return Err(named(Failure::new(ErrorCode::Internal, reason.clone()), order));
            }
            None => break,
        }
        rebuilt.await;
    }
    let Some(Blueprint { spec, size }) = blueprint else {
        return Err(named(Failure::new(ErrorCode::NotFound, "the sandbox does not exist on this host"), order));
    };
    Ok(core.start_fresh(Record::new(spec.clone(), *size, unix_millis())))
}
