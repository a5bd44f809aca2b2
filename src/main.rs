//! The daemon: settings from the environment, logs, host checks, then [`runner_ch::app::run`]. Or, with a command, what
//! [`runner_ch::cli`] does.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use runner_ch::config::{Config, EX_CONFIG};
use runner_ch::{app, cli, telemetry};
use tracing::{error, warn};

/// How long blocking work may take after everything else has ended.
const LAST_GRACE: Duration = Duration::from_secs(20);

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
    let system = actix::System::new();
    let ran = system.block_on(app::run(config));
    end_in_time(u8::from(ran.is_err()));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// The runtime waits for its blocking threads, and one that hangs on a dead disk would keep the process for ever. All
/// that must be stored is stored by now.
fn end_in_time(code: u8) {
    let watchdog = std::thread::Builder::new().name("end-in-time".to_owned()).spawn(move || {
        std::thread::sleep(LAST_GRACE);
        error!("work on a blocking thread does not end (a hanging disk?); the runner ends without it");
        std::process::exit(code.into());
    });
    if let Err(error) = watchdog {
        warn!(%error, "cannot start a thread to end the process in time");
    }
}

/// To stderr and not to the log, whose settings may be what is wrong.
fn refuse(problem: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("runner-ch: {problem}");
    ExitCode::from(EX_CONFIG)
}
