//! The daemon: settings from the environment, logs, host checks, then [`runner_ch::app::run`].

use std::process::ExitCode;

use clap::Parser;
use runner_ch::config::{Config, EX_CONFIG};
use runner_ch::{app, telemetry};
use tracing::{error, warn};

/// Runs Daytona sandboxes as Cloud Hypervisor microVMs on this host.
///
/// Takes no arguments; every setting is an environment variable. SERVER_URL and API_TOKEN are
/// required. docs/configuration.md explains all of them.
#[derive(Debug, Parser)]
#[command(name = "runner-ch", version)]
struct Arguments {}

fn main() -> ExitCode {
    Arguments::parse();
    let config = match Config::from_process_env() {
        Ok(config) => config,
        Err(problems) => return refuse(&problems),
    };
    if let Err(problem) = telemetry::init(&config.log) {
        return refuse(&problem);
    }
    for warning in &config.warnings {
        warn!("{warning}");
    }
    for (name, why) in &config.ignored {
        warn!(variable = name, "accepted, but without effect: {why}");
    }
    match config.check_host() {
        Ok(warnings) => warnings.iter().for_each(|warning| warn!("{warning}")),
        Err(problems) => return refuse(&problems),
    }
    match actix::System::new().block_on(app::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// To stderr and not to the log, whose settings may be what is wrong.
fn refuse(problem: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("runner-ch: {problem}");
    ExitCode::from(EX_CONFIG)
}
