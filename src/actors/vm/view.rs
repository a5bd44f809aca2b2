//! What readers see of a sandbox.

use super::VmActor;
use crate::messages::proxy::HoldRoute;
use crate::sandbox::view::Restart;
use crate::sandbox::{Op, Phase, Rest, View, WireState};

impl VmActor {
    pub(super) fn publish(&self) {
        let held = if Phase::of(&self.machine).is_some() {
            let view = self.view();
            let exchanged = matches!(self.machine.work(), Some((Op::Replace(_), _)));
            let held = exchanged || view.state == WireState::Paused;
            self.tools.views.publish(view);
            held
        } else {
            self.forget_if_done();
            false
        };
        if self.held.replace(held) != held {
            self.tools.proxy.do_send(HoldRoute { id: self.record.id.clone(), held });
        }
    }

    fn forget_if_done(&self) {
        if self.queue.is_empty() && !self.performing {
            self.tools.views.forget(&self.record.id);
        }
    }

    fn waits_for_start(&self) -> bool {
        self.machine.rest() == Some(Rest::Stopped) && self.record.restarts.due.is_some()
    }

    pub(super) fn view(&self) -> View {
        let plan = self.record.slot.map(|slot| self.tools.slots.borrow().plan(&self.record.id, slot));
        let begin = &self.record.begin;
        View {
            id: self.record.id.clone(),
            state: match self.machine.work() {
                // A paused source stays paused, whatever is done to its VMM meanwhile.
                Some((Op::Replace(Rest::Paused) | Op::Recall, _)) => WireState::Paused,
                None if self.machine.rest() == Some(Rest::Unknown) => WireState::Unknown,
                None if self.waits_for_start() => WireState::Starting,
                None if self.machine.rest() == Some(Rest::Stopped) && self.record.restarts.given_up => WireState::Error,
                _ => Phase::of(&self.machine).map_or(WireState::Destroyed, WireState::from),
            },
            settled: self.machine.work().is_none() && !self.waits_for_start(),
            size: self.record.size,
            running: self.record.running,
            daemon_version: self.record.daemon_version.clone(),
            error: self.record.error.clone(),
            address: plan.as_ref().map(|plan| plan.address),
            netns: plan.map(|plan| plan.netns.to_string()),
            pid: self.record.vmm.as_ref().map(|vmm| vmm.process.pid),
            created_at: self.record.created_at,
            since: self.record.since,
            timings: self.timings.clone(),
            origin: self.record.origin.clone(),
            begin: begin.clone(),
            checkpoint: self.record.checkpoint.is_some(),
            last_pause: self.last_pause,
            last_exit: self.record.last_exit.clone(),
            restart: self.record.restarts.due.map(|at| Restart { at, ends: self.record.restarts.ends.len() }),
            disk_layers: self.record.disks.as_ref().map_or(0, |disks| disks.root.layers.len()),
        }
    }
}
