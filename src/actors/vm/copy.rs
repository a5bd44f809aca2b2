//! Freezing a point in time of a sandbox: for others that go on from it, or for its own next start.
//!
//! What must be frozen together is frozen while the VM is paused, side by side; everything else is done
//! before or after. A failure lets the VM run on.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::VmActor;
use super::deadline::{in_window, stored};
use super::merge::Merged;
use super::perform::{Job, Output, lost};
use super::revive::parts;
use crate::disk::{Format, RootDisk, Stamp};
use crate::error::{ErrorCode, Failure, chain};
use crate::fork::{Capture, Facts, FrozenMemory, Plan, Recipe, Report, Want, choose};
use crate::hypervisor::Vmm;
use crate::hypervisor::snapshot::SnapshotMemory;
use crate::hypervisor::wire::MemoryLayout;
use crate::memory::{Delta, Source, Taken};
use crate::ports::unix_millis;
use crate::sandbox::record::{Checkpoint, Origin};
use crate::sandbox::{Op, Phase, Rest, Size, StopMode};

/// How often, and after which pause, a VM that does not take its resume is asked again: it must not stay paused.
const RESUMES: u32 = 5;
const RESUME_PAUSE: Duration = Duration::from_millis(200);

/// What was measured inside a pause.
#[derive(Default)]
struct Window {
    paused_after: Duration,
    device: Duration,
    memory: Duration,
    disk: Duration,
    taken: Taken,
}

/// Everything that was made ready before the pause.
struct Ready {
    vmm: Rc<dyn Vmm>,
    plan: Plan,
    device: PathBuf,
    memory: PathBuf,
    delta: Option<Rc<dyn Delta>>,
    prepare: Duration,
}

impl VmActor {
    /// How this sandbox would be captured now; none without a VMM.
    pub(super) fn capture_plan(&self) -> Option<Plan> {
        let (known, disks) = (self.record.vmm.as_ref()?, self.record.disks.as_ref()?);
        let layout = self.record.layout.as_ref()?;
        Some(choose(Facts { version: &known.version, layout, format: disks.root.format }))
    }
}

impl Job {
    pub(super) async fn pause(self) -> Result<Output, Failure> {
        let vmm = self.vmm.clone().ok_or_else(|| lost("VMM"))?;
        let pause = async {
            let Err(error) = vmm.pause().await else { return Ok(Output::Nothing) };
            // Whether it is paused is not known: it is shown as running, and so it must run.
            let refused = Failure::from(error);
            match self.run_on(&vmm).await {
                Err(stays) if vmm.exited().now_or_never().is_none() => {
                    Err(Failure { message: format!("{refused}; and {stays}"), ..refused })
                }
                _ => Err(refused),
            }
        };
        self.in_capture(true, pause).await
    }

    /// A point in time for others; this sandbox goes on as it was.
    pub(super) async fn capture(self) -> Result<Output, Failure> {
        let ticket = self.ticket.clone().ok_or_else(|| lost("ticket"))?;
        let dir = self.tools.ports.disks.begin_capture().await?;
        let captured = async {
            match self.op {
                Op::Capture(Rest::Stopped) => self.capture_stopped(&dir, ticket.want()).await,
                _ => self.capture_alive(&dir, ticket.want()).await,
            }
        };
        let captured = self.in_capture(self.op == Op::Capture(Rest::Started), captured).await;
        match captured {
            Ok((capture, output)) => {
                ticket.settle(Ok(Arc::new(capture)));
                Ok(output)
            }
            Err(failure) => {
                self.discard(&dir).await;
                Err(failure)
            }
        }
    }

    async fn discard(&self, dir: &Path) {
        if let Err(error) = self.tools.ports.disks.end_capture(dir).await {
            warn!(error = %chain(&error), "a capture that failed could not be removed; the next start does");
        }
    }

    /// The VM is paused, or runs and is paused for a moment.
    async fn capture_alive(&self, dir: &Path, want: Want) -> Result<(Capture, Output), Failure> {
        let disks = self.record.disks.as_ref().ok_or_else(|| lost("disk"))?;
        let ready = self.make_ready(dir, want != Want::Disk).await?;
        let began = Instant::now();
        let window = self.window(&ready, want, Some((&disks.root, dir))).await;
        let resumed = match self.op {
            Op::Capture(Rest::Paused) => Ok(()),
            _ => self.run_on(&ready.vmm).await,
        };
        let pause = began.elapsed();
        // What went wrong first is what counts.
        let (window, frozen) = window?;
        resumed?;
        let frozen = frozen.ok_or_else(|| lost("frozen disk"))?;
        let kept = Instant::now();
        if want != Want::Disk {
            self.keep(&ready, false).await?;
        }
        let report = report(&ready, &window, pause, kept.elapsed(), false);
        info!(sandbox = %self.record.id, pause_micros = report.pause_micros, recipe = ?report.recipe, bytes = report.memory_bytes, "captured");
        let pause_micros = (self.op != Op::Capture(Rest::Paused)).then_some(report.pause_micros);
        let memory = (want != Want::Disk).then(|| self.frozen(&ready));
        let capture = self.point(dir, frozen, memory, self.running(), Some(report));
        Ok((capture, Output::Captured { pause_micros, disk: None }))
    }

