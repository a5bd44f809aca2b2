//! The actors on a host that exists only in memory, in virtual time: every effect can be made to fail,
//! hang or panic, and at the end the host is asked what is left on it. The store is the real one.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, Addr};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use runner_ch::actors::supervisor::Plan;
use runner_ch::actors::{ForkActor, ProxyActor, Routes, SupervisorActor, Work, vm};
use runner_ch::control_plane::{
    self, ControlPlane, Healthcheck, Job, JobPage, JobReport, Jobs, RemoteSandbox, StateUpdate,
};
use runner_ch::error::{ErrorCode, Failure};
use runner_ch::fork::plan::MemorySetting;
use runner_ch::host::FreeMemory;
use runner_ch::hypervisor::snapshot::{Adaptation, SnapshotMemory};
use runner_ch::hypervisor::{
    self, Exit, Hypervisor, Known, Launch, ProcessIdentity, ProcessSeen, Version, VmConfig, VmState, Vmm, VmmSurvey,
};
use runner_ch::ids::{JobId, SandboxId};
use runner_ch::jobs::payload::CreateSpec;
use runner_ch::messages::fork::{Copies, Fork};
use runner_ch::messages::supervisor::{Order, Recover};
use runner_ch::net::{self, Leaked, Namespace, Network, NetworkSurvey, Slot, SlotPool};
use runner_ch::ports::Ports;
use runner_ch::pressure::Pressure;
use runner_ch::sandbox::admission::Defaults;
use runner_ch::sandbox::capacity::Limits;
use runner_ch::sandbox::{Ask, StopMode, Views};
use runner_ch::store::Store;
use runner_ch::toolbox::{Renewal, Toolbox};
use tokio::sync::Notify;

use survey::{Networks, Vmms, answer};

pub mod deeds;
mod files;
mod guests;
mod life;
mod store;
mod survey;

use guests::{Guest, Image};
#[allow(unused_imports, reason = "each test file uses its own part of this")]
pub use life::{Cut, Life, Machine, Moment};

/// What an effect does when it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Twist {
    Fails,
    Hangs,
    Panics,
    /// Takes a second.
    Slow,
}

/// The host in memory. Effects are named like their methods.
#[derive(Default, Clone)]
pub struct HostState {
    /// Host links by sandbox.
    pub networks: BTreeMap<String, String>,
    pub disks: BTreeSet<String>,
    /// VMMs by sandbox, with whether a VM runs in them.
    pub vmms: HashMap<String, FakeVmm>,
    pub effects: Vec<String>,
    twists: HashMap<String, (usize, Twist)>,
    pids: i32,
    /// Root disks are raw files; otherwise qcow2 images.
    pub raw: bool,
    /// Directories of captures.
    pub captures: BTreeSet<PathBuf>,
    /// Frozen images that are held for a capture.
    pub held: usize,
    /// Sandboxes with a checkpoint.
    pub checkpoints: BTreeSet<String>,
    /// Rises with every write to a disk.
    pub writes: HashMap<String, u64>,
    /// Snapshots.
    pub snapshots: HashMap<String, runner_ch::snapshots::Manifest>,
    pub restart: runner_ch::sandbox::restart::Settings,
    /// What was kept of ends.
    pub kept: Vec<hypervisor::bundle::Report>,
    /// How a VMM ended that is not found any more.
    pub post_mortem: Option<Exit>,
    pub booting: usize,
    pub most_booting: usize,
    pub restoring: usize,
    pub most_restoring: usize,
    /// Limits of runners that are started from now on; none: no limits.
    pub limits: Option<Limits>,
    /// Requests that may be under way; none: many.
    pub max_queued: Option<usize>,
    /// Available memory in bytes.
    pub available: u64,
    /// What no order of calls may bring about on a host, whatever the caller was told.
    pub violations: Vec<String>,
    /// How many twists have struck.
    pub struck: usize,
    /// Where the present life ends.
    pub cut: Option<Cut>,
    dead: bool,
    death: Rc<Notify>,
    slots: BTreeMap<String, Slot>,
    /// Frozen memories by the directory of their device state.
    pub images: BTreeMap<PathBuf, Image>,
    /// Which VMM went on from a frozen memory of its own.
    spent: BTreeMap<u64, i32>,
    memories: u64,
}

