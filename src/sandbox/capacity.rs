//! Whether the host has room for one more sandbox: pure arithmetic on what is promised already, what is asked for,
//! and what the host has. Only starts are held against it; whatever gives something back never is.

use super::record::Size;
use super::{Ask, Make, View, WireState};
use crate::error::{ErrorCode, Failure};

/// What a start surely touches: VMM, kernel and init of a small guest. Charged for each start that is under way, as
/// the host's free memory does not show it yet. An estimate; what guests take later is up to the overcommit.
const START_TOUCHES: u64 = 64 << 20;

/// How much may be promised, as the operator set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Promised memory in percent of the host's; 0: no limit (`RUNNER_MEMORY_OVERCOMMIT`).
    pub memory_percent: u64,
    /// vCPUs per CPU of the host; 0: no limit (`RUNNER_CPU_OVERCOMMIT`).
    pub vcpus_per_cpu: u64,
    /// Memory in bytes that a start leaves available; 0: no limit (`RUNNER_MIN_FREE_MEMORY_MB`).
    pub min_free_memory: u64,
}

impl Limits {
    /// Nothing is limited.
    pub const NONE: Self = Self { memory_percent: 0, vcpus_per_cpu: 0, min_free_memory: 0 };
}

/// What the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// Memory in bytes that is available without swapping (MemAvailable of proc_meminfo(5)).
    pub available: u64,
    /// Network slots.
    pub slots: u32,
}

/// What sandboxes hold, or have been promised because they are being started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Promised {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Sandboxes with a VMM, or being started.
    pub sandboxes: u64,
    /// Those of them that are being started.
    pub starting: u64,
    /// Network slots.
    pub slots: u64,
}

impl Promised {
    /// Adds a sandbox.
    pub fn add(&mut self, size: Size, starting: bool, slot: bool) {
        self.vcpus += u64::from(size.vcpus);
        self.memory = self.memory.saturating_add(size.memory);
        self.sandboxes += 1;
        self.starting += u64::from(starting);
        self.slots += u64::from(slot);
    }
}

/// Whether a sandbox that looks like this has virtual CPUs and memory, or is about to get them.
pub fn holds(view: &View) -> bool {
    let starts = matches!(view.state, WireState::Creating | WireState::Starting);
    starts || matches!(view.state, WireState::Started | WireState::Paused) || view.pid.is_some()
}

/// The resources of the VM that it has or gets.
pub fn held(view: &View) -> Size {
    match view.running {
        Some(running) if view.pid.is_some() => running,
        _ => view.size,
    }
}

/// What a request needs that it did not have before; none for one that needs no room. `present` is the sandbox as it
/// is now, if there is one; `size` what would be made.
pub fn needs(ask: Ask, present: Option<&View>, size: Option<Size>) -> Option<Size> {
    let starts = matches!(ask, Ask::Create(Make::Boot | Make::Copy | Make::Revive | Make::Warm))
        || matches!(ask, Ask::Start | Ask::Boot);
    let lives = |view: &View| holds(view) && !matches!(view.state, WireState::Stopping | WireState::Destroying);
    match present {
        _ if !starts => None,
        // Running or being started it needs nothing, and paused it goes on with what it has.
        Some(view) if lives(view) => None,
        Some(view) if view.state != WireState::Destroying => Some(view.size),
        _ => size,
    }
}

/// Whether the request is work that writes to the data volume: what is refused while that is full. To stop and to
/// destroy gives space back, and who runs or is paused already needs none.
pub fn writes(ask: Ask, present: Option<&View>) -> bool {
    match ask {
        Ask::Create(_) | Ask::Start | Ask::Boot | Ask::Recall => {
            !present.is_some_and(|view| matches!(view.state, WireState::Started | WireState::Paused))
        }
        Ask::Capture => true,
        Ask::Stop(_) | Ask::Pause | Ask::Resize | Ask::Destroy => false,
    }
}

/// Whether there is room for `asked` beside what is promised.
///
/// # Errors
/// [`ErrorCode::Busy`] with what was asked, what is promised, what the host has, and what to do.
pub fn room(asked: Size, promised: Promised, host: Host, limits: Limits) -> Result<(), Failure> {
    let Promised { sandboxes, .. } = promised;
    if promised.slots >= u64::from(host.slots) {
        return Err(full(format!(
            "all {} network slots of this host are taken; stop or destroy sandboxes, or widen RUNNER_NETWORK_POOL",
            host.slots
        )));
    }
    let most = percent(host.memory, limits.memory_percent);
    if limits.memory_percent > 0 && promised.memory.saturating_add(asked.memory) > most {
        return Err(full(format!(
            "no memory left to promise: {} MiB asked for, {} MiB are promised to {sandboxes} sandboxes, and this host has {} MiB, of which {} % may be promised ({} MiB); stop or destroy sandboxes, or raise RUNNER_MEMORY_OVERCOMMIT",
            mib(asked.memory),
            mib(promised.memory),
            mib(host.memory),
            limits.memory_percent,
            mib(most)
        )));
    }
    let most = u64::from(host.cpus).saturating_mul(limits.vcpus_per_cpu);
    if limits.vcpus_per_cpu > 0 && promised.vcpus + u64::from(asked.vcpus) > most {
        return Err(full(format!(
            "no CPU left to promise: {} vCPUs asked for, {} are promised to {sandboxes} sandboxes, and this host has {} CPUs with {} vCPUs each ({most}); stop or destroy sandboxes, or raise RUNNER_CPU_OVERCOMMIT",
            asked.vcpus, promised.vcpus, host.cpus, limits.vcpus_per_cpu
        )));
    }
    let soon = START_TOUCHES.saturating_mul(promised.starting);
    let touches = asked.memory.min(START_TOUCHES);
    if limits.min_free_memory > 0
        && host.available < limits.min_free_memory.saturating_add(soon).saturating_add(touches)
    {
        return Err(full(format!(
            "not enough free memory to start anything: {} MiB of {} MiB are available, {} sandboxes are being started and take at least {} MiB, this one {} MiB, and {} MiB must stay free; stop or destroy sandboxes, or lower RUNNER_MIN_FREE_MEMORY_MB",
            mib(host.available),
            mib(host.memory),
            promised.starting,
            mib(soon),
            mib(touches),
            mib(limits.min_free_memory)
        )));
    }
    Ok(())
}

fn percent(whole: u64, percent: u64) -> u64 {
    u64::try_from(u128::from(whole) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

fn full(message: String) -> Failure {
    Failure::new(ErrorCode::Busy, message)
}

#[cfg(test)]
#[path = "capacity_tests.rs"]
mod tests;
