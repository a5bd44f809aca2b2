//! Network namespaces with a TAP, and plain TCP clients inside them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::{PATIENCE, wait_for};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace with `tap0` at 192.168.0.1/24.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("chsim-{}-{number}", std::process::id());
        ip(&["netns", "add", &name]);
        let inside = |args: &[&str]| ip(&[&["-n", &name], args].concat());
        inside(&["link", "set", "lo", "up"]);
        inside(&["tuntap", "add", "tap0", "mode", "tap", "vnet_hdr"]);
        inside(&["addr", "add", "192.168.0.1/24", "dev", "tap0"]);
        inside(&["link", "set", "tap0", "up"]);
        Self { name }
    }

    /// Makes a command run inside.
    pub fn enter(&self, command: &mut Command) {
        let file = File::open(self.path()).unwrap();
        // SAFETY: only a system call between fork and exec.
        unsafe {
            command.pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from));
        }
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// Connects to the guest, retrying while it boots.
    pub fn connect(&self, port: u16) -> TcpStream {
        let address = SocketAddr::from(([192, 168, 0, 2], port));
        self.run(|| {
            wait_for("the guest's port", || {
                let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Some(stream)
            })
        })
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {args:?}");
}

/// One HTTP request to the guest on an open connection; status and body.
pub fn http(stream: &mut TcpStream, method: &str, target: &str, body: &[u8]) -> (u16, String) {
    let head = format!("{method} {target} HTTP/1.1\r\nHost: 192.168.0.2\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let reply = super::receive(stream);
    (reply.status, reply.body)
}

/// Runs a command in the guest's shell; exit code and output.
pub fn shell(stream: &mut TcpStream, command: &str) -> (i64, String) {
    let body = serde_json::json!({"command": command}).to_string();
    let (status, body) = http(stream, "POST", "/process/execute", body.as_bytes());
    assert_eq!(status, 200, "{body}");
    let result: serde_json::Value = serde_json::from_str(&body).unwrap();
    let output = result["result"].as_str().unwrap_or_default().to_owned();
    (result["exitCode"].as_i64().unwrap_or(-1), output)
}

/// Reads exactly this many bytes.
pub fn read_exactly(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}
