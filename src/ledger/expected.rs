//! What should be on the host, by what the sandboxes' actors say of themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::disk::SandboxDisks;
use crate::fork::capture::MEMORY;
use crate::hypervisor::wire::MemoryLayout;
use crate::hypervisor::{ProcessIdentity, VmState};
use crate::ids::{LinkName, NetnsName, SandboxId};
use crate::net;
use crate::sandbox::{Record, Rest};

/// How a sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is under way.
    Rests(Rest),
    /// Something is under way, or about to be.
    Busy,
}

/// What a VMM said of its VM; none: there is no VM. The error is that it did not answer.
pub type VmAnswer = Result<Option<VmState>, String>;

/// One sandbox as its actor has it, at one instant.
#[derive(Debug, Clone)]
pub struct Stock {
    /// Its record, which may be ahead of the store.
    pub record: Box<Record>,
    /// How it stands.
    pub standing: Standing,
    /// Names of its network, while it has a slot.
    pub network: Option<net::Plan>,
    /// Where its API socket is or would be.
    pub socket: PathBuf,
    /// Its directory.
    pub dir: PathBuf,
    /// What its VMM says; none where it has none or was not asked.
    pub vm: Option<VmAnswer>,
}

/// All sandboxes at one instant.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// Those whose actors answered.
    pub stocks: Vec<Stock>,
    /// Those of which nothing is known but that they are there: their records cannot be read, or their actors are
    /// being rebuilt.
    pub unknown: Vec<SandboxId>,
}

/// A sandbox that has a VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alive {
    /// The VMM.
    pub process: ProcessIdentity,
    /// Its namespace.
    pub netns: NetnsName,
    /// The host's end of its veth.
    pub link: LinkName,
    /// Rules in the namespace.
    pub rules: usize,
    /// The memory file that the VM maps.
    pub memory: Option<PathBuf>,
    /// The VM is to be paused.
    pub paused: bool,
    /// What the VMM says; none where it was not asked.
    pub vm: Option<VmAnswer>,
}

/// A sandbox at rest, and what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its directory.
    pub dir: PathBuf,
    /// Where its API socket is or would be.
    pub socket: PathBuf,
    /// Its disks.
    pub disks: Option<SandboxDisks>,
    /// It has a checkpoint.
    pub checkpoint: bool,
    /// What it has as long as it has a VMM.
    pub alive: Option<Alive>,
}

/// What should be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// By id; none: nothing may be said about this sandbox.
    pub sandboxes: BTreeMap<SandboxId, Option<Sandbox>>,
}

impl Expected {
    /// What was so before a survey and still is after it. About a sandbox that was not the same at both instants
    /// nothing can be said.
    pub fn between(before: &Inventory, after: &Inventory) -> Self {
        let (mut before, mut after) = (Self::at(before), Self::at(after));
        for (id, wanted) in &mut after.sandboxes {
            let earlier = before.sandboxes.remove(id).flatten();
            // The VMMs are asked once, afterwards.
            let same = match (&earlier, &*wanted) {
                (Some(earlier), Some(now)) => earlier.without_answer() == now.without_answer(),
                _ => false,
            };
            if !same {
                *wanted = None;
            }
        }
        // Those that have gone meanwhile.
        after.sandboxes.extend(before.sandboxes.into_keys().map(|id| (id, None)));
        after
    }

    /// What should be at one instant, for as long as nothing begins: that of sandboxes that are held still.
    pub fn at(inventory: &Inventory) -> Self {
        let known = inventory.stocks.iter().map(|stock| (stock.record.id.clone(), sandbox(stock)));
        let unknown = inventory.unknown.iter().map(|id| (id.clone(), None));
        Self { sandboxes: known.chain(unknown).collect() }
    }

    /// The sandbox: `None` when there is none of that id, `Some(None)` when nothing may be said about it.
    pub fn get(&self, id: &SandboxId) -> Option<Option<&Sandbox>> {
        self.sandboxes.get(id).map(Option::as_ref)
    }

    /// The sandboxes of which something can be said.
    pub fn at_rest(&self) -> impl Iterator<Item = (&SandboxId, &Sandbox)> {
        self.sandboxes.iter().filter_map(|(id, sandbox)| Some((id, sandbox.as_ref()?)))
    }
}

impl Sandbox {
    fn without_answer(&self) -> Self {
        let mut same = self.clone();
        if let Some(alive) = &mut same.alive {
            alive.vm = None;
        }
        same
    }

    /// A path as it is below the sandbox's directory; none for one that lies elsewhere.
    pub fn inside<'a>(&self, path: &'a Path) -> Option<&'a str> {
        path.strip_prefix(&self.dir).ok()?.to_str()
    }
}

/// `None` for one of which nothing can be said: it is busy, or a tear-down of it failed and who knows what is left.
fn sandbox(stock: &Stock) -> Option<Sandbox> {
    let record = &stock.record;
    let alive = match stock.standing {
        Standing::Busy | Standing::Rests(Rest::Broken | Rest::Unknown | Rest::Absent) => return None,
        Standing::Rests(Rest::Stopped) => None,
        // At rest with a VMM, and without one or without a network: nothing that is known of fits.
        Standing::Rests(rest @ (Rest::Started | Rest::Paused)) => {
            Some(alive(record, stock.network.as_ref()?, rest == Rest::Paused, stock.vm.clone())?)
        }
    };
    Some(Sandbox {
        dir: stock.dir.clone(),
        socket: stock.socket.clone(),
        disks: record.disks.clone(),
        checkpoint: record.checkpoint.is_some(),
        alive,
    })
}

fn alive(record: &Record, network: &net::Plan, paused: bool, vm: Option<VmAnswer>) -> Option<Alive> {
    let spec = &record.spec;
    let egress = net::Egress::new(spec.network_block_all, spec.network_allow_list.as_deref());
    Some(Alive {
        process: record.vmm.as_ref()?.process.clone(),
        netns: network.netns.clone(),
        link: network.host_link.clone(),
        rules: net::rule_count(&egress),
        memory: match &record.layout {
            Some(MemoryLayout::File { path } | MemoryLayout::Private { path }) => {
                debug_assert!(path.ends_with(MEMORY));
                Some(path.clone())
            }
            Some(MemoryLayout::Shared | MemoryLayout::Anonymous) | None => None,
        },
        paused,
        vm,
    })
}
