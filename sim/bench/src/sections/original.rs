//! The original's procedure on the same work, up to the booted VM: the programs that it ran, one
//! process each, with its fixed waits. Its logic is not reproduced, so this is the least it took.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use runner_ch::hypervisor::wire::{ImageType, MemoryLayout};

use super::Section;
use crate::args::Args;
use crate::http;
use crate::isolate::{go_on, has, run};
use crate::sections::create::Measured;
use crate::setup::{Disks, Setup};
use crate::stats::{Samples, ratio};
use crate::table::Table;
use crate::vmm::{self, Process};

/// Between two looks for the socket.
const POLL: Duration = Duration::from_millis(50);
/// After the socket has appeared.
const REST: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(20);
const NETNS: &str = "bench-orig";

/// Times of one run.
#[derive(Debug, Default, Clone, Copy)]
struct Times {
    disk: Duration,
    network: Duration,
    seed: Duration,
    waiting: Duration,
    calls: Duration,
    whole: Duration,
    processes: u32,
}

/// Measures.
pub fn section(setup: &Setup, args: &Args, measured: &Measured) -> anyhow::Result<Section> {
    let mut section = Section::new("2. The original's procedure on the same work, up to vm.boot");
    let maker = SeedMaker::find();
    let times: Vec<Times> = (0..args.original_runs).map(|_| one(setup, maker)).collect::<anyhow::Result<_>>()?;

    let of = |part: fn(&Times) -> Duration| -> Samples { times.iter().map(part).collect() };
    let mut table = Table::of_samples("The original's way");
    table.samples("root disk (mkdir, qemu-img)", &of(|times| times.disk));
    table.samples("network (ip, sysctl, iptables)", &of(|times| times.network));
    table.samples(format!("seed ({})", maker.name()), &of(|times| times.seed));
    table.samples("spawn, 50 ms polling, 200 ms sleep", &of(|times| times.waiting));
    table.samples("vm.create + vm.boot", &of(|times| times.calls));
    table.samples("all", &of(|times| times.whole));
    let ours = measured.running();
    table.samples("ours: claimed -> VM running", &ours);
    section.tables.push(table);

    let whole = of(|times| times.whole).median();
    section.at_least("faster than the original's way, by medians", ratio(whole, ours.median()), 10.0, "x");
    let without = of(|times| times.whole - times.waiting).median();
    let factor = ratio(without, ours.median());
    section.note(format!("without spawn, polling and sleep, the original's way still takes {factor:.1} times as long"));
    section.note(format!("{} processes per create, the VMM among them", times[0].processes));
    section.note("a reconstruction from what its documents and reviews say; its API client and its locks are left out");
    Ok(section)
}

#[derive(Debug, Clone, Copy)]
enum SeedMaker {
    Iso,
    Fat,
    Missing,
}

impl SeedMaker {
    fn find() -> Self {
        match () {
            () if has("genisoimage") => Self::Iso,
            () if has("mkfs.vfat") && has("mcopy") => Self::Fat,
            () => Self::Missing,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Iso => "genisoimage",
            Self::Fat => "mkfs.vfat, mcopy",
            Self::Missing => "left out: neither genisoimage nor mkfs.vfat and mcopy",
        }
    }
}

/// One sandbox under construction, and its clean-up.
struct Work<'a> {
    setup: &'a Setup,
    dir: PathBuf,
    processes: u32,
}

fn one(setup: &Setup, maker: SeedMaker) -> anyhow::Result<Times> {
    go_on()?;
    let mut work = Work { setup, dir: setup.dir.path().join("original"), processes: 0 };
    let began = Instant::now();
    let mut times = Times::default();
    let root = work.disk()?;
    times.disk = began.elapsed();
    let step = Instant::now();
    work.network()?;
    times.network = step.elapsed();
    let step = Instant::now();
    let seed = work.seed(maker)?;
    times.seed = step.elapsed();
    let step = Instant::now();
    let vmm = work.spawn()?;
    times.waiting = step.elapsed();
    let step = Instant::now();
    work.boot(&vmm, Disks { root, format: ImageType::Qcow2, seed })?;
    times.calls = step.elapsed();
    times.whole = began.elapsed();
    times.processes = work.processes;
    drop(vmm);
    Ok(times)
}

