//! The guests of a few instructions, and what they tell by their serial lines.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Host, eventually};

/// The hypervisor to test with; says so when there is none.
pub fn real_vmm() -> Option<PathBuf> {
    let named = std::env::var_os("CH_BINARY").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = || std::env::split_paths(&path).map(|dir| dir.join("cloud-hypervisor")).find(|file| file.exists());
    let vmm = named.or_else(found).filter(|file| file.exists());
    if vmm.is_none() {
        eprintln!("skipped: no cloud-hypervisor on PATH and no CH_BINARY");
    }
    vmm
}

/// Makes the host's VMM the real one, and its guest the one of this assembly source. It has no toolbox.
pub fn install(host: &mut Host, vmm: &Path, source: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let linker =
        ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-Ttext=0x200000", "-Wl,-e,entry", "-o"];
    let built = Command::new("cc").args(linker).arg(host.path("vmlinux")).arg(source).output().expect("cc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    host.set("CH_BINARY", vmm.display().to_string());
    host.set("DAEMON_START_TIMEOUT_SEC", "0");
    host.set("RUNNER_STOP_TIMEOUT_SEC", "1");
}

/// The numbers that the counting guest has written to its present serial file. A copy's first line may be the
/// rest of one that its source had begun.
pub fn numbers(host: &Host, id: &str) -> Vec<u32> {
    let text = std::fs::read(host.path(format!("boxes/{id}/serial.log"))).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let number = |line: &str| {
        let digits = line.trim_end().strip_prefix("n=").filter(|digits| digits.len() == 8)?;
        u32::from_str_radix(digits, 16).ok()
    };
    whole.lines().filter_map(number).collect()
}

/// The last number; waits for one.
#[track_caller]
pub fn last(host: &Host, id: &str) -> u32 {
    eventually(&format!("{id} counts"), || numbers(host, id).last().copied())
}

/// The first number of the present run; waits for it.
#[track_caller]
pub fn first(host: &Host, id: &str) -> u32 {
    eventually(&format!("{id} counts"), || numbers(host, id).first().copied())
}

/// Waits until the guest has counted beyond a number.
#[track_caller]
pub fn beyond(host: &Host, id: &str, number: u32) {
    eventually(&format!("{id} counts beyond {number}"), || (last(host, id) > number).then_some(()));
}

/// Fails unless the guest has counted without a gap and without going back, in its present run.
#[track_caller]
pub fn steady(host: &Host, id: &str) {
    let numbers = numbers(host, id);
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 16), "{id}: {numbers:?}");
}

/// The files that a VMM has open.
pub fn open_files(pid: i64) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the VMM runs");
    entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).collect()
}

/// The network namespace of a process.
pub fn netns(pid: i64) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("the VMM runs")
}
