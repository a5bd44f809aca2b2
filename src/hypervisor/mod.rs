//! Cloud Hypervisor: one process per sandbox, started in the sandbox's namespace, spoken to over its
//! API socket, recognised by pid + start time + boot id and watched through a pidfd.

use std::path::PathBuf;
use std::rc::Rc;

use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

use crate::ids::SandboxId;
use crate::net::Namespace;

pub mod api;
pub mod bundle;
pub mod error;
pub mod identity;
pub mod launch;
pub mod snapshot;
pub mod survey;
pub mod tail;
pub mod version;
pub mod vmm;
pub mod wire;

pub use error::Error;
pub use identity::ProcessIdentity;
pub use launch::CloudHypervisor;
pub use survey::{ProcessSeen, VmmSurvey};
pub use version::Version;
pub use wire::{VmConfig, VmState};

/// Everything one VMM process needs to start.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The sandbox it serves.
    pub sandbox: SandboxId,
    /// API socket, `{CH_SOCKETS_PATH}/{id}.sock`.
    pub socket: PathBuf,
    /// Directory for log, events and serial output: the sandbox's directory.
    pub dir: PathBuf,
    /// The namespace it runs in; needed to launch, not to find or clear.
    pub netns: Option<Namespace>,
}

/// What is stored of a VMM so that it is found again. The version is part of it because a VMM that is
/// busy answers nothing, not even a ping (cloud-hypervisor.md 1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// pid, start time and boot id.
    pub process: ProcessIdentity,
    /// Version from the `vmm.ping` of its launch.
    pub version: Version,
}

/// How a VMM process ended, as far as can be known (cloud-hypervisor.md 3: exit 0 does not mean that
/// the guest shut down).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Exit {
    /// The guest powered itself off (events `vm:shutdown`, `vm:deleted`).
    GuestPowerOff,
    /// The guest's kernel panicked (event `guest:panic` of pvpanic, or its words on the serial line).
    GuestPanic {
        /// What it said on its serial line, when it was found.
        line: Option<String>,
    },
    /// The kernel of the host killed it for want of memory; its log proves that.
    OutOfMemory,
    /// The host was booted since it was started.
    HostRebooted,
    /// An orderly end that was asked for through the API or by SIGTERM.
    Orderly,
    /// Ended by a signal.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// The VMM failed; the last error line of its log, when there is one.
    Failed {
        /// Exit code, when the runner was the parent and could collect it.
        code: Option<i32>,
        /// Last `ERROR` line of the log, or the last line of stderr.
        reason: Option<String>,
    },
    /// The process is gone and left no trace of why.
    Unknown,
}

impl Exit {
    /// The cause in one word, as it is stored and shown.
    pub fn kind(&self) -> &'static str {
        match self {
            Exit::GuestPowerOff => "guest_power_off",
            Exit::GuestPanic { .. } => "guest_panic",
            Exit::OutOfMemory => "out_of_memory",
            Exit::HostRebooted => "host_rebooted",
            Exit::Orderly => "orderly",
            Exit::Signal { .. } => "signal",
            Exit::Failed { .. } => "failed",
            Exit::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::GuestPowerOff => f.write_str("the guest powered itself off"),
            Exit::GuestPanic { line: Some(line) } => write!(f, "the guest's kernel panicked: {line}"),
            Exit::GuestPanic { line: None } => f.write_str("the guest's kernel panicked"),
            Exit::OutOfMemory => f.write_str("the host's kernel killed the VMM for want of memory"),
            Exit::HostRebooted => f.write_str("the host was rebooted"),
            Exit::Orderly => f.write_str("the VMM was shut down"),
            Exit::Signal { signal } => write!(f, "the VMM was ended by signal {signal}"),
            Exit::Failed { code, reason } => {
                f.write_str("the VMM failed")?;
                if let Some(code) = code {
                    write!(f, " with exit code {code}")?;
                }
                if let Some(reason) = reason {
                    write!(f, ": {reason}")?;
                }
                Ok(())
            }
            Exit::Unknown => f.write_str("the VMM process is gone, cause unknown"),
        }
    }
}

/// Starts VMMs and finds them again.
pub trait Hypervisor {
    /// Starts the process and waits until its API answers `vmm.ping`. On failure no process, socket
    /// or lock file is left.
    fn launch<'a>(&'a self, launch: &'a Launch) -> LocalBoxFuture<'a, Result<Rc<dyn Vmm>, Error>>;

