//! Who is let in: pure decisions before anything is begun. Whether there is room: [`super::capacity`].

use std::collections::BTreeMap;

use super::op::Ask;
use super::record::Size;
use crate::error::{ErrorCode, Failure};
use crate::jobs::payload::CreateSpec;

/// What the supervisor knows when a request arrives.
#[derive(Debug, Clone, Copy)]
pub struct Situation {
    /// The runner is shutting down, and this is nothing that was begun before.
    pub draining: bool,
    /// Stored sandboxes are still being looked at.
    pub recovering: bool,
    /// The sandbox has a record.
    pub known: bool,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Hand it to the sandbox's actor.
    Admit,
    /// It is already so.
    Done,
    /// Refused, with the reason.
    Refuse(Failure),
}

/// Decides whether a request is let in.
pub fn decide(ask: Ask, situation: Situation) -> Verdict {
    if situation.recovering {
        return refuse(ErrorCode::Busy, "the runner is still recovering its sandboxes; try again in a moment");
    }
    if situation.draining && !ask.tears_down() {
        return refuse(
            ErrorCode::Busy,
            "the runner is shutting down and starts nothing new; try again after its restart",
        );
    }
    match (situation.known, ask) {
        (true, _) => Verdict::Admit,
        (false, Ask::Destroy) => Verdict::Done,
        (false, Ask::Start | Ask::Boot | Ask::Recall | Ask::Stop(_) | Ask::Pause | Ask::Capture | Ask::Resize) => {
            refuse(ErrorCode::NotFound, "the sandbox does not exist on this host")
        }
        (false, Ask::Create(_)) => Verdict::Admit,
    }
}

fn refuse(code: ErrorCode, why: &str) -> Verdict {
    Verdict::Refuse(Failure::new(code, why))
}

/// Values for what a request leaves open (`CH_DEFAULT_*`).
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk in GiB.
    pub disk_gib: u64,
}

/// The resources of a new sandbox, or why this host can never serve them.
pub fn size(spec: &CreateSpec, defaults: Defaults, host_cpus: u32, host_memory: u64) -> Result<Size, Failure> {
    const GIB: u64 = 1 << 30;
    let size = Size {
        vcpus: spec.vcpus.unwrap_or(defaults.vcpus),
        memory: spec.memory_gib.map_or(defaults.memory_mib << 20, |gib| gib * GIB),
        disk: spec.disk_gib.unwrap_or(defaults.disk_gib) * GIB,
    };
    fits(size, host_cpus, host_memory)?;
    Ok(size)
}

/// Whether this host can ever serve these resources.
pub fn fits(size: Size, host_cpus: u32, host_memory: u64) -> Result<(), Failure> {
    if size.vcpus > host_cpus.saturating_mul(8) {
        return Err(too_large(format!(
            "cpuQuota: {} vCPUs asked for, but this host has {host_cpus} CPUs and takes at most 8 vCPUs per CPU for one sandbox",
            size.vcpus
        )));
    }
    if size.memory > host_memory {
        return Err(too_large(format!(
            "memoryQuota: {} MiB asked for, but this host has {} MiB",
            size.memory >> 20,
            host_memory >> 20
        )));
    }
    Ok(())
}

fn too_large(message: String) -> Failure {
    Failure::new(ErrorCode::UnprocessableEntity, message)
}

/// Refuses what this version cannot do rather than leaving it out silently: a policy that is accepted
/// but not applied is worse than an error.
pub fn supported(spec: &CreateSpec) -> Result<(), Failure> {
    let refused = if !spec.volumes.is_empty() {
        "volumes: this version cannot mount volumes; send none"
    } else if spec.domain_allow_list.as_ref().is_some_and(|list| !list.trim().is_empty()) {
        "domainAllowList: this version cannot filter by domain name; use networkAllowList with CIDRs"
    } else {
        return Ok(());
    };
    Err(Failure::new(ErrorCode::UnprocessableEntity, refused))
}

/// The same for what a start brings along (PROTOCOL.md 5, START_SANDBOX).
pub fn supported_at_start(metadata: &BTreeMap<String, String>) -> Result<(), Failure> {
    let has = |key: &str| metadata.get(key).is_some_and(|text| !matches!(text.trim(), "" | "[]" | "null"));
    let refused = if has("domainAllowList") {
        "domainAllowList: this version cannot filter by domain name; use networkAllowList with CIDRs"
    } else if has("volumes") {
        "volumes: this version cannot mount volumes; send none"
    } else {
        return Ok(());
    };
    Err(Failure::new(ErrorCode::UnprocessableEntity, refused))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{Make, StopMode};

    const QUIET: Situation = Situation { draining: false, recovering: false, known: true };
    const CREATE: Ask = Ask::Create(Make::Boot);

    fn code(verdict: Verdict) -> Option<ErrorCode> {
        match verdict {
            Verdict::Refuse(failure) => Some(failure.code),
            Verdict::Admit | Verdict::Done => None,
        }
    }

    #[test]
    fn known_sandboxes_are_admitted() {
        for ask in [CREATE, Ask::Start, Ask::Stop(StopMode::Shutdown), Ask::Destroy] {
            assert_eq!(decide(ask, QUIET), Verdict::Admit);
        }
    }

    #[test]
    fn unknown_sandboxes() {
        let unknown = Situation { known: false, ..QUIET };
        assert_eq!(decide(CREATE, unknown), Verdict::Admit);
        assert_eq!(decide(Ask::Destroy, unknown), Verdict::Done);
        assert_eq!(code(decide(Ask::Start, unknown)), Some(ErrorCode::NotFound));
    }

    #[test]
    fn a_draining_runner_still_stops_and_destroys() {
        let draining = Situation { draining: true, ..QUIET };
        assert_eq!(code(decide(CREATE, draining)), Some(ErrorCode::Busy));
        assert_eq!(code(decide(Ask::Start, draining)), Some(ErrorCode::Busy));
        assert_eq!(decide(Ask::Destroy, draining), Verdict::Admit);
    }

    #[test]
    fn nothing_is_done_while_recovering() {
        assert_eq!(code(decide(Ask::Destroy, Situation { recovering: true, ..QUIET })), Some(ErrorCode::Busy));
    }
}
