//! Command line of the simulator: serves it, and talks to a served one.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    match cli::run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("daytona-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}
