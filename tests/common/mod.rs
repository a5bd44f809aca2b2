//! A host of its own for each test: the real runner, the simulated API and simulated VMMs in a fresh
//! network and mount namespace, so that bridge, rules and named namespaces cannot meet those of
//! another test or of the machine, and the kernel takes away what a failing test leaves.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use daytona_sim::{CreateSpec, Handle, Job, JobStatus, Options, Sim};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub mod backend;
pub mod copies;
pub mod http;
pub mod leftovers;
pub mod origin;
pub mod stream;
pub mod wire;

pub use http::Http;

pub const TOKEN: &str = "a-token-for-tests-only";
/// Patience for things that take milliseconds when all is well.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits for a state, never for a time.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {SOON:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program of this workspace, built beside the test.
pub fn program(name: &str) -> PathBuf {
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_runner-ch"));
    let path = beside.with_file_name(name);
    assert!(path.exists(), "{} is missing; build it first: cargo build --workspace", path.display());
    path
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("the package iproute2 is installed");
    assert!(status.success(), "ip {arguments:?}");
}

/// The host with its files and its API.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub api: Handle,
    env: Vec<(String, String)>,
}

impl Host {
    /// Must be called first in a test, before other threads exist: they inherit the namespaces.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: they make real namespaces and links");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces of the test's own");
        mount::<str, str, str, str>(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)
            .expect("private mounts");
        // sysfs shows the links of the namespace in which it was mounted.
        mount::<str, str, str, str>(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None).expect("own /sys");
        std::fs::create_dir_all("/run/netns").expect("/run/netns");
        mount::<str, str, str, str>(Some("tmpfs"), "/run/netns", Some("tmpfs"), MsFlags::empty(), None)
            .expect("own /run/netns");
        ip(&["link", "set", "lo", "up"]);

