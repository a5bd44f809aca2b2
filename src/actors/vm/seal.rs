//! Binding a checkpoint to its disk. The memory knows every write that was acknowledged to the guest, so it may only be
//! brought back over a disk that has them all.

use futures::FutureExt;
use tracing::warn;

use super::deadline::stored;
use super::perform::Job;
use crate::disk::{Format, RootDisk, Stamp};
use crate::error::{Failure, chain};
use crate::sandbox::{Op, Record};

/// How often a VM is asked to end in order: its memory depends on it.
const UNLOADS: u32 = 3;

impl Job {
    /// The disk that a fresh checkpoint belongs to, once it is proven that the VMM has written all of it; stored at
    /// once, while the VMM still stands. [`Stamp::NEVER`] where that cannot be proven: the next start boots.
    pub(super) async fn seal(&self) -> Option<Stamp> {
        let (checkpoint, disks) = (self.record.checkpoint.as_ref()?, self.record.disks.as_ref()?);
        if checkpoint.stamp.is_some() || self.discards {
            return None;
        }
        let stamp = if self.written(disks.root.format).await { self.stamp_of(&disks.root).await } else { Stamp::NEVER };
        if stamp == Stamp::NEVER {
            warn!(sandbox = %self.record.id, "its VMM did not end in order, so the memory that was kept is not used");
        }
        let mut record: Record = self.record.clone();
        record.checkpoint.as_mut()?.stamp = Some(stamp);
        if let Err(failure) = stored(self.tools.ports.store.put_sandbox(&record)).await {
            // It is found out again after a restart, as long as the VMM has not ended.
            warn!(sandbox = %record.id, error = %failure, "the disk of a checkpoint could not be stored");
        }
        Some(stamp)
    }

    /// Whether all that the guest was told to be written is in the disk's file.
    async fn written(&self, format: Format) -> bool {
        if let Some(vmm) = &self.vmm {
            for _ in 0..UNLOADS {
                match vmm.unload().await {
                    Ok(()) => return true,
                    Err(error) => {
                        warn!(sandbox = %self.record.id, error = %chain(&error), "the VM did not end in order");
                    }
                }
                if vmm.exited().now_or_never().is_some() {
                    break;
                }
            }
        }
        // A raw disk's writes are with the kernel when they are acknowledged; only the host's end loses them. Parts of
        // a qcow2 image are only in the VMM until it writes them.
        format == Format::Raw
            && self.record.vmm.as_ref().is_some_and(|known| known.process.of_this_boot().unwrap_or(false))
    }

    async fn stamp_of(&self, root: &RootDisk) -> Stamp {
        let disks = &self.tools.ports.disks;
        let stamp = async {
            // A replaced VMM goes on at once: what is lost with the host is lost for it as well.
            if !matches!(self.op, Op::Replace(_)) {
                disks.flush(root).await?;
            }
            disks.stamp(root).await
        };
        stamp.await.unwrap_or_else(|error| {
            warn!(sandbox = %self.record.id, error = %chain(&error), "the disk of a checkpoint cannot be looked at");
            Stamp::NEVER
        })
    }

    /// The boot of the host that a checkpoint does not outlive: one that was not brought to disk.
    pub(super) fn boot_id(&self) -> Result<String, Failure> {
        Ok(crate::hypervisor::ProcessIdentity::own()?.boot_id)
    }
}
