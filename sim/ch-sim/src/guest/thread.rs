//! The guest's thread: waits for orders, frames and times, and costs nothing in between.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::GuestEvent;
use super::device::Card;
use super::handle::{Command, Inbox, NetSpec, Spec, Start};
use super::machine::Machine;
use super::stack::{Address, Stack};
use super::state::State;
use super::{identity, seed, writer};
use crate::context::Context;
use crate::faults::Action;
use crate::serial::Writer;

/// Environment variable: milliseconds from boot to a listening toolbox.
pub const BOOT_VARIABLE: &str = "CH_SIM_BOOT_MS";
const DEFAULT_BOOT_MS: u64 = 5;
/// Time a guest takes to power off after the button.
const POWER_OFF_DELAY: Duration = Duration::from_millis(20);

struct Guest {
    machine: Machine,
    stack: Option<Stack>,
    serial: Writer,
    context: Arc<Context>,
    on_event: Box<dyn Fn(GuestEvent) + Send>,
    paused: bool,
    /// Its kernel has panicked: nothing in it runs any more, until it is booted anew.
    halted: bool,
    /// When the toolbox starts to listen; `None` when it listens or never will.
    ready_at: Option<Instant>,
    open: bool,
    /// When a fault kills the process.
    crash_at: Option<Instant>,
}

/// Runs the guest until it is stopped.
pub fn run(spec: Spec, inbox: Inbox) {
    let (mut guest, net) = Guest::new(spec);
    if let Some(net) = net {
        guest.attach(net);
    }
    loop {
        loop {
            match inbox.commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return,
                Ok(command) => guest.obey(command),
                Err(TryRecvError::Empty) => break,
            }
        }
        if guest.runs() {
            guest.run_once();
        }
        guest.wait(&inbox);
    }
}

impl Guest {
    fn new(spec: Spec) -> (Self, Option<NetSpec>) {
        let seed = seed::find(&spec.disks);
        let seed_index = seed.as_ref().map(|(index, _)| *index);
        let writable = spec.disks.iter().enumerate();
        let disk = writable
            .filter(|(index, (_, writable))| *writable && Some(*index) != seed_index)
            .map(|(_, (image, _))| Arc::clone(image))
            .next();
        let restored = matches!(spec.start, Start::Restored(_));
        let state = match spec.start {
            Start::Restored(state) => *state,
            Start::Boot => {
                let mut state = State::default();
                identity::first_boot(&mut state);
                if let Some((_, seed)) = &seed {
                    seed.apply(&mut state);
                }
                state
            }
        };
        let mut guest = Self {
            machine: Machine::new(state, disk, spec.window, spec.vcpus, Arc::clone(&spec.context)),
            stack: None,
            serial: spec.serial,
            context: spec.context,
            on_event: spec.on_event,
            paused: restored,
            halted: false,
            ready_at: None,
            open: restored,
            crash_at: None,
        };
        if !restored {
            guest.boot();
        }
        (guest, spec.net)
    }

