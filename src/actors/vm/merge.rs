//! Keeping chains of disk layers short: the layers of a disk are merged into one in the background, and the disk is put
//! on it the next time that no VMM has it open.

use std::path::PathBuf;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use tracing::{info, warn};

use super::VmActor;
use super::perform::Job;
use crate::disk::{Format, RootDisk};
use crate::error::{Failure, chain};
use crate::sandbox::Rest;

/// One layer in the place of several. Not stored: after a restart it belongs to nobody, and is made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Merged {
    path: PathBuf,
    layers: Vec<PathBuf>,
}

impl Merged {
    /// Whether it still holds what the disk stands on.
    fn serves(&self, root: &RootDisk) -> bool {
        self.layers == root.layers
    }

    fn as_disk(&self, root: &RootDisk) -> RootDisk {
        RootDisk { path: self.path.clone(), layers: Vec::new(), ..root.clone() }
    }
}

impl VmActor {
    /// Begins to merge if there are more than a few layers, and nobody does it already.
    pub(super) fn merge(&mut self, ctx: &mut Context<Self>) {
        let wanted = !self.merging && self.merged.is_none() && self.machine.rest() != Some(Rest::Absent);
        let Some(disks) = self.record.disks.as_ref().filter(|disks| wanted && disks.root.layers.len() > 2) else {
            return;
        };
        let (root, ports) = (disks.root.clone(), self.tools.ports.clone());
        self.merging = true;
        let merging = async move {
            let merged = ports.disks.merge(&root).await;
            (root, merged)
        };
        ctx.spawn(merging.into_actor(self).map(|(root, merged), act, _| {
            act.merging = false;
            match merged {
                Ok(Some(path)) => {
                    info!(sandbox = %act.record.id, layers = root.layers.len(), "merged the layers of the disk");
                    act.adopt_merged(Merged { path, layers: root.layers.clone() });
                }
                Ok(None) => {}
                Err(error) => {
                    warn!(sandbox = %act.record.id, error = %chain(&error), "the layers of the disk could not be merged; tried again after the next copy");
                }
            }
        }));
    }

    /// One that came too late, as the disk has changed its layers meanwhile, is given back.
    pub(super) fn adopt_merged(&mut self, merged: Merged) {
        let Some(disks) = &self.record.disks else { return };
        if merged.serves(&disks.root) && self.merged.is_none() {
            self.merged = Some(merged);
            return;
        }
        let (frozen, disks) = (merged.as_disk(&disks.root), self.tools.ports.disks.clone());
        actix::spawn(async move {
            if let Err(error) = disks.release(&frozen).await {
                warn!(error = %chain(&error), "a merged layer that nobody needs could not be removed; the next start does");
            }
        });
    }
}

impl Job {
    /// The disk on its merged layer, if there is one. No VMM has it open.
    pub(super) async fn rebased(&self, root: &RootDisk) -> Result<Option<RootDisk>, Failure> {
        self.rebased_on(root, self.merged.as_ref()).await
    }

    /// The same with a layer that was just made.
    pub(super) async fn rebased_on(
        &self,
        root: &RootDisk,
        merged: Option<&Merged>,
    ) -> Result<Option<RootDisk>, Failure> {
        match merged {
            Some(merged) if merged.serves(root) => {
                Ok(Some(self.tools.ports.disks.rebase(&self.record.id, root, &merged.path).await?))
            }
            _ => Ok(None),
        }
    }

    /// Before a disk gets one more layer than it may have, its layers are merged; the guest runs meanwhile.
    pub(super) async fn merge_first(&self, root: &RootDisk) -> Result<Option<Merged>, Failure> {
        let full = root.format == Format::Qcow2 && root.layers.len() >= crate::disk::MOST_LAYERS;
        if !full || self.merged.as_ref().is_some_and(|merged| merged.serves(root)) {
            return Ok(None);
        }
        let path = self.tools.ports.disks.merge(root).await?;
        Ok(path.map(|path| Merged { path, layers: root.layers.clone() }))
    }
}
