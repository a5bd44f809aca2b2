//! The comparison itself.

use std::collections::BTreeSet;

use super::{Difference, Expected, Kind, Remedy, Sandbox, What};
use crate::disk::DiskSurvey;
use crate::hypervisor::VmmSurvey;
use crate::ids::SandboxId;
use crate::net::NetworkSurvey;
use crate::snapshots::SnapshotSurvey;

mod disks;
mod network;
mod vmms;

/// What was seen. A part that could not be looked at is none, and then nothing is said about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Namespaces, links, rules.
    pub network: Option<NetworkSurvey>,
    /// Processes and API sockets.
    pub vmms: Option<VmmSurvey>,
    /// What is below the sandboxes' directory.
    pub disks: Option<DiskSurvey>,
    /// Temporary names of snapshots.
    pub snapshots: Option<SnapshotSurvey>,
    /// Sandboxes with a way in.
    pub routes: Option<BTreeSet<SandboxId>>,
}

/// All differences, in the order in which they would be repaired.
pub fn compare(expected: &Expected, observed: &Observed) -> Vec<Difference> {
    let mut found = Vec::new();
    if let Some(survey) = &observed.vmms {
        vmms::compare(expected, survey, &mut found);
    }
    if let Some(survey) = &observed.network {
        network::compare(expected, survey, &mut found);
    }
    if let Some(routes) = &observed.routes {
        compare_routes(expected, routes, &mut found);
    }
    if let Some(survey) = &observed.disks {
        disks::compare(expected, survey, &mut found);
    }
    if let Some(survey) = &observed.snapshots {
        for (path, under_way) in &survey.temporaries {
            if !under_way {
                let why = "it has a temporary name, and no snapshot is being made or removed under it";
                let remedy = Remedy::RemoveFiles { path: path.clone() };
                found.push(leaked(Kind::Snapshot, path.display().to_string(), None, why, remedy));
            }
        }
    }
    note_what_is_at_stake(observed, &mut found);
    found.sort_by(|one, other| one.key().cmp(&other.key()));
    found
}

/// A leaked namespace or socket is only harmless where nothing of its sandbox runs or holds data: a runner with a
/// wrong store takes everything for a leak.
fn note_what_is_at_stake(observed: &Observed, found: &mut [Difference]) {
    let directories = observed.disks.iter().flat_map(|survey| survey.directories.iter().map(|seen| &seen.sandbox));
    let processes = observed.vmms.iter().flat_map(|survey| survey.processes.iter());
    let processes = processes.filter_map(|seen| crate::hypervisor::survey::sandbox_of(&seen.socket));
    let at_stake: BTreeSet<SandboxId> = directories.cloned().chain(processes).collect();
    let blind = observed.disks.is_none() || observed.vmms.is_none();
    for difference in found.iter_mut().filter(|difference| difference.what == What::Leaked) {
        let holds_data = matches!(difference.kind, Kind::Vmm | Kind::Directory | Kind::Checkpoint);
        let of_such = difference.sandbox.as_ref().is_some_and(|id| blind || at_stake.contains(id));
        let network = matches!(difference.kind, Kind::Namespace | Kind::Mount | Kind::Link);
        let socket = matches!(difference.kind, Kind::Socket | Kind::Lock);
        difference.harmless = !holds_data && !(of_such && (network || socket));
    }
}

fn compare_routes(expected: &Expected, routes: &BTreeSet<SandboxId>, found: &mut Vec<Difference>) {
    for (id, sandbox) in expected.at_rest() {
        match (&sandbox.alive, routes.contains(id)) {
            (Some(_), false) => {
                let why = "it runs, and no request can reach its guest";
                found.push(missing(Kind::Route, format!("the route to {id}"), id, why, restart(id)));
            }
            (None, true) => {
                let why = "it is stopped, and requests are still sent to a guest";
                let remedy = Remedy::advice(format!("start and stop sandbox {id}"));
                found.push(leaked(Kind::Route, format!("the route to {id}"), Some(id), why, remedy));
            }
            _ => {}
        }
    }
}

/// What becomes of things of this sandbox that are there.
enum Claim<'a> {
    /// Nothing may be said.
    LeftOut,
    /// It is at rest.
    Rests(&'a Sandbox),
    /// There is no such sandbox.
    Nobody,
}

fn claim<'a>(expected: &'a Expected, id: &SandboxId) -> Claim<'a> {
    match expected.get(id) {
        None => Claim::Nobody,
        Some(None) => Claim::LeftOut,
        Some(Some(sandbox)) => Claim::Rests(sandbox),
    }
}

const NOBODY: &str = "no sandbox of that id exists";
const STOPPED: &str = "its sandbox is stopped";

fn leaked(
    kind: Kind,
    object: impl Into<String>,
    sandbox: Option<&SandboxId>,
    why: impl Into<String>,
    remedy: Remedy,
) -> Difference {
    let (object, sandbox, why) = (object.into(), sandbox.cloned(), why.into());
    Difference { kind, what: What::Leaked, object, sandbox, why, remedy, harmless: false }
}

fn missing(
    kind: Kind,
    object: impl Into<String>,
    sandbox: &SandboxId,
    why: impl Into<String>,
    remedy: Remedy,
) -> Difference {
    let (object, sandbox, why) = (object.into(), Some(sandbox.clone()), why.into());
    Difference { kind, what: What::Missing, object, sandbox, why, remedy, harmless: true }
}

fn wrong(
    kind: Kind,
    object: impl Into<String>,
    sandbox: &SandboxId,
    why: impl Into<String>,
    remedy: Remedy,
) -> Difference {
    Difference { what: What::Wrong, ..missing(kind, object, sandbox, why, remedy) }
}

fn restart(id: &SandboxId) -> Remedy {
    Remedy::advice(format!("stop and start sandbox {id}, which makes it anew"))
}