    /// Finds a VMM again without asking it anything; `Ok(None)` when that very process is gone. An
    /// identity that cannot be checked is an error, never "gone".
    fn adopt<'a>(
        &'a self,
        launch: &'a Launch,
        known: &'a Known,
    ) -> LocalBoxFuture<'a, Result<Option<Rc<dyn Vmm>>, Error>>;

    /// How a VMM ended that [`Hypervisor::adopt`] did not find any more, as far as what it left tells.
    fn post_mortem<'a>(&'a self, launch: &'a Launch, known: &'a Known) -> LocalBoxFuture<'a, Exit>;

    /// Keeps what is known of a VMM's end, before the next start truncates its files. On a disk that is almost full
    /// nothing is kept, which is success.
    fn keep<'a>(&'a self, bundle: &'a bundle::Bundle) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Ends whatever VMM serves this launch's socket although no identity was stored (the runner
    /// died between spawn and save): proven by the socket's peer, then killed. Then removes socket
    /// and lock file. "Nothing there" is success.
    fn clear<'a>(&'a self, launch: &'a Launch) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// Makes the snapshot in `from` one that another VM can be restored from: writes `to` with a `config.json` and
    /// `state.json` that name that VM's files and memory (cloud-hypervisor.md 5.4 and 9). `to` is made (mode 0700), and
    /// emptied first if it is there; `from` is not changed.
    fn adapt<'a>(
        &'a self,
        from: &'a std::path::Path,
        to: &'a std::path::Path,
        adaptation: &'a snapshot::Adaptation,
    ) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// What VMMs and API sockets there are in this directory of sockets; only looks.
    fn survey<'a>(&'a self, sockets: &'a std::path::Path) -> LocalBoxFuture<'a, Result<VmmSurvey, Error>>;

    /// Ends a VMM that belongs to no sandbox, once it is proven again that it is this very process and was started for
    /// this socket: SIGTERM, then SIGKILL. False when it is not there any more.
    fn end_stray<'a>(&'a self, stray: &'a ProcessSeen) -> LocalBoxFuture<'a, Result<bool, Error>>;

    /// Removes a socket and its lock file that no process serves, holds, or was started for; false when neither is
    /// there. The caller sees to it that no VMM is started for it meanwhile.
    fn remove_stale<'a>(&'a self, socket: &'a std::path::Path) -> LocalBoxFuture<'a, Result<bool, Error>>;

    /// Copies a snapshot's `config.json` and `state.json` into the new directory `to` (mode 0700).
    fn copy_snapshot<'a>(
        &'a self,
        from: &'a std::path::Path,
        to: &'a std::path::Path,
    ) -> LocalBoxFuture<'a, Result<(), Error>>;
}

/// One running VMM. Calls are serialised inside (cloud-hypervisor.md 12: one in-flight request per
/// VMM); each has a deadline, and its error carries Cloud Hypervisor's own words.
pub trait Vmm {
    /// pid, start time and boot id.
    fn identity(&self) -> &ProcessIdentity;

    /// Version from `vmm.ping`.
    fn version(&self) -> &Version;

    /// What to store so that [`Hypervisor::adopt`] finds it again.
    fn known(&self) -> Known {
        Known { process: self.identity().clone(), version: self.version().clone() }
    }

    /// `vm.create`.
    fn create<'a>(&'a self, config: &'a VmConfig) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// `vm.boot`. After a failure the VM is deleted (cloud-hypervisor.md 1: half-booted state).
    fn boot(&self) -> LocalBoxFuture<'_, Result<(), Error>>;

    /// State from `vm.info`; `None` when there is no VM.
    fn state(&self) -> LocalBoxFuture<'_, Result<Option<VmState>, Error>>;

    /// `vm.power-button`: asks the guest to shut down.
    fn power_button(&self) -> LocalBoxFuture<'_, Result<(), Error>>;

    /// `vm.pause`; paused already is success.
    fn pause(&self) -> LocalBoxFuture<'_, Result<(), Error>>;

    /// `vm.resume`; running already is success.
    fn resume(&self) -> LocalBoxFuture<'_, Result<(), Error>>;

    /// `vm.snapshot` of a paused VM into `dir`, which is made (mode 0700), and emptied if it is there. With [`snapshot::SnapshotMemory::Left`] the memory is not written:
    /// `config.json` and `state.json` are complete when this returns (cloud-hypervisor.md 5.4).
    fn snapshot<'a>(
        &'a self,
        dir: &'a std::path::Path,
        memory: snapshot::SnapshotMemory,
    ) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// `vm.restore` from a directory that [`Hypervisor::adapt`] made. The VM is paused afterwards. On failure the VMM
    /// has no VM, as before.
    fn restore<'a>(&'a self, dir: &'a std::path::Path) -> LocalBoxFuture<'a, Result<(), Error>>;

    /// `vm.resize` to so many virtual CPUs. The guest brings them online by itself.
    fn resize(&self, vcpus: u32) -> LocalBoxFuture<'_, Result<(), Error>>;

    /// `vm.delete`: ends the VM and keeps the process; no VM is success. When this has returned, everything that the VMM
    /// has cached of its disks is written (cloud-hypervisor.md 6); nothing else proves that.
    fn unload(&self) -> LocalBoxFuture<'_, Result<(), Error>>;

    /// Resolves when the guest's kernel has panicked, with what it said on its serial line; never if it cannot tell. The
    /// process lives on. May be called repeatedly.
    fn panicked(&self) -> LocalBoxFuture<'_, Option<String>>;

    /// Resolves when the process has ended; at once when it has already. May be called repeatedly.
    fn exited(&self) -> LocalBoxFuture<'_, Exit>;

    /// Ends the process: `vmm.shutdown` (which flushes disks), after `grace` SIGTERM, at last SIGKILL;
    /// waits for its end and removes the socket and lock file.
    fn end(&self, grace: std::time::Duration) -> LocalBoxFuture<'_, Result<Exit, Error>>;
}
