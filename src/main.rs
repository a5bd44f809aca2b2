//! The daemon: settings from the environment, logs, host checks, then [`runner_ch::app::run`]. Or, with a command, what
//! [`runner_ch::cli`] does.

use std::process::ExitCode;

use clap::Parser;
use runner_ch::config::{Config, EX_CONFIG};
use runner_ch::{app, cli, telemetry};
use tracing::{error, warn};

fn main() -> ExitCode {
    if let Some(command) = cli::Arguments::parse().command {
        return cli::run(command);
    }
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
