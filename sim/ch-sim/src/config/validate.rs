//! Checks of a configuration at boot and at `vm.add-*` (vm.create checks nothing: cloud-hypervisor.md 2.3).

use std::collections::BTreeSet;

use super::{ConsoleOutputMode, DiskConfig, NetConfig, PciDeviceCommonConfig, VmConfig};
use crate::error::{Chain, Outcome};

/// Most vCPUs a VM may have.
const MAX_VCPUS: u32 = 8192;
/// Slots of one PCI segment.
const PCI_SLOTS: u8 = 32;
/// Longest serial number of a disk, in bytes.
const SERIAL_BYTES: usize = 20;

impl VmConfig {
    /// Checks the whole configuration. The error is the text below "Failed to validate config".
    pub fn validate(&mut self) -> Outcome<()> {
        let mut ids = BTreeSet::new();
        self.check_payload()?;
        self.check_consoles()?;
        self.check_vcpus()?;
        for disk in self.disks.iter().flatten() {
            self.check_disk(disk)?;
            claim_id(&mut ids, &disk.pci_common)?;
        }
        for net in self.net.iter().flatten() {
            self.check_net(net)?;
            claim_id(&mut ids, &net.pci_common)?;
        }
        self.check_vhost_user_users()?;
        claim_id(&mut ids, &self.rng.pci_common)?;
        claim_id(&mut ids, &self.console.pci_common)?;
        self.check_topology()?;
        self.check_memory()?;
        self.check_vsock(&mut ids)?;
        self.check_balloon(&mut ids)?;
        self.check_landlock()
    }

    /// Whether all RAM is shared, as vhost-user devices need it.
    pub fn backed_by_shared_memory(&self) -> bool {
        if self.memory.shared || self.memory.hugepages {
            return true;
        }
        let zones = self.memory.zones.as_deref().unwrap_or_default();
        self.memory.size == 0 && zones.iter().all(|zone| zone.shared || zone.hugepages)
    }

    fn check_payload(&mut self) -> Outcome<()> {
        let problem = |text: &str| Err(Chain::new(text).under("Payload configuration is not bootable"));
        let Some(payload) = &mut self.payload else {
            return problem("No bootitem provided: neither firmware nor kernel");
        };
        match (&payload.firmware, &payload.kernel) {
            (Some(_), Some(_)) => problem("Specifying a kernel is not supported when a firmware is provided"),
            (None, None) => problem("No bootitem provided: neither firmware nor kernel"),
            (None, Some(_)) => Ok(()),
            (Some(_), None) => {
                payload.cmdline = None;
                payload.initramfs = None;
                Ok(())
            }
        }
    }

    fn check_consoles(&self) -> Outcome<()> {
        let missing = |mode, file: &Option<String>| mode == ConsoleOutputMode::File && file.is_none();
        if missing(self.console.common.mode, &self.console.common.file)
            || missing(self.serial.common.mode, &self.serial.common.file)
        {
            return Err(Chain::new("Path missing when using file console mode"));
        }
        Ok(())
    }

    fn check_vcpus(&self) -> Outcome<()> {
        let (boot, max) = (self.cpus.boot_vcpus, self.cpus.max_vcpus);
        if max < boot {
            return Err(Chain::new(format!("Max CPUs ({max}) lower than boot CPUs ({boot})")));
        }
        if max > MAX_VCPUS {
            return Err(Chain::new(format!("Too many CPUs: specified {max} but {MAX_VCPUS} is the limit")));
        }
        Ok(())
    }

    fn check_disk(&self, disk: &DiskConfig) -> Outcome<()> {
        if disk.vhost_socket.is_some() && disk.path.is_some() {
            return Err(Chain::new("Disk path and vhost socket both provided"));
        }
        self.check_vhost_user(disk.vhost_user, disk.vhost_socket.is_some())?;
        check_pci(&disk.pci_common)?;
        self.check_queues(disk.num_queues, disk.num_queues)?;
        check_queue_size(disk.queue_size)?;
        if disk.queue_size <= 2 {
            let size = disk.queue_size;
            return Err(Chain::new(format!("Block queue size must be greater than 2: {size}")));
        }
        match &disk.serial {
            Some(serial) if serial.len() > SERIAL_BYTES => Err(Chain::new(format!(
                "Block device serial length ({}) exceeds maximum allowed length ({SERIAL_BYTES})",
                serial.len()
            ))),
            _ => Ok(()),
        }
    }

