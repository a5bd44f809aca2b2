//! The VM object: memory, devices and the guest, from boot to tear-down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::devices::Devices;
use super::{VmState, kernel};
use crate::config::{ConsoleOutputMode, PayloadConfig, VmConfig};
use crate::context::Context;
use crate::error::{Chain, Outcome};
use crate::guest::{GuestEvent, GuestHandle, NetSpec, STATE_GPA, Saved, Spec, Start, State, TOUCH_GPA};
use crate::ram::Ram;
use crate::serial::Ports;

/// What a VM object needs besides its configuration.
pub struct VmParts {
    pub context: Arc<Context>,
    pub ports: Ports,
    pub on_event: Box<dyn Fn(GuestEvent) + Send>,
}

/// A VM. Until it boots it has no guest; a half-booted one never gets any.
pub struct Vm {
    state: VmState,
    pub(super) ram: Ram,
    pub(super) devices: Devices,
    guest: Option<GuestHandle>,
    /// Loads the memory in the background until then.
    pub(super) loading_until: Option<Instant>,
    /// vCPUs that the guest sees.
    vcpus: Arc<AtomicU32>,
    kernel: Outcome<()>,
    context: Arc<Context>,
    ports: Ports,
    on_event: Option<Box<dyn Fn(GuestEvent) + Send>>,
}

impl Vm {
    /// Makes memory and devices for a boot. Lists of devices that fail are forgotten (cloud-hypervisor.md 1).
    pub fn new(config: &mut VmConfig, parts: VmParts) -> Outcome<Self> {
        let ram = Ram::new(&config.memory).map_err(|chain| chain.under("Memory manager error"))?;
        Self::with_ram(config, parts, ram, VmState::Created)
    }

    /// Makes devices around memory that exists: after a restore the VM is paused.
    pub fn with_ram(config: &mut VmConfig, parts: VmParts, ram: Ram, state: VmState) -> Outcome<Self> {
        config.validate().map_err(|chain| chain.under("Failed to validate config"))?;
        let mut devices = Devices::default();
        if config.serial.common.mode != ConsoleOutputMode::Off {
            devices.tree.add("__serial");
        }
        devices.create(config, parts.context.version).map_err(|chain| chain.under("Error from device manager"))?;
        let payload = config.payload.as_ref();
        payload.map_or(Ok(()), kernel::check_initramfs)?;
        Ok(Self {
            state,
            ram,
            devices,
            guest: None,
            loading_until: None,
            vcpus: Arc::new(AtomicU32::new(config.cpus.boot_vcpus)),
            kernel: payload.map_or(Ok(()), |payload: &PayloadConfig| kernel::check(payload)),
            context: parts.context,
            ports: parts.ports,
            on_event: Some(parts.on_event),
        })
    }

    /// State of the VM.
    pub fn state(&self) -> VmState {
        self.state
    }

    /// Locks the disks, loads the kernel, lets the guest run.
    pub fn boot(&mut self) -> Outcome<()> {
        self.lock_disks()?;
        self.kernel.clone()?;
        self.start_guest(Start::Boot)?;
        self.state = VmState::Running;
        Ok(())
    }

    /// Second half of a restore: locks and a paused guest.
    pub fn restore(&mut self) -> Outcome<()> {
        self.context.events.emit("vm", "restoring");
        self.lock_disks()?;
        let state = self.read_guest_state();
        self.start_guest(Start::Restored(Box::new(state)))?;
        self.context.events.emit("vm", "restored");
        Ok(())
    }

    /// Stops the guest and writes its state into memory.
    pub fn pause(&mut self) -> Outcome<()> {
        self.context.events.emit("vm", "pausing");
        if self.state == VmState::Paused {
            return Err(transition(self.state, VmState::Paused));
        }
        if let Some(guest) = &self.guest {
            let saved = guest.pause();
            self.write_guest_state(&saved);
        }
        self.state = VmState::Paused;
        self.context.events.emit("vm", "paused");
        Ok(())
    }

    /// Lets the guest run. A half-booted VM counts as running afterwards, without a guest.
    pub fn resume(&mut self) -> Outcome<()> {
        self.context.events.emit("vm", "resuming");
        if self.state == VmState::Running {
            return Err(transition(self.state, VmState::Running));
        }
        if let Some(guest) = &self.guest {
            guest.resume();
        }
        self.state = VmState::Running;
        self.context.events.emit("vm", "resumed");
        Ok(())
    }

    /// Presses the power button.
    pub fn power_button(&mut self) {
        if let Some(guest) = &self.guest {
            guest.power_button();
        }
    }

    /// Changes the number of vCPUs.
    pub fn set_vcpus(&self, vcpus: u32) {
        self.vcpus.store(vcpus, Ordering::Relaxed);
    }

    /// Plugs a card into the running guest.
    pub fn attach(&self, net: NetSpec) {
        if let Some(guest) = &self.guest {
            guest.attach(net);
        }
    }

    /// Ends the guest, writes disks back, frees locks, memory and TAPs.
    pub fn tear_down(self) {
        drop(self.guest);
        self.devices.close(&self.context.log);
    }

    /// Whether memory is still loading after an OnDemand restore.
    pub fn is_loading(&mut self) -> bool {
        self.loading_until.take_if(|until| *until <= Instant::now());
        self.loading_until.is_some()
    }

    /// Identifiers of the devices whose drivers the guest starts.
    pub fn device_ids(&self) -> Vec<String> {
        self.devices.ids()
    }

    fn lock_disks(&self) -> Outcome<()> {
        let locked = self.devices.lock_disks(self.context.version);
        locked.map_err(|chain| {
            chain
                .under("Cannot lock images of all block devices")
                .under("Error locking disk images: Another instance likely holds a lock")
        })
    }

    fn start_guest(&mut self, start: Start) -> Outcome<()> {
        let failed = |error: &std::io::Error| Chain::io("Error spawning vCPU thread", error);
        let net = self.devices.guest_net().map_err(|error| failed(&error))?;
        let Some(on_event) = self.on_event.take() else {
            return Err(Chain::already_created());
        };
        let spec = Spec {
            start,
            net,
            disks: self.devices.images(),
            window: crate::guest::window(&self.ram),
            vcpus: Arc::clone(&self.vcpus),
            serial: self.ports.writer(),
            context: Arc::clone(&self.context),
            on_event,
        };
        let guest = GuestHandle::spawn(spec).map_err(|error| failed(&error).under("Error from CPU manager"))?;
        self.guest = Some(guest);
        Ok(())
    }

    /// The state saved in memory; memory without one boots a guest that remembers nothing.
    fn read_guest_state(&self) -> State {
        let header = self.ram.read(STATE_GPA, 16).unwrap_or_default();
        let length = State::length(&header).unwrap_or(0);
        let bytes = self.ram.read(STATE_GPA, length).unwrap_or_default();
        State::from_bytes(&bytes).unwrap_or_else(|| {
            self.context.log.warn("guest memory holds no state of a simulated guest");
            State::default()
        })
    }

    fn write_guest_state(&mut self, saved: &Saved) {
        if let Err(error) = self.ram.write(STATE_GPA, &saved.state) {
            self.context.log.error(&format!("guest state does not fit into its memory: {error}"));
        }
        let pattern = vec![0xa5; 1 << 20];
        for mib in 0..saved.touch_mib {
            if self.ram.write(TOUCH_GPA + (mib << 20), &pattern).is_err() {
                break;
            }
        }
    }
}

fn transition(from: VmState, to: VmState) -> Chain {
    let text = format!("Invalid transition: InvalidStateTransition({from:?}, {to:?})");
    Chain::new(text)
}
