//! Everything the actors do to the world goes through these traits, so that every path can be
//! tested, killed and replayed.

use std::rc::Rc;
use std::time::Duration;

use crate::control_plane::ControlPlane;
use crate::disk::Disks;
use crate::hypervisor::Hypervisor;
use crate::memory::Memory;
use crate::net::Network;
use crate::snapshots::Snapshots;
use crate::store::Store;
use crate::toolbox::Toolbox;

/// One handle per kind of effect; cheap to clone.
#[derive(Clone)]
pub struct Ports {
    /// Namespaces, links, rules.
    pub network: Rc<dyn Network>,
    /// Root disks and seeds.
    pub disks: Rc<dyn Disks>,
    /// Guest memory.
    pub memory: Rc<dyn Memory>,
    /// Snapshots on this host.
    pub snapshots: Rc<dyn Snapshots>,
    /// VMM processes.
    pub hypervisor: Rc<dyn Hypervisor>,
    /// The daemon inside the guest.
    pub toolbox: Rc<dyn Toolbox>,
    /// State across restarts.
    pub store: Rc<dyn Store>,
    /// The Daytona API.
    pub control_plane: Rc<dyn ControlPlane>,
}

/// Milliseconds since 1970, for records and logs. Nothing is decided by it but how soon a sandbox that ended unasked is
/// started again, which must survive the runner and bears a clock that is set.
pub fn unix_millis() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_millis()
        .try_into()
        .unwrap_or(u64::MAX)
}
