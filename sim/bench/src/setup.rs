//! What all parts share: the work directory, the programs, a base image with something in it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use runner_ch::hypervisor::Version;
use runner_ch::hypervisor::wire::ImageType;
use tempfile::TempDir;

use crate::args::Args;
use crate::isolate::run;

/// Virtual size of the base image.
const BASE_SIZE: u64 = 512 << 20;
/// How much of it is data, so that clones and overlays have something to share.
const BASE_DATA: u64 = 64 << 20;
/// Reference of the base image.
pub const SNAPSHOT: &str = "ubuntu-base.1";

/// Programs and files of the whole benchmark.
#[derive(Debug)]
pub struct Setup {
    /// Everything that is written lies below.
    pub dir: TempDir,
    /// The runner.
    pub runner: PathBuf,
    /// The hypervisor.
    pub vmm: PathBuf,
    /// Its version.
    pub version: Version,
    /// Whether it only simulates.
    pub simulated: bool,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// The base image, qcow2.
    pub base: PathBuf,
}

impl Setup {
    /// Finds the programs beside this one and makes the base image.
    pub fn new(args: &Args) -> anyhow::Result<Self> {
        // Sockets lie below and have short paths only.
        let dir = tempfile::Builder::new().prefix("rchb").tempdir_in(&args.dir);
        let dir = dir.with_context(|| format!("cannot make a directory in {}", args.dir.display()))?;
        let simulator = beside("ch-sim")?;
        let chosen = std::env::var_os("CH_BINARY").map(PathBuf::from);
        let vmm = chosen.clone().unwrap_or_else(|| simulator.clone());
        let version = version(&vmm)?;
        let simulated = vmm.file_name() == simulator.file_name();
        let kernel = dir.path().join("vmlinux");
        match std::env::var_os("BENCH_KERNEL").map(PathBuf::from) {
            Some(given) => copy(&given, &kernel)?,
            // Any ELF file is a kernel to the simulator.
            None if simulated => copy(&simulator, &kernel)?,
            None => bail!("CH_BINARY is set: set BENCH_KERNEL to a small guest kernel for it as well"),
        };
        let base = make_base(dir.path())?;
        Ok(Self { runner: beside("runner-ch")?, vmm, version, simulated, kernel, base, dir })
    }

    /// A new directory below the work directory.
    pub fn subdir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} is missing; build it first: cargo build --release --workspace --bins", path.display());
    Ok(path)
}

fn version(vmm: &Path) -> anyhow::Result<Version> {
    let output = Command::new(vmm).arg("--version").output();
    let output = output.with_context(|| format!("cannot start {}", vmm.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let word = text.lines().next().and_then(|line| line.split(' ').next_back()).unwrap_or_default();
    Version::parse(word).with_context(|| format!("{} --version said {text:?}", vmm.display()))
}

fn make_base(dir: &Path) -> anyhow::Result<PathBuf> {
    let (raw, base) = (dir.join("base.raw"), dir.join("base.qcow2"));
    let mut file = File::create(&raw).with_context(|| format!("cannot create {}", raw.display()))?;
    // Nothing that could be stored as zeros or compressed.
    std::io::copy(&mut File::open("/dev/urandom")?.take(BASE_DATA), &mut file).context("cannot fill the base image")?;
    file.set_len(BASE_SIZE)?;
    drop(file);
    let options = ["convert", "-f", "raw", "-O", "qcow2"].iter().map(OsStr::new);
    run("qemu-img", options.chain([raw.as_ref(), base.as_ref()]))?;
    std::fs::remove_file(&raw)?;
    Ok(base)
}

/// A sandbox's disks, put aside for VMs that are started without the runner.
#[derive(Debug, Clone)]
pub struct Disks {
    /// Root disk.
    pub root: PathBuf,
    /// Its format.
    pub format: ImageType,
    /// NoCloud seed.
    pub seed: PathBuf,
}

impl Disks {
    /// Copies the disks from a sandbox's directory.
    pub fn copy_of(sandbox: &Path, to: &Path) -> anyhow::Result<Self> {
        let overlay = sandbox.join("disk.qcow2").exists();
        let (name, format) = if overlay { ("disk.qcow2", ImageType::Qcow2) } else { ("disk.raw", ImageType::Raw) };
        let disks = Self { root: to.join(name), format, seed: to.join("seed.img") };
        copy(&sandbox.join(name), &disks.root)?;
        copy(&sandbox.join("seed.img"), &disks.seed)?;
        Ok(disks)
    }
}

/// Holes stay holes, and blocks are shared where the file system can.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    run("cp", ["--sparse=always", "--reflink=auto", "--"].iter().map(OsStr::new).chain([from.as_ref(), to.as_ref()]))
}
