//! Ends that nobody asked for: what is noted and kept of them, and whether and when the sandbox is started again.

use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use futures::FutureExt;
use futures::future::{LocalBoxFuture, Shared};
use tracing::{debug, error, info, warn};

use super::VmActor;
use crate::error::{ErrorCode, Failure, chain};
use crate::hypervisor::Exit;
use crate::hypervisor::bundle::{Bundle, Report};
use crate::messages::supervisor::Order;
use crate::ports::unix_millis;
use crate::sandbox::record::LastExit;
use crate::sandbox::restart::{Cause, Decision, Policy};
use crate::sandbox::{Action, Ask, Caller, Event, Op, Phase, Rest, Stage};

/// Before a start that is owed is asked for again, after it was not admitted: a drain, or no room.
const NOT_ADMITTED: Duration = Duration::from_secs(1);

/// What is being kept of an end; done when it is complete.
pub(super) type Traces = Shared<LocalBoxFuture<'static, ()>>;

impl VmActor {
    /// The VMM or its guest has ended at rest.
    pub(super) fn note_end(&mut self, exit: &Exit) {
        let running = self.machine.rest() == Some(Rest::Started);
        let during = if running { "running" } else { "paused" };
        self.ended(exit, exit.to_string(), during, running);
    }

    /// The VMM has ended before this life of the runner.
    pub(super) fn found_ended(&mut self, exit: &Exit) {
        let running = matches!(self.record.phase, Phase::Started | Phase::Capturing);
        let during = format!("the runner was not running; stored as {:?}", self.record.phase).to_lowercase();
        let detail = match exit {
            Exit::HostRebooted => exit.to_string(),
            _ => format!("the VMM ended while the runner was not running: {exit}"),
        };
        self.ended(exit, detail, &during, running);
    }

    fn ended(&mut self, exit: &Exit, detail: String, during: &str, running: bool) {
        warn!(sandbox = %self.record.id, cause = exit.kind(), detail, "a sandbox ended unasked");
        let at = unix_millis();
        self.record.error = Some(detail.clone());
        self.record.last_exit = Some(LastExit { cause: exit.kind().to_owned(), at, detail: detail.clone() });
        self.keep_traces(exit.kind(), detail, at, during);
        // Whoever had it paused does not want it to run.
        if running {
            self.decide(Cause::from(exit), at);
        }
        self.tools.views.tell(&self.record.id);
    }

    /// A start of a stopped sandbox has failed. Whoever asked for it is told; one that was owed is tried again.
    pub(super) fn note_failed_start(&mut self, stage: Stage, failure: &Failure) {
        let starts = match self.machine.work() {
            // It is booted instead.
            Some((Op::Start { warm: true }, _)) => stage != Stage::Restore,
            Some((Op::Start { .. } | Op::Recall | Op::Rescue { create: false }, _)) => true,
            _ => false,
        };
        if !starts || failure.code == ErrorCode::Interrupted {
            return;
        }
        let at = unix_millis();
        if let Some(exit) = &self.exit {
            let detail = exit.to_string();
            self.record.last_exit = Some(LastExit { cause: exit.kind().to_owned(), at, detail });
        }
        if !matches!(stage, Stage::Gate | Stage::Network) {
            let during = format!("starting, stage {}", stage.name());
            self.keep_traces("start_failed", failure.message.clone(), at, &during);
        }
        if self.record.restarts.due.is_some() {
            self.decide(Cause::Failure, at);
            self.tools.views.tell(&self.record.id);
        }
    }

    fn decide(&mut self, cause: Cause, now: u64) {
        let settings = self.tools.settings.restart;
        let [high, low, ..] = *uuid::Uuid::new_v4().as_bytes();
        match self.record.restarts.ended(settings, cause, now, u16::from_be_bytes([high, low])) {
            Decision::Rest => {}
            Decision::Restart(pause) => {
                info!(sandbox = %self.record.id, pause_ms = pause.as_millis(), ends = self.record.restarts.ends.len(), "it is started again");
            }
            Decision::GiveUp(count) => {
                let last = self.record.error.take().unwrap_or_default();
                let crashes = self.tools.ports.disks.dir(&self.record.id).join(crate::hypervisor::bundle::DIR);
                let reason = format!(
                    "crash loop: it ended {count} times within {} s (RUNNER_RESTART_MAX={}) and is not started again \
                     until somebody asks for it; last: {last}; what is kept of its ends: {}",
                    settings.window.as_secs(),
                    settings.most,
                    crashes.display()
                );
                error!(sandbox = %self.record.id, reason, "given up");
                self.record.error = Some(reason);
            }
        }
    }

