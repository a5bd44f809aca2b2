//! What must be true: a sandbox is absent, stopped, started, paused, or broken after a failed tear-down, and an order
//! changes that in one way, or not at all.
//!
//! | what was answered | what must be seen |
//! |---|---|
//! | it is done | what the order does |
//! | a failure | as before; after a fault also broken or done after all, and memory may be lost |
//! | nothing, the runner was killed | either of the two |
//!
//! Whatever no order was about is untouched to the pid of its VMM, over each kill.

use std::collections::{BTreeMap, BTreeSet};

use runner_ch::error::{ErrorCode, Failure};
use runner_ch::sandbox::StopMode;

use super::fakes::deeds::{Answers, Base, Deed, Id};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Is {
    Absent,
    Stopped,
    Started,
    Paused,
    Broken,
}

/// A memory on disk that the next start goes on from, and the virtual CPUs that it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub memory: u64,
    pub vcpus: u32,
}

/// A sandbox at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sandbox {
    pub is: Is,
    pub vcpus: u32,
    pub kept: Option<Kept>,
    /// The memory that its VM runs on, or that is kept.
    pub memory: Option<u64>,
    pub pid: Option<i32>,
    /// Its disk is complete.
    pub disk: bool,
}

/// A host at rest.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub sandboxes: BTreeMap<Id, Sandbox>,
    /// With the memory and the virtual CPUs of each.
    pub snapshots: BTreeMap<Id, (Option<u64>, u32)>,
    /// Memories have names up to this number.
    pub memories: u64,
}

impl Seen {
    fn is(&self, id: Id) -> Is {
        self.sandboxes.get(id).map_or(Is::Absent, |sandbox| sandbox.is)
    }
}

/// An order with its answers; none: the runner was killed.
#[derive(Debug)]
pub struct Told {
    deed: Deed,
    answers: Option<Answers>,
}

impl Told {
    pub fn new(deed: &Deed, answers: Option<Answers>) -> Self {
        Self { deed: deed.clone(), answers }
    }

    /// The answer about a sandbox or snapshot that the order changes.
    fn about(&self, id: Id) -> Option<&Result<(), Failure>> {
        self.answers.as_ref()?.iter().find(|(of, _)| *of == id).map(|(_, answer)| answer)
    }

    /// What the order is about.
    fn touches(&self) -> BTreeSet<Id> {
        match &self.deed {
            Deed::Create(id, _) | Deed::Start(id) | Deed::Stop(id, _) | Deed::Pause(id) | Deed::Resize(id, _) => {
                BTreeSet::from([*id])
            }
            Deed::Destroy(id) => BTreeSet::from([*id]),
            Deed::Fork(source, copies) => copies.iter().chain([source]).copied().collect(),
            Deed::Snapshot(source, name, _) => BTreeSet::from([*source, *name]),
            Deed::RemoveSnapshot(name) => BTreeSet::from([*name]),
        }
    }
}

/// Where the memory of what an order brings about comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    None,
    Fresh,
    Of(u64),
}

/// What an order brings about, for one sandbox; or why not.
type Wanted = Result<(Is, u32, Memory), ErrorCode>;

