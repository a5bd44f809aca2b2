//! Making the copies of one request.

use std::collections::HashSet;
use std::rc::Rc;

use futures::future::join_all;
use tracing::info;

use super::{Batch, Core, MOST_COPIES};
use crate::error::{ErrorCode, Failure};
use crate::fork::{Ticket, Want};
use crate::ids::SandboxId;
use crate::jobs::payload::CreateSpec;
use crate::messages::fork::{Copies, Fork};
use crate::messages::supervisor::Order;
use crate::messages::vm::Source;
use crate::sandbox::record::Origin;
use crate::sandbox::{Ask, Make, Phase, Record, Size};

pub(super) async fn make(core: Rc<Core>, fork: Fork) -> Result<Copies, Failure> {
    check(&fork)?;
    let record = core.describe(&fork.source).await.map_err(|failure| about(failure, &fork.source))?;
    let mut wanted = Vec::new();
    let mut answered = Vec::new();
    for copy in &fork.copies {
        match present(&core, &fork, copy).await {
            Ok(Present::Free) => wanted.push(copy.clone()),
            // Started, if it is not: nothing has to be frozen once more.
            Ok(Present::Made) => {
                let order = Order { by_job: fork.by_job, ..Order::new(copy.clone(), Ask::Start) };
                answered.push((copy.clone(), one(&core, order).await));
            }
            Err(failure) => answered.push((copy.clone(), Err(failure))),
        }
    }
    if wanted.is_empty() {
        return Ok(answered);
    }
    let fork = Fork { copies: wanted, ..fork };
    let mut made = match record.phase {
        Phase::Stopped | Phase::Stopping => stopped(&core, &fork, &record).await?,
        _ => alive(&core, &fork, &record).await,
    };
    made.extend(answered);
    Ok(made)
}

/// What there is under a copy's id.
enum Present {
    /// Nothing, or what is left of an attempt that was cut off.
    Free,
    /// The copy: this job has made it before.
    Made,
}

/// An id that is taken is only fine for a job that is executed again, and finds its own copy.
async fn present(core: &Core, fork: &Fork, copy: &SandboxId) -> Result<Present, Failure> {
    let present = match core.describe(copy).await {
        Ok(present) => present,
        Err(failure) if failure.code == ErrorCode::NotFound => return Ok(Present::Free),
        Err(failure) => return Err(failure),
    };
    match &present.origin {
        Some(Origin::Sandbox { id }) if fork.by_job && *id == fork.source => Ok(match present.phase {
            Phase::Creating | Phase::Destroying => Present::Free,
            _ => Present::Made,
        }),
        _ => {
            let message = format!("sandbox {copy} exists already; give the copy of {} another id", fork.source);
            Err(Failure::new(ErrorCode::Conflict, message))
        }
    }
}

fn check(fork: &Fork) -> Result<(), Failure> {
    let bad = |message: String| Err(Failure::new(ErrorCode::BadRequest, message));
    if fork.copies.is_empty() || fork.copies.len() > MOST_COPIES {
        return bad(format!("{} copies asked for; 1 to {MOST_COPIES} are made at once", fork.copies.len()));
    }
    let different: HashSet<_> = fork.copies.iter().collect();
    if different.len() < fork.copies.len() {
        return bad("two copies have the same id; each needs its own".to_owned());
    }
    if different.contains(&fork.source) {
        return bad(format!("{} cannot be a copy of itself; the copy needs an id of its own", fork.source));
    }
    Ok(())
}

fn about(failure: Failure, source: &SandboxId) -> Failure {
    failure.during(&format!("cannot copy sandbox {source}"))
}

/// What each copy is ordered with.
fn order(record: &Record, copy: &SandboxId, make: Make, ticket: &Ticket, by_job: bool) -> Order {
    let running = record.running.or(record.checkpoint.as_ref().map(|checkpoint| checkpoint.size));
    let running = if make == Make::Revive { running.unwrap_or(record.size) } else { record.size };
    let size = Size { disk: record.size.disk, ..running };
    let spec = CreateSpec { id: copy.clone(), name: None, auth_token: None, skip_start: false, ..record.spec.clone() };
    let source = Source {
        origin: Origin::Sandbox { id: record.id.clone() },
        ticket: ticket.clone(),
        mac: (make == Make::Revive).then(|| record.guest_mac()),
    };
    Order {
        spec: Some(Box::new(spec)),
        copy: Some((source, size)),
        by_job,
        ..Order::new(copy.clone(), Ask::Create(make))
    }
}

async fn one(core: &Core, order: Order) -> Result<std::sync::Arc<crate::sandbox::View>, Failure> {
    let id = order.id.clone();
    let gone = || Failure::new(ErrorCode::Interrupted, format!("sandbox {id} was removed while it was made"));
    core.order(order).await?.ok_or_else(gone)
}

/// The source has no VMM: its disk is frozen first, and its checkpoint's memory if there is one.
async fn stopped(core: &Core, fork: &Fork, record: &Record) -> Result<Copies, Failure> {
    let (ticket, _) = Ticket::new(Want::Any);
    core.capture(&fork.source, &ticket, fork.by_job).await?;
    let capture = ticket.captured().await?;
    let make = if capture.memory.is_some() { Make::Revive } else { Make::Copy };
    let copies = fork
        .copies
        .iter()
        .map(|copy| async { (copy.clone(), one(core, order(record, copy, make, &ticket, fork.by_job)).await) });
    let copies = join_all(copies).await;
    core.end(&capture).await;
    Ok(copies)
}

/// The source runs or is paused: the copies' VMMs are started first, and only then it is paused.
async fn alive(core: &Rc<Core>, fork: &Fork, record: &Record) -> Copies {
    let present = core.open.borrow().get(&fork.source).cloned();
    let first = present.is_none();
    let batch = present.unwrap_or_else(|| {
        let (ticket, news) = Ticket::new(Want::Memory);
        let batch = Rc::new(Batch::new(ticket, news));
        core.open.borrow_mut().insert(fork.source.clone(), batch.clone());
        batch
    });
    batch.join(&fork.copies);
    if first {
        // In a task of its own: the others of the batch must not depend on this request's caller.
        actix::spawn(serve(core.clone(), batch.clone(), fork.source.clone(), fork.by_job));
    }
    let copies = fork.copies.iter().map(|copy| {
        let (core, batch) = (core.clone(), batch.clone());
        let order = order(record, copy, Make::Revive, &batch.ticket, fork.by_job);
        let copy = copy.clone();
        actix::spawn(async move {
            let made = one(&core, order).await;
            batch.finished(&copy);
            (copy, made)
        })
    });
    let made = join_all(copies).await;
    let lost = || Failure::new(ErrorCode::Internal, "the runner failed while it made this copy; see its log");
    made.into_iter()
        .zip(&fork.copies)
        .map(|(made, copy)| made.unwrap_or_else(|_| (copy.clone(), Err(lost()))))
        .collect()
}

/// One pause for a whole batch.
async fn serve(core: Rc<Core>, batch: Rc<Batch>, source: SandboxId, by_job: bool) {
    let wanted = batch.all_ready().await;
    // Whoever comes from here on is served by the next pause.
    core.open.borrow_mut().remove(&source);
    if wanted {
        let captured = core.capture(&source, &batch.ticket, by_job).await;
        if let Err(failure) = captured {
            info!(%source, error = %failure, "could not be copied");
            // Settled before where only what came after the capture failed: the copies are good.
            batch.ticket.settle(Err(failure));
        }
    }
    batch.all_finished().await;
    if let Some(capture) = batch.ticket.capture() {
        core.end(&capture).await;
    }
}
