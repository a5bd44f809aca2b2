//! Disks, TAPs and the vsock socket of a VM.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use super::tree::Tree;
use crate::config::{ConsoleOutputMode, DiskConfig, MacAddr, NetConfig, PciDeviceCommonConfig, VmConfig, VsockConfig};
use crate::disk::{Disk, Image};
use crate::error::{Chain, Outcome};
use crate::guest::NetSpec;
use crate::log::Log;
use crate::tap;
use crate::version::Version;

/// A net device.
pub struct Net {
    pub id: String,
    pub mac: MacAddr,
    tap: OwnedFd,
}

/// The vsock device: its socket is bound here and unlinked on an orderly end.
pub struct Vsock {
    id: String,
    path: String,
    _socket: UnixListener,
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// All devices of a VM.
#[derive(Default)]
pub struct Devices {
    pub tree: Tree,
    pub disks: Vec<Disk>,
    pub nets: Vec<Net>,
    pub vsock: Option<Vsock>,
    next_name: usize,
}

impl Devices {
    /// Makes all configured devices in the program's order. While a list is worked on it is taken out of the
    /// configuration, so a failure forgets it (cloud-hypervisor.md 1).
    pub fn create(&mut self, config: &mut VmConfig, version: Version) -> Outcome<()> {
        self.tree.add("__ioapic");
        if config.console.common.mode != ConsoleOutputMode::Off {
            let id = config.console.pci_common.id.clone();
            self.tree.add_pci(id.as_deref().unwrap_or("__console"), None)?;
        }
        if let Some(mut disks) = config.disks.take() {
            for disk in &mut disks {
                self.create_disk(disk, config, version)?;
            }
            config.disks = Some(disks);
        }
        if let Some(mut nets) = config.net.take() {
            for net in &mut nets {
                self.create_net(net, config)?;
            }
            config.net = Some(nets);
        }
        let rng = config.rng.pci_common.id.clone();
        self.tree.add_pci(rng.as_deref().unwrap_or("__rng"), None)?;
        if let Some(mut vsock) = config.vsock.take() {
            let made = self.create_vsock(&mut vsock, config);
            config.vsock = Some(vsock);
            made?;
        }
        if config.balloon.is_some() {
            self.tree.add_pci("__balloon", None)?;
        }
        if config.pvpanic {
            self.tree.add("__pvpanic");
        }
        Ok(())
    }

    /// Opens a disk; returns its PCI address. The lock is taken later.
    pub fn create_disk(&mut self, disk: &mut DiskConfig, config: &VmConfig, version: Version) -> Outcome<String> {
        let id = self.name(&mut disk.pci_common, "_disk", config);
        let opened = Disk::open(disk, id.clone(), version)?;
        self.disks.push(opened);
        self.tree.add_pci(&id, disk.pci_common.pci_device_id)
    }

    /// Opens a TAP; returns the PCI address of the card.
    pub fn create_net(&mut self, net: &mut NetConfig, config: &VmConfig) -> Outcome<String> {
        let id = self.name(&mut net.pci_common, "_net", config);
        let tap = tap::open(net)?;
        let bdf = self.tree.add_pci(&id, net.pci_common.pci_device_id)?;
        self.nets.push(Net { id, mac: net.mac, tap });
        Ok(bdf)
    }

    /// Binds the vsock socket; returns the PCI address of the device.
    pub fn create_vsock(&mut self, vsock: &mut VsockConfig, config: &VmConfig) -> Outcome<String> {
        let id = self.name(&mut vsock.pci_common, "_vsock", config);
        let socket = UnixListener::bind(&vsock.socket).map_err(|error| {
            Chain::io("Error binding to the host-side Unix socket", &error).under("Cannot create virtio-vsock backend")
        })?;
        self.vsock = Some(Vsock { id: id.clone(), path: vsock.socket.clone(), _socket: socket });
        self.tree.add_pci(&id, vsock.pci_common.pci_device_id)
    }

    /// The given identifier, or a new one that is written back. One counter serves all kinds of devices.
    fn name(&mut self, common: &mut PciDeviceCommonConfig, prefix: &str, config: &VmConfig) -> String {
        if let Some(id) = &common.id {
            return id.clone();
        }
        loop {
            let name = format!("{prefix}{}", self.next_name);
            self.next_name += 1;
            if !self.tree.contains(&name) && !uses(config, &name) {
                common.id = Some(name.clone());
                return name;
            }
        }
    }

    /// Locks all disk images.
    pub fn lock_disks(&self, version: Version) -> Outcome<()> {
        self.disks.iter().try_for_each(|disk| disk.try_lock(version))
    }

    /// Images of all disks, and whether they may be written.
    pub fn images(&self) -> Vec<(Arc<Mutex<Image>>, bool)> {
        self.disks.iter().map(|disk| (disk.image(), disk.is_writable())).collect()
    }

    /// The guest's card: the first one, on a descriptor of its own.
    pub fn guest_net(&self) -> io::Result<Option<NetSpec>> {
        self.nets.first().map(Net::spec).transpose()
    }

    /// Identifiers of virtio devices.
    pub fn ids(&self) -> Vec<String> {
        let disks = self.disks.iter().map(|disk| disk.id.clone());
        let nets = self.nets.iter().map(|net| net.id.clone());
        let vsock = self.vsock.iter().map(|vsock| vsock.id.clone());
        disks.chain(nets).chain(vsock).collect()
    }

    /// Writes disks back and closes everything.
    pub fn close(self, log: &Log) {
        for disk in &self.disks {
            let image = disk.image();
            let Ok(mut image) = image.lock() else { continue };
            if let Err(error) = image.close() {
                log.error(&format!("Failed to flush disk {}: {error}", disk.id));
            }
        }
    }
}

impl Net {
    /// The card for the guest.
    pub fn spec(&self) -> io::Result<NetSpec> {
        Ok(NetSpec { tap: self.tap.try_clone()?, mac: self.mac.0 })
    }
}

/// Whether an explicit identifier of the configuration is this one.
fn uses(config: &VmConfig, id: &str) -> bool {
    let disks = config.disks.iter().flatten().map(|disk| &disk.pci_common);
    let nets = config.net.iter().flatten().map(|net| &net.pci_common);
    let vsock = config.vsock.iter().map(|vsock| &vsock.pci_common);
    disks.chain(nets).chain(vsock).any(|common| common.id.as_deref() == Some(id))
}
