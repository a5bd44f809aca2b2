//! `vm.send-migration` and `vm.receive-migration`: only their refusals are simulated.

use super::Vmm;
use crate::config::{VmReceiveMigrationData, VmSendMigrationData};
use crate::error::{Chain, Outcome};

impl Vmm {
    pub(super) fn send_migration(&mut self, data: &VmSendMigrationData) -> Outcome<()> {
        let send = |chain: Chain| chain.under("Failed to send migratable component snapshot");
        let Some(vm) = &mut self.vm else {
            return Err(send(Chain::new("VM is not running")));
        };
        if vm.is_loading() {
            let text = "Cannot migrate while on-demand memory restore is in progress";
            return Err(send(Chain::new(text)));
        }
        let url = &data.destination_url;
        Err(send(Chain::new(format!("not simulated: migration to {url}"))))
    }

    pub(super) fn receive_migration(&mut self, data: &VmReceiveMigrationData) -> Outcome<()> {
        let receive = |chain: Chain| chain.under("Failed to receive migratable component snapshot");
        if self.vm.is_some() {
            let text = "Can't receive a migration when a VM is already created";
            return Err(receive(Chain::new(text)));
        }
        let url = &data.receiver_url;
        Err(receive(Chain::new(format!("not simulated: migration from {url}"))))
    }
}
