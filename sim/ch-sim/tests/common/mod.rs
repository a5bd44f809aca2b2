//! Helpers of the integration tests: a VMM process, a raw HTTP client, a kernel, namespaces.
#![allow(dead_code)] // Each test file uses its part.

pub mod net;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `check` gives a value.
pub fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A program under test.
#[derive(Clone, Debug)]
pub struct Binary {
    pub path: PathBuf,
    pub simulated: bool,
}

impl Binary {
    /// The simulator.
    pub fn simulator() -> Self {
        Self { path: env!("CARGO_BIN_EXE_ch-sim").into(), simulated: true }
    }

    /// The real program from `CH_BINARY` or the path, if there is one and it can use KVM.
    pub fn real() -> Option<Self> {
        let given = std::env::var_os("CH_BINARY").map(PathBuf::from);
        let path = given.or_else(|| {
            let path = std::env::var_os("PATH")?;
            let mut dirs = std::env::split_paths(&path);
            dirs.find_map(|dir| Some(dir.join("cloud-hypervisor")).filter(|file| file.exists()))
        })?;
        let kvm = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
        kvm.is_ok().then_some(Self { path, simulated: false })
    }

    /// The simulator, and the real program where it is available.
    pub fn all() -> Vec<Self> {
        let real = Self::real();
        if real.is_none() {
            println!("SKIPPED for the real program: neither CH_BINARY nor cloud-hypervisor with KVM");
        }
        std::iter::once(Self::simulator()).chain(real).collect()
    }
}

/// A VMM process with a directory of its own.
pub struct Vmm {
    pub dir: TempDir,
    pub child: Child,
    pub binary: Binary,
}

impl Vmm {
    /// Starts a VMM in a fresh directory and waits for its API.
    pub fn start(binary: &Binary) -> Self {
        Self::start_with(binary, &[], |_| {})
    }

    /// Starts a VMM with more arguments; `setup` may change the command.
    pub fn start_with(binary: &Binary, args: &[&str], setup: impl FnOnce(&mut Command)) -> Self {
        let dir = tempfile::Builder::new().prefix("chsim-").tempdir().unwrap();
        Self::start_in(binary, dir, args, setup)
    }

    /// Starts a VMM in a directory.
    pub fn start_in(binary: &Binary, dir: TempDir, args: &[&str], setup: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(&binary.path);
        command
            .arg("--api-socket")
            .arg(dir.path().join("api.sock"))
            .arg("--event-monitor")
            .arg(format!("path={}", dir.path().join("events").display()))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("stderr")).unwrap());
        setup(&mut command);
        let child = command.spawn().unwrap();
        let vmm = Self { dir, child, binary: binary.clone() };
        wait_for("the API socket", || UnixStream::connect(vmm.socket()).ok());
        vmm
    }

    /// Path in the VMM's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("api.sock")
    }

    /// A connection to the API.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// One request on a connection of its own. `$DIR` in the body is the directory.
    pub fn request(&self, method: &str, path: &str, body: Option<&str>) -> Reply {
        let body = body.map(|text| text.replace("$DIR", self.dir.path().to_str().unwrap()));
        let mut stream = self.connect();
        send(&mut stream, method, &format!("/api/v1/{path}"), body.as_deref());
        let mut reply = receive(&mut stream);
        reply.body = reply.body.replace(self.dir.path().to_str().unwrap(), "$DIR");
        reply
    }

    /// A PUT that must succeed.
    pub fn put(&self, path: &str, body: Option<&str>) -> Reply {
        let reply = self.request("PUT", path, body);
        assert!(reply.status < 300, "{path}: {reply:?}");
        reply
    }

    /// State that vm.info reports; empty without a VM.
    pub fn state(&self) -> String {
        let reply = self.request("GET", "vm.info", None);
        let info: serde_json::Value = serde_json::from_str(&reply.body).unwrap_or_default();
        info["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Names of all events so far, as `source:event`.
    pub fn events(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("events")).unwrap_or_default();
        let events = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
        let events = events.map_while(Result::ok);
        let name = |v: &serde_json::Value, key| v[key].as_str().unwrap_or_default().to_owned();
        events.map(|e| format!("{}:{}", name(&e, "source"), name(&e, "event"))).collect()
    }

    /// Waits until the process has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the process to end", || child.try_wait().unwrap())
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: plain system call on a child that was not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Exit code, or 128 plus the signal.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// An answer, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// Status line and headers.
    pub head: Vec<String>,
    pub body: String,
}

/// Writes a request.
pub fn send(stream: &mut UnixStream, method: &str, target: &str, body: Option<&str>) {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
    if let Some(body) = body {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text += "\r\n";
    text += body.unwrap_or_default();
    stream.write_all(text.as_bytes()).unwrap();
}

/// Reads one answer; it need not be at the end of the stream.
pub fn receive(stream: &mut impl Read) -> Reply {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap() == 0 {
            break;
        }
        head.push(byte[0]);
    }
    let text = String::from_utf8(head).unwrap();
    let head: Vec<String> = text.trim_end().split("\r\n").map(str::to_owned).collect();
    let length = head.iter().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    Reply {
        status: head[0].split(' ').nth(1).unwrap_or("0").parse().unwrap(),
        head,
        body: String::from_utf8(body).unwrap(),
    }
}

/// Assembles the tiny guest into a directory; the path of the kernel.
pub fn kernel(dir: &Path) -> PathBuf {
    let kernel = dir.join("kernel");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/hello.S");
    let status = Command::new("cc")
        .args(["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-Ttext=0x200000"])
        .args(["-Wl,-e,entry", "-o"])
        .args([kernel.as_os_str(), source.as_ref()])
        .status()
        .unwrap();
    assert!(status.success(), "the test guest does not assemble");
    kernel
}

/// A raw disk of zeros.
pub fn disk(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

/// Copies a file, keeping its holes.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap();
    assert!(status.success(), "cp {} {}", from.display(), to.display());
}