/// What the order makes of the sandbox `id`, which is `now`.
fn wanted(deed: &Deed, id: Id, now: Option<&Sandbox>, before: &Seen) -> Wanted {
    let absent = Sandbox { is: Is::Absent, vcpus: 0, kept: None, memory: None, pid: None, disk: true };
    let now = now.copied().unwrap_or(absent);
    let same = (now.is, now.vcpus, now.memory.map_or(Memory::None, Memory::Of));
    match (deed, now.is) {
        (Deed::Destroy(_), _) => Ok((Is::Absent, 0, Memory::None)),
        // Without a disk there is nothing that could rest as stopped.
        (Deed::Stop(..), Is::Broken) if !now.disk => Ok((Is::Absent, 0, Memory::None)),
        (Deed::Stop(..), Is::Broken) => Ok((Is::Stopped, now.vcpus, Memory::None)),
        (Deed::Fork(source, _), is) if *source != id => copied(source, is, before),
        (_, Is::Broken) => Err(ErrorCode::Conflict),
        (Deed::Create(_, base), Is::Absent) => Ok(created(*base, before)),
        (_, Is::Absent) => Err(ErrorCode::NotFound),
        (Deed::Create(_, Base::Idle), Is::Stopped | Is::Started) => Ok(same),
        (Deed::Create(..) | Deed::Start(_), Is::Started) => Ok(same),
        (Deed::Create(..) | Deed::Start(_), Is::Paused) => Ok((Is::Started, now.vcpus, same.2)),
        (Deed::Create(..) | Deed::Start(_), Is::Stopped) => Ok((
            Is::Started,
            now.vcpus,
            now.kept.filter(|kept| kept.vcpus == now.vcpus).map_or(Memory::Fresh, |kept| Memory::Of(kept.memory)),
        )),
        (Deed::Stop(..), Is::Stopped) => Ok(same),
        (Deed::Stop(_, StopMode::Checkpoint | StopMode::Usual), _) => Ok((Is::Stopped, now.vcpus, same.2)),
        (Deed::Stop(..), _) => Ok((Is::Stopped, now.vcpus, Memory::None)),
        (Deed::Pause(_), Is::Stopped) => Err(ErrorCode::Conflict),
        (Deed::Pause(_), _) => Ok((Is::Paused, now.vcpus, same.2)),
        (Deed::Resize(_, vcpus), Is::Started | Is::Paused) if *vcpus < now.vcpus => Err(ErrorCode::UnprocessableEntity),
        (Deed::Resize(_, vcpus), _) => Ok((now.is, *vcpus, same.2)),
        // Whoever is copied stays as it is.
        (Deed::Fork(..) | Deed::Snapshot(..), _) => Ok(same),
        (Deed::RemoveSnapshot(_), _) => Ok(same),
    }
}

fn created(base: Base, before: &Seen) -> (Is, u32, Memory) {
    match base {
        Base::Idle => (Is::Stopped, 1, Memory::None),
        Base::Boot => (Is::Started, 1, Memory::Fresh),
        Base::Snapshot(name) => match before.snapshots.get(name) {
            Some((Some(memory), vcpus)) => (Is::Started, *vcpus, Memory::Of(*memory)),
            _ => (Is::Started, 1, Memory::Fresh),
        },
    }
}

fn copied(source: Id, is: Is, before: &Seen) -> Wanted {
    let Some(source) = before.sandboxes.get(source) else { return Err(ErrorCode::NotFound) };
    match (is, source.is) {
        (_, Is::Broken) | (Is::Stopped | Is::Started | Is::Paused | Is::Broken, _) => Err(ErrorCode::Conflict),
        _ => {
            let vcpus = source.kept.map_or(source.vcpus, |kept| kept.vcpus);
            Ok((Is::Started, vcpus, source.memory.map_or(Memory::Fresh, Memory::Of)))
        }
    }
}

/// Whether what is seen now follows from what was seen before.
pub fn judge(before: &Seen, now: &Seen, told: &[Told], ended: Option<Id>, faults: usize) -> Result<(), String> {
    for id in super::IDS {
        let about: Vec<&Told> = told.iter().filter(|told| told.touches().contains(id)).collect();
        let (was, is) = (before.sandboxes.get(id), now.sandboxes.get(id));
        let wrong = |why: &str| Err(format!("{id}: {why}; it was {was:?} and is {is:?}"));
        if ended == Some(id) {
            let lived = matches!(before.is(id), Is::Started | Is::Paused);
            match is {
                Some(is) if lived && is.pid.is_none() && (is.is == Is::Stopped || faults > 0) => continue,
                _ if !lived => {}
                _ => return wrong("its VMM has ended, and it is not stopped"),
            }
        }
        match &about[..] {
            // What failed to be torn down may be tried again by the next runner.
            [] if was != is && (faults == 0 && before.is(id) != Is::Broken) => return wrong("nobody has touched it"),
            [] => {}
            [one] if told.len() == 1 => alone(one, id, before, now, faults)?,
            several => together(several, id, before, now, faults)?,
        }
    }
    snapshots(before, now, told, faults)
}

