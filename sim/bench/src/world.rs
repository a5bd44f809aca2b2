//! The real runner with the simulated API, its files in one directory.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use daytona_sim::{CreateSpec, Handle, Job, JobStatus, Options, Sim};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::http;
use crate::isolate::{go_on, until};
use crate::log::{self, Clock, Line};
use crate::process;
use crate::setup::{SNAPSHOT, Setup, copy};

/// The key of the API and the runner.
pub const TOKEN: &str = "a-token-for-the-benchmark";
/// Where the runner listens.
pub const PORT: u16 = 3006;
/// For what takes milliseconds when all is well.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether the runner answers.
const LOOK: Duration = Duration::from_millis(1);
/// Kernel command line of all VMs.
pub const CMDLINE: &str = "console=ttyS0 console=hvc0 root=/dev/vda1 rw ds=nocloud";

/// A host with its API; the runner is started apart.
pub struct World {
    /// The simulated API.
    pub api: Handle,
    dir: PathBuf,
    env: Vec<(&'static str, String)>,
    program: PathBuf,
    clock: Clock,
    simulated: bool,
    /// Whether guests count how long they run.
    pub counts: bool,
}

impl World {
    /// Lays out a directory and starts the API. `strategy` is RUNNER_DISK_STRATEGY.
    pub fn new(setup: &Setup, dir: PathBuf, strategy: &str) -> anyhow::Result<Self> {
        let base = dir.join("snap").join(SNAPSHOT).join("disk.qcow2");
        for sub in ["sock", "boxes", "state", &format!("snap/{SNAPSHOT}")] {
            let path = dir.join(sub);
            std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        copy(&setup.base, &base)?;
        let api = Sim::start(Options::with_token(TOKEN)).context("cannot start the simulated API")?;
        let text = |path: PathBuf| path.display().to_string();
        let env = vec![
            ("PATH", std::env::var("PATH").unwrap_or_default()),
            ("SERVER_URL", api.base_url()),
            ("API_TOKEN", TOKEN.to_owned()),
            ("API_PORT", PORT.to_string()),
            ("RUNNER_HTTP_ADDRESS", "127.0.0.1".to_owned()),
            ("RUNNER_DOMAIN", "127.0.0.1".to_owned()),
            ("CH_BINARY", text(setup.vmm.clone())),
            ("CH_KERNEL_PATH", text(setup.kernel.clone())),
            ("CH_KERNEL_CMDLINE", CMDLINE.to_owned()),
            ("CH_INITRAMFS_PATH", String::new()),
            ("CH_SOCKETS_PATH", text(dir.join("sock"))),
            ("CH_SANDBOXES_PATH", text(dir.join("boxes"))),
            ("CH_SNAPSHOTS_PATH", text(dir.join("snap"))),
            ("CH_BASE_IMAGE_PATH", text(base)),
            ("RUNNER_STATE_PATH", text(dir.join("state"))),
            ("RUNNER_MEMORY_OVERCOMMIT", "0".into()),
            ("RUNNER_CPU_OVERCOMMIT", "0".into()),
            ("RUNNER_MIN_FREE_MEMORY_MB", "0".into()),
            ("RUNNER_MIN_FREE_DISK_MB", "0".into()),
            ("RUNNER_DISK_STRATEGY", strategy.to_owned()),
            ("DAEMON_START_TIMEOUT_SEC", if setup.simulated { "60" } else { "0" }.to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
        ];
        Ok(Self {
            api,
            dir,
            env,
            program: setup.runner.clone(),
            clock: Clock::now(),
            simulated: setup.simulated,
            counts: setup.simulated,
        })
    }

    /// Whether guests are simulated ones.
    pub fn simulated(&self) -> bool {
        self.simulated
    }

    /// Changes one setting of the runner, which must not run yet.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.env.retain(|(known, _)| *known != name);
        self.env.push((name, value.into()));
    }

    /// The directory of a sandbox.
    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.dir.join("boxes").join(id)
    }

