//! Snapshots of sandboxes: a point in time that is kept under a name.

use std::rc::Rc;
use std::time::Duration;

use tracing::warn;

use super::Core;
use crate::blocking::{LOOK, in_time};
use crate::error::{ErrorCode, Failure};
use crate::fork::{Capture, Ticket, Want};
use crate::ids::SnapshotRef;
use crate::messages::fork::TakeSnapshot;
use crate::ports::unix_millis;
use crate::sandbox::Record;
use crate::sandbox::record::Origin;
use crate::snapshots::{Manifest, Save, SaveMemory};

/// Longest time for a snapshot to be written: all of a disk where it cannot be cloned, and its memory.
const SAVE: Duration = Duration::from_secs(3600);

pub(super) async fn take(core: Rc<Core>, take: TakeSnapshot) -> Result<Manifest, Failure> {
    let TakeSnapshot { source, reference, .. } = &take;
    let taken = try_take(&core, &take).await;
    taken.map_err(|failure| failure.during(&format!("cannot make snapshot {reference} of sandbox {source}")))
}

async fn try_take(core: &Core, take: &TakeSnapshot) -> Result<Manifest, Failure> {
    if let Some(found) = in_time("look for it", LOOK, core.ports.snapshots.find(&take.reference)).await? {
        return same(take, found.manifest);
    }
    let record = core.describe(&take.source).await?;
    let (ticket, _) = Ticket::new(if take.memory { Want::Memory } else { Want::Disk });
    let captured = core.capture(&take.source, &ticket, take.by_job).await;
    match (ticket.capture(), captured) {
        (Some(capture), _) => {
            let save = save(take, &record, &capture);
            let saved = in_time("write it", SAVE, core.ports.snapshots.save(&save)).await;
            core.end(&capture).await;
            saved
        }
        (None, Err(failure)) => Err(failure),
        (None, Ok(())) => Err(Failure::new(ErrorCode::Internal, "nothing was captured (a defect of the runner)")),
    }
}

/// A job that is executed again finds what it made; anything else of that name is somebody else's.
fn same(take: &TakeSnapshot, manifest: Option<Manifest>) -> Result<Manifest, Failure> {
    match manifest {
        Some(manifest) if take.by_job && manifest.source == take.source && manifest.warm.is_some() == take.memory => {
            Ok(manifest)
        }
        _ => Err(Failure::new(
            ErrorCode::Conflict,
            "a snapshot of that name exists; remove it first, or take another name",
        )),
    }
}

fn save(take: &TakeSnapshot, record: &Record, capture: &Capture) -> Save {
    let parent = match &record.origin {
        Some(Origin::Snapshot { reference }) => Some(reference.clone()),
        _ => record.spec.snapshot.clone(),
    };
    Save {
        reference: take.reference.clone(),
        name: take.name.clone(),
        source: take.source.clone(),
        parent,
        created_at: unix_millis(),
        vcpus: capture.size.vcpus,
        memory: capture.size.memory,
        disk: capture.disk.clone(),
        warm: capture.memory.as_ref().map(|memory| SaveMemory {
            file: memory.file.clone(),
            device: memory.device.clone(),
            version: memory.version.clone(),
            mac: memory.mac,
        }),
    }
}

pub(super) async fn remove(core: Rc<Core>, reference: SnapshotRef) -> Result<bool, Failure> {
    let remove = async {
        let dir = match in_time("read it", LOOK, core.ports.snapshots.find(&reference)).await {
            Ok(Some(found)) => found.dir,
            Ok(None) => return Ok(false),
            // What is damaged is to be removed, too.
            Err(error) if error.code != ErrorCode::Timeout => {
                warn!(%reference, %error, "a snapshot that cannot be read is removed");
                core.ports.snapshots.dir(&reference)
            }
            Err(error) => return Err(error),
        };
        let users = in_time("look for its users", LOOK, core.ports.disks.users_of(&dir)).await?;
        in_time("remove its files", LOOK, core.ports.snapshots.remove(&reference, &users)).await
    };
    remove.await.map_err(|failure: Failure| failure.during(&format!("cannot remove snapshot {reference}")))
}