/// One order that nothing else is at the same time.
fn alone(told: &Told, id: Id, before: &Seen, now: &Seen, faults: usize) -> Result<(), String> {
    let (was, is) = (before.sandboxes.get(id), now.sandboxes.get(id));
    let wanted = wanted(&told.deed, id, was, before);
    let seen = is.map_or((Is::Absent, 0, None), |is| (is.is, is.vcpus, is.memory));
    let wrong = |why: &str| Err(format!("{id}, {told:?}: {why}; it was {was:?}, is {is:?}, wanted {wanted:?}"));
    let done = wanted.as_ref().is_ok_and(|(state, vcpus, memory)| {
        let memory = match memory {
            // That of a paused one may still be on disk from the last copy.
            Memory::None => {
                seen.2.is_none() || (before.is(id) == Is::Paused && seen.2 == was.and_then(|was| was.memory))
            }
            Memory::Fresh => seen.2.is_some_and(|memory| memory > before.memories),
            Memory::Of(memory) => seen.2 == Some(*memory),
        };
        // A fault may cost a memory, and never more.
        let memory = memory || faults > 0;
        (*state, *vcpus) == (seen.0, seen.1) && memory || (before.is(id) == Is::Broken && *state == Is::Stopped)
    });
    // A start that cannot use the memory gives it up before it boots.
    let given_up = matches!(wanted, Ok((_, _, Memory::Fresh))) && seen.2.is_none();
    let as_before = seen.0 == before.is(id)
        && is.map(|is| is.vcpus) == was.map(|was| was.vcpus)
        && (faults > 0 || given_up || is.map(|is| is.memory) == was.map(|was| was.memory));
    // A source whose VMM was to be replaced is started again by itself, and that may fail as well.
    let twice = faults > 1 || told.answers.is_none();
    let degraded = faults > 0 && (seen.0 == Is::Broken || (twice && seen.0 == Is::Stopped));
    let answer = told.about(id).or_else(|| told.answers.as_ref()?.first().map(|(_, answer)| answer));
    let source = matches!(&told.deed, Deed::Fork(source, _) | Deed::Snapshot(source, ..) if *source == id);
    match (answer, &wanted) {
        // Of a copy's failure its source knows nothing.
        _ if source && (as_before || degraded) => Ok(()),
        (Some(Ok(())), _) if !done => wrong("it was answered that it is done"),
        (Some(Err(failure)), _) if faults == 0 && wanted != Err(failure.code) => {
            wrong("that is no reason to refuse it")
        }
        (Some(Err(_)), _) if !(as_before || degraded || (done && faults > 0)) => wrong("it was refused"),
        (None, _) if !(done || as_before || degraded) => wrong("it is neither done nor taken back"),
        _ => same_vmm(told, id, was, is, faults),
    }
}

/// Orders that leave a VMM where it is do not put another one in its place.
fn same_vmm(told: &Told, id: Id, was: Option<&Sandbox>, is: Option<&Sandbox>, faults: usize) -> Result<(), String> {
    let (Some(was), Some(is)) = (was, is) else { return Ok(()) };
    let replaces = matches!(told.deed, Deed::Fork(..) | Deed::Snapshot(..));
    match (was.pid, is.pid) {
        (Some(old), Some(new)) if old != new && !replaces && faults == 0 => {
            Err(format!("{id}, {told:?}: another VMM: {was:?}, {is:?}"))
        }
        _ => Ok(()),
    }
}

