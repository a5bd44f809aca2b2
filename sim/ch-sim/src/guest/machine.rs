//! What programs inside the guest can reach: its state, its disk, its clock and the power switch.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::GuestEvent;
use super::clock::Clock;
use super::handle::Saved;
use super::state::State;
use crate::context::Context;
use crate::disk::Image;
use crate::ram::Window;

/// Time between a command like `poweroff` and its effect, so that its answer gets out.
const SIGNAL_DELAY: Duration = Duration::from_millis(20);

/// The machine as its programs see it.
pub struct Machine {
    pub state: State,
    pub clock: Clock,
    /// First disk that may be written and is not the seed.
    pub disk: Option<Arc<Mutex<Image>>>,
    /// The writer's pages; `None` in a machine with too little memory.
    pub window: Option<Window>,
    /// vCPUs, as the VMM has plugged them in.
    vcpus: Arc<AtomicU32>,
    pub context: Arc<Context>,
    pending: Option<(Instant, GuestEvent)>,
}

impl Machine {
    /// A machine with this state.
    pub fn new(
        state: State,
        disk: Option<Arc<Mutex<Image>>>,
        window: Option<Window>,
        vcpus: Arc<AtomicU32>,
        context: Arc<Context>,
    ) -> Self {
        Self { clock: Clock::stopped_at(state.running_ms), state, disk, window, vcpus, context, pending: None }
    }

    /// Version that `GET /version` names.
    pub fn version(&self) -> String {
        format!("ch-sim {}", self.context.version.build())
    }

    /// vCPUs at this moment.
    pub fn vcpus(&self) -> u32 {
        self.vcpus.load(Ordering::Relaxed)
    }

    /// Does something to the machine shortly.
    pub fn signal_soon(&mut self, event: GuestEvent) {
        self.signal_at(Instant::now() + SIGNAL_DELAY, event);
    }

    /// Does something to the machine at a time.
    pub fn signal_at(&mut self, at: Instant, event: GuestEvent) {
        self.pending.get_or_insert((at, event));
    }

    /// When [`Machine::due_signal`] has something next.
    pub fn signal_time(&self) -> Option<Instant> {
        self.pending.map(|(at, _)| at)
    }

    /// The signal whose time has come.
    pub fn due_signal(&mut self, now: Instant) -> Option<GuestEvent> {
        let (_, event) = self.pending.take_if(|(at, _)| *at <= now)?;
        Some(event)
    }

    /// What goes to guest memory, with the running time up to now.
    pub fn saved_state(&mut self) -> Saved {
        self.state.running_ms = self.clock.running_ms();
        let touch_mib = if std::mem::take(&mut self.state.touch) { self.state.touched_mib } else { 0 };
        Saved { state: self.state.to_bytes(), touch_mib }
    }
}

/// How an outgoing connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dial {
    Pending,
    Connected,
    Refused,
}

/// Network of the guest, for programs that go out.
pub trait Network {
    /// Starts a connection; `None` when no port is free.
    fn dial(&mut self, host: Ipv4Addr, port: u16) -> Option<usize>;
    /// State of a connection started by `dial`.
    fn dial_state(&mut self, id: usize) -> Dial;
    /// Sends one echo request.
    fn ping(&mut self, host: Ipv4Addr) -> Option<usize>;
    /// Whether the echo reply has come.
    fn pong(&mut self, id: usize) -> bool;
    /// Ends a connection or ping.
    fn hang_up(&mut self, id: usize);
}
