//! Whether the kernel killed a process for want of memory. The only proof that names the process is the kernel's own log;
//! counters (`/proc/vmstat`, `memory.events`) say that somebody was killed, not who.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use crate::hypervisor::ProcessIdentity;
use crate::hypervisor::identity::TICKS;

/// The largest record that the kernel hands out, in bytes (`PRINTK_MESSAGE_MAX` is smaller).
const RECORD: usize = 8 * 1024;
/// More records than a log buffer holds; a log that grows while it is read is not read for ever.
const MOST_RECORDS: usize = 1 << 20;
/// Inode of the first PID namespace (`PROC_PID_INIT_INO`): the kernel names pids of that one.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// The log's clock is not quite the one of start times.
const SLACK_MICROS: u64 = 1_000_000;

/// True only if it is proven. Blocks.
pub fn killed(process: &ProcessIdentity) -> bool {
    // Nobody was ever killed for that since the boot: the usual case, and cheap to know.
    let nobody = std::fs::read_to_string("/proc/vmstat").is_ok_and(|text| kills(&text) == Some(0));
    let here = std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == FIRST_PID_NAMESPACE);
    if nobody || !here {
        return false;
    }
    match search(process) {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "cannot read the kernel's log; a kill for want of memory looks like any other");
            false
        }
    }
}

fn kills(vmstat: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

fn search(process: &ProcessIdentity) -> io::Result<bool> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut record = vec![0; RECORD];
    for _ in 0..MOST_RECORDS {
        match log.read(&mut record) {
            Ok(length) if tells(&record[..length], process) => return Ok(true),
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // The oldest records were overwritten meanwhile: the next read goes on behind them.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// `priority,sequence,microseconds,flags;text`, as Documentation/ABI/testing/dev-kmsg has it.
fn tells(record: &[u8], process: &ProcessIdentity) -> bool {
    let text = String::from_utf8_lossy(record);
    let Some((head, text)) = text.split_once(';') else { return false };
    let mut head = head.split(',').map(str::parse::<u64>);
    let (Some(Ok(priority)), Some(Ok(micros))) = (head.next(), head.nth(1)) else { return false };
    // Programs can write to the log, too, but not as the kernel (facility 0).
    let by_kernel = priority < 8;
    let since = process.start_ticks.saturating_mul(1_000_000 / TICKS);
    let line = text.lines().next().unwrap_or_default();
    by_kernel
        && micros.saturating_add(SLACK_MICROS) >= since
        && line.to_ascii_lowercase().contains("out of memory")
        && line.contains(&format!("Killed process {} (", process.pid))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn process(pid: i32, start_ticks: u64) -> ProcessIdentity {
        ProcessIdentity { pid, start_ticks, boot_id: "boot".into() }
    }

    #[test]
    fn only_the_kernels_word_about_this_process_counts() {
        let killed = "Killed process 42 (cloud-hyperviso) total-vm:1kB, anon-rss:1kB, UID:0 pgtables:1kB";
        let tells =
            |head: &str, text: &str| tells(format!("{head};{text}\n SUBSYSTEM=x\n").as_bytes(), &process(42, 500));
        assert!(tells("3,99,5000000,-", &format!("Out of memory: {killed}")));
        assert!(tells("6,99,9000000,-,caller=T1", &format!("Memory cgroup out of memory: {killed}")));
        assert!(!tells("3,99,3000000,-", &format!("Out of memory: {killed}")), "somebody who had the pid before");
        assert!(!tells("12,99,5000000,-", &format!("Out of memory: {killed}")), "a program wrote that");
        assert!(!tells("3,99,5000000,-", &format!("Out of memory: {}", killed.replace("42", "142"))));
        assert!(!tells("3,99,5000000,-", "oom_reaper: reaped process 42 (cloud-hyperviso)"));
        assert!(!tells("3,99,5000000,-", killed));
        assert!(!super::tells(b"nonsense", &process(42, 0)));
        assert_eq!((kills("a 1\noom_kill 7\n"), kills("a 1\n")), (Some(7), None));
    }

    /// A memory cgroup of the test's own, where this machine lets it make one.
    struct Group(std::path::PathBuf);

    impl Group {
        fn new() -> Option<Self> {
            let name = format!("runner-ch-test-{}", std::process::id());
            for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
            {
                let dir = std::path::Path::new(root).join(&name);
                if std::fs::create_dir(&dir).is_ok() {
                    let group = Self(dir);
                    if std::fs::write(group.0.join(limit), "16777216").is_ok() {
                        return Some(group);
                    }
                }
            }
            None
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }

    #[test]
    fn a_real_kill_is_proven_and_a_signal_is_not() {
        let Some(group) = Group::new() else {
            eprintln!("skipped: no memory cgroup can be made here");
            return;
        };
        // `tail` keeps the last line, and that of /dev/zero has no end.
        let script = format!("read x; echo $$ > {}/cgroup.procs && exec tail /dev/zero", group.0.display());
        let mut child = Command::new("sh").args(["-c", &script]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let hog = ProcessIdentity::of(child.id() as i32).unwrap();
        assert!(!killed(&hog));
        drop(child.stdin.take());
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
        assert!(killed(&hog), "the kernel's log names it");
        assert!(!killed(&ProcessIdentity { start_ticks: hog.start_ticks + 60 * TICKS, ..hog }), "not a later process");
    }
}