    fn boot(&mut self) {
        self.machine.clock.start();
        self.serial.line("ch-sim guest: kernel up");
        let hostname = &self.machine.state.hostname;
        self.serial.line(&format!("ch-sim guest: host name {hostname}"));
        let given = std::env::var(BOOT_VARIABLE).ok().and_then(|ms| ms.parse().ok());
        let mut delay = Duration::from_millis(given.unwrap_or(DEFAULT_BOOT_MS));
        match self.context.faults.at("toolbox") {
            Some(Action::Delay(more)) => delay += more,
            Some(Action::Hang) => {
                self.serial.line("ch-sim guest: toolbox does not start");
                return;
            }
            Some(Action::Panic) => return self.machine.signal_soon(GuestEvent::Panic),
            Some(Action::Crash(after)) => self.crash_at = Some(Instant::now() + after),
            _ => {}
        }
        self.ready_at = Some(Instant::now() + delay);
        (self.on_event)(GuestEvent::DriversReady);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Pause(reply) => {
                self.machine.clock.stop();
                self.paused = true;
                // The VMM may have gone on without waiting.
                let _ = reply.send(self.machine.saved_state());
            }
            Command::Resume => {
                self.machine.clock.start();
                self.paused = false;
                writer::resume(&mut self.machine, Instant::now());
                if let Some(stack) = &mut self.stack {
                    stack.announce();
                }
            }
            Command::PowerButton => self.power_button(),
            Command::Attach(net) => self.attach(net),
            Command::Stop => {}
        }
    }

    fn power_button(&mut self) {
        if self.halted || self.context.faults.at("power-button") == Some(Action::Ignore) {
            return;
        }
        let at = Instant::now() + POWER_OFF_DELAY;
        self.machine.signal_at(at, GuestEvent::PowerOff);
    }

    fn attach(&mut self, net: NetSpec) {
        if self.stack.is_some() {
            return;
        }
        let state = &self.machine.state;
        let address = Address { mac: net.mac, ip: state.address, gateway: state.gateway };
        let mut stack = Stack::new(Card::new(net.tap), address);
        if !self.paused {
            stack.announce();
        }
        self.stack = Some(stack);
    }

    fn runs(&self) -> bool {
        !self.paused && !self.halted
    }

    /// Does everything that is due now.
    fn run_once(&mut self) {
        let now = Instant::now();
        if self.ready_at.is_some_and(|at| at <= now) {
            self.ready_at = None;
            self.open = true;
            self.serial.line("toolbox listening on 2280");
        }
        if self.crash_at.is_some_and(|at| at <= now) {
            // SAFETY: plain system calls.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        writer::step(&mut self.machine, now);
        if let Some(stack) = &mut self.stack {
            stack.run(&mut self.machine, self.open);
        }
        if let Some(event) = self.machine.due_signal(now) {
            self.last_words(event);
            self.halted = event == GuestEvent::Panic;
            (self.on_event)(event);
        }
    }

    fn last_words(&mut self, event: GuestEvent) {
        let text = match event {
            GuestEvent::PowerOff => "ch-sim guest: powering off",
            GuestEvent::Reset => "ch-sim guest: restarting system",
            GuestEvent::Panic => "Kernel panic - not syncing: ch-sim",
            GuestEvent::VcpuError | GuestEvent::DriversReady => return,
        };
        self.serial.line(text);
    }

    /// Sleeps until an order, a frame, a serial client or a time comes.
    fn wait(&mut self, inbox: &Inbox) {
        let timeout = match self.runs() {
            false => PollTimeout::NONE,
            true => timeout_until(self.next_time()),
        };
        let wake = PollFd::new(inbox.wake.as_fd(), PollFlags::POLLIN);
        let mut fds = vec![wake];
        fds.extend(self.serial.listener().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let serial_waits = fds.len() == 2;
        if let Some(stack) = self.stack.as_ref().filter(|_| self.runs()) {
            fds.push(PollFd::new(stack.fd(), PollFlags::POLLIN));
            fds.extend(stack.waits_for().into_iter().map(|(fd, flags)| PollFd::new(fd, flags)));
        }
        // An interrupted or failed poll only means another look.
        let _ = poll(&mut fds, timeout);
        let client = serial_waits && fds[1].any().unwrap_or(false);
        let woken = fds[0].any().unwrap_or(false);
        drop(fds);
        if client {
            self.serial.accept();
        }
        if woken {
            // Non-blocking; only resets the counter.
            let _ = inbox.wake.read();
        }
    }

    fn next_time(&mut self) -> Option<Instant> {
        let stack = self.stack.as_mut().and_then(Stack::next_time);
        let writer = self.machine.state.writer.next_time();
        let times = [stack, self.ready_at, self.crash_at, self.machine.signal_time(), writer];
        times.into_iter().flatten().min()
    }
}

/// Rounds up to whole milliseconds, so that the time has come when poll returns.
fn timeout_until(at: Option<Instant>) -> PollTimeout {
    let Some(at) = at else {
        return PollTimeout::NONE;
    };
    let left = at.saturating_duration_since(Instant::now());
    let ms = left.as_micros().div_ceil(1000);
    PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
}
