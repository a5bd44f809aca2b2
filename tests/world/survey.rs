//! What the host in memory shows of itself: the truth about what its effects have made.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use runner_ch::disk::DiskLeak;
use runner_ch::disk::survey::{DirectorySeen, DiskSurvey};
use runner_ch::hypervisor::survey::SocketSeen;
use runner_ch::hypervisor::{self, Exit, ProcessSeen, VmmSurvey};
use runner_ch::ids::SandboxId;
use runner_ch::net::survey::{LinkSeen, Maker, NamespaceSeen, Naming};
use runner_ch::net::{self, Egress, Leaked, NetworkSurvey};

use super::Host;

fn id(name: &str) -> SandboxId {
    name.parse().expect("an id")
}

impl Host {
    /// Namespaces and links by the slots that they were made in.
    pub fn networks_seen(&self) -> NetworkSurvey {
        let host = self.0.borrow();
        let namespaces = host.networks.keys().map(|name| NamespaceSeen {
            name: id(name).netns(),
            naming: Naming::Mounted,
            maker: Maker::Us,
            sandbox: Some(id(name)),
            tap: true,
            uplink: true,
            other_taps: Vec::new(),
            rules: net::rule_count(&Egress::Open),
        });
        let links = host.networks.iter().map(|(name, link)| LinkSeen {
            name: link.clone(),
            sandbox: id(name),
            maker: Maker::Us,
        });
        NetworkSurvey {
            namespaces: namespaces.collect(),
            links: links.collect(),
            bridge: ("br0".to_owned(), true),
            host_rules: 1,
            host_rules_made: 1,
            unread: Vec::new(),
        }
    }

    pub fn remove_network(&self, leaked: &Leaked) -> bool {
        self.0.borrow_mut().networks.remove(leaked.sandbox().as_str()).is_some()
    }

    pub fn vmms_seen(&self, sockets: &Path) -> VmmSurvey {
        let host = self.0.borrow();
        let mut survey = VmmSurvey::default();
        for (name, vmm) in &host.vmms {
            let socket = sockets.join(format!("{name}.sock"));
            let process = vmm.known.process.clone();
            survey.sockets.insert(id(name), (socket.clone(), SocketSeen::Served(process.pid)));
            survey.processes.push(ProcessSeen { process, socket });
        }
        survey
    }

    pub fn end_vmm(&self, stray: &ProcessSeen) -> bool {
        let found = self.0.borrow().vmms.values().find(|vmm| vmm.known.process == stray.process).cloned();
        if let Some(vmm) = &found {
            vmm.exit(Exit::Signal { signal: 9 });
        }
        found.is_some()
    }

    pub fn disks_seen(&self) -> DiskSurvey {
        let host = self.0.borrow();
        let disk = if host.raw { "disk.raw" } else { "disk.qcow2" };
        let directories = host.disks.iter().map(|name| {
            let mut files: BTreeSet<String> = [disk, "seed.img", "memory"].map(str::to_owned).into();
            if host.checkpoints.contains(name) {
                let parts = ["checkpoint/", "checkpoint/memory", "checkpoint/device/"];
                let device = ["checkpoint/device/config.json", "checkpoint/device/state.json"];
                files.extend(parts.into_iter().chain(device).map(str::to_owned));
            }
            DirectorySeen { sandbox: id(name), path: Path::new("/nowhere").join(name), private: true, files }
        });
        DiskSurvey { root: PathBuf::from("/nowhere"), directories: directories.collect(), ..DiskSurvey::default() }
    }

    pub fn remove_disk(&self, leak: &DiskLeak) -> bool {
        let mut host = self.0.borrow_mut();
        match leak {
            DiskLeak::Directory(id) => host.disks.remove(id.as_str()),
            DiskLeak::Checkpoint(id) => host.checkpoints.remove(id.as_str()),
            DiskLeak::Unfinished(..) | DiskLeak::Capture(_) | DiskLeak::Layer(_) => false,
        }
    }
}

pub fn answer<'a, T: 'a, E: 'a>(value: T) -> LocalBoxFuture<'a, Result<T, E>> {
    async { Ok(value) }.boxed_local()
}

pub type Networks<'a, T> = LocalBoxFuture<'a, Result<T, net::Error>>;
pub type Vmms<'a, T> = LocalBoxFuture<'a, Result<T, hypervisor::Error>>;