#[derive(Clone, Default)]
pub struct Host(pub Rc<RefCell<HostState>>);

impl Host {
    /// From now on the effect does this, that many times.
    pub fn twist(&self, effect: &str, twist: Twist, times: usize) {
        self.0.borrow_mut().twists.insert(effect.to_owned(), (times, twist));
    }

    pub fn count(&self, effect: &str) -> usize {
        self.0.borrow().effects.iter().filter(|done| *done == effect).count()
    }

    pub fn assert_nothing_left(&self) {
        let host = self.0.borrow();
        assert!(host.networks.is_empty(), "networks {:?}", host.networks);
        assert!(host.disks.is_empty(), "disks {:?}", host.disks);
        assert!(host.vmms.is_empty(), "VMMs of {:?}", host.vmms.keys());
        assert!(host.checkpoints.is_empty(), "checkpoints of {:?}", host.checkpoints);
        drop(host);
        self.assert_no_captures();
    }

    pub fn assert_no_captures(&self) {
        let host = self.0.borrow();
        assert!(host.captures.is_empty(), "captures {:?}", host.captures);
        assert_eq!(host.held, 0, "frozen disks are still held");
    }

    /// Whether the sandbox's guest runs.
    pub fn runs(&self, sandbox: &str) -> bool {
        self.0.borrow().vmms.get(sandbox).is_some_and(|vmm| vmm.running.get())
    }

    /// What must never be: kept for the test, as a panic here is taken for one of the caller's.
    fn insist(&self, holds: bool, what: &str) {
        if !holds {
            self.0.borrow_mut().violations.push(what.to_owned());
            panic!("{what}");
        }
    }

    async fn effect(&self, name: &str) -> Result<(), ()> {
        let last = self.enter(name).await?;
        self.leave(last);
        Ok(())
    }

    /// Comes to an effect; whether the life ends with it.
    async fn enter(&self, name: &str) -> Result<bool, ()> {
        let (twist, moment) = {
            let mut host = self.0.borrow_mut();
            // Beside each running VM this is waited for; it is no effect.
            let moment = if name == "exited" { None } else { host.count_down() };
            if host.dead || moment == Some(Moment::Before) {
                (None, Some(Moment::Before))
            } else {
                host.effects.push(name.to_owned());
                (host.next_twist(name), moment)
            }
        };
        if moment == Some(Moment::Before) {
            self.die();
            std::future::pending::<()>().await;
        }
        let last = moment == Some(Moment::After);
        match twist {
            None => {}
            Some(Twist::Fails) => {
                self.leave(last);
                return Err(());
            }
            Some(Twist::Hangs) => std::future::pending().await,
            Some(Twist::Slow) => tokio::time::sleep(Duration::from_secs(1)).await,
            Some(Twist::Panics) => panic!("{name} panics, as ordered"),
        }
        Ok(last)
    }

    fn leave(&self, last: bool) {
        if last {
            self.die();
        }
    }
}

impl FreeMemory for Host {
    fn available(&self) -> Result<u64, runner_ch::host::Error> {
        Ok(self.0.borrow().available)
    }
}

#[derive(Clone)]
pub struct FakeVmm {
    host: Host,
    sandbox: String,
    pub known: Known,
    running: Rc<Cell<bool>>,
    guest: Rc<RefCell<Guest>>,
    exited: Rc<(RefCell<Option<Exit>>, Notify)>,
}

impl FakeVmm {
    /// The same process again, alive: for tests in which only its watcher was mistaken.
    pub fn revived(&self) -> Self {
        Self { exited: Rc::default(), ..self.clone() }
    }

