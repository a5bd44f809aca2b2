//! What the guests of the host in memory remember: which memory each VM runs on, where that was frozen, and who went on
//! from it.

use std::path::Path;

use runner_ch::hypervisor;

use super::{FakeVmm, Host, HostState, refused};

/// A VM's memory.
#[derive(Debug, Clone, Default)]
pub struct Guest {
    /// Its name; made at a boot, and kept wherever that memory is brought back.
    pub memory: Option<u64>,
    /// It is frozen under this number, and nobody has gone on from that yet.
    frozen: Option<u64>,
    unloaded: bool,
}

/// A frozen memory.
#[derive(Debug, Clone)]
pub struct Image {
    pub memory: u64,
    pub complete: bool,
    number: u64,
    /// Writes to the disk that it knows of.
    writes: u64,
    /// It is the sandbox's own and no copy's.
    own: bool,
}

impl HostState {
    /// Memories have names up to this number.
    pub fn memories(&self) -> u64 {
        self.memories
    }

    fn number(&mut self) -> u64 {
        self.memories += 1;
        self.memories
    }

    /// Everything that outlives a runner, as text.
    pub fn fingerprint(&self) -> String {
        let mut vmms: Vec<_> = self.vmms.values().map(FakeVmm::fingerprint).collect();
        vmms.sort();
        format!(
            "{vmms:?} {:?} {:?} {:?} {} {:?} {:?} {:?} {:?} {:?}",
            self.slots,
            self.disks,
            self.captures,
            self.held,
            self.checkpoints,
            self.writes.iter().collect::<std::collections::BTreeMap<_, _>>(),
            self.snapshots.keys().collect::<std::collections::BTreeSet<_>>(),
            self.images,
            self.spent,
        )
    }
}

impl Host {
    /// The memory that the sandbox's VM runs on.
    pub fn memory(&self, sandbox: &str) -> Option<u64> {
        self.0.borrow().vmms.get(sandbox)?.guest.borrow().memory
    }

    /// The memory that lies in this directory of the sandbox.
    pub fn frozen(&self, sandbox: &str) -> Option<u64> {
        let dir = Path::new("/nowhere").join(sandbox).join("checkpoint/device");
        self.0.borrow().images.get(&dir).filter(|image| image.complete).map(|image| image.memory)
    }

    pub(super) fn copy_image(&self, from: &Path, to: &Path) -> Result<(), hypervisor::Error> {
        let image = self.0.borrow().images.get(from).cloned().ok_or_else(|| refused("no-image"))?;
        let own = to.parent().is_some_and(|sandbox| from.starts_with(sandbox.join("checkpoint")));
        self.0.borrow_mut().images.insert(to.to_owned(), Image { own, ..image });
        Ok(())
    }

    /// The memory's file is complete; its device state lies beside it.
    pub(super) fn complete_image(&self, memory: &Path) {
        if let Some(image) = self.0.borrow_mut().images.get_mut(&memory.with_file_name("device")) {
            image.complete = true;
        }
    }

    pub(super) fn forget_images(&self, below: &Path) {
        self.0.borrow_mut().images.retain(|dir, _| !dir.starts_with(below));
    }
}

impl FakeVmm {
    /// The same on another host.
    pub(super) fn moved(&self, host: &Host) -> Self {
        Self {
            host: host.clone(),
            sandbox: self.sandbox.clone(),
            known: self.known.clone(),
            running: std::rc::Rc::new(self.running.get().into()),
            guest: std::rc::Rc::new(self.guest.borrow().clone().into()),
            exited: std::rc::Rc::default(),
        }
    }

    fn fingerprint(&self) -> String {
        format!("{} {} {} {:?}", self.sandbox, self.known.process.pid, self.running.get(), self.guest)
    }

    pub(super) fn boots(&self) {
        let memory = self.host.0.borrow_mut().number();
        *self.guest.borrow_mut() = Guest { memory: Some(memory), ..Guest::default() };
    }

    pub(super) fn unloads(&self) {
        self.running.set(false);
        self.guest.borrow_mut().unloaded = true;
    }

    pub(super) fn freeze(&self, dir: &Path) {
        let number = self.host.0.borrow_mut().number();
        let mut guest = self.guest.borrow_mut();
        guest.frozen = Some(number);
        let mut host = self.host.0.borrow_mut();
        let writes = host.writes.get(&self.sandbox).copied().unwrap_or_default();
        if let Some(memory) = guest.memory {
            let image = Image { memory, complete: false, number, writes, own: false };
            host.images.insert(dir.to_owned(), image);
        }
    }

    pub(super) fn bring_back(&self, dir: &Path) -> Result<(), hypervisor::Error> {
        let image = self.host.0.borrow().images.get(dir).cloned().ok_or_else(|| refused("no-image"))?;
        self.host.insist(image.complete, "a memory is brought back that was not complete");
        let writes = self.host.0.borrow().writes.get(&self.sandbox).copied().unwrap_or_default();
        self.host.insist(!image.own || image.writes == writes, "a memory meets a newer disk");
        let frozen = Some(image.number).filter(|_| image.own);
        *self.guest.borrow_mut() = Guest { memory: Some(image.memory), frozen, unloaded: false };
        Ok(())
    }

    /// From a frozen memory of its own only one VMM goes on: the one that wrote it, or one that it was brought back to.
    pub(super) fn goes_on(&self) -> Result<(), hypervisor::Error> {
        if self.guest.borrow().unloaded {
            return Err(refused("no-vm"));
        }
        if let Some(number) = self.guest.borrow().frozen {
            let pid = self.known.process.pid;
            let first = *self.host.0.borrow_mut().spent.entry(number).or_insert(pid);
            self.host.insist(first == pid, "a memory is gone on from twice");
        }
        Ok(())
    }
}
