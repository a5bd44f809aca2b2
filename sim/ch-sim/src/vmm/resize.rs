//! `vm.resize`, `vm.resize-disk`, `vm.resize-zone`.

use super::Vmm;
use crate::config::{HotplugMethod, VmConfig, VmResize, VmResizeDisk, VmResizeZone};
use crate::error::{Chain, Outcome};

/// Memory is plugged in pieces of this size.
const DIMM_BYTES: u64 = 128 << 20;

impl Vmm {
    pub(super) fn resize(&mut self, resize: &VmResize) -> Outcome<()> {
        let booted = self.vm.is_some();
        let current = self.vm.as_ref().map(|vm| vm.ram.size());
        let events = &self.context.events;
        let config = self.config.as_mut().ok_or_else(Chain::not_created)?;
        if !booted {
            config.cpus.boot_vcpus = resize.desired_vcpus.unwrap_or(config.cpus.boot_vcpus);
            config.memory.size = resize.desired_ram.unwrap_or(config.memory.size);
            resize_balloon(config, resize.desired_balloon);
            return Ok(());
        }
        events.emit("vm", "resizing");
        if let Some(vcpus) = resize.desired_vcpus {
            resize_vcpus(config, vcpus)?;
            if let Some(vm) = &self.vm {
                vm.set_vcpus(vcpus);
            }
        }
        if let Some(ram) = resize.desired_ram {
            resize_ram(config, ram, current.unwrap_or(0))?;
        }
        if resize.desired_balloon.is_some() && !resize_balloon(config, resize.desired_balloon) {
            let missing = Chain::new("Missing virtio-balloon, can't proceed as expected");
            return Err(missing.under("Error from device manager"));
        }
        events.emit("vm", "resized");
        Ok(())
    }

    pub(super) fn resize_disk(&mut self, resize: &VmResizeDisk) -> Outcome<()> {
        let version = self.context.version;
        self.config_mut()?;
        let vm = self.vm.as_ref().ok_or_else(|| Chain::new("Failed resizing a disk image"))?;
        let failed = |chain: Chain| chain.under("Error from device manager");
        let disk = vm.devices.disks.iter().find(|disk| disk.id == resize.id);
        let disk = disk.ok_or_else(|| {
            let id = &resize.id;
            failed(Chain::new(format!("Failed to find device corresponding to the given identifier: {id}")))
        })?;
        disk.resize(resize.desired_size, version).map_err(|chain| failed(chain.under("Disk resize error")))
    }

    pub(super) fn resize_zone(&mut self, resize: &VmResizeZone) -> Outcome<()> {
        let booted = self.vm.is_some();
        let config = self.config_mut()?;
        let mut zones = config.memory.zones.iter_mut().flatten();
        let zone = zones.find(|zone| zone.id == resize.id);
        let zone = zone.ok_or_else(|| Chain::new("Failed resizing a memory zone"))?;
        if booted {
            return Err(Chain::new("Resizing the memory zone failed").under("Memory manager error"));
        }
        zone.size = resize.desired_ram;
        Ok(())
    }
}

fn resize_vcpus(config: &mut VmConfig, vcpus: u32) -> Outcome<()> {
    let problem = |text: &str| Err(Chain::new(text).under("Error from CPU manager"));
    if vcpus == 0 {
        return problem("Requested zero vCPUs");
    }
    if vcpus > config.cpus.max_vcpus {
        return problem("Requested vCPUs exceed maximum");
    }
    config.cpus.boot_vcpus = vcpus;
    Ok(())
}

fn resize_ram(config: &mut VmConfig, ram: u64, current: u64) -> Outcome<()> {
    let problem = |text: String| Err(Chain::new(text).under("Memory manager error"));
    if config.memory.zones.is_some() {
        return problem("Impossible to resize guest memory if it is backed by user defined memory regions".to_owned());
    }
    let room = config.memory.hotplug_size.unwrap_or(0);
    match config.memory.hotplug_method {
        HotplugMethod::VirtioMem if ram < config.memory.size => {
            let boot = config.memory.size;
            problem(format!("Invalid resize request: desired_size = {ram} below boot size = {boot}"))
        }
        HotplugMethod::VirtioMem => {
            let more = ram - config.memory.size;
            config.memory.hotplugged_size = (more > 0).then_some(more);
            Ok(())
        }
        HotplugMethod::Acpi if ram > current && !(ram - current).is_multiple_of(DIMM_BYTES) => {
            problem("The requested hotplug memory addition is not a valid size".to_owned())
        }
        HotplugMethod::Acpi if ram > current && ram - current > room => {
            problem("Not enough space in the hotplug RAM region".to_owned())
        }
        HotplugMethod::Acpi => {
            config.memory.size = ram;
            Ok(())
        }
    }
}

/// False when there is no balloon.
fn resize_balloon(config: &mut VmConfig, bytes: Option<u64>) -> bool {
    match (&mut config.balloon, bytes) {
        (Some(balloon), Some(bytes)) => {
            balloon.size = bytes;
            true
        }
        _ => false,
    }
}
