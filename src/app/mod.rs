//! The whole runner: made from its configuration, started in order, ended in order.
//!
//! Start: store, ports, HTTP (which says `recovering`), host network, recovery, then jobs. End: no new
//! work, jobs under way get a deadline, HTTP ends, the store is flushed. VMs are left as they are.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, Addr};
use nix::fcntl::Flock;
use rustix::fs::Access;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::actors::reporter::{self, Seen};
use crate::actors::supervisor::Plan;
use crate::actors::vm::Settings;
use crate::actors::{
    Deaths, ForkActor, JobPollerActor, LedgerActor, ProxyActor, ReporterActor, Routes, SupervisorActor, Work,
    job_poller, ledger,
};
use crate::config::Config;
use crate::control_plane::{AwcControlPlane, Deadlines, ServiceHealth};
use crate::crash;
use crate::disk::FileDisks;
use crate::error::{Failure, chain};
use crate::host::{HostMetrics, Identity, LinuxHost, ProcMemory, default_domain, volume};
use crate::http::{LedgerAccess, Recovered, State, Token};
use crate::hypervisor::CloudHypervisor;
use crate::memory::FileMemory;
use crate::messages::jobs::StopPolling;
use crate::messages::supervisor::{Drain, Recover};
use crate::net::{LinuxNetwork, SlotPool};
use crate::ports::Ports;
use crate::pressure::Pressure;
use crate::sandbox::Views;
use crate::sandbox::admission::Defaults;
use crate::snapshots::FileSnapshots;
use crate::ssh;
use crate::store::{self, SledStore};
use crate::toolbox::GuestToolbox;

mod roots;
mod server;
mod tls;

/// Name of our nftables table, on the host and in the sandboxes' namespaces.
pub const NFT_TABLE: &str = "runner_ch";

/// Longest time for the last flush of the store.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);

/// Version as the API and `GET /` show it.
pub fn version() -> String {
    format!("v{}", env!("CARGO_PKG_VERSION"))
}

/// What the healthcheck says: without the hypervisor's binary or KVM no sandbox can start here, and the
/// scheduler should know. Two system calls.
pub fn service_health(ch_binary: &Path) -> ServiceHealth {
    let executable = rustix::fs::access(ch_binary, Access::EXEC_OK);
    let kvm = rustix::fs::access("/dev/kvm", Access::READ_OK | Access::WRITE_OK);
    let name = "cloud-hypervisor";
    match (executable, kvm) {
        (Err(error), _) => ServiceHealth::unhealthy(name, format!("cannot execute {}: {error}", ch_binary.display())),
        (_, Err(error)) => ServiceHealth::unhealthy(name, format!("cannot use /dev/kvm: {error}")),
        _ => ServiceHealth::healthy(name),
    }
}

/// A bare name is looked for on PATH, as the spawn does.
fn on_path(program: &Path) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join(program));
    match program.components().count() {
        1 => places.find(|file| file.is_file()).unwrap_or_else(|| program.to_owned()),
        _ => program.to_owned(),
    }
}

/// Why the runner cannot start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(Failure);

impl<E: Into<Failure>> From<E> for StartError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

struct Running {
    supervisor: Addr<SupervisorActor>,
    poller: Addr<JobPollerActor>,
    server: server::Running,
    ssh: Option<ssh::Gateway>,
    ports: Ports,
    /// Nobody else makes, sweeps or repairs in these while this lives.
    roots: Vec<Flock<File>>,
}

/// Runs until SIGTERM or SIGINT, then drains.
pub async fn run(config: Config) -> Result<(), StartError> {
    // Registered first, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| io("listen for SIGTERM", &error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| io("listen for SIGINT", &error))?;
    let (deaths, mut dead) = tokio::sync::mpsc::unbounded_channel();
    let starting = start(&config, &deaths);
    let running = tokio::select! {
        running = starting => running?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: draining"),
        _ = interrupt.recv() => info!("SIGINT: draining"),
        Some(who) = dead.recv() => {
            let message = format!("{who} panicked; sandboxes keep running, start the runner again to go on");
            return Err(Failure::new(crate::error::ErrorCode::Internal, message).into());
        }
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    drain(running, &config).await;
    Ok(())
}

fn io(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(crate::error::ErrorCode::Internal, format!("cannot {what}: {error}"))
}

fn notify(states: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot tell systemd how the runner is");
    }
}