    /// The process is gone.
    pub fn exit(&self, exit: Exit) {
        *self.exited.0.borrow_mut() = Some(exit);
        self.exited.1.notify_waiters();
        self.host.0.borrow_mut().vmms.remove(&self.sandbox);
    }
}

fn refused(call: &str) -> hypervisor::Error {
    hypervisor::Error::NoNamespace { sandbox: call.parse().expect("a name") }
}

impl Vmm for FakeVmm {
    fn identity(&self) -> &ProcessIdentity {
        &self.known.process
    }

    fn version(&self) -> &Version {
        &self.known.version
    }

    fn create<'a>(&'a self, _: &'a VmConfig) -> LocalBoxFuture<'a, Result<(), hypervisor::Error>> {
        async { self.host.effect("create").await.map_err(|()| refused("create")) }.boxed_local()
    }

    fn boot(&self) -> LocalBoxFuture<'_, Result<(), hypervisor::Error>> {
        async {
            {
                let mut host = self.host.0.borrow_mut();
                host.booting += 1;
                host.most_booting = host.most_booting.max(host.booting);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            let booted = self.host.effect("boot").await.map_err(|()| refused("boot"));
            self.host.0.borrow_mut().booting -= 1;
            self.running.set(booted.is_ok());
            self.boots();
            self.host.write(&self.sandbox);
            booted
        }
        .boxed_local()
    }

    fn state(&self) -> LocalBoxFuture<'_, Result<Option<VmState>, hypervisor::Error>> {
        let state = if self.running.get() { VmState::Running } else { VmState::Paused };
        async { Ok(Some(state)) }.boxed_local()
    }

    fn power_button(&self) -> LocalBoxFuture<'_, Result<(), hypervisor::Error>> {
        async {
            self.host.insist(self.running.get(), "a paused guest is asked");
            self.host.effect("power_button").await.map_err(|()| refused("power_button"))?;
            self.exit(Exit::GuestPowerOff);
            Ok(())
        }
        .boxed_local()
    }

    fn pause(&self) -> LocalBoxFuture<'_, Result<(), hypervisor::Error>> {
        async {
            self.host.effect("pause").await.map_err(|()| refused("pause"))?;
            self.running.set(false);
            Ok(())
        }
        .boxed_local()
    }

    fn resume(&self) -> LocalBoxFuture<'_, Result<(), hypervisor::Error>> {
        async {
            self.host.effect("resume").await.map_err(|()| refused("resume"))?;
            self.goes_on()?;
            self.running.set(true);
            self.host.write(&self.sandbox);
            Ok(())
        }
        .boxed_local()
    }

    fn snapshot<'a>(&'a self, dir: &'a Path, _: SnapshotMemory) -> LocalBoxFuture<'a, Result<(), hypervisor::Error>> {
        async {
            self.host.insist(!self.running.get(), "a snapshot of a running VM");
            self.host.effect("snapshot").await.map_err(|()| refused("snapshot"))?;
            self.freeze(dir);
            Ok(())
        }
        .boxed_local()
    }

    fn restore<'a>(&'a self, dir: &'a Path) -> LocalBoxFuture<'a, Result<(), hypervisor::Error>> {
        async {
            {
                let mut host = self.host.0.borrow_mut();
                host.restoring += 1;
                host.most_restoring = host.most_restoring.max(host.restoring);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            let restored = self.host.effect("restore").await.map_err(|()| refused("restore"));
            self.host.0.borrow_mut().restoring -= 1;
            restored?;
            self.bring_back(dir)
        }
        .boxed_local()
    }

    fn unload(&self) -> LocalBoxFuture<'_, Result<(), hypervisor::Error>> {
        async {
            self.host.effect("unload").await.map_err(|()| refused("unload"))?;
            self.unloads();
            Ok(())
        }
        .boxed_local()
    }

    fn resize(&self, _: u32) -> LocalBoxFuture<'_, Result<(), hypervisor::Error>> {
        async { self.host.effect("resize").await.map_err(|()| refused("resize")) }.boxed_local()
    }

    fn panicked(&self) -> LocalBoxFuture<'_, Option<String>> {
        std::future::pending().boxed_local()
    }

    fn exited(&self) -> LocalBoxFuture<'_, Exit> {
        async {
            loop {
                let woken = self.exited.1.notified();
                // Bound before the match: the borrow must not be held while waiting.
                let exit = self.exited.0.borrow().clone();
                if let Some(exit) = exit {
                    // Lets a test make the watching actor panic.
                    let _ = self.host.effect("exited").await;
                    return exit;
                }
                woken.await;
            }
        }
        .boxed_local()
    }

    fn end(&self, _: Duration) -> LocalBoxFuture<'_, Result<Exit, hypervisor::Error>> {
        async {
            self.host.effect("end").await.map_err(|()| refused("end"))?;
            self.exit(Exit::Orderly);
            Ok(Exit::Orderly)
        }
        .boxed_local()
    }
}

