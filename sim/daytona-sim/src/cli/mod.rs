//! Arguments of the command line and the way from a command to its work.
//!
//! Exit codes: 0 done (with `--wait`: the job is COMPLETED), 1 the job is FAILED, 2 the command itself failed,
//! 3 the job was not finished in time.

mod client;
mod commands;
mod copies;
mod serve;
mod watch;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};
use daytona_sim::{Dialect, ResourceType, job_type};

/// A stand-in for the runner side of the Daytona API.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Args {
    /// Where a served simulator is reached, without /api
    #[arg(long, global = true, env = "DAYTONA_SIM_URL", default_value = "http://127.0.0.1:3000")]
    sim_url: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DialectArg {
    /// The released API at v0.190
    #[value(name = "v0.190")]
    V0190,
    /// The API of January 2026
    Branch,
}

impl From<DialectArg> for Dialect {
    fn from(arg: DialectArg) -> Self {
        match arg {
            DialectArg::V0190 => Self::V0190,
            DialectArg::Branch => Self::Branch,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ResourceArg {
    Sandbox,
    Snapshot,
    Backup,
}

impl From<ResourceArg> for ResourceType {
    fn from(arg: ResourceArg) -> Self {
        match arg {
            ResourceArg::Sandbox => Self::Sandbox,
            ResourceArg::Snapshot => Self::Snapshot,
            ResourceArg::Backup => Self::Backup,
        }
    }
}

/// How to serve.
#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Key of the runner
    #[arg(long, env = "DAYTONA_SIM_TOKEN")]
    token: String,
    /// Generation of the API
    #[arg(long, value_enum, default_value = "v0.190")]
    dialect: DialectArg,
    /// How much faster than real time staleness and timeouts run
    #[arg(long, default_value_t = 1.0)]
    clock_speed: f64,
    /// Let polls of dead clients live on and swallow jobs
    #[arg(long)]
    linger: bool,
    /// Refuse jobs while the runner is not ready
    #[arg(long)]
    require_ready: bool,
    /// Failed logins of one address until it is blocked; 0 switches the limit off
    #[arg(long, default_value_t = 20)]
    failed_auth_limit: u32,
    /// Seconds of that block
    #[arg(long, default_value_t = 60)]
    failed_auth_ttl: u64,
}

/// What to create.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Sandbox id
    id: String,
    /// vCPUs
    #[arg(long, default_value_t = 1)]
    cpu: u32,
    /// GiB
    #[arg(long, default_value_t = 1)]
    memory: u32,
    /// GiB
    #[arg(long, default_value_t = 3)]
    disk: u32,
    /// Snapshot ref
    #[arg(long, default_value = "ubuntu-base.1")]
    snapshot: String,
    /// Name shown to users; the id by default
    #[arg(long)]
    name: Option<String>,
    /// NAME=VALUE, may be repeated
    #[arg(long = "env", value_parser = parse_env)]
    env: Vec<(String, String)>,
    /// Create without starting
    #[arg(long)]
    skip_start: bool,
    /// No network at all
    #[arg(long)]
    network_block_all: bool,
    /// Comma-separated IPv4 CIDRs
    #[arg(long)]
    network_allow_list: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

fn parse_env(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Whether to wait for the job.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct WaitArgs {
    /// Wait for the job and exit by its result
    #[arg(long)]
    wait: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 600, requires = "wait")]
    timeout: u64,
}

/// A sandbox and whether to wait.
#[derive(Debug, clap::Args)]
pub(crate) struct IdArgs {
    /// Sandbox id
    id: String,
    #[command(flatten)]
    wait: WaitArgs,
}

/// A sandbox to be copied and the id of the copy.
#[derive(Debug, clap::Args)]
pub(crate) struct CopyArgs {
    /// Sandbox to be copied
    source: String,
    /// Id of the copy
    new: String,
    #[command(flatten)]
    wait: WaitArgs,
}

/// New figures; what is not given stays.
#[derive(Debug, clap::Args)]
pub(crate) struct ResizeArgs {
    #[command(flatten)]
    target: IdArgs,
    /// vCPUs
    #[arg(long)]
    cpu: Option<u32>,
    /// GiB
    #[arg(long)]
    memory: Option<u32>,
    /// GiB
    #[arg(long)]
    disk: Option<u32>,
}

/// A snapshot of a sandbox.
#[derive(Debug, clap::Args)]
pub(crate) struct SnapshotArgs {
    /// Sandbox id
    id: String,
    /// Name of the snapshot
    name: String,
    /// With the memory
    #[arg(long)]
    memory: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Any job.
#[derive(Debug, clap::Args)]
pub(crate) struct SubmitArgs {
    /// Job type, e.g. RESIZE_SANDBOX
    #[arg(long = "type")]
    job_type: String,
    /// Kind of resource
    #[arg(long, value_enum, default_value = "sandbox", ignore_case = true)]
    resource_type: ResourceArg,
    /// Id of the resource
    #[arg(long)]
    resource_id: String,
    /// Payload, or @FILE to read it from a file
    #[arg(long)]
    payload: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until interrupted
    Serve(ServeArgs),
    /// Order a sandbox
    Create(CreateArgs),
    /// Order the start of a sandbox
    Start(IdArgs),
    /// Order the stop of a sandbox
    Stop {
        #[command(flatten)]
        target: IdArgs,
        /// Without waiting for the guest
        #[arg(long)]
        force: bool,
    },
    /// Order the end of a sandbox
    Destroy(IdArgs),
    /// Order a fork
    Fork(CopyArgs),
    /// Order a clone (branch)
    Clone(CopyArgs),
    /// Order a pause; start resumes
    Pause(IdArgs),
    /// Order other figures
    Resize(ResizeArgs),
    /// Order a snapshot of a sandbox
    Snapshot(SnapshotArgs),
    /// Order the removal of a snapshot
    RemoveSnapshot(IdArgs),
    /// Order any job
    Submit(SubmitArgs),
    /// List jobs
    Jobs,
    /// List sandboxes
    Sandboxes,
    /// Show the runner and its last healthcheck
    Runner,
    /// Print a line for every change until interrupted
    Watch,
    /// Show, order or clear failures
    #[command(group = ArgGroup::new("change").args(["set", "clear"]))]
    Faults {
        /// Plan as JSON, or @FILE
        #[arg(long)]
        set: Option<String>,
        /// Take everything back
        #[arg(long)]
        clear: bool,
    },
}

/// Runs a command.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Command::Serve(serve) = &args.command {
        return serve::serve(serve);
    }
    let system = actix_web::rt::System::new();
    system.block_on(talk(args))
}

