//! What every part of one process shares.

use crate::events::Events;
use crate::faults::Faults;
use crate::log::Log;
use crate::version::Version;

/// Version, log, events and faults of the process.
pub struct Context {
    pub version: Version,
    pub log: Log,
    pub events: Events,
    pub faults: Faults,
}
