//! On what the numbers were measured.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use nix::sys::statfs::{self, statfs};
use serde_json::{Value, json};

use crate::setup::Setup;
use crate::stats::Samples;

/// Writes whose flushing is timed.
const FLUSHES: u32 = 50;

/// Cores, kernel, load, build, hypervisor, file system.
pub fn describe(setup: &Setup) -> anyhow::Result<Value> {
    let kernel = nix::sys::utsname::uname()?;
    let cores = std::thread::available_parallelism()?.get();
    let what = if setup.simulated { "simulated: says nothing about real boot times" } else { "real" };
    let flush = flush_time(setup.dir.path())?;
    Ok(json!({
        "CPU": format!("{cores} cores, {}", model()?),
        "Kernel": format!("{} {}", kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy()),
        "Load average at start": load_average()?,
        "Build": if cfg!(debug_assertions) { "debug: numbers are worth nothing" } else { "release" },
        "VMM": format!("{} {} ({what})", setup.vmm.display(), setup.version),
        "Work directory": format!("{} on {}", setup.dir.path().display(), file_system(setup.dir.path())?),
        "Write 4 KiB and fdatasync there": format!("p50 {:.2} ms", flush.median().as_secs_f64() * 1e3),
    }))
}

/// The kernel's three averages.
pub fn load_average() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

fn model() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(line.map_or_else(|| "unknown model".to_owned(), |(_, model)| model.to_owned()))
}

/// The type of the file system below a path.
pub fn file_system(path: &Path) -> anyhow::Result<String> {
    let found = statfs(path).with_context(|| format!("cannot examine {}", path.display()))?.filesystem_type();
    Ok(match found {
        statfs::EXT4_SUPER_MAGIC => "ext4".to_owned(),
        statfs::XFS_SUPER_MAGIC => "XFS".to_owned(),
        statfs::BTRFS_SUPER_MAGIC => "btrfs".to_owned(),
        statfs::TMPFS_MAGIC => "tmpfs".to_owned(),
        statfs::OVERLAYFS_SUPER_MAGIC => "overlayfs".to_owned(),
        other => format!("a file system of type {:#x}", other.0),
    })
}

/// What one durable write costs there: a create makes several.
fn flush_time(dir: &Path) -> anyhow::Result<Samples> {
    let path = dir.join("flush");
    let mut file = OpenOptions::new().append(true).create_new(true).open(&path)?;
    let mut times = Vec::new();
    for _ in 0..FLUSHES {
        let began = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    std::fs::remove_file(&path)?;
    Ok(times.into_iter().collect())
}
