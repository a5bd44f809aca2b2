//! What the supervisor tells the ledger about all sandboxes, and how it keeps one from changing.

use std::rc::Rc;

use actix::{Addr, Handler, ResponseFuture};
use futures::{StreamExt, stream};
use tokio::sync::oneshot;

use super::{Child, Core, SupervisorActor, VmActor};
use crate::error::{ErrorCode, Failure};
use crate::ids::SandboxId;
use crate::ledger::Inventory;
use crate::messages::ledger::{GetStock, Hold, HoldSandbox, HoldStill, ResumeIfPaused, ResumeStray, TakeStock};

/// Sandboxes asked side by side, where each asks its VMM.
const PARALLEL: usize = 32;

impl Handler<TakeStock> for SupervisorActor {
    type Result = ResponseFuture<Result<Inventory, Failure>>;

    fn handle(&mut self, take: TakeStock, _: &mut Self::Context) -> Self::Result {
        Box::pin(take_stock(self.core.clone(), take))
    }
}

impl Handler<HoldSandbox> for SupervisorActor {
    type Result = ResponseFuture<Result<Option<Hold>, Failure>>;

    fn handle(&mut self, hold: HoldSandbox, _: &mut Self::Context) -> Self::Result {
        Box::pin(hold_sandbox(self.core.clone(), hold.0))
    }
}

impl Handler<ResumeStray> for SupervisorActor {
    type Result = ResponseFuture<Result<bool, Failure>>;

    fn handle(&mut self, resume: ResumeStray, _: &mut Self::Context) -> Self::Result {
        let addr = self.core.live(&resume.0);
        Box::pin(async move {
            match addr {
                // An actor that has ended has nothing to resume.
                Some(addr) => addr.send(ResumeIfPaused).await.unwrap_or(Ok(false)),
                None => Ok(false),
            }
        })
    }
}

impl Core {
    fn live(&self, id: &SandboxId) -> Option<Addr<VmActor>> {
        match self.children.borrow().get(id) {
            Some(Child::Live { addr, .. }) => Some(addr.clone()),
            _ => None,
        }
    }

    fn ready(&self) -> Result<(), Failure> {
        if self.recovering.get() {
            let message = "the runner is still recovering its sandboxes; try again in a moment";
            return Err(Failure::new(ErrorCode::Busy, message));
        }
        Ok(())
    }
}

async fn take_stock(core: Rc<Core>, take: TakeStock) -> Result<Inventory, Failure> {
    core.ready()?;
    let children: Vec<_> = core
        .children
        .borrow()
        .iter()
        .map(|(id, child)| match child {
            Child::Live { addr, .. } => (id.clone(), Some(addr.clone())),
            Child::Rebuilding | Child::Lost(_) | Child::Held => (id.clone(), None),
        })
        .collect();
    let asked = stream::iter(children).map(async |(id, addr)| {
        let stock = match addr {
            Some(addr) => addr.send(GetStock { ask_vmm: take.ask_vmms }).await.ok(),
            None => None,
        };
        stock.ok_or(id)
    });
    let mut inventory = Inventory::default();
    let mut asked = asked.buffer_unordered(PARALLEL);
    while let Some(answered) = asked.next().await {
        match answered {
            Ok(stock) => inventory.stocks.push(*stock),
            Err(id) => inventory.unknown.push(id),
        }
    }
    Ok(inventory)
}

async fn hold_sandbox(core: Rc<Core>, id: SandboxId) -> Result<Option<Hold>, Failure> {
    core.ready()?;
    if let Some(addr) = core.live(&id) {
        return Ok(addr.send(HoldStill).await.unwrap_or(None));
    }
    if core.children.borrow().contains_key(&id) {
        return Ok(None);
    }
    core.children.borrow_mut().insert(id.clone(), Child::Held);
    let (until, released) = oneshot::channel::<()>();
    actix::spawn(async move {
        // Nothing is ever sent: the end of the sender is the message.
        let _ = released.await;
        let mut children = core.children.borrow_mut();
        if matches!(children.get(&id), Some(Child::Held)) {
            children.remove(&id);
        }
        drop(children);
        core.rebuilt.notify_waiters();
    });
    Ok(Some(Hold { stock: None, _until: until }))
}
