//! `daytona-sim watch`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::client::{Client, WAIT_STEP};

const RETRY: Duration = Duration::from_secs(1);

/// Prints the events from the beginning on, and new ones as they come, until interrupted. A simulator that goes away is
/// waited for.
pub(crate) async fn watch(client: &Client) -> anyhow::Result<ExitCode> {
    tokio::select! {
        result = follow(client) => result,
        result = tokio::signal::ctrl_c() => {
            result.context("listening for SIGINT")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn follow(client: &Client) -> anyhow::Result<ExitCode> {
    let mut last = 0;
    let mut run = started_at(client).await?;
    loop {
        let path = format!("events?after={last}&wait={}", WAIT_STEP.as_millis());
        match client.get(&path).await {
            Ok(events) => {
                for event in events.as_array().context("the answer is no list")? {
                    print_event(event);
                    last = event["seq"].as_u64().unwrap_or(last);
                }
            }
            Err(error) => {
                eprintln!("{error:#}");
                let now = wait_until_back(client).await;
                if now != run {
                    // Another simulator counts its events from the beginning.
                    (run, last) = (now, 0);
                }
            }
        }
    }
}

async fn wait_until_back(client: &Client) -> Value {
    loop {
        tokio::time::sleep(RETRY).await;
        if let Ok(run) = started_at(client).await {
            return run;
        }
    }
}

async fn started_at(client: &Client) -> anyhow::Result<Value> {
    Ok(client.get("info").await?["startedAt"].clone())
}

fn print_event(event: &Value) {
    let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
    println!("{} {}", text("at"), text("text"));
}
