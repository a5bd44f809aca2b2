//! Waking up from a frozen point in time: a copied sandbox, or one that goes on from its checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

use super::IdentityPolicy;
use super::deadline::{STAGE_DEADLINE, late};
use super::perform::{Job, Output, image_type, lost, overtaken};
use crate::disk::{Graft, Stamp};
use crate::error::{Certainty, ErrorCode, Failure, chain};
use crate::fork::capture::{DEVICE, MEMORY};
use crate::fork::{Capture, FrozenMemory};
use crate::hypervisor::launch::Files;
use crate::hypervisor::snapshot::{Adaptation, RestoreMode};
use crate::hypervisor::wire::MemoryLayout;
use crate::net;
use crate::sandbox::record::Checkpoint;
use crate::sandbox::{Make, Op, Size};
use crate::toolbox::Renewal;

/// Directory with the snapshot that a VM is restored from, in the sandbox's directory.
const RESTORE: &str = "restore";
/// Directory of a checkpoint, there too.
pub(super) const CHECKPOINT: &str = "checkpoint";

/// What a VM is restored from.
struct Image {
    device: PathBuf,
    memory: PathBuf,
    mode: RestoreMode,
    size: Size,
}

impl Job {
    /// The network and an empty directory: the VMM can start before there is anything to run.
    pub(super) async fn room(self) -> Result<Output, Failure> {
        let room = async { self.tools.ports.disks.room(&self.record.id).await.map_err(Failure::from) };
        let (room, network) = futures::future::join(room, self.network()).await;
        room?;
        Ok(Output::Provided(None, Some(network?)))
    }

    /// Waits for the source's point in time, and makes this sandbox's disk and memory of it.
    pub(super) async fn graft(self, interrupted: oneshot::Receiver<()>) -> Result<Output, Failure> {
        let source = self.source.clone().ok_or_else(|| lost("source"))?;
        source.ticket.arm(&self.record.id);
        let capture = tokio::select! {
            capture = source.ticket.captured() => capture?,
            _ = interrupted => return Err(overtaken()),
        };
        let memory = self.wanted_memory(&capture)?;
        let mac = memory.map(|memory| memory.mac);
        let graft = Graft {
            sandbox: self.record.id.clone(),
            disk: capture.disk.clone(),
            size: self.record.size.disk,
            seed: self.seed(mac.unwrap_or_else(|| self.record.guest_mac())),
        };
        let disks = self.tools.ports.disks.graft(&graft);
        let memory = async {
            match memory {
                Some(memory) => self.tools.ports.memory.share(&memory.file, &self.dir().join(MEMORY)).await,
                None => Ok(()),
            }
        };
        // Waiting for the source takes as long as it takes; what is made of it has the deadline of any stage.
        let made = timeout(STAGE_DEADLINE, futures::future::join(disks, memory)).await;
        let (disks, memory) = made.map_err(|_| late(self.stage, &self.record.id))?;
        memory?;
        Ok(Output::Grafted { disks: disks?, mac })
    }

