//! Who a process is, in a form that survives a restart of the runner: pid, start time and boot id.
//! A pid alone may have been given to somebody else meanwhile.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::Error;

/// Clock ticks per second in /proc (`USER_HZ`, the same on all platforms of the hypervisor).
pub const TICKS: u64 = 100;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One process, for ever: no other process of this or a later boot compares equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of /proc/pid/stat).
    pub start_ticks: u64,
    /// The kernel's id of this boot.
    pub boot_id: String,
}

/// What became of a process that was known once.
#[derive(Debug)]
pub enum Presence {
    /// It is there; the descriptor refers to it and to nobody after it.
    Alive(OwnedFd),
    /// It has ended. A zombie has ended too.
    Gone,
}

impl ProcessIdentity {
    /// The identity of the calling process.
    pub fn own() -> Result<Self, Error> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// The identity of whoever has `pid` now. The caller must know that it is the one it means: a
    /// child it has not reaped, or one whose pidfd it holds.
    pub fn of(pid: i32) -> Result<Self, Error> {
        Ok(Self { pid, start_ticks: start_ticks(pid)?, boot_id: boot_id(pid)? })
    }

    /// Whether it was started since the host was booted last.
    pub fn of_this_boot(&self) -> Result<bool, Error> {
        Ok(Self::own()?.boot_id == self.boot_id)
    }

    /// Looks whether this very process is still there. Whatever cannot be read is an error and never
    /// "gone".
    pub fn check(&self) -> Result<Presence, Error> {
        // Opened before anything is compared: what is read from /proc afterwards and fits can only
        // belong to the process behind the descriptor.
        let Some(pidfd) = open(self.pid)? else {
            return Ok(Presence::Gone);
        };
        if boot_id(self.pid)? != self.boot_id {
            return Ok(Presence::Gone);
        }
        let found = match start_ticks(self.pid) {
            Err(Error::Identity { source, .. }) if is_gone(&source) => return Ok(Presence::Gone),
            other => other?,
        };
        if found != self.start_ticks || has_ended(&pidfd, self.pid)? {
            return Ok(Presence::Gone);
        }
        Ok(Presence::Alive(pidfd))
    }
}

/// A descriptor of the process that has `pid` now; `None` when nobody has it.
pub fn open(pid: i32) -> Result<Option<OwnedFd>, Error> {
    let fail = |source| Error::Process { what: "open a descriptor of", pid, source };
    // Zero and below name groups of processes, and rustix does not take them.
    let number = if pid > 0 { Pid::from_raw(pid) } else { None };
    let number = number.ok_or_else(|| fail(io::Error::from(io::ErrorKind::InvalidInput)))?;
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(fail(error.into())),
    }
}

/// True when the process behind the descriptor has ended, reaped or not. The descriptor becomes
/// readable only when the last thread is gone, unlike the state in /proc, which says "zombie" as soon
/// as the first thread is.
pub fn has_ended(pidfd: &impl AsFd, pid: i32) -> Result<bool, Error> {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::Process { what: "look after", pid, source: error.into() }),
        }
    }
}

/// True as long as the process behind the descriptor has its pid: nobody has reaped it.
pub fn is_unreaped(pidfd: &impl AsFd) -> bool {
    // Signal 0 asks only, and reaches zombies, too.
    // SAFETY: plain system call without a pointer that is followed.
    let asked = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), 0, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    asked == 0
}

fn boot_id(pid: i32) -> Result<String, Error> {
    let path = Path::new(BOOT_ID);
    let text = std::fs::read_to_string(path).map_err(|source| identity(pid, path, source))?;
    Ok(text.trim().to_owned())
}

fn start_ticks(pid: i32) -> Result<u64, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let stat = std::fs::read(&path).map_err(|source| identity(pid, &path, source))?;
    parse_start_ticks(&stat).ok_or_else(|| {
        identity(pid, &path, io::Error::new(io::ErrorKind::InvalidData, "no start time in its 22nd field"))
    })
}

/// Field 22. The second field is the program's name in parentheses and may contain anything, spaces
/// and parentheses too, so fields are counted after the last `)`.
fn parse_start_ticks(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    // The field after the name is number 3.
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

fn identity(pid: i32, path: &Path, source: io::Error) -> Error {
    Error::Identity { pid, path: path.to_owned(), source }
}

/// ENOENT when the directory is gone, ESRCH when the process ended between open and read.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn is_alive(identity: &ProcessIdentity) -> bool {
        matches!(identity.check().unwrap(), Presence::Alive(_))
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = b"42 (a) b ) 7) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 2\n";
        assert_eq!(parse_start_ticks(stat), Some(987_654));
        assert_eq!(parse_start_ticks(b"42 (cut) S 1 2"), None);
        assert_eq!(parse_start_ticks(b""), None);
    }

    #[test]
    fn myself() {
        let own = ProcessIdentity::own().unwrap();
        assert!(is_alive(&own));
        let json = serde_json::to_string(&own).unwrap();
        assert_eq!(serde_json::from_str::<ProcessIdentity>(&json).unwrap(), own);
    }

    #[test]
    fn another_start_time_or_boot_is_another_process() {
        let own = ProcessIdentity::own().unwrap();
        assert!(!is_alive(&ProcessIdentity { start_ticks: own.start_ticks + 1, ..own.clone() }));
        assert!(!is_alive(&ProcessIdentity { boot_id: "another".into(), ..own }));
    }

    #[test]
    fn a_zombie_is_gone_and_so_is_a_reaped_child() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let identity = ProcessIdentity::of(child.id() as i32).unwrap();
        let Presence::Alive(pidfd) = identity.check().unwrap() else { panic!("the child runs") };
        drop(child.stdin.take());
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        assert!(stat.contains(") Z "), "{stat}");
        assert!(!is_alive(&identity), "a zombie has ended");
        child.wait().unwrap();
        assert!(!is_alive(&identity));
    }

    #[test]
    fn a_senseless_pid_is_an_error() {
        let own = ProcessIdentity::own().unwrap();
        for pid in [0, -1] {
            assert!(ProcessIdentity { pid, ..own.clone() }.check().is_err());
        }
    }
}