async fn talk(args: Args) -> anyhow::Result<ExitCode> {
    let client = client::Client::new(&args.sim_url);
    match args.command {
        Command::Serve(_) => Ok(ExitCode::SUCCESS), // handled by the caller
        Command::Create(args) => commands::create(&client, &args).await,
        Command::Start(args) => commands::start(&client, &args).await,
        Command::Stop { target, force } => commands::stop(&client, &target, force).await,
        Command::Destroy(args) => commands::destroy(&client, &args).await,
        Command::Fork(args) => copies::copy(&client, job_type::FORK_SANDBOX, &args).await,
        Command::Clone(args) => copies::copy(&client, job_type::CLONE_SANDBOX, &args).await,
        Command::Pause(args) => copies::pause(&client, &args).await,
        Command::Resize(args) => copies::resize(&client, &args).await,
        Command::Snapshot(args) => copies::snapshot(&client, &args).await,
        Command::RemoveSnapshot(args) => copies::remove_snapshot(&client, &args).await,
        Command::Submit(args) => commands::submit(&client, &args).await,
        Command::Jobs => commands::jobs(&client).await,
        Command::Sandboxes => commands::sandboxes(&client).await,
        Command::Runner => commands::runner(&client).await,
        Command::Watch => watch::watch(&client).await,
        Command::Faults { set, clear } => commands::faults(&client, set.as_deref(), clear).await,
    }
}