impl Hypervisor for Host {
    fn launch<'a>(&'a self, launch: &'a Launch) -> LocalBoxFuture<'a, Result<Rc<dyn Vmm>, hypervisor::Error>> {
        async move {
            self.effect("launch").await.map_err(|()| refused("launch"))?;
            let sandbox = launch.sandbox.to_string();
            let mut process = ProcessIdentity::own()?;
            self.0.borrow_mut().pids += 1;
            process.pid = 1_000_000 + self.0.borrow().pids;
            let known = Known { process, version: Version::parse("v53.0")? };
            let host = self.clone();
            let vmm = FakeVmm {
                host,
                sandbox: sandbox.clone(),
                known,
                running: Rc::default(),
                guest: Rc::default(),
                exited: Rc::default(),
            };
            self.insist(!self.0.borrow().vmms.contains_key(&sandbox), "two VMMs for one sandbox");
            self.0.borrow_mut().vmms.insert(sandbox, vmm.clone());
            Ok(Rc::new(vmm) as Rc<dyn Vmm>)
        }
        .boxed_local()
    }

    fn adopt<'a>(
        &'a self,
        launch: &'a Launch,
        known: &'a Known,
    ) -> LocalBoxFuture<'a, Result<Option<Rc<dyn Vmm>>, hypervisor::Error>> {
        async move {
            self.effect("adopt").await.map_err(|()| refused("adopt"))?;
            let found = self.0.borrow().vmms.get(launch.sandbox.as_str()).cloned();
            Ok(found.filter(|vmm| vmm.known == *known).map(|vmm| Rc::new(vmm) as Rc<dyn Vmm>))
        }
        .boxed_local()
    }

    fn keep<'a>(&'a self, bundle: &'a hypervisor::bundle::Bundle) -> LocalBoxFuture<'a, Result<(), hypervisor::Error>> {
        async move {
            self.effect("keep").await.map_err(|()| refused("keep"))?;
            self.0.borrow_mut().kept.push(bundle.report.clone());
            Ok(())
        }
        .boxed_local()
    }

    fn post_mortem<'a>(&'a self, _: &'a Launch, _: &'a Known) -> LocalBoxFuture<'a, Exit> {
        async { self.0.borrow().post_mortem.clone().unwrap_or(Exit::Unknown) }.boxed_local()
    }

    fn adapt<'a>(
        &'a self,
        from: &'a Path,
        to: &'a Path,
        _: &'a Adaptation,
    ) -> LocalBoxFuture<'a, Result<(), hypervisor::Error>> {
        async {
            self.effect("adapt").await.map_err(|()| refused("adapt"))?;
            self.copy_image(from, to)
        }
        .boxed_local()
    }

    fn survey<'a>(&'a self, sockets: &'a Path) -> Vmms<'a, VmmSurvey> {
        answer(self.vmms_seen(sockets))
    }

    fn end_stray<'a>(&'a self, stray: &'a ProcessSeen) -> Vmms<'a, bool> {
        answer(self.end_vmm(stray))
    }

    fn remove_stale<'a>(&'a self, _: &'a Path) -> Vmms<'a, bool> {
        answer(false)
    }

    fn copy_snapshot<'a>(&'a self, from: &'a Path, to: &'a Path) -> LocalBoxFuture<'a, Result<(), hypervisor::Error>> {
        async {
            self.effect("copy_snapshot").await.map_err(|()| refused("copy_snapshot"))?;
            self.copy_image(from, to)
        }
        .boxed_local()
    }

    fn clear<'a>(&'a self, launch: &'a Launch) -> LocalBoxFuture<'a, Result<(), hypervisor::Error>> {
        async move {
            self.effect("clear").await.map_err(|()| refused("clear"))?;
            let found = self.0.borrow().vmms.get(launch.sandbox.as_str()).cloned();
            if let Some(vmm) = found {
                vmm.exit(Exit::Signal { signal: 9 });
            }
            Ok(())
        }
        .boxed_local()
    }
}