        // Sockets have short paths only.
        let dir = tempfile::Builder::new().prefix("rch").tempdir_in("/tmp").expect("a directory");
        let mut options = Options::with_token(TOKEN);
        change(&mut options);
        let api = Sim::start(options).expect("the simulated API");
        let mut host = Self { dir, api, env: Vec::new() };
        host.lay_out();
        host
    }

    fn lay_out(&mut self) {
        for sub in ["sock", "boxes", "snap/ubuntu-base.1", "state"] {
            std::fs::create_dir_all(self.path(sub)).expect("a directory");
        }
        // Any ELF file is a kernel to the simulated VMM.
        self.write_kernel();
        let base = std::fs::File::create(self.path("snap/ubuntu-base.1/disk.raw")).expect("a base image");
        base.set_len(64 << 20).expect("a base image of 64 MiB");
        let text = |path: PathBuf| path.display().to_string();
        let settings = [
            ("SERVER_URL", self.api.base_url()),
            ("API_TOKEN", TOKEN.to_owned()),
            ("API_PORT", "3006".to_owned()),
            ("RUNNER_HTTP_ADDRESS", "127.0.0.1".to_owned()),
            ("RUNNER_DOMAIN", "127.0.0.1".to_owned()),
            ("CH_SOCKETS_PATH", text(self.path("sock"))),
            ("CH_SANDBOXES_PATH", text(self.path("boxes"))),
            ("CH_SNAPSHOTS_PATH", text(self.path("snap"))),
            ("CH_KERNEL_PATH", text(self.path("vmlinux"))),
            ("CH_INITRAMFS_PATH", String::new()),
            ("CH_BASE_IMAGE_PATH", text(self.path("snap/ubuntu-base.1/disk.raw"))),
            ("CH_BINARY", text(self.path("vmm"))),
            ("CH_DEFAULT_MEMORY_MB", "256".to_owned()),
            ("CH_DEFAULT_DISK_GB", "1".to_owned()),
            ("RUNNER_STATE_PATH", text(self.path("state"))),
            ("RUNNER_NETWORK_POOL", "10.220.0.0/16".to_owned()),
            ("RUNNER_SYNC_INTERVAL_SEC", "1".to_owned()),
            ("RUNNER_RECONCILE_INTERVAL_SEC", "2".to_owned()),
            // Many sandboxes on a small machine; tests of the limits set them.
            ("RUNNER_MEMORY_OVERCOMMIT", "0".to_owned()),
            ("RUNNER_CPU_OVERCOMMIT", "0".to_owned()),
            ("RUNNER_MIN_FREE_MEMORY_MB", "0".to_owned()),
            ("RUNNER_MIN_FREE_DISK_MB", "0".to_owned()),
            ("LOG_LEVEL", "info,runner_ch=debug".to_owned()),
            ("PATH", std::env::var("PATH").unwrap_or_default()),
        ];
        self.env = settings.map(|(name, value)| (name.to_owned(), value)).to_vec();
        self.wrap_vmm();
    }

    /// A host whose sandboxes and snapshots lie on a file system that can clone files.
    pub fn on_xfs() -> Self {
        let host = Self::new();
        let image = host.path("xfs.img");
        std::fs::File::create(&image).expect("an image").set_len(2 << 30).expect("2 GiB");
        let run = |program: &str, arguments: &[&str]| {
            let status = Command::new(program).args(arguments).status().expect(program);
            assert!(status.success(), "{program} {arguments:?}");
        };
        let (image, volume) = (image.display().to_string(), host.path("volume").display().to_string());
        run("mkfs.xfs", &["-q", "-m", "reflink=1", &image]);
        std::fs::create_dir_all(&volume).expect("a directory");
        run("mount", &["-o", "loop", &image, &volume]);
        for sub in ["boxes", "snap"] {
            std::fs::create_dir_all(host.path("volume").join(sub)).expect("a directory");
            let (inside, outside) = (host.path("volume").join(sub), host.path(sub));
            if sub == "snap" {
                run("cp", &["-a", &format!("{}/.", outside.display()), &inside.display().to_string()]);
            }
            run("mount", &["--bind", &inside.display().to_string(), &outside.display().to_string()]);
        }
        host
    }

    pub fn write_kernel(&self) {
        let elf = std::fs::read(program("ch-sim")).expect("the simulator");
        std::fs::write(self.path("vmlinux"), elf).expect("a kernel");
    }

    /// The VMM is the simulator behind a script that tells it where its faults are written.
    fn wrap_vmm(&self) {
        self.vmm_version("v53.0");
    }

    /// VMMs that are started from now on are of this version.
    pub fn vmm_version(&self, version: &str) {
        use std::os::unix::fs::PermissionsExt;
        let script = format!(
            "#!/bin/sh\nCH_SIM_VERSION={version} CH_SIM_FAULTS={} exec {} \"$@\"\n",
            self.path("faults.json").display(),
            program("ch-sim").display()
        );
        // By rename: the old one may just be executed.
        std::fs::write(self.path("vmm.next"), script).expect("the VMM's wrapper");
        std::fs::set_permissions(self.path("vmm.next"), std::fs::Permissions::from_mode(0o755)).expect("executable");
        std::fs::rename(self.path("vmm.next"), self.path("vmm")).expect("the VMM's wrapper");
    }

    pub fn path(&self, sub: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(sub)
    }

    /// Changes one setting for runners started from now on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.into()));
    }

    /// Orders the simulated VMMs to fail, as ch-sim's README describes.
    pub fn faults(&self, faults: serde_json::Value) {
        let next = self.path("faults.next");
        std::fs::write(&next, faults.to_string()).expect("faults");
        std::fs::rename(next, self.path("faults.json")).expect("faults");
    }

    /// Starts the runner without waiting for it.
    pub fn spawn(&self) -> Runner {
        self.spawn_of(&program("runner-ch"))
    }

    fn spawn_of(&self, program: &Path) -> Runner {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(self.path("runner.log")).expect("a log");
        let child = Command::new(program)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("the runner starts");
        Runner { child, log: self.path("runner.log") }
    }

    /// Starts the runner and waits until it has recovered.
    pub fn runner(&self) -> Runner {
        self.runner_of(&program("runner-ch"))
    }

    /// The same with another program.
    pub fn runner_of(&self, program: &Path) -> Runner {
        let mut runner = self.spawn_of(program);
        eventually("the runner answers GET /", || {
            if let Some(status) = runner.child.try_wait().expect("wait") {
                panic!("the runner ended with {status}:\n{}", runner.log());
            }
            let answer = self.http().try_get("/")?;
            answer.body.contains("\"ok\"").then_some(())
        });
        runner
    }

    pub fn http(&self) -> Http {
        Http::new(3006, TOKEN)
    }

    /// A creation payload of the usual size.
    pub fn spec(&self, id: &str) -> CreateSpec {
        CreateSpec { snapshot: "ubuntu-base.1".to_owned(), cpu: 1, memory: 1, disk: 1, ..CreateSpec::new(id) }
    }

    #[track_caller]
    pub fn create(&self, id: &str) -> Job {
        let job = self.api.create_sandbox(&self.spec(id)).expect("the API takes the job");
        self.done(&job)
    }

    #[track_caller]
    pub fn done(&self, job: &str) -> Job {
        self.api.wait_job(job, SOON).unwrap_or_else(|| panic!("job {job} did not end:\n{}", self.log()))
    }

    #[track_caller]
    pub fn completed(&self, job: &str) -> Job {
        let job = self.done(job);
        assert_eq!(job.status, JobStatus::Completed, "{:?}\n{}", job.error_message, self.log());
        job
    }

    /// Runs a command in the guest and returns its output.
    #[track_caller]
    pub fn in_guest(&self, id: &str, command: &str) -> String {
        let body = serde_json::json!({ "command": command }).to_string();
        let answer = self.http().post(&format!("/sandboxes/{id}/toolbox/process/execute"), &body);
        assert_eq!(answer.status, 200, "{}\n{}", answer.body, self.log());
        answer.json()["result"].as_str().unwrap_or_default().trim_end().to_owned()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("runner.log")).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // VMMs outlive their runner on purpose; the ones of this test are told by their sockets.
        // A runner that was killed while it forked may leave one that is not known by its socket yet, so
        // one empty look is not enough.
        let mut quiet = 0;
        while quiet < 5 {
            let vmms = leftovers::vmms(&self.path("sock"));
            quiet = if vmms.is_empty() { quiet + 1 } else { 0 };
            for pid in vmms {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.api.stop();
        // A mount point cannot be removed with the directory; those that are not there are fine.
        for sub in ["boxes", "snap", "volume"] {
            let _ = nix::mount::umount2(&self.path(sub), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// A running runner.
pub struct Runner {
    pub child: Child,
    log: PathBuf,
}

impl Runner {
    pub fn pid(&self) -> i32 {
        self.child.id().try_into().expect("a pid")
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the runner is there");
    }

    /// Ends it in order and returns its exit code.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    pub fn wait(&mut self) -> ExitStatus {
        eventually("the runner ends", || self.child.try_wait().expect("wait"))
    }

    /// Ends it as a power cut would.
    pub fn murder(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
