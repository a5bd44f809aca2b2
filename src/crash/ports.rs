//! A crash point before and after every effect of every port.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::armed::{enabled, point};
use crate::control_plane::{self, ControlPlane, Healthcheck, JobPage, JobReport, Jobs, RemoteSandbox, StateUpdate};
use crate::disk::{self, Disks, Graft, RootDisk, SandboxDisks, Space, Stamp, Strategy};
use crate::error::Failure;
use crate::hypervisor::bundle::Bundle;
use crate::hypervisor::snapshot::{Adaptation, SnapshotMemory};
use crate::hypervisor::{self, Exit, Hypervisor, Known, Launch, ProcessIdentity, Version, VmConfig, VmState, Vmm};
use crate::ids::{JobId, SandboxId, SnapshotRef};
use crate::jobs::journal::Entry;
use crate::memory::{self, Delta, Memory, Proof, Source, Taken};
use crate::net::{self, Namespace, Network};
use crate::ports::Ports;
use crate::sandbox::Record;
use crate::snapshots::{self, Found, Manifest, Save, Snapshots};
use crate::store::{self, Loaded, Store};
use crate::toolbox::{Renewal, Toolbox};

/// The ports with a crash point before and after each effect, if points are looked for.
pub fn ports(ports: Ports) -> Ports {
    if !enabled() {
        return ports;
    }
    Ports {
        network: Rc::new(Around(ports.network)),
        disks: Rc::new(Around(ports.disks)),
        memory: Rc::new(Around(ports.memory)),
        snapshots: Rc::new(Around(ports.snapshots)),
        hypervisor: Rc::new(Around(ports.hypervisor)),
        toolbox: Rc::new(Around(ports.toolbox)),
        store: Rc::new(Around(ports.store)),
        control_plane: Rc::new(Around(ports.control_plane)),
    }
}

struct Around<T: ?Sized>(Rc<T>);

fn around<'a, T: 'a>(name: &'static str, effect: LocalBoxFuture<'a, T>) -> LocalBoxFuture<'a, T> {
    async move {
        point(&format!("{name}:before"));
        let done = effect.await;
        point(&format!("{name}:after"));
        done
    }
    .boxed_local()
}

/// Methods that are effects, each between two points that are named for it.
macro_rules! effects {
    ($kind:literal; $(fn $name:ident($($argument:ident: $type:ty),*) -> $out:ty;)*) => {
        $(fn $name<'a>(&'a self, $($argument: $type),*) -> LocalBoxFuture<'a, $out> {
            around(concat!($kind, ".", stringify!($name)), self.0.$name($($argument),*))
        })*
    };
}