/// Continued: what concerns snapshots.
impl Host {
    fn write(&self, sandbox: &str) {
        *self.0.borrow_mut().writes.entry(sandbox.to_owned()).or_default() += 1;
    }
}

impl Network for Host {
    fn prepare_host(&self) -> LocalBoxFuture<'_, Result<(), net::Error>> {
        async { Ok(()) }.boxed_local()
    }

    fn create<'a>(&'a self, plan: &'a net::Plan) -> LocalBoxFuture<'a, Result<Namespace, net::Error>> {
        async move {
            let failed = |()| net::Error::NoNamespace { netns: plan.netns.clone() };
            self.effect("network").await.map_err(failed)?;
            let other = |(id, slot): (&String, &Slot)| *slot == plan.slot && id != plan.sandbox.as_str();
            self.insist(!self.0.borrow().slots.iter().any(other), "a slot is given out twice");
            self.0.borrow_mut().networks.insert(plan.sandbox.to_string(), plan.host_link.to_string());
            self.0.borrow_mut().slots.insert(plan.sandbox.to_string(), plan.slot);
            self.open(plan).await
        }
        .boxed_local()
    }

    fn open<'a>(&'a self, plan: &'a net::Plan) -> LocalBoxFuture<'a, Result<Namespace, net::Error>> {
        async move {
            if !self.0.borrow().networks.contains_key(plan.sandbox.as_str()) {
                return Err(net::Error::NoNamespace { netns: plan.netns.clone() });
            }
            let nothing: OwnedFd = std::fs::File::open("/dev/null").expect("/dev/null").into();
            Ok(Namespace::from_fd(plan.netns.clone(), nothing))
        }
        .boxed_local()
    }

    fn remove<'a>(&'a self, plan: &'a net::Plan) -> LocalBoxFuture<'a, Result<(), net::Error>> {
        async move {
            let failed = |()| net::Error::NoNamespace { netns: plan.netns.clone() };
            self.effect("unplug").await.map_err(failed)?;
            self.insist(!self.0.borrow().vmms.contains_key(plan.sandbox.as_str()), "a VMM loses its network");
            self.0.borrow_mut().networks.remove(plan.sandbox.as_str());
            self.0.borrow_mut().slots.remove(plan.sandbox.as_str());
            Ok(())
        }
        .boxed_local()
    }

    fn survey(&self) -> Networks<'_, NetworkSurvey> {
        answer(self.networks_seen())
    }

    fn remove_leaked<'a>(&'a self, leaked: &'a Leaked) -> Networks<'a, bool> {
        answer(self.remove_network(leaked))
    }
}

