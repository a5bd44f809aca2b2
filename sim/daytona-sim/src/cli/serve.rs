//! `daytona-sim serve`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use daytona_sim::{DisconnectMode, FailedAuthLimit, Options, Sim};

use super::ServeArgs;

/// Serves until SIGINT or SIGTERM.
pub(crate) fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let mut options = Options::with_token(&args.token);
    options.listen = args.listen;
    options.dialect = args.dialect.into();
    options.clock_speed = args.clock_speed;
    options.require_ready = args.require_ready;
    if args.linger {
        options.on_disconnect = DisconnectMode::Linger;
    }
    options.failed_auth = (args.failed_auth_limit > 0)
        .then(|| FailedAuthLimit { limit: args.failed_auth_limit, ttl: Duration::from_secs(args.failed_auth_ttl) });
    let sim = Sim::start(options)?;
    println!("SERVER_URL={}", sim.base_url());
    println!("admin interface: {}/sim", sim.sim_url());
    actix_web::rt::System::new().block_on(interrupted())?;
    sim.stop();
    Ok(ExitCode::SUCCESS)
}

async fn interrupted() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result.context("listening for SIGINT"),
        _ = terminate.recv() => Ok(()),
    }
}
