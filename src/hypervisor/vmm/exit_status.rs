//! The exit status of a process that is not our child: a VMM that an earlier life of the runner has started.

use std::os::fd::{AsFd, AsRawFd};

use super::cause::Status;
use crate::hypervisor::identity;

/// Part of `struct pidfd_info` (linux/pidfd.h): the size of its first version, and what is read of it.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    /// pid, tgid, ppid, and four pairs of user and group ids.
    ids: [u32; 11],
    exit_code: i32,
}

/// Bit of the mask: the process was reaped, and `exit_code` is its wait status. Since Linux 6.15.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

mod request {
    #![allow(missing_docs, reason = "the macro gives its function none")]
    nix::ioctl_readwrite!(pidfd_get_info, 0xFF, 11, super::PidfdInfo);
}

/// The status of a process that somebody has reaped; none before that, and none from older kernels.
pub fn of_reaped(pidfd: &impl AsFd) -> Option<Status> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel writes at most the size that is encoded in the request, which is that of the structure.
    unsafe { request::pidfd_get_info(pidfd.as_fd().as_raw_fd(), &raw mut info) }.ok()?;
    (info.mask & PIDFD_INFO_EXIT != 0).then(|| decode(info.exit_code))
}

/// The status of a process that has ended and that nobody has reaped yet, from /proc. Code 0 is what readers without
/// the right to see it get, too, so that proves nothing.
pub fn of_zombie(pidfd: &impl AsFd, pid: i32) -> Option<Status> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let code = exit_code(&stat)?;
    // As long as this process has its pid, nobody else has.
    let same = identity::is_unreaped(pidfd);
    (same && code != 0).then(|| decode(code))
}

/// Field 52 of a zombie.
fn exit_code(stat: &[u8]) -> Option<i32> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?.split_ascii_whitespace();
    (fields.next() == Some("Z")).then(|| fields.nth(52 - 4)?.parse().ok())?
}

/// A wait status (wait(2)).
fn decode(status: i32) -> Status {
    match status & 0x7f {
        0 => Status::Code((status >> 8) & 0xff),
        signal => Status::Signal(signal),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    /// A child that ends like this, before and after it is reaped.
    fn seen(script: &str) -> [Option<Status>; 2] {
        let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        let pidfd = identity::open(pid).unwrap().unwrap();
        assert_eq!((of_reaped(&pidfd), of_zombie(&pidfd, pid)), (None, None), "it still runs");
        drop(child.stdin.take());
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        assert_eq!(of_reaped(&pidfd), None, "nobody has reaped it");
        let before = of_zombie(&pidfd, pid);
        child.wait().unwrap();
        assert_eq!(of_zombie(&pidfd, pid), None);
        [before, of_reaped(&pidfd)]
    }

    #[test]
    fn an_end_is_told_to_those_who_are_not_the_parent() {
        // Older kernels do not tell it after the reaping.
        let told_later = seen("read x; exit 3")[1].is_some();
        let later = |status| told_later.then_some(status);
        assert_eq!(seen("read x; exit 3"), [Some(Status::Code(3)), later(Status::Code(3))]);
        assert_eq!(seen("read x; kill -9 $$"), [Some(Status::Signal(9)), later(Status::Signal(9))]);
        assert_eq!(seen("read x; kill -11 $$")[0], Some(Status::Signal(11)), "with or without a core");
        assert_eq!(seen("read x; exit 0"), [None, later(Status::Code(0))]);
    }

    #[test]
    fn only_the_status_of_a_zombie_counts() {
        let fields = |state: &str| format!("42 (a) b) {state} {}1792", "7 ".repeat(48));
        assert_eq!(exit_code(fields("Z").as_bytes()), Some(1792));
        assert_eq!(exit_code(fields("R").as_bytes()), None);
        assert_eq!(exit_code(b"42 (a) Z 1 2"), None);
    }
}
