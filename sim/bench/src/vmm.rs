//! The bare floor: a VMM started and told to boot with nothing around it.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use runner_ch::hypervisor::VmConfig;
use runner_ch::hypervisor::wire::{MemoryLayout, VmSpec};

use crate::http;
use crate::isolate::{go_on, run};
use crate::setup::{Disks, Setup};
use crate::world::CMDLINE;

/// Between two looks for a socket: shorter than anything to be told apart.
const PAUSE: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(20);
/// Name of the TAP, as in the runner's namespaces.
pub const TAP: &str = "tap0";
const NETNS: &str = "bench-plain";

/// Times of one start.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// From before the fork until the API socket takes a connection.
    pub spawn: Duration,
    /// `vmm.ping`.
    pub ping: Duration,
    /// `vm.create`.
    pub create: Duration,
    /// `vm.boot`.
    pub boot: Duration,
}

impl Times {
    /// What nobody can do without.
    pub fn floor(&self) -> Duration {
        self.spawn + self.create + self.boot
    }
}

/// A namespace with a TAP, disks, and a configuration, all made in advance.
#[derive(Debug)]
pub struct Plain {
    vmm: PathBuf,
    dir: PathBuf,
    netns: File,
    config: String,
}

impl Plain {
    /// Makes the namespace; `disks` are used again and again.
    pub fn new(setup: &Setup, disks: &Disks) -> anyhow::Result<Self> {
        let dir = setup.subdir("plain")?;
        run("ip", ["netns", "add", NETNS])?;
        run("ip", ["-n", NETNS, "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])?;
        run("ip", ["-n", NETNS, "addr", "add", "192.168.0.1/24", "dev", TAP])?;
        run("ip", ["-n", NETNS, "link", "set", TAP, "up"])?;
        let netns = File::open(Path::new("/run/netns").join(NETNS)).context("cannot open the plain namespace")?;
        let config = config(setup, disks, MemoryLayout::Shared, dir.join("serial.log"))?;
        Ok(Self { vmm: setup.vmm.clone(), dir, netns, config })
    }

    /// Starts one VM, times it and ends it.
    pub fn start(&self) -> anyhow::Result<Times> {
        let socket = self.dir.join("vmm.sock");
        let began = Instant::now();
        let mut vmm = Process { child: self.spawn(&socket)?, socket };
        let mut stream = connect(&mut vmm)?;
        let spawn = began.elapsed();
        let ping = timed(|| call(&mut stream, "GET", "vmm.ping", ""))?;
        let create = timed(|| call(&mut stream, "PUT", "vm.create", &self.config))?;
        let boot = timed(|| call(&mut stream, "PUT", "vm.boot", ""))?;
        call(&mut stream, "PUT", "vmm.shutdown", "")?;
        vmm.child.wait().context("cannot wait for the VMM")?;
        Ok(Times { spawn, ping, create, boot })
    }

    /// From a thread of its own, which enters the namespace and ends.
    fn spawn(&self, socket: &Path) -> anyhow::Result<Child> {
        let mut command = command(&self.vmm, socket, &self.dir);
        let spawned = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.netns, CloneFlags::CLONE_NEWNET)?;
                command.spawn()
            });
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        });
        spawned.with_context(|| format!("cannot start {}", self.vmm.display()))
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if let Err(error) = run("ip", ["netns", "del", NETNS]) {
            eprintln!("{error:#}");
        }
    }
}

/// The hypervisor with the arguments that the runner gives it.
pub fn command(vmm: &Path, socket: &Path, dir: &Path) -> Command {
    let mut command = Command::new(vmm);
    command.arg("--api-socket").arg(socket);
    command.arg("--event-monitor").arg(format!("path={}", dir.join("events.json").display()));
    command.arg("--log-file").arg(dir.join("vmm.log"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The configuration that the runner would send for these disks.
pub fn config(setup: &Setup, disks: &Disks, layout: MemoryLayout, serial: PathBuf) -> anyhow::Result<String> {
    let spec = VmSpec {
        vcpus: 1,
        memory_bytes: 1 << 30,
        layout,
        max_vcpus: 1,
        kernel: setup.kernel.clone(),
        initramfs: None,
        cmdline: CMDLINE.to_owned(),
        root: (disks.root.clone(), disks.format),
        backed: disks.format == runner_ch::hypervisor::wire::ImageType::Qcow2,
        seed: disks.seed.clone(),
        tap: TAP.to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        serial,
    };
    Ok(serde_json::to_string(&VmConfig::for_sandbox(spec, &setup.version))?)
}

/// A process that does not outlive this value.
#[derive(Debug)]
pub struct Process {
    /// The process.
    pub child: Child,
    /// Its API socket.
    pub socket: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it has ended, or that the files are gone: both are wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.socket.with_extension("sock.lock"));
    }
}

fn connect(vmm: &mut Process) -> anyhow::Result<UnixStream> {
    let began = Instant::now();
    loop {
        if let Ok(stream) = http::unix(&vmm.socket) {
            return Ok(stream);
        }
        if let Some(status) = vmm.child.try_wait()? {
            bail!("the VMM ended with {status} before its socket was there");
        }
        go_on()?;
        if began.elapsed() > PATIENCE {
            bail!("the VMM did not open {} within {PATIENCE:?}", vmm.socket.display());
        }
        std::thread::sleep(PAUSE);
    }
}

/// One call of the VMM's API.
pub fn call(stream: &mut UnixStream, method: &str, name: &str, body: &str) -> anyhow::Result<()> {
    http::exchange(stream, method, &format!("/api/v1/{name}"), "", body).map(drop)
}

/// Runs something and answers how long it took.
pub fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}