fn ports(config: &Config, store: SledStore) -> Result<Ports, StartError> {
    let disks = FileDisks::open(crate::disk::Settings {
        sandboxes: config.paths.sandboxes.clone(),
        snapshots: config.paths.snapshots.clone(),
        base_image: config.paths.base_image.clone(),
        strategy: config.disk_strategy,
        guest_mtu: None,
    })?;
    let api = &config.api;
    let deadlines = Deadlines { healthcheck: api.healthcheck_timeout, ..Deadlines::default() };
    let network =
        LinuxNetwork::new(config.network.bridge.clone(), config.network.pool, config.network.deny.clone(), NFT_TABLE)
            .with_owner(crate::net::survey::owner_number(&config.paths.sockets));
    Ok(crash::ports(Ports {
        network: Rc::new(network),
        disks: Rc::new(disks),
        memory: Rc::new(FileMemory::open(&config.paths.sandboxes)?),
        snapshots: Rc::new(FileSnapshots::open(&config.paths.snapshots)?),
        hypervisor: Rc::new(CloudHypervisor::new(crate::hypervisor::launch::Settings::new(&config.ch_binary))),
        toolbox: Rc::new(GuestToolbox),
        store: Rc::new(store),
        control_plane: Rc::new(
            AwcControlPlane::new(&api.base_url, api.token.expose(), &version())?.with_deadlines(deadlines),
        ),
    }))
}

fn plan(config: &Config, ports: Ports, host: &LinuxHost, pressure: &Pressure, work: &Work) -> Result<Plan, StartError> {
    let snapshot = host.snapshot()?;
    Ok(Plan {
        ports,
        settings: Settings {
            sockets: config.paths.sockets.clone(),
            kernel: config.paths.kernel.clone(),
            initramfs: config.paths.initramfs.clone(),
            cmdline: config.kernel_cmdline.clone(),
            daemon_start_timeout: config.daemon_start_timeout,
            sandbox_start_timeout: config.sandbox_start_timeout,
            stop_timeout: config.stop_timeout,
            stop_mode: config.stop_mode,
            memory: config.memory,
            identity: config.fork_identity,
            max_vcpus: snapshot.cpus.min(255),
            restart: config.restart,
        },
        defaults: Defaults {
            vcpus: config.defaults.vcpus,
            memory_mib: config.defaults.memory_mib,
            disk_gib: config.defaults.disk_gib,
        },
        slots: SlotPool::new(config.network.pool)?,
        max_starting: config.max_starting,
        host_cpus: snapshot.cpus,
        host_memory: snapshot.memory_bytes,
        free_memory: Rc::new(ProcMemory::default()),
        limits: config.limits,
        pressure: pressure.clone(),
        work: work.clone(),
    })
}

fn identity(config: &Config) -> Identity {
    let domain = config.runner_domain.clone().or_else(|| match default_domain() {
        Ok(address) => address.map(|address| address.to_string()),
        Err(error) => {
            warn!(error = %chain(&error), "cannot find this host's address; set RUNNER_DOMAIN");
            None
        }
    });
    Identity { version: version(), domain, port: config.http.port, tls: config.http.tls.is_some() }
}