impl Toolbox for Host {
    fn wait_ready<'a>(&'a self, _: &'a Namespace, patience: Duration) -> LocalBoxFuture<'a, Result<String, Failure>> {
        async move {
            let failed = |()| Failure::new(ErrorCode::Timeout, "the toolbox did not answer, as ordered");
            let ready = tokio::time::timeout(patience, self.effect("ready")).await;
            ready.unwrap_or(Err(())).map_err(failed)?;
            Ok("1.2.3".to_owned())
        }
        .boxed_local()
    }

    fn init<'a>(&'a self, _: &'a Namespace, _: &'a str) -> LocalBoxFuture<'a, Result<(), Failure>> {
        async { Ok(()) }.boxed_local()
    }

    fn renew<'a>(&'a self, _: &'a Namespace, _: &'a Renewal) -> LocalBoxFuture<'a, Result<(), Failure>> {
        async {
            let failed = |()| Failure::new(ErrorCode::Internal, "the guest did not confirm, as ordered");
            self.effect("renew").await.map_err(failed)
        }
        .boxed_local()
    }
}

/// An API that hands out what it is given and keeps what it is told.
#[derive(Default)]
pub struct Api {
    pub jobs: RefCell<Vec<Job>>,
    pub waiting: Notify,
    pub reports: RefCell<Vec<(JobId, serde_json::Value)>>,
}

impl Api {
    pub fn hand_out(&self, job: serde_json::Value) {
        self.jobs.borrow_mut().push(Job::from_json(&job).expect("a job"));
        self.waiting.notify_one();
    }
}

impl ControlPlane for Api {
    fn poll(&self, _: Duration, _: u32) -> LocalBoxFuture<'_, Result<Jobs, control_plane::Error>> {
        async {
            self.waiting.notified().await;
            Ok(Jobs { jobs: std::mem::take(&mut *self.jobs.borrow_mut()), unreadable: Vec::new() })
        }
        .boxed_local()
    }

    fn in_progress(&self, _: u32) -> LocalBoxFuture<'_, Result<JobPage, control_plane::Error>> {
        async { Ok(JobPage { jobs: Vec::new(), unreadable: Vec::new(), total: 0, page: 1, total_pages: 1 }) }
            .boxed_local()
    }

    fn report<'a>(
        &'a self,
        job: &'a JobId,
        report: &'a JobReport,
    ) -> LocalBoxFuture<'a, Result<(), control_plane::Error>> {
        async move {
            let body = serde_json::to_value(report).expect("JSON");
            self.reports.borrow_mut().push((job.clone(), body));
            Ok(())
        }
        .boxed_local()
    }

    fn healthcheck<'a>(&'a self, _: &'a Healthcheck) -> LocalBoxFuture<'a, Result<(), control_plane::Error>> {
        async { Ok(()) }.boxed_local()
    }

    fn started_sandboxes(&self) -> LocalBoxFuture<'_, Result<Vec<RemoteSandbox>, control_plane::Error>> {
        async { Ok(Vec::new()) }.boxed_local()
    }

    fn put_state<'a>(
        &'a self,
        _: &'a SandboxId,
        _: &'a StateUpdate,
    ) -> LocalBoxFuture<'a, Result<(), control_plane::Error>> {
        async { Ok(()) }.boxed_local()
    }
}

/// A runner on that host.
pub struct World {
    pub host: Host,
    pub api: Rc<Api>,
    pub views: Views,
    pub routes: Routes,
    pub ports: Ports,
    pub supervisor: Addr<SupervisorActor>,
    pub forks: Addr<ForkActor>,
    pub pressure: Pressure,
    pub work: Work,
}