    /// Keeps the ends of the VMM's files, beside everything else. Only what would destroy them waits for it.
    fn keep_traces(&mut self, cause: &str, detail: String, at: u64, during: &str) {
        let (id, known) = (self.record.id.clone(), self.record.vmm.as_ref());
        let report = Report {
            cause: cause.to_owned(),
            detail,
            at,
            during: during.to_owned(),
            run: self.record.run,
            version: known.map(|known| known.version.to_string()),
            pid: known.map(|known| known.process.pid),
            uptime_seconds: None,
        };
        let bundle =
            Bundle { dir: self.tools.ports.disks.dir(&id), report, process: known.map(|known| known.process.clone()) };
        let (hypervisor, before) = (self.tools.ports.hypervisor.clone(), self.traces.take());
        let kept = actix::spawn(async move {
            if let Some(before) = before {
                before.await;
            }
            if let Err(error) = hypervisor.keep(&bundle).await {
                warn!(sandbox = %id, error = %chain(&error), "cannot keep what is left of an end");
            }
        });
        // It fails only when the runtime ends.
        self.traces = Some(kept.map(drop).boxed_local().shared());
    }

    /// Begins to wait for the start that is owed, if one is.
    pub(super) fn await_restart(&mut self, ctx: &mut Context<Self>) {
        if self.machine.rest() != Some(Rest::Stopped) || self.restart.is_some() {
            return;
        }
        if let Some(pause) = self.record.restarts.wait(unix_millis()) {
            self.restart = Some(ctx.run_later(pause, Self::order_owed));
        }
    }

    /// Asks the supervisor for the start that is owed, as anybody else would: it admits it, or not now.
    fn order_owed(&mut self, ctx: &mut Context<Self>) {
        self.restart = None;
        // What is under way meanwhile comes to rest, and the wait begins anew.
        if self.machine.rest() != Some(Rest::Stopped) || self.record.restarts.due.is_none() {
            return;
        }
        let order = Order { owed: true, ..Order::new(self.record.id.clone(), Ask::Start) };
        let ordered = self.tools.orders.send(order);
        ctx.spawn(ordered.into_actor(self).map(|answer, act, ctx| {
            let refused =
                matches!(&answer, Ok(Err(failure)) if matches!(failure.code, ErrorCode::Busy | ErrorCode::NoSpace));
            if refused && act.restart.is_none() && act.machine.rest() == Some(Rest::Stopped) {
                debug!(sandbox = %act.record.id, ?answer, "the start that is owed is not admitted yet");
                act.restart = Some(ctx.run_later(NOT_ADMITTED, Self::order_owed));
            }
        }));
    }

    /// The start that is owed is admitted. Who ordered it, the sandbox itself, is answered at once.
    pub(super) fn start_owed(&mut self, caller: Caller) -> Vec<Action> {
        let owed = self.machine.rest() == Some(Rest::Stopped) && self.record.restarts.due.is_some();
        self.machine.set_recalls(self.record.restarts.paused);
        let mut actions = if owed { self.step(Event::Restart) } else { Vec::new() };
        actions.push(Action::Answer(vec![caller], Ok(())));
        actions
    }

    /// What somebody asks for overtakes what the sandbox would do by itself, unless it is refused.
    pub(super) fn asked(&mut self, caller: Caller, ask: Ask, ctx: &mut Context<Self>) -> Vec<Action> {
        let restarts = &self.record.restarts;
        self.machine.set_unsettled(restarts.due.is_some() || restarts.given_up);
        let actions = self.step(Event::Asked(caller, ask));
        let refused = |action: &Action| matches!(action, Action::Answer(to, Err(_)) if to.contains(&caller));
        if matches!(ask, Ask::Capture | Ask::Resize | Ask::Pause) || actions.iter().any(refused) {
            return actions;
        }
        self.record.restarts.forget();
        self.tools.views.keep_quiet(&self.record.id);
        if let Some(wait) = self.restart.take() {
            ctx.cancel_future(wait);
        }
        actions
    }

    /// Something of it may be left on the host, so it is not started by itself, and the API is told how it stands.
    pub(super) fn restart_is_off(&mut self) {
        if self.record.restarts.due.is_some() {
            self.record.restarts.started();
            self.tools.views.tell(&self.record.id);
        }
    }

    /// The operator may have changed the policy since a start was decided.
    pub(super) fn reconsider(&mut self) {
        let kept = self.tools.settings.restart.policy != Policy::Never || self.record.restarts.replaced;
        if !kept && self.record.restarts.due.take().is_some() {
            self.tools.views.tell(&self.record.id);
        }
    }
}