async fn start(config: &Config, deaths: &Deaths) -> Result<Running, StartError> {
    let pressure = Pressure::default();
    let options = store::Options { reserve: config.paths.state_reserve, pressure: pressure.clone() };
    let store = SledStore::open_with(&config.paths.state, options)?;
    let roots = roots::lock(&[&config.paths.sandboxes, &config.paths.snapshots]).await?;
    let ports = ports(config, store.clone())?;
    let host = LinuxHost::new()?;
    let (views, routes, seen, recovered) = (Views::default(), Routes::default(), Seen::default(), Recovered::default());
    let identity = identity(config);
    let work = Work::new(config.max_queued);
    let volumes = vec![config.paths.sandboxes.clone(), config.paths.snapshots.clone()];
    actix::spawn(volume::watch(volumes, volume::Gauge::new(config.min_free_disk), pressure.clone()));
    let ledger = LedgerAccess::default();

    let proxy = ProxyActor::new(routes.clone(), config.proxy.connections, deaths.clone()).start();
    let supervisor = SupervisorActor::start_with(
        plan(config, ports.clone(), &host, &pressure, &work)?,
        views.clone(),
        proxy,
        deaths.clone(),
    );
    let forks = ForkActor::start_with(
        ports.clone(),
        supervisor.clone().recipient(),
        supervisor.clone().recipient(),
        work.clone(),
        deaths.clone(),
    );
    let state = State {
        supervisor: supervisor.clone(),
        forks: forks.clone(),
        views: views.clone(),
        routes: routes.clone(),
        seen: seen.clone(),
        ledger: ledger.clone(),
        token: Token::new(config.api.token.expose()),
        identity: identity.clone(),
        sandboxes: config.paths.sandboxes.clone(),
        ch_binary: on_path(&config.ch_binary),
        work: work.clone(),
        recovered: recovered.clone(),
        store: store.clone(),
    };
    // An actor that is dropped before its first poll starts in its drop, where no timer can be made.
    tokio::task::yield_now().await;
    let server = server::start(&config.http, config.proxy, state).await?;
    actix::spawn(store::watch(store));

    ports.network.prepare_host().await?;
    let loaded = ports.store.load().await?;
    supervisor.send(Recover).await.map_err(|_| gone())??;
    let gateway = match config.ssh.clone() {
        Some(settings) => Some(ssh::start(settings, config.http.address, routes.clone(), views.clone()).await?),
        None => None,
    };
    let results = ledger.results.clone();
    ledger.open(LedgerActor::start_with(
        ports.clone(),
        supervisor.clone(),
        routes,
        results,
        ledger_settings(config),
        deaths.clone(),
    ));
    recovered.set();
    let environment = config.log.environment.as_deref();
    info!(version = version(), environment, port = config.http.port, disks = ?ports.disks.strategy(), "runner is ready");

    let poller = JobPollerActor::start_with(
        ports.clone(),
        supervisor.clone().recipient(),
        forks,
        job_poller::Settings {
            poll_timeout: config.api.poll_timeout,
            poll_limit: config.api.poll_limit,
            reconcile_interval: config.api.reconcile_interval,
            heartbeat: job_poller::HEARTBEAT,
        },
        loaded.jobs,
        work,
        deaths.clone(),
    );
    let settings = reporter::Settings {
        healthcheck: config.api.healthcheck_interval,
        sync: config.api.sync_interval,
        identity,
        ch_binary: on_path(&config.ch_binary),
    };
    ReporterActor::new(ports.clone(), views, seen, settings, host, deaths.clone()).start();
    Ok(Running { supervisor, poller, server, ssh: gateway, ports, roots })
}

fn ledger_settings(config: &Config) -> ledger::Settings {
    ledger::Settings {
        interval: config.ledger_interval,
        repair: config.ledger_repair,
        sockets: config.paths.sockets.clone(),
    }
}

fn gone() -> Failure {
    Failure::new(crate::error::ErrorCode::Internal, "the supervisor ended during the start; see the log")
}

/// Nothing new is begun; what runs gets the deadline; what is not finished then is found again in
/// the journal by the next start.
async fn drain(running: Running, config: &Config) {
    let Running { supervisor, poller, server, ssh, ports, roots } = running;
    if supervisor.send(Drain).await.is_err() {
        warn!("the supervisor has ended before the drain");
    }
    let jobs = timeout(config.drain_timeout, poller.send(StopPolling)).await;
    if jobs.is_err() {
        warn!(
            seconds = config.drain_timeout.as_secs(),
            "jobs are not finished; they are continued after the next start"
        );
    }
    let ssh = async {
        if let Some(gateway) = ssh {
            gateway.stop().await;
        }
    };
    tokio::join!(server.stop(), ssh);
    match timeout(FLUSH_DEADLINE, ports.store.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => error!(error = %chain(&error), "the store could not be flushed"),
        Err(_) => error!("the store could not be flushed in time; look for a hanging disk (dmesg)"),
    }
    drop(roots);
    info!("drained; sandboxes keep running");
}