    fn wanted_memory<'a>(&self, capture: &'a Arc<Capture>) -> Result<Option<&'a FrozenMemory>, Failure> {
        match (self.op, &capture.memory) {
            (Op::Create(Make::Revive | Make::Warm), None) => Err(Failure::new(
                ErrorCode::Conflict,
                "the source has no memory any more, as it was stopped meanwhile; try again",
            )),
            (Op::Create(Make::Revive | Make::Warm), Some(memory)) => Ok(Some(memory)),
            _ => Ok(None),
        }
    }

    /// `vm.restore`, and the proof of what came of it.
    pub(super) async fn restore(self) -> Result<Output, Failure> {
        let vmm = self.vmm.clone().ok_or_else(|| lost("VMM"))?;
        let disks = self.record.disks.clone().ok_or_else(|| lost("disk"))?;
        let image = self.image(vmm.version()).await?;
        let dir = self.dir();
        let file = dir.join(MEMORY);
        if image.memory != file {
            self.tools.ports.memory.share(&image.memory, &file).await?;
        }
        let adaptation = Adaptation {
            root: (disks.root.path.clone(), image_type(disks.root.format)),
            backed: disks.root.backed,
            seed: disks.seed.clone(),
            tap: net::TAP.to_owned(),
            serial: Files::new(&dir).serial(),
            memory: file.clone(),
            memory_bytes: image.size.memory,
            mode: image.mode,
        };
        let restore = dir.join(RESTORE);
        self.tools.ports.hypervisor.adapt(&image.device, &restore, &adaptation).await?;
        vmm.restore(&restore).await?;
        let (layout, mapped) = match image.mode {
            RestoreMode::Copy => (MemoryLayout::Anonymous, None),
            RestoreMode::Map => {
                let proof = self.tools.ports.memory.verify(vmm.identity(), &file, image.size.memory).await?;
                (MemoryLayout::Private { path: file }, Some(proof.mapped))
            }
        };
        let copy = self.source.as_ref().and_then(|source| source.ticket.capture()?.report.clone());
        Ok(Output::Restored { layout, mapped, copy, running: image.size })
    }

    async fn image(&self, version: &crate::hypervisor::Version) -> Result<Image, Failure> {
        if let (Op::Create(_), Some(source)) = (self.op, &self.source) {
            let capture = source.ticket.captured().await?;
            let memory = capture.memory.clone().ok_or_else(|| lost("memory"))?;
            same_version(&memory.version, version)?;
            let file = self.dir().join(MEMORY);
            return Ok(Image { device: memory.device, memory: file, mode: memory.mode, size: capture.size });
        }
        let checkpoint = self.record.checkpoint.as_ref().ok_or_else(|| lost("checkpoint"))?;
        self.check(checkpoint, version).await?;
        let dir = self.dir().join(CHECKPOINT);
        Ok(Image { device: dir.join(DEVICE), memory: dir.join(MEMORY), mode: checkpoint.mode, size: checkpoint.size })
    }

    /// Memory is only brought back by the version that wrote it, and over the very disk that it knows.
    async fn check(&self, checkpoint: &Checkpoint, version: &crate::hypervisor::Version) -> Result<(), Failure> {
        same_version(&checkpoint.version, version)?;
        if checkpoint.boot.as_ref().is_some_and(|boot| self.boot_id().ok().as_ref() != Some(boot)) {
            let message =
                "the host was booted since the sandbox's memory was kept, and that memory was not on disk yet";
            return Err(Failure::new(ErrorCode::Conflict, message));
        }
        let disks = self.record.disks.as_ref().ok_or_else(|| lost("disk"))?;
        let found = self.tools.ports.disks.stamp(&disks.root).await?;
        if checkpoint.stamp == Some(Stamp::NEVER) {
            let message = "its VMM did not end in order after the sandbox's memory was kept, so the disk may lack writes that the memory knows of; that memory is not used";
            return Err(Failure::new(ErrorCode::Conflict, message));
        }
        if !checkpoint.stamp.is_some_and(|stamp| stamp.still_holds(&found)) {
            return Err(Failure::new(
                ErrorCode::Conflict,
                format!(
                    "the disk {:?} was written to after the sandbox's memory was kept, so that memory is not used",
                    disks.root.path
                ),
            ));
        }
        // One whose VMM the runner has ended by itself goes on as it ran; a resize still waits for its next boot.
        let replaced = matches!(self.op, Op::Replace(_) | Op::Recall) || self.record.restarts.replaced;
        let (asked, kept) = (self.record.size, checkpoint.size);
        if !replaced && (asked.vcpus, asked.memory) != (kept.vcpus, kept.memory) {
            return Err(Failure::new(
                ErrorCode::Conflict,
                format!(
                    "the sandbox was resized after its memory was kept: that memory is of {} vCPUs and {} MiB, asked for are {} vCPUs and {} MiB",
                    kept.vcpus,
                    kept.memory >> 20,
                    asked.vcpus,
                    asked.memory >> 20
                ),
            ));
        }
        Ok(())
    }

    pub(super) async fn wake(self) -> Result<Output, Failure> {
        let vmm = self.vmm.clone().ok_or_else(|| lost("VMM"))?;
        self.run_on(&vmm).await?;
        if self.op == Op::Resume {
            // That of a VMM which was replaced while it was paused.
            self.tidy().await;
        }
        Ok(Output::Nothing)
    }

    /// A guest that woke up as a copy has its source's random numbers, keys and names.
    pub(super) async fn identify(self) -> Result<Output, Failure> {
        let policy = self.tools.settings.identity;
        if policy == IdentityPolicy::Off {
            return Ok(Output::Identity(None));
        }
        let confirmed = self.renew().await;
        match (policy, confirmed) {
            (IdentityPolicy::Require, Err(failure)) => Err(failure.during(
                "the copied guest has not confirmed an identity of its own (RUNNER_FORK_IDENTITY=require, see docs/identity.md)",
            )),
            (_, confirmed) => Ok(Output::Identity(Some(confirmed.map_err(|failure| failure.message)))),
        }
    }

    async fn renew(&self) -> Result<(), Failure> {
        if self.tools.settings.daemon_start_timeout.is_none() {
            let message = "the guest has no daemon that could be told (DAEMON_START_TIMEOUT_SEC=0)";
            return Err(Failure::new(ErrorCode::UnprocessableEntity, message));
        }
        let netns = self.netns.clone().ok_or_else(|| lost("namespace"))?;
        let renewal = renewal(self.record.id.clone()).map_err(|error| {
            Failure::from_error(ErrorCode::Internal, Certainty::NotDone, &error)
                .during("cannot read the host's random generator")
        })?;
        self.tools.ports.toolbox.renew(&netns, &renewal).await
    }

    /// Removes what a start has used up.
    pub(super) async fn tidy(&self) {
        if let Err(error) = self.tools.ports.disks.end_checkpoint(&self.record.id).await {
            warn!(sandbox = %self.record.id, error = %chain(&error), "a used checkpoint could not be removed; the next stop does");
        }
    }

    pub(super) fn checkpoint_dir(&self) -> PathBuf {
        self.dir().join(CHECKPOINT)
    }
}

fn same_version(wrote: &crate::hypervisor::Version, reads: &crate::hypervisor::Version) -> Result<(), Failure> {
    if wrote == reads {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::Conflict,
        format!(
            "the memory was written by Cloud Hypervisor {wrote}, and {reads} is installed now, which may read it wrongly; boot from the disk, or install {wrote} again"
        ),
    ))
}

fn renewal(sandbox: crate::ids::SandboxId) -> Result<Renewal, std::io::Error> {
    let mut entropy = [0; 64];
    let mut filled = 0;
    while filled < entropy.len() {
        filled += rustix::rand::getrandom(&mut entropy[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(Renewal { sandbox, machine_id: *uuid::Uuid::new_v4().as_bytes(), entropy, unix_nanos: since.as_nanos() })
}

/// Where a capture or checkpoint has its device state and memory.
pub(super) fn parts(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join(DEVICE), dir.join(MEMORY))
}