/// Orders at the same time: some order of those that are done must lead to what is seen.
fn together(told: &[&Told], id: Id, before: &Seen, now: &Seen, faults: usize) -> Result<(), String> {
    let mut reached = BTreeSet::from([(before.is(id), 0_u8)]);
    // Each is carried out at most once, in any order: two are never more than two rounds.
    for _ in told {
        for (is, done) in reached.clone() {
            for (index, one) in told.iter().enumerate().filter(|(index, _)| done & (1 << index) == 0) {
                let was = before.sandboxes.get(id).map(|was| Sandbox { is, ..*was });
                let now = (is != Is::Absent)
                    .then(|| was.unwrap_or(Sandbox { is, vcpus: 1, kept: None, memory: None, pid: None, disk: true }));
                // What it is copied from may come or go meanwhile.
                let wanted = match &one.deed {
                    Deed::Fork(source, _) if *source != id => Ok((Is::Started, 1, Memory::None)),
                    // How many it has by then is not followed.
                    Deed::Resize(..) => Ok((is, 1, Memory::None)),
                    deed => wanted(deed, id, now.as_ref(), before),
                };
                if let Ok((next, ..)) = wanted {
                    reached.insert((next, done | (1 << index)));
                }
            }
        }
    }
    let must = |told: &Told| told.about(id).is_some_and(Result::is_ok);
    // After a panic an order is repeated, and may be refused for what its first half has begun.
    let must_not = |told: &Told| faults == 0 && told.about(id).is_some_and(Result::is_err);
    let fits = |(is, done): &(Is, u8)| {
        let all = told.iter().enumerate().all(|(index, told)| {
            let done = done & (1 << index) != 0;
            (done || !must(told)) && !(done && must_not(told))
        });
        all && *is == now.is(id)
    };
    let degraded = faults > 0 && matches!(now.is(id), Is::Broken | Is::Stopped | Is::Absent);
    // A start that a stop has overtaken is undone by ending it.
    let overtaken =
        told.iter().any(|told| matches!(told.about(id), Some(Err(failure)) if failure.code == ErrorCode::Interrupted));
    let overtaken = overtaken && matches!(now.is(id), Is::Absent | Is::Stopped);
    for told in told {
        if let Some(Err(failure)) = told.about(id)
            && faults == 0
            && matches!(failure.code, ErrorCode::Internal | ErrorCode::Timeout | ErrorCode::NoSpace)
        {
            return Err(format!("{id}, {told:?}: nothing was wrong"));
        }
    }
    if reached.iter().any(fits) || degraded || overtaken {
        return Ok(());
    }
    let (was, is) = (before.sandboxes.get(id), now.sandboxes.get(id));
    Err(format!("{id}, {told:?}: no order of these leads from {was:?} to {is:?}"))
}

/// Snapshots stay as they are but for what was ordered.
fn snapshots(before: &Seen, now: &Seen, told: &[Told], faults: usize) -> Result<(), String> {
    for name in super::SNAPSHOTS {
        let (was, is) = (before.snapshots.get(name), now.snapshots.get(name));
        let about: Vec<&Told> = told.iter().filter(|told| told.touches().contains(name)).collect();
        let there = |told: &&Told| matches!(told.deed, Deed::Snapshot(..));
        let fine = match &about[..] {
            [] => was == is,
            [one] => match one.about(name) {
                Some(Ok(())) => is.is_some() == there(one),
                Some(Err(_)) => was == is,
                None => was == is || is.is_some() == there(one),
            },
            _ => true,
        };
        let source = match &about[..] {
            [Told { deed: Deed::Snapshot(source, ..), .. }] if told.len() == 1 => before.sandboxes.get(source),
            _ => None,
        };
        let memory = match (was, is, source) {
            (None, Some((Some(memory), _)), Some(source)) => source.memory == Some(*memory) || faults > 0,
            _ => true,
        };
        if !fine || !memory {
            return Err(format!("snapshot {name}: it was {was:?} and is {is:?} after {about:?}"));
        }
    }
    Ok(())
}
