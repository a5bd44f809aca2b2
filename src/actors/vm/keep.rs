//! What a stage has made or taken away, and what a failed one leaves to be told.

use actix::Context;

use super::VmActor;
use super::perform::Output;
use crate::error::{ErrorCode, Failure};
use crate::sandbox::record::Begin;
use crate::sandbox::{Make, Op, Size, Stage};

impl VmActor {
    /// Takes over what a stage has made or taken away.
    pub(super) fn keep(&mut self, stage: Stage, output: Output, ctx: &mut Context<Self>) {
        match output {
            Output::Nothing => {}
            Output::Permit(permit) => self.permit = Some(permit),
            Output::Provided(disks, netns) => {
                // A disk that was put on its merged layer is told here, too.
                self.merged = self.merged.take().filter(|_| disks.is_none());
                self.record.disks = disks.or(self.record.disks.take());
                self.netns = netns.or(self.netns.take());
            }
            Output::Vmm(vmm) => {
                self.record.vmm = Some(vmm.known());
                self.vmm = Some(vmm);
                self.watch(ctx);
            }
            Output::Version(version) => self.record.daemon_version = version,
            Output::Configured(layout) => {
                self.record.layout = Some(layout);
                self.record.running = Some(self.record.size);
            }
            Output::Grafted { disks, mac } => {
                self.record.disks = Some(disks);
                self.record.mac = mac.or(self.record.mac);
            }
            Output::Restored { layout, mapped, copy, running } => {
                self.record.layout = Some(layout);
                self.record.running = Some(running);
                // Its source may have been resized since this was ordered.
                if matches!(self.machine.work(), Some((Op::Create(_), _))) {
                    self.record.size = Size { disk: self.record.size.disk, ..running };
                }
                if !matches!(self.machine.work(), Some((Op::Replace(_), _))) {
                    self.record.begin = Begin { warm: true, mapped, copy, ..Begin::default() };
                }
            }
            Output::Identity(identity) => self.record.begin.identity = identity,
            Output::Suspended { record, since, merged } => {
                self.merged = merged.or(self.merged.take());
                self.saved = Some((*record).clone());
                self.record = *record;
                self.suspended = Some(since);
            }
            Output::Layered { root, stamp } => {
                self.merged = None;
                if let Some(disks) = &mut self.record.disks {
                    disks.root = root;
                }
                if let Some(checkpoint) = &mut self.record.checkpoint {
                    checkpoint.stamp = Some(stamp);
                }
            }
            Output::Captured { pause_micros, disk } => {
                self.last_pause = pause_micros.or(self.last_pause);
                if let Some((root, stamp)) = disk {
                    if let Some(disks) = &mut self.record.disks {
                        disks.root = root;
                    }
                    if let Some(checkpoint) = &mut self.record.checkpoint {
                        checkpoint.stamp = Some(stamp);
                    }
                }
            }
            Output::Stamped(stamp) => {
                if let Some(checkpoint) = &mut self.record.checkpoint {
                    checkpoint.stamp = checkpoint.stamp.or(Some(stamp));
                }
            }
            Output::Resized(record) => {
                self.saved = Some((*record).clone());
                self.record = *record;
            }
        }
        match stage {
            Stage::Boot => self.permit = None,
            Stage::Wake => {
                self.permit = None;
                if let Some(since) = self.suspended.take() {
                    self.last_pause = Some(since.elapsed().as_micros().try_into().unwrap_or(u64::MAX));
                }
            }
            Stage::End => {
                self.vmm = None;
                // Its end is no news, whenever it is told: what comes next may have no VMM.
                self.launches += 1;
                self.exit = None;
                self.record.vmm = None;
                self.record.running = None;
            }
            Stage::Unplug => {
                if let Some(slot) = self.record.slot.take() {
                    self.tools.slots.borrow_mut().release(slot);
                }
            }
            _ => {}
        }
    }

    pub(super) fn note_failure(&mut self, stage: Stage, failure: &Failure) {
        let op = self.machine.work().map(|(op, _)| op);
        match (op, stage) {
            // A guest that had to be forced and a request that was overtaken are nobody's fault.
            (_, Stage::PowerOff) => {}
            _ if failure.code == ErrorCode::Interrupted => {}
            // What was tried in vain on a sandbox that goes on as before is told to who asked.
            (_, Stage::Suspend | Stage::Capture | Stage::Pause | Stage::Resize) => {}
            (Some(Op::Start { warm: true } | Op::Create(Make::Warm)), Stage::Restore) => {
                self.record.begin.note = Some(failure.message.clone())
            }
            _ => self.record.error = Some(failure.message.clone()),
        }
    }
}