impl Network for Around<dyn Network> {
    effects! { "net";
        fn prepare_host() -> Result<(), net::Error>;
        fn create(plan: &'a net::Plan) -> Result<Namespace, net::Error>;
        fn open(plan: &'a net::Plan) -> Result<Namespace, net::Error>;
        fn remove(plan: &'a net::Plan) -> Result<(), net::Error>;
        fn survey() -> Result<net::survey::NetworkSurvey, net::Error>;
        fn remove_leaked(leaked: &'a net::survey::Leaked) -> Result<bool, net::Error>;
    }
}

impl Disks for Around<dyn Disks> {
    fn strategy(&self) -> Strategy {
        self.0.strategy()
    }

    fn dir(&self, sandbox: &SandboxId) -> PathBuf {
        self.0.dir(sandbox)
    }

    effects! { "disk";
        fn create(plan: &'a disk::Plan) -> Result<SandboxDisks, disk::Error>;
        fn remove(sandbox: &'a SandboxId) -> Result<(), disk::Error>;
        fn hold(sandbox: &'a SandboxId, root: &'a RootDisk) -> Result<(), disk::Error>;
        fn begin_capture() -> Result<PathBuf, disk::Error>;
        fn begin_checkpoint(sandbox: &'a SandboxId) -> Result<PathBuf, disk::Error>;
        fn end_checkpoint(sandbox: &'a SandboxId) -> Result<(), disk::Error>;
        fn end_capture(dir: &'a Path) -> Result<(), disk::Error>;
        fn flush(root: &'a RootDisk) -> Result<(), disk::Error>;
        fn freeze(root: &'a RootDisk, capture: &'a Path) -> Result<RootDisk, disk::Error>;
        fn split(sandbox: &'a SandboxId, root: &'a RootDisk) -> Result<(RootDisk, RootDisk), disk::Error>;
        fn after_split(sandbox: &'a SandboxId, root: &'a RootDisk, stamp: Stamp) -> Result<Option<(RootDisk, Stamp)>, disk::Error>;
        fn release(frozen: &'a RootDisk) -> Result<(), disk::Error>;
        fn graft(graft: &'a Graft) -> Result<SandboxDisks, disk::Error>;
        fn room(sandbox: &'a SandboxId) -> Result<(), disk::Error>;
        fn grow(root: &'a RootDisk, size: u64) -> Result<RootDisk, disk::Error>;
        fn stamp(root: &'a RootDisk) -> Result<Stamp, disk::Error>;
        fn merge(root: &'a RootDisk) -> Result<Option<PathBuf>, disk::Error>;
        fn rebase(sandbox: &'a SandboxId, root: &'a RootDisk, merged: &'a Path) -> Result<RootDisk, disk::Error>;
        fn sweep() -> Result<u64, disk::Error>;
        fn survey() -> Result<disk::survey::DiskSurvey, disk::Error>;
        fn remove_leaked(leak: &'a disk::survey::DiskLeak) -> Result<bool, disk::Error>;
        fn users_of(dir: &'a Path) -> Result<Vec<SandboxId>, disk::Error>;
        fn space() -> Result<Space, disk::Error>;
        fn snapshot_count() -> Result<u64, disk::Error>;
    }
}

impl Memory for Around<dyn Memory> {
    effects! { "memory";
        fn blank(path: &'a Path, size: u64) -> Result<(), memory::Error>;
        fn own(path: &'a Path, size: u64) -> Result<(), memory::Error>;
        fn sync(files: &'a [PathBuf]) -> Result<(), memory::Error>;
        fn share(file: &'a Path, name: &'a Path) -> Result<(), memory::Error>;
        fn verify(process: &'a ProcessIdentity, file: &'a Path, size: u64) -> Result<Proof, memory::Error>;
    }

    fn prepare<'a>(
        &'a self,
        source: &'a Source,
        target: &'a Path,
    ) -> LocalBoxFuture<'a, Result<Rc<dyn Delta>, memory::Error>> {
        let prepared = async move {
            let delta = self.0.prepare(source, target).await?;
            Ok(Rc::new(Around(delta)) as Rc<dyn Delta>)
        };
        around("memory.prepare", prepared.boxed_local())
    }
}

impl Delta for Around<dyn Delta> {
    effects! { "memory";
        fn take() -> Result<Taken, memory::Error>;
        fn keep(durable: bool) -> Result<(), memory::Error>;
    }
}

impl Snapshots for Around<dyn Snapshots> {
    fn dir(&self, reference: &SnapshotRef) -> PathBuf {
        self.0.dir(reference)
    }

    effects! { "snapshots";
        fn save(save: &'a Save) -> Result<Manifest, snapshots::Error>;
        fn find(reference: &'a SnapshotRef) -> Result<Option<Found>, snapshots::Error>;
        fn remove(reference: &'a SnapshotRef, users: &'a [SandboxId]) -> Result<bool, snapshots::Error>;
        fn survey() -> Result<snapshots::SnapshotSurvey, snapshots::Error>;
        fn remove_leaked(path: &'a Path) -> Result<bool, snapshots::Error>;
        fn sweep() -> Result<u64, snapshots::Error>;
    }
}

impl Hypervisor for Around<dyn Hypervisor> {
    fn launch<'a>(&'a self, launch: &'a Launch) -> LocalBoxFuture<'a, Result<Rc<dyn Vmm>, hypervisor::Error>> {
        let launched = async move { Ok(Rc::new(Around(self.0.launch(launch).await?)) as Rc<dyn Vmm>) };
        around("vmm.launch", launched.boxed_local())
    }

    fn adopt<'a>(
        &'a self,
        launch: &'a Launch,
        known: &'a Known,
    ) -> LocalBoxFuture<'a, Result<Option<Rc<dyn Vmm>>, hypervisor::Error>> {
        let adopted = async move {
            let adopted = self.0.adopt(launch, known).await?;
            Ok(adopted.map(|vmm| Rc::new(Around(vmm)) as Rc<dyn Vmm>))
        };
        around("vmm.adopt", adopted.boxed_local())
    }

    fn post_mortem<'a>(&'a self, launch: &'a Launch, known: &'a Known) -> LocalBoxFuture<'a, Exit> {
        self.0.post_mortem(launch, known)
    }

    effects! { "vmm";
        fn keep(bundle: &'a Bundle) -> Result<(), hypervisor::Error>;
        fn survey(sockets: &'a Path) -> Result<hypervisor::VmmSurvey, hypervisor::Error>;
        fn end_stray(stray: &'a hypervisor::ProcessSeen) -> Result<bool, hypervisor::Error>;
        fn remove_stale(socket: &'a Path) -> Result<bool, hypervisor::Error>;
        fn clear(launch: &'a Launch) -> Result<(), hypervisor::Error>;
        fn adapt(from: &'a Path, to: &'a Path, adaptation: &'a Adaptation) -> Result<(), hypervisor::Error>;
        fn copy_snapshot(from: &'a Path, to: &'a Path) -> Result<(), hypervisor::Error>;
    }
}

impl Vmm for Around<dyn Vmm> {
    fn identity(&self) -> &ProcessIdentity {
        self.0.identity()
    }

    fn version(&self) -> &Version {
        self.0.version()
    }

    fn known(&self) -> Known {
        self.0.known()
    }

    fn panicked(&self) -> LocalBoxFuture<'_, Option<String>> {
        self.0.panicked()
    }

    fn exited(&self) -> LocalBoxFuture<'_, Exit> {
        self.0.exited()
    }

    effects! { "vm";
        fn create(config: &'a VmConfig) -> Result<(), hypervisor::Error>;
        fn boot() -> Result<(), hypervisor::Error>;
        fn state() -> Result<Option<VmState>, hypervisor::Error>;
        fn power_button() -> Result<(), hypervisor::Error>;
        fn pause() -> Result<(), hypervisor::Error>;
        fn resume() -> Result<(), hypervisor::Error>;
        fn snapshot(dir: &'a Path, memory: SnapshotMemory) -> Result<(), hypervisor::Error>;
        fn restore(dir: &'a Path) -> Result<(), hypervisor::Error>;
        fn resize(vcpus: u32) -> Result<(), hypervisor::Error>;
        fn unload() -> Result<(), hypervisor::Error>;
        fn end(grace: Duration) -> Result<Exit, hypervisor::Error>;
    }
}

impl Toolbox for Around<dyn Toolbox> {
    effects! { "guest";
        fn wait_ready(netns: &'a Namespace, patience: Duration) -> Result<String, Failure>;
        fn init(netns: &'a Namespace, token: &'a str) -> Result<(), Failure>;
        fn renew(netns: &'a Namespace, renewal: &'a Renewal) -> Result<(), Failure>;
    }
}

impl Store for Around<dyn Store> {
    effects! { "store";
        fn load() -> Result<Loaded, store::Error>;
        fn sandbox(id: &'a SandboxId) -> Result<Option<Record>, store::Error>;
        fn put_sandbox(record: &'a Record) -> Result<(), store::Error>;
        fn remove_sandbox(id: &'a SandboxId) -> Result<(), store::Error>;
        fn put_job(entry: &'a Entry) -> Result<(), store::Error>;
        fn remove_jobs(ids: &'a [JobId]) -> Result<(), store::Error>;
        fn flush() -> Result<(), store::Error>;
    }
}

impl ControlPlane for Around<dyn ControlPlane> {
    effects! { "api";
        fn poll(timeout: Duration, limit: u32) -> Result<Jobs, control_plane::Error>;
        fn in_progress(page: u32) -> Result<JobPage, control_plane::Error>;
        fn report(job: &'a JobId, report: &'a JobReport) -> Result<(), control_plane::Error>;
        fn healthcheck(body: &'a Healthcheck) -> Result<(), control_plane::Error>;
        fn started_sandboxes() -> Result<Vec<RemoteSandbox>, control_plane::Error>;
        fn put_state(id: &'a SandboxId, update: &'a StateUpdate) -> Result<(), control_plane::Error>;
    }
}
