//! The guest: a thread with a network stack and a toolbox, whose state lives in guest memory.

mod clock;
mod commands;
mod conn;
mod device;
mod files;
mod fs;
mod handle;
mod http;
mod identity;
mod iso;
mod log;
mod machine;
mod rng;
mod seed;
mod shell;
mod ssh;
mod sshd;
mod stack;
mod state;
mod thread;
mod toolbox;
mod words;
mod writer;
mod ws;
mod yaml;

pub use handle::{GuestHandle, NetSpec, Saved, Spec, Start};
pub use state::State;
pub use writer::window;

/// Where the guest keeps its state in memory (guest physical address).
pub const STATE_GPA: u64 = 1 << 20;
/// Where `touch-ram` writes (guest physical address).
pub const TOUCH_GPA: u64 = 32 << 20;

/// What a guest does to its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// ACPI S5.
    PowerOff,
    /// Reset, also a triple fault.
    Reset,
    /// The vCPU stopped with an error of the hypervisor.
    VcpuError,
    /// The guest kernel reported a panic (pvpanic).
    Panic,
    /// The drivers of the guest took their devices over.
    DriversReady,
}