    fn check_net(&self, net: &NetConfig) -> Outcome<()> {
        self.check_vhost_user(net.vhost_user, net.vhost_socket.is_some())?;
        check_pci(&net.pci_common)?;
        let queues = net.num_queues;
        if queues < 2 {
            return Err(Chain::new(format!("Number of queues ({queues}) to virtio_net should be higher than 2")));
        }
        check_net_fds(net)?;
        self.check_queues(queues / 2, queues)?;
        check_queue_size(net.queue_size)?;
        if let Some(mtu) = net.mtu.filter(|mtu| *mtu < 1280) {
            return Err(Chain::new(format!(
                "Provided MTU {mtu} is lower than 1280 (expected by VIRTIO specification)"
            )));
        }
        if !net.offload_csum && (net.offload_tso || net.offload_ufo) {
            return Err(Chain::new("\"offload_tso\" and \"offload_ufo\" depend on \"offload_csum\""));
        }
        match (&net.ip, &net.mask) {
            (None, Some(_)) => Err(Chain::new("Mask provided without an IP")),
            (Some(_), None) => Err(Chain::new("IP provided without a mask")),
            _ => Ok(()),
        }
    }

    fn check_vhost_user(&self, used: bool, has_socket: bool) -> Outcome<()> {
        if used && !self.backed_by_shared_memory() {
            return Err(Chain::new("Using vhost-user requires using shared memory or huge pages"));
        }
        if used && !has_socket {
            return Err(Chain::new("No socket provided when using vhost-user"));
        }
        Ok(())
    }

    fn check_vhost_user_users(&self) -> Outcome<()> {
        let lists = [&self.fs, &self.generic_vhost_user];
        let used = lists.iter().any(|l| l.as_ref().is_some_and(|l| !l.is_empty()));
        self.check_vhost_user(used, true)
    }

    fn check_queues(&self, per_vcpu: usize, named: usize) -> Outcome<()> {
        let vcpus = self.cpus.boot_vcpus;
        if per_vcpu > vcpus as usize {
            return Err(Chain::new(format!("Queue count ({named}) must not exceed boot vCPUs ({vcpus})")));
        }
        Ok(())
    }

    fn check_topology(&self) -> Outcome<()> {
        let Some(t) = &self.cpus.topology else {
            return Ok(());
        };
        let parts = [t.threads_per_core, t.cores_per_die, t.dies_per_package, t.packages];
        if parts.contains(&0) {
            return Err(Chain::new("No part of the CPU topology can be zero"));
        }
        if t.threads_per_core > 2 {
            return Err(Chain::new("CPU topology supports at most 2 threads per core"));
        }
        if parts.iter().map(|part| u32::from(*part)).product::<u32>() != self.cpus.max_vcpus {
            return Err(Chain::new("Product of CPU topology parts does not match maximum vCPU"));
        }
        Ok(())
    }

    fn check_memory(&self) -> Outcome<()> {
        if let Some(size) = self.memory.hugepage_size {
            if !self.memory.hugepages {
                return Err(Chain::new("Huge page size specified but huge pages not enabled"));
            }
            if !size.is_power_of_two() {
                return Err(Chain::new(format!("Huge page size is not power of 2: {size}")));
            }
        }
        let mut zones = self.memory.zones.iter().flatten();
        let both = zones.any(|z| z.shared && z.mergeable);
        if both || (self.memory.shared && self.memory.mergeable) {
            return Err(Chain::new("Invalid to set both 'mergeable' and 'shared' for memory"));
        }
        Ok(())
    }

    fn check_vsock(&self, ids: &mut BTreeSet<String>) -> Outcome<()> {
        let Some(vsock) = &self.vsock else {
            return Ok(());
        };
        if [u32::MAX, 0, 1, 2].contains(&vsock.cid) {
            return Err(Chain::new(format!("{} is a special VSOCK CID", vsock.cid)));
        }
        claim_id(ids, &vsock.pci_common)
    }

