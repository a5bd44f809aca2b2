//! Bringing stored sandboxes back: all of them at start, one after its actor panicked.

use std::rc::Rc;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{Child, Core};
use crate::actors::vm::adopt;
use crate::blocking::{LOOK, in_time};
use crate::disk::Stamp;
use crate::error::{Failure, chain};
use crate::ids::SandboxId;
use crate::sandbox::{Phase, Record, View};
use crate::store::Unreadable;

/// Sandboxes looked at side by side; each look is a few system calls.
const PARALLEL: usize = 32;
/// How long the files of one sandbox may keep the others waiting: a dead volume must not keep the runner from coming up.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn all(core: Rc<Core>) -> Result<(), Failure> {
    let loaded = core.tools.ports.store.load().await?;
    for unreadable in loaded.unreadable {
        set_aside(&core, unreadable);
    }
    sweep(&core).await;
    let mut sandboxes = loaded.sandboxes;
    claim_slots(&core, &mut sandboxes);
    let total = sandboxes.len();
    stream::iter(sandboxes).for_each_concurrent(PARALLEL, |record| bring_back(&core, record)).await;
    core.recovering.set(false);
    info!(sandboxes = total, "recovered");
    Ok(())
}

/// What a crash has left of copies and snapshots that were being made. None of it belongs to a sandbox.
async fn sweep(core: &Core) {
    let ports = &core.tools.ports;
    match in_time("sweep the sandboxes' directory", LOOK, ports.disks.sweep()).await {
        Ok(0) => {}
        Ok(count) => info!(count, "removed what an earlier life left of copies"),
        Err(error) => warn!(error = %chain(&error), "cannot look for what an earlier life left of copies"),
    }
    match in_time("sweep the snapshots' directory", LOOK, ports.snapshots.sweep()).await {
        Ok(0) => {}
        Ok(count) => info!(count, "removed snapshots that were not completed"),
        Err(error) => warn!(error = %chain(&error), "cannot look for snapshots that were not completed"),
    }
}

/// A record that cannot be read still stands for a sandbox that may run: it is shown, its slot is kept,
/// and every request for it is refused, so that nothing is made over it or reported away.
fn set_aside(core: &Core, unreadable: Unreadable) {
    let Unreadable { sandbox, slot, reason } = unreadable;
    error!(
        sandbox = sandbox.as_ref().map(SandboxId::as_str),
        reason, "a stored record cannot be read; the rest goes on"
    );
    if let Some(slot) = slot {
        core.tools.slots.borrow_mut().claim(slot);
    }
    if let Some(id) = sandbox {
        core.tools.views.publish(View::unreadable(id.clone(), reason.clone()));
        core.children.borrow_mut().insert(id, Child::Lost(reason));
    }
}

/// All slots are taken before anything is started, so that none is given out twice.
///
/// Two records may name one slot: the kernel let go of it, it was given out again, and the runner died
/// before the first record was stored without it. Then it belongs to the one that is not being torn
/// down; the other's network is gone. A slot outside a pool that was made smaller is kept as it is.
fn claim_slots(core: &Core, records: &mut [Record]) {
    let mut slots = core.tools.slots.borrow_mut();
    let leaving = |record: &Record| matches!(record.phase, Phase::Stopping | Phase::Destroying);
    records.sort_by_key(leaving);
    for record in records {
        let Some(slot) = record.slot else { continue };
        if slot.0 > slots.capacity() {
            warn!(sandbox = %record.id, %slot, "the stored network slot lies outside RUNNER_NETWORK_POOL");
        } else if !slots.claim(slot) {
            warn!(sandbox = %record.id, %slot, "the stored network slot is another sandbox's by now");
            record.slot = None;
        }
    }
}

/// A disk that was split right before the end of the last life is not the one that its checkpoint was bound to.
async fn follow_split(core: &Core, record: &mut Record) {
    let Record { id, disks: Some(disks), checkpoint: Some(checkpoint), .. } = record else { return };
    let Some(stamp) = checkpoint.stamp.filter(|stamp| *stamp != Stamp::NEVER) else { return };
    let ports = core.tools.ports.clone();
    let found = async {
        if stamp.still_holds(&ports.disks.stamp(&disks.root).await?) {
            return Ok(None);
        }
        ports.disks.after_split(id, &disks.root, stamp).await
    };
    match in_time("look at it", PATIENCE, found).await {
        Ok(None) => return,
        Ok(Some((root, stamp))) => (disks.root, checkpoint.stamp) = (root, Some(stamp)),
        Err(error) => {
            warn!(sandbox = %id, error = %chain(&error), "the disk of a checkpoint cannot be looked at");
            return;
        }
    }
    if let Err(error) = ports.store.put_sandbox(record).await {
        warn!(sandbox = %record.id, error = %chain(&error), "a disk that was split could not be stored; the next start looks again");
    }
}

async fn bring_back(core: &Rc<Core>, mut record: Record) {
    // A cloned disk stands alone; only an overlay needs what is below it.
    if let Some(disks) = &record.disks
        && disks.root.backed
        && let Err(error) = in_time("lock it", PATIENCE, core.tools.ports.disks.hold(&record.id, &disks.root)).await
    {
        warn!(sandbox = %record.id, error = %chain(&error), "the base image of a stored sandbox cannot be locked");
    }
    // Used up, and the runner died before it was removed: as large as the guest's memory.
    if record.checkpoint.is_none()
        && matches!(record.phase, Phase::Started | Phase::Stopped)
        && let Err(error) = in_time("remove it", PATIENCE, core.tools.ports.disks.end_checkpoint(&record.id)).await
    {
        warn!(sandbox = %record.id, error = %chain(&error), "a used checkpoint could not be removed; the next start tries again");
    }
    let adopted = adopt::adopt(&core.tools, &record).await;
    if adopted.is_gone() {
        follow_split(core, &mut record).await;
    }
    adopt::open_route(&core.tools, &record, &adopted).await;
    core.start_stored(record, adopted);
}

/// Rebuilds one actor from the store after its predecessor panicked.
pub(super) async fn one(core: Rc<Core>, id: SandboxId) {
    sleep(pause(&core, &id)).await;
    match core.tools.ports.store.sandbox(&id).await {
        Ok(Some(record)) => bring_back(&core, record).await,
        Ok(None) => core.forget(&id),
        Err(error) => {
            // Without its record nothing is known and nothing may be touched.
            let reason = format!(
                "its actor panicked and cannot be rebuilt: {}; restart the runner when its store works again",
                chain(&error)
            );
            error!(sandbox = %id, reason, "a sandbox is lost until the next start");
            core.children.borrow_mut().insert(id, Child::Lost(reason));
            core.rebuilt.notify_waiters();
        }
    }
}

/// An actor that panics again and again must not keep the arbiter busy: nothing after the first panic,
/// then from a tenth of a second up to almost a minute.
fn pause(core: &Core, id: &SandboxId) -> Duration {
    let mut panics = core.panics.borrow_mut();
    let count = panics.entry(id.clone()).or_default();
    *count += 1;
    match *count {
        1 => Duration::ZERO,
        more => Duration::from_millis(50 << more.min(10)),
    }
}
