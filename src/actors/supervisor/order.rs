//! One order: admit it, find or make the sandbox's actor, and see that the caller gets an answer even
//! if that actor dies under it.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use actix::Addr;
use tokio::sync::oneshot;
use tracing::warn;

use super::{Child, Core, VmActor};
use crate::blocking::{LOOK, in_time};
use crate::disk::{Format, RootDisk};
use crate::error::{Certainty, ErrorCode, Failure};
use crate::fork::{Capture, FrozenMemory, Ticket};
use crate::hypervisor::snapshot::RestoreMode;
use crate::jobs::payload::CreateSpec;
use crate::messages::supervisor::Order;
use crate::messages::vm::{Blueprint, Command, Extras, GetRecord, Source};
use crate::ports::unix_millis;
use crate::sandbox::admission::{self, Verdict};
use crate::sandbox::record::Origin;
use crate::sandbox::{Ask, Make, Record, Size, View};
use crate::snapshots::{Found, Manifest, MemoryEntry};

/// A command is repeated on the rebuilt actor at most this often: all commands are idempotent, but
/// one that always kills its actor must end some time.
const ATTEMPTS: u32 = 3;

pub(super) async fn carry_out(core: Rc<Core>, order: Order) -> Result<Option<Arc<View>>, Failure> {
    // Given back when this ends, however it does.
    let mut held = None;
    for _ in 0..ATTEMPTS {
        match admission::decide(order.ask, core.situation(&order)) {
            Verdict::Admit => {}
            Verdict::Done => return Ok(None),
            Verdict::Refuse(failure) => return Err(named(failure, &order)),
        }
        if let Some(resize) = order.resize {
            let (cpus, memory) = core.host;
            let asked = Size { vcpus: resize.vcpus.unwrap_or(0), memory: resize.memory.unwrap_or(0), disk: 0 };
            admission::fits(asked, cpus, memory).map_err(|failure| named(failure, &order))?;
        }
        let (ask, blueprint) = blueprint(&core, &order).await.map_err(|failure| named(failure, &order))?;
        let (ask, note) = core.stop_mode(&order.id, ask).map_err(|failure| named(failure, &order))?;
        if held.is_none() {
            let size = blueprint.as_deref().map(|blueprint| blueprint.size);
            held = core.admit(&order.id, ask, size).map_err(|failure| named(failure, &order))?;
        }
        let addr = child(&core, &order, blueprint.as_deref()).await?;
        let (reply, answer) = oneshot::channel();
        let extras = Extras {
            blueprint,
            auth_token: order.auth_token.clone(),
            ticket: order.ticket.clone(),
            resize: order.resize,
            owed: order.owed,
            note,
        };
        let command = Command { ask, extras, reply };
        // A closed mailbox drops the reply, and so does the death of the actor.
        let sent = addr.send(command).await;
        if let (Ok(()), Ok(answer)) = (sent, answer.await) {
            return answer.map_err(|failure| named(failure, &order));
        }
        warn!(sandbox = %order.id, ask = ?order.ask, "the sandbox's actor ended before it answered; asking the next one");
        // Its end is reported by message; let that message be handled.
        tokio::task::yield_now().await;
    }
    Err(Failure {
        code: ErrorCode::Internal,
        message: format!(
            "sandbox {}: the runner failed {ATTEMPTS} times while it carried out this request; see its log",
            order.id
        ),
        certainty: Certainty::Unknown,
    })
}

pub(super) fn named(failure: Failure, order: &Order) -> Failure {
    failure.during(&format!("cannot {} sandbox {}", order.ask.verb(), order.id))
}

/// What is to be made, and how: a snapshot with memory is woken up rather than booted.
async fn blueprint(core: &Core, order: &Order) -> Result<(Ask, Option<Box<Blueprint>>), Failure> {
    let Some(spec) = order.spec.as_deref() else { return Ok((order.ask, None)) };
    admission::supported(spec)?;
    let (cpus, memory) = core.host;
    if let Some((source, size)) = &order.copy {
        let blueprint = Blueprint { spec: spec.clone(), size: *size, source: Some(source.clone()), note: None };
        return Ok((order.ask, Some(Box::new(blueprint))));
    }
    let cold = admission::size(spec, core.defaults, cpus, memory)?;
    let mut made = Start { ask: order.ask, size: cold, source: None, note: None };
    if order.ask == Ask::Create(Make::Boot) {
        // Also for a sandbox that is known: it may just be going, and then it is made anew.
        let known = core.knows(&order.id);
        made = match warm(core, made.clone(), spec).await {
            // One that exists needs its snapshot no more.
            Err(_) if known => made,
            found => found?,
        };
    }
    let Start { ask, size, source, note } = made;
    Ok((ask, Some(Box::new(Blueprint { spec: spec.clone(), size, source, note }))))
}