    fn check_balloon(&self, ids: &mut BTreeSet<String>) -> Outcome<()> {
        let Some(balloon) = &self.balloon else {
            return Ok(());
        };
        claim_id(ids, &balloon.pci_common)?;
        let (size, ram) = (balloon.size, self.ram_bytes());
        if size >= ram {
            return Err(Chain::new(format!("Balloon size ({size}) greater than RAM ({ram})")));
        }
        Ok(())
    }

    fn check_landlock(&self) -> Outcome<()> {
        for rule in self.landlock_rules.iter().flatten() {
            if !std::path::Path::new(&rule.path).exists() {
                return Err(Chain::new(format!("Path {:?} provided in landlock-rules does not exist", rule.path)));
            }
        }
        Ok(())
    }
}

fn check_net_fds(net: &NetConfig) -> Outcome<()> {
    let Some(fds) = &net.fds else { return Ok(()) };
    let wanted = fds.len() * 2;
    if wanted != net.num_queues {
        return Err(Chain::new(format!(
            "Number of queues ({}) to virtio_net does not match the number of FDs ({wanted})",
            net.num_queues
        )));
    }
    match fds.iter().find(|fd| **fd <= 2) {
        Some(fd) => Err(Chain::new(format!("Reserved fd number (<= 2): {fd}"))),
        None => Ok(()),
    }
}

fn check_queue_size(size: u16) -> Outcome<()> {
    if size.is_power_of_two() {
        return Ok(());
    }
    Err(Chain::new(format!("Queue size must be a power of 2 no greater than 32768: {size}")))
}

fn check_pci(common: &PciDeviceCommonConfig) -> Outcome<()> {
    match common.pci_device_id {
        Some(id) if id >= PCI_SLOTS => {
            Err(Chain::new(format!("Given PCI device ID ({id}) is out of the supported range of 0..{PCI_SLOTS}")))
        }
        Some(0) => Err(Chain::new("Given PCI device ID (0) is reserved")),
        _ if common.pci_segment > 0 => Err(Chain::new(format!("Invalid PCI segment id: {}", common.pci_segment))),
        _ => Ok(()),
    }
}

fn claim_id(ids: &mut BTreeSet<String>, common: &PciDeviceCommonConfig) -> Outcome<()> {
    let Some(id) = &common.id else { return Ok(()) };
    if id.starts_with("__") {
        return Err(Chain::new(format!("Identifier {id} is not invalid")));
    }
    if !ids.insert(id.clone()) {
        return Err(Chain::new(format!("Identifier {id} is not unique")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::VmConfig;

    fn problem(json: &str) -> Vec<String> {
        let mut config: VmConfig = serde_json::from_str(json).unwrap();
        config.validate().unwrap_err().texts().to_vec()
    }

    #[test]
    fn a_kernel_is_enough() {
        let mut config: VmConfig = serde_json::from_str(r#"{"payload":{"kernel":"/k"}}"#).unwrap();
        config.validate().unwrap();
    }

    #[test]
    fn the_texts_are_those_of_the_program() {
        let boot = "No bootitem provided: neither firmware nor kernel";
        assert_eq!(problem("{}"), ["Payload configuration is not bootable", boot]);
        let kernel = r#""payload":{"kernel":"/k"}"#;
        let with = |rest: &str| problem(&format!("{{{kernel},{rest}}}")).join("|");
        assert_eq!(with(r#""disks":[{"id":"a"},{"id":"a"}]"#), "Identifier a is not unique");
        assert_eq!(with(r#""cpus":{"boot_vcpus":2,"max_vcpus":1}"#), "Max CPUs (1) lower than boot CPUs (2)");
        assert_eq!(with(r#""net":[{"num_queues":4}]"#), "Queue count (4) must not exceed boot vCPUs (1)");
        assert_eq!(with(r#""vsock":{"cid":2,"socket":"/s"}"#), "2 is a special VSOCK CID");
    }
}
