//! What a sandbox's actor tells the ledger, and how it holds still for it.

use std::time::Duration;

use actix::{
    ActorFutureExt, AsyncContext, Context, Handler, MessageResult, ResponseActFuture, ResponseFuture, WrapFuture,
};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::VmActor;
use super::perform::socket_path;
use crate::error::{Failure, chain};
use crate::hypervisor::VmState;
use crate::ledger::{Standing, Stock};
use crate::messages::ledger::{GetStock, Hold, HoldStill, ResumeIfPaused};
use crate::sandbox::Rest;

/// A VMM at rest answers in milliseconds; one that does not is busy with something nobody knows of.
const ANSWER: Duration = Duration::from_secs(3);

impl VmActor {
    fn stock(&self) -> Stock {
        Stock {
            record: Box::new(self.record.clone()),
            standing: self.standing(),
            network: self.record.slot.map(|slot| self.tools.slots.borrow().plan(&self.record.id, slot)),
            socket: socket_path(&self.tools, &self.record),
            dir: self.tools.ports.disks.dir(&self.record.id),
            vm: None,
        }
    }

    /// Busy also when a result is just being stored, or when its VMM has ended and that is to be dealt with.
    fn standing(&self) -> Standing {
        let idle = self.begun && !self.performing && self.queue.is_empty() && self.machine.work().is_none();
        match self.machine.rest() {
            // The end of a VMM that was to end stays noted.
            Some(rest) if idle && !(rest.lives() && self.exit.is_some()) => Standing::Rests(rest),
            _ => Standing::Busy,
        }
    }
}

impl Handler<GetStock> for VmActor {
    type Result = ResponseFuture<Box<Stock>>;

    fn handle(&mut self, get: GetStock, _: &mut Self::Context) -> Self::Result {
        let mut stock = self.stock();
        let lives = matches!(stock.standing, Standing::Rests(rest) if rest.lives());
        let vmm = self.vmm.clone().filter(|_| get.ask_vmm && lives);
        Box::pin(async move {
            if let Some(vmm) = vmm {
                let answer = timeout(ANSWER, vmm.state()).await;
                stock.vm = Some(match answer {
                    Ok(answer) => answer.map_err(|error| chain(&error)),
                    Err(_) => Err(format!("its VMM did not answer vm.info within {} s", ANSWER.as_secs())),
                });
            }
            Box::new(stock)
        })
    }
}

impl Handler<HoldStill> for VmActor {
    type Result = MessageResult<HoldStill>;

    /// Requests that come meanwhile are taken and wait, as they do while a result is being stored.
    fn handle(&mut self, _: HoldStill, ctx: &mut Context<Self>) -> Self::Result {
        if self.standing() == Standing::Busy {
            return MessageResult(None);
        }
        let stock = self.stock();
        self.performing = true;
        let (until, released) = oneshot::channel::<()>();
        // Nothing is ever sent: the end of the sender is the message.
        ctx.spawn(released.into_actor(self).map(|_, act, ctx| act.go_on(ctx)));
        MessageResult(Some(Hold { stock: Some(Box::new(stock)), _until: until }))
    }
}

impl VmActor {
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        self.performing = false;
        self.apply(Vec::new(), ctx);
        self.notice_exit(ctx);
    }
}

impl Handler<ResumeIfPaused> for VmActor {
    type Result = ResponseActFuture<Self, Result<bool, Failure>>;

    fn handle(&mut self, _: ResumeIfPaused, _: &mut Self::Context) -> Self::Result {
        let vmm = self.vmm.clone().filter(|_| self.standing() == Standing::Rests(Rest::Started));
        let Some(vmm) = vmm else { return Box::pin(async { Ok(false) }.into_actor(self)) };
        // A copy that began now would have its pause taken away.
        self.performing = true;
        let resumed = async move {
            if vmm.state().await? != Some(VmState::Paused) {
                return Ok(false);
            }
            vmm.resume().await?;
            Ok(true)
        };
        Box::pin(resumed.into_actor(self).map(|resumed, act, ctx| {
            act.go_on(ctx);
            resumed
        }))
    }
}