    /// Nothing has to be paused; the memory is that of the checkpoint, if there is one.
    async fn capture_stopped(&self, dir: &Path, want: Want) -> Result<(Capture, Output), Failure> {
        let ports = &self.tools.ports;
        let disks = self.record.disks.as_ref().ok_or_else(|| lost("disk"))?;
        let checkpoint = match (want, &self.record.checkpoint) {
            (Want::Disk, _) | (Want::Any, None) => None,
            (Want::Memory, None) => {
                return Err(Failure::new(
                    ErrorCode::Conflict,
                    "the sandbox is stopped and has no memory; start it first",
                ));
            }
            (_, Some(checkpoint)) => Some(checkpoint),
        };
        let valid = match self.record.checkpoint.as_ref().and_then(|checkpoint| checkpoint.stamp) {
            Some(stamp) => stamp.still_holds(&ports.disks.stamp(&disks.root).await?),
            None => false,
        };
        if checkpoint.is_some() && !valid {
            let message =
                "the disk was written to after the sandbox's memory was kept; start it once, or copy its disk only";
            return Err(Failure::new(ErrorCode::Conflict, message));
        }
        let merged = self.merge_first(&disks.root).await?;
        let present = self.rebased_on(&disks.root, merged.as_ref().or(self.merged.as_ref())).await?;
        let present = present.unwrap_or_else(|| disks.root.clone());
        let (frozen, changed) = self.freeze_ended(&present, dir).await?;
        let memory = match checkpoint {
            Some(checkpoint) => Some(self.copy_checkpoint(checkpoint, dir).await?),
            None => None,
        };
        let disk = match changed {
            Some(root) => {
                // The image on top is new and empty; a checkpoint that was right before still is.
                let stamp = ports.disks.stamp(&root).await?;
                Some((root, if valid { stamp } else { Stamp::NEVER }))
            }
            None => None,
        };
        let size = checkpoint.map_or(self.record.size, |checkpoint| checkpoint.size);
        Ok((self.point(dir, frozen, memory, size, None), Output::Captured { pause_micros: None, disk }))
    }

    /// Freezes the disk of a VMM that has ended: the frozen one, and this sandbox's own where it changed.
    async fn freeze_ended(&self, root: &RootDisk, dir: &Path) -> Result<(RootDisk, Option<RootDisk>), Failure> {
        let disks = &self.tools.ports.disks;
        match root.format {
            Format::Raw => Ok((disks.freeze(root, dir).await?, None)),
            Format::Qcow2 => {
                let (own, frozen) = disks.split(&self.record.id, root).await?;
                Ok((frozen, Some(own)))
            }
        }
    }

    async fn copy_checkpoint(&self, checkpoint: &Checkpoint, dir: &Path) -> Result<FrozenMemory, Failure> {
        let (from, to) = (parts(&self.checkpoint_dir()), parts(dir));
        self.tools.ports.hypervisor.copy_snapshot(&from.0, &to.0).await?;
        self.tools.ports.memory.share(&from.1, &to.1).await?;
        Ok(FrozenMemory {
            file: to.1,
            device: to.0,
            version: checkpoint.version.clone(),
            mode: checkpoint.mode,
            mac: self.record.guest_mac(),
        })
    }

    /// Memory and device state into the checkpoint. The VM stays paused, and the checkpoint is stored before this
    /// returns: whatever happens next, nothing of it is lost.
    pub(super) async fn suspend(self) -> Result<Output, Failure> {
        let ran = self.record.phase != Phase::Paused;
        self.in_capture(ran, self.suspend_in_order()).await
    }

    async fn suspend_in_order(&self) -> Result<Output, Failure> {
        let root = &self.record.disks.as_ref().ok_or_else(|| lost("disk"))?.root;
        let merged = match self.op {
            Op::Replace(_) => self.merge_first(root).await?,
            _ => None,
        };
        let dir = self.tools.ports.disks.begin_checkpoint(&self.record.id).await?;
        let ready = match self.make_ready(&dir, true).await {
            Ok(ready) => ready,
            Err(failure) => {
                self.tidy().await;
                return Err(failure);
            }
        };
        let began = Instant::now();
        match self.suspend_into(&ready, began, merged).await {
            Ok(output) => Ok(output),
            Err(failure) => {
                let resumed = match self.record.phase {
                    Phase::Paused => Ok(()),
                    _ => self.run_on(&ready.vmm).await,
                };
                self.tidy().await;
                match resumed {
                    Err(stays) if ready.vmm.exited().now_or_never().is_none() => {
                        Err(Failure { message: format!("{failure}; and {stays}"), ..failure })
                    }
                    _ => Err(failure),
                }
            }
        }
    }

