//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Measures the runner on this machine and prints tables. Needs root.
///
/// Uses simulated VMMs. With CH_BINARY set to a real cloud-hypervisor and BENCH_KERNEL to a small guest
/// kernel, the same is measured with that; guests then need no toolbox.
#[derive(Debug, Parser)]
#[command(name = "runner-bench", version)]
pub struct Args {
    /// Also write all numbers to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Directory for disks and the runner's store, best on the file system that production would use.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Creates to measure, each with one start of the bare VMM beside it.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub creates: u32,
    /// Runs of the original's procedure.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub original_runs: u32,
    /// Idle sandboxes.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub sandboxes: u32,
    /// Seconds after which no further idle sandbox is begun.
    #[arg(long, default_value_t = 120)]
    pub create_limit: u64,
    /// Seconds for which the idle runner's CPU time is watched.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub idle_seconds: u64,
    /// Creates per disk strategy.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub disk_creates: u32,
    /// Forks per kind of host and size of guest.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub forks: u32,
    /// Lets real guests count in the part `fork`, to measure pauses from inside. Each takes a CPU then.
    #[arg(long)]
    pub counting: bool,
    /// Repetitions of what copies much memory or makes many guests.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeats: u32,
    /// Most copies that are made from one pause.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub children: u32,
    /// Runs of each load and proxy in the part `proxy`, taken in turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub proxy_runs: u32,
    /// Seconds of each of them.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub proxy_seconds: u64,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    pub only: Vec<Part>,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Creates next to the bare VMM.
    Create,
    /// The original's procedure.
    Original,
    /// From queued to begun, from done to reported.
    Latency,
    /// Memory and CPU of idle sandboxes, re-adoption.
    Idle,
    /// Reflink against overlay.
    Disks,
    /// Copies of running guests that have touched little memory.
    Fork,
    /// The same with much touched memory.
    Touched,
    /// The original's procedure for a copy.
    OriginalFork,
    /// Many copies from one pause.
    Children,
    /// Stop and start with memory, creates from a snapshot with memory.
    Checkpoint,
    /// Requests for guests next to nginx as a reverse proxy.
    Proxy,
}

impl Args {
    /// Whether this part shall run.
    pub fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// See `create_limit`.
    pub fn create_limit(&self) -> Duration {
        Duration::from_secs(self.create_limit)
    }

    /// See `idle_seconds`.
    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }
}
