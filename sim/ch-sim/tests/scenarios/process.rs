//! The process: socket, lock file, signals, exit codes (cloud-hypervisor.md 3), disk locks for others (6).

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use super::{for_each, in_state};
use crate::common::{Binary, Vmm, code, copy, wait_for};

/// Runs a program to its end; exit code and stderr.
fn run(binary: &Binary, args: &[&str]) -> (i32, String) {
    let output = Command::new(&binary.path).args(args).output().unwrap();
    (code(output.status), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_socket_is_private_and_has_a_lock_file() {
    for_each(|binary| {
        let mut vmm = Vmm::start(binary);
        let mode = std::fs::metadata(vmm.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let mode = std::fs::metadata(vmm.path("api.sock.lock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        vmm.put("vmm.shutdown", None);
        assert_eq!(code(vmm.wait()), 0);
        assert!(!vmm.socket().exists());
        assert!(vmm.path("api.sock.lock").exists());
    });
}

#[test]
fn a_second_instance_on_the_same_socket_gives_up() {
    for_each(|binary| {
        let vmm = Vmm::start(binary);
        let socket = vmm.socket();
        let (exit, text) = run(binary, &["--api-socket", socket.to_str().unwrap()]);
        assert_eq!(exit, 1);
        assert!(text.contains("is already in use by another running instance"), "{text}");
        assert_eq!(vmm.request("GET", "vmm.ping", None).status, 200);
    });
}

#[test]
fn stale_sockets_are_replaced() {
    for_each(|binary| {
        let mut vmm = Vmm::start(binary);
        vmm.signal(libc::SIGKILL);
        assert_eq!(code(vmm.wait()), 128 + libc::SIGKILL);
        assert!(vmm.socket().exists());
        let dir = tempfile::Builder::new().prefix("chsim-").tempdir().unwrap();
        copy(&vmm.path("events"), &dir.path().join("api.sock"));
        let again = Vmm::start_in(binary, dir, &[], |_| {});
        assert_eq!(again.request("GET", "vmm.ping", None).status, 200);
    });
}

#[test]
fn impossible_starts() {
    for_each(|binary| {
        assert_eq!(run(binary, &["--surprise"]).0, 2);
        assert_eq!(run(binary, &["--api-socket", "/not/there/s"]).0, 1);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run(binary, &["--api-socket", dir.path().to_str().unwrap()]).0, 1);
        let socket = dir.path().join("s");
        let args = ["--api-socket", socket.to_str().unwrap(), "--event-monitor", "nonsense"];
        assert_eq!(run(binary, &args).0, 1);
    });
}

#[test]
fn version_is_printed() {
    for_each(|binary| {
        let output = Command::new(&binary.path).arg("--version").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("cloud-hypervisor v53.0"), "{text}");
        assert!(output.status.success());
    });
}

#[test]
fn signals_end_the_process_in_every_state() {
    for_each(|binary| {
        for (state, signal, exit, socket_stays) in [
            ("none", libc::SIGTERM, 0, false),
            ("created", libc::SIGINT, 0, false),
            ("running", libc::SIGTERM, 0, false),
            ("paused", libc::SIGTERM, 0, false),
            ("running", libc::SIGHUP, 128 + libc::SIGHUP, true),
            ("running", libc::SIGKILL, 128 + libc::SIGKILL, true),
        ] {
            let mut vmm = in_state(binary, state);
            vmm.signal(signal);
            assert_eq!(code(vmm.wait()), exit, "{state} {signal}");
            assert_eq!(vmm.socket().exists(), socket_stays, "{state} {signal}");
            // The real program may end before its last events are written.
            let ended = vmm.events().contains(&"vmm:shutdown".to_owned());
            assert!(!binary.simulated || ended == (exit == 0), "{state} {signal}");
            assert!(!ended || exit == 0, "{state} {signal}");
        }
    });
}

#[test]
fn a_listening_socket_can_be_inherited() {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    for_each(|binary| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let fd = listener.as_raw_fd();
        let mut command = Command::new(&binary.path);
        command.args(["--api-socket", "fd=20"]);
        // SAFETY: only a system call between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if libc::dup2(fd, 20) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let mut stream = wait_for("the API", || UnixStream::connect(&path).ok());
        crate::common::send(&mut stream, "GET", "/api/v1/vmm.ping", None);
        assert_eq!(crate::common::receive(&mut stream).status, 200);
        crate::common::send(&mut stream, "PUT", "/api/v1/vmm.shutdown", None);
        assert_eq!(crate::common::receive(&mut stream).status, 200);
        assert_eq!(code(wait_for("the end", || child.try_wait().unwrap())), 0);
        assert!(path.exists() && !dir.path().join("s.lock").exists());
    });
}

#[test]
fn other_processes_see_the_disk_lock() {
    for_each(|binary| {
        let vmm = in_state(binary, "paused");
        let file = std::fs::File::open(vmm.path("disk")).unwrap();
        let probe = |wanted: i32| {
            // SAFETY: all bytes zero is a valid `flock`.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = libc::F_WRLCK as libc::c_short;
            // SAFETY: the argument is a complete `flock` that outlives the call.
            let done = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::F_OFD_GETLK, &mut lock) };
            assert_eq!((done, i32::from(lock.l_type)), (0, wanted));
            (lock.l_start, lock.l_len)
        };
        assert_eq!(probe(libc::F_WRLCK), (0, 1 << 20));
        vmm.put("vm.shutdown", None);
        probe(libc::F_UNLCK);
    });
}