    async fn suspend_into(&self, ready: &Ready, began: Instant, merged: Option<Merged>) -> Result<Output, Failure> {
        let (window, _) = self.window(ready, Want::Memory, None).await?;
        let durable = matches!(self.op, Op::Stop(StopMode::Checkpoint));
        let pause = began.elapsed();
        let kept = Instant::now();
        self.keep(ready, durable).await?;
        let report = report(ready, &window, pause, kept.elapsed(), true);
        let mut record = self.record.clone();
        record.checkpoint = Some(Checkpoint {
            version: ready.vmm.version().clone(),
            stamp: None,
            boot: if durable { None } else { Some(self.boot_id()?) },
            size: self.running(),
            mode: ready.plan.mode,
            taken_at: unix_millis(),
        });
        record.begin.copy = Some(report);
        record.phase = if durable { Phase::Stopping } else { Phase::Replacing };
        record.restarts.paused = self.op == Op::Replace(Rest::Paused);
        record.since = unix_millis();
        stored(self.tools.ports.store.put_sandbox(&record)).await?;
        Ok(Output::Suspended { record: Box::new(record), since: began, merged })
    }

    /// The VMM has ended: its disk can be frozen, and the point in time handed on.
    pub(super) async fn layer(self) -> Result<Output, Failure> {
        let ticket = self.ticket.clone().ok_or_else(|| lost("ticket"))?;
        let disks = self.record.disks.as_ref().ok_or_else(|| lost("disk"))?;
        let checkpoint = self.record.checkpoint.as_ref().ok_or_else(|| lost("checkpoint"))?;
        let ports = &self.tools.ports;
        if checkpoint.stamp.is_none_or(|stamp| stamp == Stamp::NEVER) {
            let message = "its VMM ended before it had written all of the disk, so its memory cannot be used; it boots from its disk";
            return Err(Failure::new(ErrorCode::Internal, message));
        }
        let dir = ports.disks.begin_capture().await?;
        let made = async {
            let memory = match ticket.want() {
                Want::Disk => None,
                Want::Memory | Want::Any => Some(self.copy_checkpoint(checkpoint, &dir).await?),
            };
            let present = self.rebased(&disks.root).await?.unwrap_or_else(|| disks.root.clone());
            let (frozen, own) = self.freeze_ended(&present, &dir).await?;
            let root = own.unwrap_or(present);
            let stamp = match ports.disks.stamp(&root).await {
                Ok(stamp) => stamp,
                Err(error) => {
                    ports.disks.release(&frozen).await?;
                    return Err(error.into());
                }
            };
            Ok((self.point(&dir, frozen, memory, checkpoint.size, self.record.begin.copy.clone()), root, stamp))
        };
        match self.in_capture(false, made).await {
            Ok((capture, root, stamp)) => {
                ticket.settle(Ok(Arc::new(capture)));
                Ok(Output::Layered { root, stamp })
            }
            Err(failure) => {
                self.discard(&dir).await;
                Err(failure)
            }
        }
    }

    /// All that can be done while the VM runs.
    async fn make_ready(&self, dir: &Path, with_memory: bool) -> Result<Ready, Failure> {
        let began = Instant::now();
        let vmm = self.vmm.clone().ok_or_else(|| lost("VMM"))?;
        let plan = self.plan.ok_or_else(|| lost("capture plan"))?;
        let root = &self.record.disks.as_ref().ok_or_else(|| lost("disk"))?.root;
        let (device, memory) = parts(dir);
        let flush = async { self.tools.ports.disks.flush(root).await.map_err(Failure::from) };
        let delta = async {
            match (&self.record.layout, plan.recipe) {
                (Some(MemoryLayout::Private { path }), Recipe::Delta) if with_memory => {
                    let size = self.running().memory;
                    let source = Source { process: vmm.identity().clone(), base: path.clone(), size };
                    Ok(Some(self.tools.ports.memory.prepare(&source, &memory).await?))
                }
                _ => Ok::<_, Failure>(None),
            }
        };
        let (flushed, delta) = futures::future::join(flush, delta).await;
        flushed?;
        let delta = delta?;
        Ok(Ready { vmm, plan, device, memory, delta, prepare: began.elapsed() })
    }

