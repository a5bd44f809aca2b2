//! Namespaces of the benchmark's own, so that it meets nothing of this machine and the kernel takes
//! away links, rules and mounts with it; running programs; being told to end.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Changes into new namespaces. The process must have one thread only.
pub fn enter() -> anyhow::Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark makes real namespaces, links and mounts: run it as root");
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("cannot make namespaces")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make mounts private")?;
    // sysfs shows the links of the namespace in which it was mounted.
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("cannot mount /sys")?;
    std::fs::create_dir_all("/run/netns").context("cannot make /run/netns")?;
    mount(Some("tmpfs"), "/run/netns", Some("tmpfs"), MsFlags::empty(), none).context("cannot mount /run/netns")?;
    run("ip", ["link", "set", "lo", "up"])
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: libc::c_int) {
    STOP.store(true, Ordering::SeqCst);
}

/// Makes SIGINT, SIGTERM and SIGHUP end the benchmark in order, with everything cleaned up.
pub fn watch_signals() -> anyhow::Result<()> {
    for which in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to an atomic and does nothing else.
        unsafe { signal(which, SigHandler::Handler(stop)) }.with_context(|| format!("cannot watch for {which}"))?;
    }
    Ok(())
}

/// An error once the benchmark was told to end.
pub fn go_on() -> anyhow::Result<()> {
    ensure!(!STOP.load(Ordering::SeqCst), "told to end by a signal");
    Ok(())
}

/// Waits for a state, looking every `pause`.
pub fn until<T>(
    what: &str,
    patience: Duration,
    pause: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        go_on()?;
        ensure!(began.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep(pause);
    }
}

/// Runs a program to its end, which must be a good one.
pub fn run<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{command:?} failed with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Whether PATH has this program.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