impl World {
    pub async fn on(host: Host, store: Rc<dyn Store>) -> Self {
        let api = Rc::new(Api::default());
        let ports = Ports {
            network: Rc::new(host.clone()),
            disks: Rc::new(host.clone()),
            memory: Rc::new(host.clone()),
            snapshots: Rc::new(host.clone()),
            hypervisor: Rc::new(host.clone()),
            toolbox: Rc::new(host.clone()),
            store,
            control_plane: api.clone(),
        };
        let pressure = Pressure::default();
        let work = Work::new(host.0.borrow().max_queued.unwrap_or(1024));
        let settings = vm::Settings {
            sockets: "/nowhere".into(),
            kernel: "/nowhere/vmlinuz".into(),
            initramfs: None,
            cmdline: "console=ttyS0".into(),
            daemon_start_timeout: Some(Duration::from_secs(60)),
            sandbox_start_timeout: Duration::from_secs(30 * 60),
            stop_timeout: Duration::from_secs(10),
            stop_mode: StopMode::Checkpoint,
            memory: MemorySetting::Private,
            identity: vm::IdentityPolicy::Request,
            max_vcpus: 4,
            restart: host.0.borrow().restart,
        };
        let plan = Plan {
            ports: ports.clone(),
            settings,
            defaults: Defaults { vcpus: 1, memory_mib: 512, disk_gib: 1 },
            slots: SlotPool::new("10.9.0.0/24".parse().expect("a network")).expect("a pool"),
            max_starting: 2,
            host_cpus: 4,
            host_memory: 64 << 30,
            free_memory: Rc::new(host.clone()),
            limits: host.0.borrow().limits.unwrap_or(Limits::NONE),
            pressure: pressure.clone(),
            work: work.clone(),
        };
        let (views, routes) = (Views::default(), Routes::default());
        let deaths = tokio::sync::mpsc::unbounded_channel().0;
        let proxy = ProxyActor::new(routes.clone(), 1024, deaths.clone()).start();
        let supervisor = SupervisorActor::start_with(plan, views.clone(), proxy, deaths.clone());
        let forks = ForkActor::start_with(
            ports.clone(),
            supervisor.clone().recipient(),
            supervisor.clone().recipient(),
            work.clone(),
            deaths,
        );
        supervisor.send(Recover).await.expect("the supervisor lives").expect("the store is read");
        Self { host, api, views, routes, ports, supervisor, forks, pressure, work }
    }

    pub fn create(&self, id: &str) -> impl Future<Output = Result<(), Failure>> + use<> {
        let body = serde_json::json!({ "id": id });
        self.order(Order::create(CreateSpec::from_json(&body).expect("a spec")))
    }

    pub fn create_with(&self, id: &str, vcpus: u32) -> impl Future<Output = Result<(), Failure>> + use<> {
        let body = serde_json::json!({ "id": id, "cpuQuota": vcpus });
        self.order(Order::create(CreateSpec::from_json(&body).expect("a spec")))
    }

    pub fn ask(&self, id: &str, ask: Ask) -> impl Future<Output = Result<(), Failure>> + use<> {
        self.order(Order::new(id.parse().expect("an id"), ask))
    }

    pub fn fork(&self, source: &str, copies: &[&str]) -> impl Future<Output = Result<Copies, Failure>> + use<> {
        let copies = copies.iter().map(|copy| copy.parse().expect("an id")).collect();
        let fork = Fork { source: source.parse().expect("an id"), copies, by_job: false };
        let forks = self.forks.clone();
        async move { forks.send(fork).await.expect("the ForkActor lives") }
    }

    fn order(&self, order: Order) -> impl Future<Output = Result<(), Failure>> + use<> {
        let supervisor = self.supervisor.clone();
        async move { supervisor.send(order).await.expect("the supervisor lives").map(drop) }
    }

    pub fn state(&self, id: &str) -> Option<String> {
        let view = self.views.get(&id.parse().expect("an id"))?;
        serde_json::to_value(view.state).expect("a name").as_str().map(str::to_owned)
    }

    /// Virtual time passes; everything that can happen in it does.
    pub async fn until(&self, what: &str, mut look: impl FnMut() -> bool) {
        for _ in 0..100_000 {
            if look() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} did not happen");
    }
}
