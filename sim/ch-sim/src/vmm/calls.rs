//! Lifecycle calls (state x call table: cloud-hypervisor.md 2.3).

use super::vm::{Vm, VmParts};
use super::{VmState, Vmm};
use crate::api::{Answer, Call};
use crate::config::VmConfig;
use crate::error::{Chain, Outcome};
use crate::guest::GuestEvent;
use crate::serial::Ports;

impl Vmm {
    /// Carries out one call.
    pub(super) fn call(&mut self, call: Call) -> Answer {
        match call {
            Call::Ping => self.ping().map(Some),
            Call::Info => self.info().map(Some),
            Call::Counters => self.counters().map(Some),
            Call::Create(config) => self.create(*config).map(none),
            Call::Boot => self.boot().map(none),
            Call::Pause => self.pause().map(none),
            Call::Resume => self.resume().map(none),
            Call::Shutdown => self.shutdown().map(none),
            Call::Reboot => self.reboot().map(none),
            Call::PowerButton => self.vm_mut().map(Vm::power_button).map(none),
            Call::Nmi => self.vm_mut().map(|_| None),
            Call::Delete => self.delete().map(none),
            Call::VmmShutdown => self.vmm_shutdown().map(none),
            Call::Snapshot(snapshot) => self.snapshot(&snapshot.destination_url).map(none),
            Call::Restore(restore) => self.restore(&restore).map(none),
            Call::Resize(resize) => self.resize(&resize).map(none),
            Call::ResizeDisk(resize) => self.resize_disk(&resize).map(none),
            Call::ResizeZone(resize) => self.resize_zone(&resize).map(none),
            Call::AddDisk(disk) => self.add_disk(*disk),
            Call::AddNet(net) => self.add_net(*net),
            Call::AddVsock(vsock) => self.add_vsock(vsock),
            Call::AddOpaque(kind, value) => self.add_opaque(kind, value),
            Call::RemoveDevice(device) => self.remove_device(&device.id).map(none),
            Call::SendMigration(data) => self.send_migration(&data).map(none),
            Call::ReceiveMigration(data) => self.receive_migration(&data).map(none),
        }
    }

    fn create(&mut self, mut config: VmConfig) -> Outcome<()> {
        if self.config.is_some() {
            return Err(Chain::already_created());
        }
        // Descriptors are only taken by vm.add-net; such a device silently becomes a new TAP.
        for net in config.net.iter_mut().flatten() {
            net.fds = None;
        }
        let config = self.config.insert(config);
        // A failure keeps the configuration (cloud-hypervisor.md 1).
        self.ports = Some(create_ports(config)?);
        Ok(())
    }

    fn boot(&mut self) -> Outcome<()> {
        if self.vm.is_some() {
            return Err(Chain::already_created());
        }
        self.context.events.emit("vm", "booting");
        self.boot_configured()?;
        self.context.events.emit("vm", "booted");
        Ok(())
    }

    fn boot_configured(&mut self) -> Outcome<()> {
        let mut vm = self.new_vm()?;
        let booted = vm.boot();
        // The VM exists even if it did not boot: half-booted (cloud-hypervisor.md 1).
        self.vm = Some(vm);
        booted
    }

    /// A VM object from the configuration, with ports made anew if the last VM took them along.
    fn new_vm(&mut self) -> Outcome<Vm> {
        let config = self.config.as_mut().ok_or_else(Chain::missing_config)?;
        let ports = match &self.ports {
            Some(ports) => ports.clone(),
            None => self.ports.insert(create_ports(config)?).clone(),
        };
        let parts = self.parts(ports);
        let config = self.config.as_mut().ok_or_else(Chain::missing_config)?;
        Vm::new(config, parts)
    }

    /// What a new VM object needs besides its configuration. Older guests are not listened to any more.
    pub(super) fn parts(&mut self, ports: Ports) -> VmParts {
        self.generation += 1;
        let (generation, messages) = (self.generation, self.messages.clone());
        VmParts {
            context: self.context.clone(),
            ports,
            on_event: Box::new(move |event: GuestEvent| {
                // When the executor is gone the process is ending.
                let _ = messages.send(super::Message::Guest { generation, event });
            }),
        }
    }

    fn pause(&mut self) -> Outcome<()> {
        let vm = self.vm_mut()?;
        vm.pause().map_err(|chain| chain.under("Failed to pause migratable component").under("Cannot pause VM"))
    }

    pub(super) fn resume(&mut self) -> Outcome<()> {
        let vm = self.vm_mut()?;
        vm.resume().map_err(|chain| chain.under("Failed to resume migratable component").under("Cannot resume VM"))
    }

    pub(super) fn shutdown(&mut self) -> Outcome<()> {
        let vm = self.vm.take().ok_or_else(Chain::not_running)?;
        self.ports = None;
        vm.tear_down();
        self.context.events.emit("vm", "shutdown");
        Ok(())
    }

    pub(super) fn reboot(&mut self) -> Outcome<()> {
        // Also seen when the call is refused.
        self.context.events.emit("vm", "rebooting");
        let vm = self.vm.take().ok_or_else(Chain::not_created)?;
        vm.tear_down();
        self.ports = None;
        let mut vm = self.new_vm()?;
        vm.boot()?;
        self.vm = Some(vm);
        self.context.events.emit("vm", "rebooted");
        Ok(())
    }

    pub(super) fn delete(&mut self) -> Outcome<()> {
        if self.config.is_none() {
            return Ok(());
        }
        if self.vm.is_some() {
            self.shutdown()?;
        }
        self.config = None;
        self.ports = None;
        self.context.events.emit("vm", "deleted");
        Ok(())
    }

    pub(super) fn vmm_shutdown(&mut self) -> Outcome<()> {
        self.delete()?;
        self.context.events.emit("vmm", "shutdown");
        Ok(())
    }

    /// State of the VM object, `Created` without one.
    pub(super) fn state(&self) -> VmState {
        self.vm.as_ref().map_or(VmState::Created, Vm::state)
    }
}

pub(super) fn create_ports(config: &VmConfig) -> Outcome<Ports> {
    Ports::create(config).map_err(|chain| chain.under("Error creating console devices"))
}

fn none(_: ()) -> Option<String> {
    None
}