    /// Pauses the VM, and freezes side by side what has to be of the same instant. The VM is paused afterwards, or
    /// runs on if it could not be paused.
    async fn window(
        &self,
        ready: &Ready,
        want: Want,
        disk: Option<(&RootDisk, &Path)>,
    ) -> Result<(Window, Option<RootDisk>), Failure> {
        let began = Instant::now();
        ready.vmm.pause().await?;
        let paused_after = began.elapsed();
        let device = async {
            if want != Want::Disk {
                let memory =
                    if ready.plan.recipe == Recipe::Written { SnapshotMemory::Written } else { SnapshotMemory::Left };
                ready.vmm.snapshot(&ready.device, memory).await?;
            }
            Ok::<_, Failure>(began.elapsed())
        };
        let memory = async {
            let taken = match &ready.delta {
                Some(delta) => in_window("its memory", async { Ok(delta.take().await?) }).await?,
                None => Taken::default(),
            };
            Ok::<_, Failure>((taken, began.elapsed()))
        };
        let disk = async {
            let frozen = match disk {
                Some((root, dir)) => {
                    let freeze = async { Ok(self.tools.ports.disks.freeze(root, dir).await?) };
                    Some(in_window("its disk", freeze).await?)
                }
                None => None,
            };
            Ok::<_, Failure>((frozen, began.elapsed()))
        };
        // All run to their end: what is cut off in the middle would still go on, on a VM that runs.
        let (device, memory, disk) = futures::future::join3(device, memory, disk).await;
        // In this order: the hypervisor knows best why its VM could not be read.
        let device = device?;
        let ((taken, memory), (frozen, disk)) = (memory?, disk?);
        Ok((Window { paused_after, device, memory, disk, taken }, frozen))
    }

    /// A VM that is paused for a moment runs on: it is asked more than once, as nobody else would.
    pub(super) async fn run_on(&self, vmm: &Rc<dyn Vmm>) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            let Err(refused) = vmm.resume().await else { return Ok(()) };
            if vmm.exited().now_or_never().is_some() {
                return Err(refused.into());
            }
            if tries >= RESUMES {
                error!(sandbox = %self.record.id, error = %chain(&refused), "the VM could not be resumed and stays paused");
                return Err(
                    Failure::from(refused).during("the sandbox could not be resumed and is paused; stop and start it")
                );
            }
            warn!(sandbox = %self.record.id, error = %chain(&refused), "the VM did not take its resume, it is asked again");
            tries += 1;
            sleep(RESUME_PAUSE).await;
        }
    }

    /// Completes the memory file.
    async fn keep(&self, ready: &Ready, durable: bool) -> Result<(), Failure> {
        let memory = &self.tools.ports.memory;
        match (&ready.delta, &self.record.layout) {
            (Some(delta), _) => delta.keep(durable).await?,
            (None, Some(MemoryLayout::File { path })) => memory.share(path, &ready.memory).await?,
            (None, _) => memory.share(&ready.device.join("memory-ranges"), &ready.memory).await?,
        }
        if durable {
            let [config, state] = ["config.json", "state.json"].map(|name| ready.device.join(name));
            memory.sync(&[ready.memory.clone(), config, state]).await?;
        }
        Ok(())
    }

    fn frozen(&self, ready: &Ready) -> FrozenMemory {
        FrozenMemory {
            file: ready.memory.clone(),
            device: ready.device.clone(),
            version: ready.vmm.version().clone(),
            mode: ready.plan.mode,
            mac: self.record.guest_mac(),
        }
    }

    fn point(
        &self,
        dir: &Path,
        disk: RootDisk,
        memory: Option<FrozenMemory>,
        size: Size,
        report: Option<Report>,
    ) -> Capture {
        let origin = Origin::Sandbox { id: self.record.id.clone() };
        Capture { dir: Some(dir.to_owned()), origin, disk, memory, size, spec: self.record.spec.clone(), report }
    }

    /// Resources of the VM as it runs.
    fn running(&self) -> Size {
        self.record.running.unwrap_or(self.record.size)
    }
}

fn report(ready: &Ready, window: &Window, pause: Duration, keep: Duration, replaced: bool) -> Report {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Report {
        recipe: ready.plan.recipe,
        replaced,
        why: ready.plan.why.to_owned(),
        pause_micros: micros(pause),
        paused_after_micros: micros(window.paused_after),
        device_micros: micros(window.device.saturating_sub(window.paused_after)),
        memory_micros: micros(window.memory.saturating_sub(window.paused_after)),
        memory_bytes: window.taken.bytes,
        disk_micros: micros(window.disk.saturating_sub(window.paused_after)),
        prepare_micros: micros(ready.prepare),
        keep_micros: micros(keep),
    }
}
