//! The command line: without a command the daemon runs, with one the store is looked at, saved or restored.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{EX_CONFIG, Problems};
use crate::error::chain;

mod runner;
mod store;

/// Runs Daytona sandboxes as Cloud Hypervisor microVMs on this host.
///
/// Without a command it is the daemon. Every setting is an environment variable; for the daemon SERVER_URL and
/// API_TOKEN are required. docs/configuration.md explains all of them, docs/store.md the commands of the store.
#[derive(Debug, Parser)]
#[command(name = "runner-ch", version)]
pub struct Arguments {
    /// What to do instead of running sandboxes.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of running sandboxes.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at the store, save or restore it. Needs RUNNER_STATE_PATH, where it is not the default.
    #[command(subcommand)]
    Store(StoreCommand),
}

/// A command for the store in RUNNER_STATE_PATH.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Save the store to a file. While a runner has it open, that runner is asked for it (API_TOKEN, API_PORT).
    Backup {
        /// The file; it will hold tokens.
        file: PathBuf,
    },
    /// Make the store anew from a backup. The runner must not be running; sandboxes may.
    Restore {
        /// The backup.
        file: PathBuf,
        /// Put a store that is there aside, under a name with the time.
        #[arg(long)]
        replace: bool,
    },
    /// Say how the store stands; fails if there are records that cannot be read.
    Check,
    /// Records that could not be read.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
}

/// A command for the quarantine.
#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// List them, with their reasons.
    List,
    /// Show one: when and why, and its bytes.
    Show {
        /// As listed.
        key: String,
    },
    /// Put one back, if this version can read it. The runner must not be running.
    Restore {
        /// As listed.
        key: String,
    },
    /// Remove one for good. The runner must not be running.
    Discard {
        /// As listed.
        key: String,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Settings that it needs.
    #[error("{0}")]
    Config(#[from] Problems),
    /// The store.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// The restore.
    #[error(transparent)]
    Restore(#[from] crate::store::restore::Error),
    /// There is nothing to work on.
    #[error("there is no store in {0}; set RUNNER_STATE_PATH as the runner has it")]
    NoStore(PathBuf),
    /// Only for whoever has the store alone.
    #[error("the store {0} is in use; stop the runner first (sandboxes keep running), then try again")]
    InUse(PathBuf),
    /// A file.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The running runner gave no proper answer.
    #[error("a runner has the store open, and asking it for {url} failed: {reason}; or stop the runner and try again")]
    Runner {
        /// What was asked for.
        url: String,
        /// What came of it.
        reason: String,
    },
    /// What was written is no whole backup.
    #[error("the backup that was written is not whole: {0}; nothing was kept, try again")]
    Incomplete(crate::store::backup::Fault),
    /// There are records that cannot be read.
    #[error("{0} records cannot be read")]
    Unreadable(usize),
}

/// Carries a command out: what it finds goes to stdout, why it fails to stderr.
pub fn run(command: Command) -> ExitCode {
    let Command::Store(command) = command;
    match store::run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("runner-ch: {}", chain(&error));
            if matches!(error, Error::Config(_)) { ExitCode::from(EX_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}