    /// The runner's API.
    pub fn http(&self) -> http::Runner {
        http::Runner::new(PORT, TOKEN)
    }

    /// Starts the runner; also how long it took until it had recovered.
    pub fn runner(&self) -> anyhow::Result<(Runner, Duration)> {
        let path = self.dir.join("runner.log");
        let log = OpenOptions::new().append(true).create(true).open(&path)?;
        let began = Instant::now();
        let mut command = Command::new(&self.program);
        command.env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let mut runner = Runner { child };
        until("the runner answers GET /", PATIENCE, LOOK, || {
            if let Some(status) = runner.child.try_wait()? {
                bail!("the runner ended with {status}:\n{}", tail(&path));
            }
            Ok(self.http().get("/").ok().filter(|answer| answer["status"] == "ok"))
        })?;
        Ok((runner, began.elapsed()))
    }

    /// A small sandbox.
    pub fn spec(&self, id: &str) -> CreateSpec {
        CreateSpec { snapshot: SNAPSHOT.to_owned(), cpu: 1, memory: 1, disk: 1, ..CreateSpec::new(id) }
    }

    /// Creates a sandbox; the finished job.
    pub fn create(&self, id: &str) -> anyhow::Result<Job> {
        let job = self.api.create_sandbox(&self.spec(id))?;
        self.finished(&job)
    }

    /// Creates a sandbox with so much memory in GiB.
    pub fn create_with(&self, id: &str, memory: u32) -> anyhow::Result<Job> {
        let job = self.api.create_sandbox(&CreateSpec { memory, ..self.spec(id) })?;
        self.finished(&job)
    }

    /// Destroys a sandbox; the finished job.
    pub fn destroy(&self, id: &str) -> anyhow::Result<Job> {
        let job = self.api.destroy_sandbox(id)?;
        self.finished(&job)
    }

    /// Waits for a job, which must be completed.
    pub fn finished(&self, job: &str) -> anyhow::Result<Job> {
        let job = self.ended(job)?;
        let (kind, error) = (&job.job_type, &job.error_message);
        ensure!(job.status == JobStatus::Completed, "{kind} failed: {error:?}\n{}", self.tail());
        Ok(job)
    }

    /// Waits for a job, however it ends.
    pub fn ended(&self, job: &str) -> anyhow::Result<Job> {
        let began = Instant::now();
        loop {
            // Returns at once when the job has ended.
            if let Some(job) = self.api.wait_job(job, Duration::from_millis(200)) {
                return Ok(job);
            }
            go_on()?;
            ensure!(began.elapsed() < PATIENCE, "job {job} did not end within {PATIENCE:?}:\n{}", self.tail());
        }
    }

    /// A sandbox as the runner shows it.
    pub fn view(&self, id: &str) -> anyhow::Result<Value> {
        self.http().get(&format!("/sandboxes/{id}"))
    }

    /// The runner's log so far.
    pub fn log(&self) -> anyhow::Result<Vec<Line>> {
        log::read(&self.dir.join("runner.log"), self.clock)
    }

    /// Pids of this world's VMMs.
    pub fn vmms(&self) -> Vec<i32> {
        process::vmms(&self.dir.join("sock"))
    }

    fn tail(&self) -> String {
        tail(&self.dir.join("runner.log"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // VMMs outlive their runner on purpose.
        for pid in self.vmms() {
            // Fails only when it has just ended.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.api.stop();
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// A running runner; killed when dropped.
#[derive(Debug)]
pub struct Runner {
    child: Child,
}

impl Runner {
    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Ends it in order.
    pub fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).context("cannot end the runner")?;
        let status = until("the runner ends", PATIENCE, LOOK, || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "the runner ended with {status}");
        Ok(())
    }

    /// Ends it as a power cut would.
    pub fn murder(mut self) -> anyhow::Result<()> {
        self.child.kill().context("cannot kill the runner")?;
        self.child.wait().context("cannot wait for the runner").map(drop)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
