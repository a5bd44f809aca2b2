//! `vm.add-*` and `vm.remove-device`: kept for the boot, or plugged into the VM (cloud-hypervisor.md 2.3).

use serde_json::{Value, json};

use super::Vmm;
use crate::api::{Answer, OpaqueKind};
use crate::config::{DiskConfig, NetConfig, Opaque, VmConfig, VsockConfig};
use crate::error::{Chain, Outcome};

impl Vmm {
    pub(super) fn add_disk(&mut self, mut disk: DiskConfig) -> Answer {
        self.try_config(|config| push(&mut config.disks, disk.clone()))?;
        let version = self.context.version;
        let config = self.config.as_mut().ok_or_else(Chain::not_created)?;
        let Some(vm) = &mut self.vm else {
            push(&mut config.disks, disk);
            return Ok(None);
        };
        check_new_id(&vm.devices.tree, disk.pci_common.id.as_deref())?;
        let bdf = vm.devices.create_disk(&mut disk, config, version).map_err(from_manager)?;
        let added = vm.devices.disks.pop().ok_or_else(Chain::not_running)?;
        let id = added.id.clone();
        if let Err(chain) = added.try_lock(version) {
            vm.devices.tree.remove_pci(&id);
            return Err(from_manager(chain.under("Cannot lock images of all block devices")));
        }
        vm.devices.disks.push(added);
        push(&mut config.disks, disk);
        Ok(Some(device_info(&id, &bdf)))
    }

    pub(super) fn add_net(&mut self, mut net: NetConfig) -> Answer {
        self.try_config(|config| push(&mut config.net, net.clone()))?;
        let config = self.config.as_mut().ok_or_else(Chain::not_created)?;
        let Some(vm) = &mut self.vm else {
            push(&mut config.net, net);
            return Ok(None);
        };
        check_new_id(&vm.devices.tree, net.pci_common.id.as_deref())?;
        let bdf = vm.devices.create_net(&mut net, config).map_err(from_manager)?;
        let id = net.pci_common.id.clone().unwrap_or_default();
        if let Some(added) = vm.devices.nets.last() {
            let spec = added.spec();
            vm.attach(spec.map_err(|e| from_manager(Chain::io("Cannot duplicate file descriptor", &e)))?);
        }
        push(&mut config.net, net);
        Ok(Some(device_info(&id, &bdf)))
    }

    pub(super) fn add_vsock(&mut self, mut vsock: VsockConfig) -> Answer {
        if self.config_mut()?.vsock.is_some() {
            return Err(Chain::new("Too many virtio-vsock devices"));
        }
        self.try_config(|config| config.vsock = Some(vsock.clone()))?;
        let config = self.config.as_mut().ok_or_else(Chain::not_created)?;
        let Some(vm) = &mut self.vm else {
            config.vsock = Some(vsock);
            return Ok(None);
        };
        let bdf = vm.devices.create_vsock(&mut vsock, config).map_err(from_manager)?;
        let id = vsock.pci_common.id.clone().unwrap_or_default();
        config.vsock = Some(vsock);
        Ok(Some(device_info(&id, &bdf)))
    }

    /// Devices that are not modelled can be configured, but not plugged in.
    pub(super) fn add_opaque(&mut self, kind: OpaqueKind, value: Value) -> Answer {
        self.try_config(|config| push(opaque_list(config, kind), value.clone()))?;
        if self.vm.is_some() {
            return Err(Chain::new("not simulated: this kind of device in a booted VM"));
        }
        push(opaque_list(self.config_mut()?, kind), value);
        Ok(None)
    }

    pub(super) fn remove_device(&mut self, id: &str) -> Outcome<()> {
        let config = self.config.as_mut().ok_or_else(Chain::not_created)?;
        let Some(vm) = &self.vm else {
            return match config.remove_device(id) {
                true => Ok(()),
                false => Err(Chain::new(format!("No device with id {id:?} to remove"))),
            };
        };
        let unknown = || Chain::new(format!("Failed to find device corresponding to the given identifier: {id}"));
        let removable = vm.devices.ids().iter().any(|known| known == id);
        if vm.devices.tree.contains(id) && !removable {
            let kind = id.trim_start_matches('_');
            return Err(from_manager(Chain::new(format!(
                "Not allowed to remove this type of device from the VM: {kind}"
            ))));
        }
        // The device stays in the tree and keeps its lock: this guest never ejects anything.
        if vm.devices.tree.contains(id) && config.remove_device(id) {
            return Ok(());
        }
        Err(from_manager(unknown()))
    }

    /// Validates a change on a copy of the configuration.
    fn try_config(&mut self, change: impl FnOnce(&mut VmConfig)) -> Outcome<()> {
        let mut copy = self.config_mut()?.clone();
        change(&mut copy);
        copy.validate().map_err(|chain| chain.under("Failed to validate config"))
    }
}

fn opaque_list(config: &mut VmConfig, kind: OpaqueKind) -> &mut Opaque {
    match kind {
        OpaqueKind::Device => &mut config.devices,
        OpaqueKind::UserDevice => &mut config.user_devices,
        OpaqueKind::Fs => &mut config.fs,
        OpaqueKind::GenericVhostUser => &mut config.generic_vhost_user,
        OpaqueKind::Pmem => &mut config.pmem,
        OpaqueKind::Vdpa => &mut config.vdpa,
    }
}

/// An identifier may still be in the tree after its device left the configuration.
fn check_new_id(tree: &super::tree::Tree, id: Option<&str>) -> Outcome<()> {
    match id {
        Some(id) if tree.contains(id) => {
            Err(from_manager(Chain::new(format!("Invalid identifier as it is not unique: {id}"))))
        }
        _ => Ok(()),
    }
}

fn from_manager(chain: Chain) -> Chain {
    chain.under("Error from device manager")
}

fn push<T>(list: &mut Option<Vec<T>>, item: T) {
    list.get_or_insert_default().push(item);
}

fn device_info(id: &str, bdf: &str) -> String {
    format!(r#"{{"id":{},"bdf":"{bdf}"}}"#, json!(id))
}