impl Work<'_> {
    fn run(&mut self, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        self.processes += 1;
        run(program, arguments)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn disk(&mut self) -> anyhow::Result<PathBuf> {
        let (dir, disk) = (self.dir.display().to_string(), self.path("disk.qcow2"));
        let base = self.setup.base.display().to_string();
        self.run("mkdir", &["-p", &dir])?;
        self.run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &disk, "1G"])?;
        Ok(disk.into())
    }

    /// Namespace with a routed veth, TAP, NAT out and everything forwarded in.
    fn network(&mut self) -> anyhow::Result<()> {
        for arguments in [
            "netns add bench-orig",
            "link add bench-host type veth peer name bench-peer",
            "link set bench-peer netns bench-orig",
            "addr add 10.0.1.254/24 dev bench-host",
            "link set bench-host up",
            "netns exec bench-orig ip link set lo up",
            "netns exec bench-orig ip addr add 10.0.1.1/24 dev bench-peer",
            "netns exec bench-orig ip link set bench-peer up",
            "netns exec bench-orig ip route add default via 10.0.1.254",
            "netns exec bench-orig ip tuntap add dev tap0 mode tap",
            "netns exec bench-orig ip addr add 192.168.0.1/24 dev tap0",
            "netns exec bench-orig ip link set tap0 up",
            "netns exec bench-orig sysctl -q -w net.ipv4.ip_forward=1",
            "netns exec bench-orig iptables -t nat -A POSTROUTING -o bench-peer -j MASQUERADE",
            "netns exec bench-orig iptables -t nat -A PREROUTING -i bench-peer -j DNAT --to-destination 192.168.0.2",
            "netns exec bench-orig iptables -A FORWARD -i bench-peer -o tap0 -j ACCEPT",
            "netns exec bench-orig iptables -A FORWARD -i tap0 -o bench-peer -j ACCEPT",
        ] {
            let words: Vec<&str> = arguments.split(' ').collect();
            self.run("ip", &words)?;
        }
        self.run("iptables", &["-t", "nat", "-A", "POSTROUTING", "-s", "10.0.1.0/24", "-j", "MASQUERADE"])
    }

    fn seed(&mut self, maker: SeedMaker) -> anyhow::Result<PathBuf> {
        let seed = self.path("seed.img");
        let files = ["user-data", "meta-data", "network-config"].map(|name| self.path(name));
        for file in &files {
            std::fs::write(file, "instance-id: bench\n").with_context(|| format!("cannot write {file}"))?;
        }
        let [user, meta, network] = files.each_ref().map(String::as_str);
        match maker {
            SeedMaker::Iso => {
                let options = ["-quiet", "-output", &seed, "-volid", "cidata", "-joliet", "-rock", user, meta, network];
                self.run("genisoimage", &options)?;
            }
            SeedMaker::Fat => {
                self.run("truncate", &["-s", "1M", &seed])?;
                self.run("mkfs.vfat", &["-n", "CIDATA", &seed])?;
                self.run("mcopy", &["-i", &seed, user, meta, network, "::"])?;
            }
            SeedMaker::Missing => std::fs::write(&seed, vec![0; 1 << 20])?,
        }
        Ok(seed.into())
    }

    fn spawn(&mut self) -> anyhow::Result<Process> {
        self.processes += 1;
        spawn(self.setup, NETNS, &self.dir)
    }

    fn boot(&self, vmm: &Process, disks: Disks) -> anyhow::Result<()> {
        let config = vmm::config(self.setup, &disks, MemoryLayout::Shared, self.dir.join("serial.log"))?;
        let mut stream = http::unix(&vmm.socket)?;
        vmm::call(&mut stream, "PUT", "vm.create", &config)?;
        vmm::call(&mut stream, "PUT", "vm.boot", "")
    }
}

/// A VMM started as the original did, with its waits.
pub(super) fn spawn(setup: &Setup, netns: &str, dir: &Path) -> anyhow::Result<Process> {
    let socket = dir.join("vmm.sock");
    let vmm = vmm::command(&setup.vmm, &socket, dir);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).arg(vmm.get_program()).args(vmm.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let vmm = Process { child: command.spawn().context("cannot start ip")?, socket };
    let began = Instant::now();
    while !vmm.socket.exists() {
        go_on()?;
        ensure!(began.elapsed() < PATIENCE, "the VMM did not open its socket within {PATIENCE:?}");
        std::thread::sleep(POLL);
    }
    std::thread::sleep(REST);
    Ok(vmm)
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        let arguments = ["-t", "nat", "-D", "POSTROUTING", "-s", "10.0.1.0/24", "-j", "MASQUERADE"];
        // After a failure not all of it is there; what stays ends with the benchmark's namespaces.
        let _ = run("iptables", arguments);
        let _ = run("ip", ["netns", "del", NETNS]);
        let _ = run("ip", ["link", "del", "bench-host"]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
