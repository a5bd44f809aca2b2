//! Changing a sandbox's resources: what the hypervisor can do at once is done at once, the rest waits for the next
//! boot, and the record tells the two apart (PROTOCOL.md 5, RESIZE_SANDBOX).

use tracing::info;

use super::deadline::stored;
use super::perform::{Job, Output, lost};
use crate::error::{ErrorCode, Failure};
use crate::sandbox::{Op, Record, Rest, Size};

impl Job {
    pub(super) async fn change_size(self) -> Result<Output, Failure> {
        let resize = self.resize.ok_or_else(|| lost("new size"))?;
        let old = self.record.size;
        let new = Size {
            vcpus: resize.vcpus.unwrap_or(old.vcpus),
            memory: resize.memory.unwrap_or(old.memory),
            disk: resize.disk.unwrap_or(old.disk),
        };
        if new.disk < old.disk {
            return Err(refused(format!(
                "disk: {} GiB asked for, but it has {} GiB, and a disk never gets smaller",
                new.disk >> 30,
                old.disk >> 30
            )));
        }
        let mut record = Record { size: new, ..self.record.clone() };
        if self.op == Op::Resize(Rest::Stopped) {
            self.grow(&mut record).await?;
        } else {
            self.change_running(&mut record).await?;
        }
        // Nothing would find it out again after a restart, so it is not done before it is stored.
        stored(self.tools.ports.store.put_sandbox(&record)).await?;
        Ok(Output::Resized(Box::new(record)))
    }

    async fn grow(&self, record: &mut Record) -> Result<(), Failure> {
        let ports = &self.tools.ports;
        let disks = record.disks.as_mut().ok_or_else(|| lost("disk"))?;
        if record.size.disk <= disks.root.size {
            return Ok(());
        }
        let before = ports.disks.stamp(&disks.root).await?;
        disks.root = ports.disks.grow(&disks.root, record.size.disk).await?;
        if let Some(checkpoint) = &mut record.checkpoint
            && checkpoint.stamp.is_some_and(|stamp| stamp.still_holds(&before))
        {
            // A disk may be larger than its memory knows (cloud-hypervisor.md 6); its content is the same.
            checkpoint.stamp = Some(ports.disks.stamp(&disks.root).await?);
        }
        Ok(())
    }

    async fn change_running(&self, record: &mut Record) -> Result<(), Failure> {
        let (old, new) = (self.record.size, record.size);
        if new.vcpus < old.vcpus || new.memory < old.memory {
            return Err(refused("a running sandbox cannot get fewer vCPUs or less memory; stop it first".to_owned()));
        }
        if new.disk > old.disk {
            return Err(refused("the disk of a running sandbox cannot grow; stop it first".to_owned()));
        }
        let vmm = self.vmm.clone().ok_or_else(|| lost("VMM"))?;
        let running = record.running.get_or_insert(old);
        if new.vcpus != running.vcpus {
            if new.vcpus <= self.tools.settings.max_vcpus {
                vmm.resize(new.vcpus).await?;
                running.vcpus = new.vcpus;
            } else {
                info!(sandbox = %self.record.id, vcpus = new.vcpus, "more vCPUs than can be added while it runs: from the next boot on");
            }
        }
        Ok(())
    }
}

fn refused(message: String) -> Failure {
    Failure::new(ErrorCode::UnprocessableEntity, message)
}
