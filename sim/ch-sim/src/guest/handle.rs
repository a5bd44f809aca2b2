//! The VMM's side of the guest: start, pause, resume, buttons, stop.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::state::State;
use super::{GuestEvent, thread};
use crate::context::Context;
use crate::disk::Image;
use crate::ram::Window;
use crate::serial::Writer;

/// How a guest comes to life.
pub enum Start {
    /// Its kernel boots.
    Boot,
    /// It goes on, paused, where the state was saved.
    Restored(Box<State>),
}

/// A network card for the guest.
pub struct NetSpec {
    pub tap: OwnedFd,
    pub mac: [u8; 6],
}

/// Everything a guest is made of.
pub struct Spec {
    pub start: Start,
    pub net: Option<NetSpec>,
    /// All disks in order, with whether they may be written.
    pub disks: Vec<(Arc<Mutex<Image>>, bool)>,
    /// Memory that the guest writes while it runs.
    pub window: Option<Window>,
    /// vCPUs, which may change while it runs.
    pub vcpus: Arc<AtomicU32>,
    pub serial: Writer,
    pub context: Arc<Context>,
    /// Called from the guest's thread.
    pub on_event: Box<dyn Fn(GuestEvent) + Send>,
}

/// What a guest that stopped has for its memory.
#[derive(Default)]
pub struct Saved {
    /// Its state.
    pub state: Vec<u8>,
    /// MiB that `touch-ram` wants filled now.
    pub touch_mib: u64,
}

/// Orders to the guest's thread.
pub enum Command {
    /// Stop running and hand over the state for memory.
    Pause(Sender<Saved>),
    Resume,
    PowerButton,
    /// Plug a card in, if there is none yet.
    Attach(NetSpec),
    Stop,
}

/// A running or paused guest. Dropping it ends the guest at once.
pub struct GuestHandle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// The guest's end of its orders.
pub struct Inbox {
    pub commands: Receiver<Command>,
    pub wake: Arc<EventFd>,
}

impl GuestHandle {
    /// Starts the guest's thread.
    pub fn spawn(spec: Spec) -> io::Result<Self> {
        let (sender, commands) = channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let inbox = Inbox { commands, wake: Arc::clone(&wake) };
        let thread = std::thread::Builder::new()
            .name("vcpu0".to_owned())
            .stack_size(512 << 10)
            .spawn(move || thread::run(spec, inbox))?;
        Ok(Self { commands: sender, wake, thread: Some(thread) })
    }

    /// Stops the guest; returns its state for memory (empty when the guest is gone).
    pub fn pause(&self) -> Saved {
        let (sender, state) = channel();
        self.send(Command::Pause(sender));
        state.recv().unwrap_or_default()
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.send(Command::Resume);
    }

    /// Presses the ACPI power button.
    pub fn power_button(&self) {
        self.send(Command::PowerButton);
    }

    /// Plugs a network card in.
    pub fn attach(&self, net: NetSpec) {
        self.send(Command::Attach(net));
    }

    fn send(&self, command: Command) {
        // A guest that is gone takes no orders; its end was reported as an event.
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }
}

impl Drop for GuestHandle {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic in the guest was printed by its thread already.
            let _ = thread.join();
        }
    }
}