/// How a creation starts.
#[derive(Clone)]
struct Start {
    ask: Ask,
    size: Size,
    source: Option<Source>,
    note: Option<String>,
}

/// A snapshot with memory decides the resources that the request leaves open. Where the request names others, the
/// sandbox is booted from the snapshot's disk, and the reason is kept.
async fn warm(core: &Core, cold: Start, spec: &CreateSpec) -> Result<Start, Failure> {
    let Some(reference) = spec.snapshot.clone() else { return Ok(cold) };
    let find = core.tools.ports.snapshots.find(&reference);
    let found = in_time(&format!("look for snapshot {reference}"), LOOK, find).await?;
    let Some(Found { dir, manifest: Some(manifest), .. }) = found else { return Ok(cold) };
    let Some(memory) = &manifest.warm else { return Ok(cold) };
    let fits = spec.vcpus.is_none_or(|vcpus| vcpus == manifest.vcpus)
        && spec.memory_gib.is_none_or(|gib| gib << 30 == manifest.memory);
    if !fits {
        let note = format!(
            "booted, because the memory of snapshot {reference} is that of {} vCPUs and {} MiB, and {} vCPUs and {} MiB were asked for",
            manifest.vcpus,
            manifest.memory >> 20,
            cold.size.vcpus,
            cold.size.memory >> 20
        );
        return Ok(Start { note: Some(note), ..cold });
    }
    let disk = spec.disk_gib.map_or(cold.size.disk.max(manifest.disk.length), |gib| gib << 30);
    let size = Size { vcpus: manifest.vcpus, memory: manifest.memory, disk };
    let origin = Origin::Snapshot { reference };
    let capture = capture_of(&dir, &manifest, memory, origin.clone(), spec);
    let source = Source { origin, ticket: Ticket::of(capture), mac: Some(memory.mac) };
    Ok(Start { ask: Ask::Create(Make::Warm), size, source: Some(source), note: None })
}

/// A warm snapshot is a point in time like any other.
fn capture_of(dir: &Path, manifest: &Manifest, memory: &MemoryEntry, origin: Origin, spec: &CreateSpec) -> Capture {
    let path = dir.join(&manifest.disk.name);
    let disk = RootDisk {
        base: path.clone(),
        path,
        format: Format::Raw,
        backed: false,
        size: manifest.disk.length,
        layers: Vec::new(),
    };
    let mode = if memory.version.private_map() { RestoreMode::Map } else { RestoreMode::Copy };
    let memory = FrozenMemory {
        file: dir.join(&memory.file.name),
        device: dir.to_owned(),
        version: memory.version.clone(),
        mode,
        mac: memory.mac,
    };
    let size = Size { vcpus: manifest.vcpus, memory: manifest.memory, disk: manifest.disk.length };
    Capture { dir: None, origin, disk, memory: Some(memory), size, spec: spec.clone(), report: None }
}

async fn child(core: &Core, order: &Order, blueprint: Option<&Blueprint>) -> Result<Addr<VmActor>, Failure> {
    loop {
        // Registered before the look, so that a rebuild in between is not missed.
        let rebuilt = core.rebuilt.notified();
        match core.children.borrow().get(&order.id) {
            Some(Child::Live { addr, .. }) => return Ok(addr.clone()),
            Some(Child::Rebuilding | Child::Held) => {}
            Some(Child::Lost(reason)) => {
                return Err(named(Failure::new(ErrorCode::Internal, reason.clone()), order));
            }
            None => break,
        }
        rebuilt.await;
    }
    let Some(Blueprint { spec, size, .. }) = blueprint else {
        return Err(named(Failure::new(ErrorCode::NotFound, "the sandbox does not exist on this host"), order));
    };
    Ok(core.start_fresh(Record::new(spec.clone(), *size, unix_millis())))
}

/// The record of a sandbox as its actor has it.
pub(super) async fn describe(core: Rc<Core>, id: crate::ids::SandboxId) -> Result<Option<Box<Record>>, Failure> {
    if core.recovering.get() {
        let message = "the runner is still recovering its sandboxes; try again in a moment";
        return Err(Failure::new(ErrorCode::Busy, message));
    }
    for _ in 0..ATTEMPTS {
        if !core.knows(&id) {
            return Ok(None);
        }
        let addr = child(&core, &Order::new(id.clone(), Ask::Start), None).await?;
        if let Ok(record) = addr.send(GetRecord).await {
            return Ok(Some(record));
        }
        // It has just ended, with its sandbox or by a panic; its end is reported by message.
        tokio::task::yield_now().await;
    }
    Err(Failure::new(ErrorCode::Busy, format!("the actor of sandbox {id} ended while it was asked; try again")))
}
