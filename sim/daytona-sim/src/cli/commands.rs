//! The commands that talk to a served simulator.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use awc::http::Method;
use daytona_sim::{CreateSpec, Dialect, ResourceType, SandboxState, job_type, payload};
use serde_json::{Value, json};

use super::client::{Client, WAIT_STEP};
use super::{CreateArgs, IdArgs, SubmitArgs, WaitArgs};

const JOB_FAILED: u8 = 1;
const NOT_IN_TIME: u8 = 3;

pub(super) async fn dialect(client: &Client) -> anyhow::Result<Dialect> {
    let info = client.get("info").await?;
    serde_json::from_value(info["dialect"].clone()).context("reading the simulator's dialect")
}

/// State of a sandbox; `None` for one that the simulator does not know.
pub(super) async fn state(client: &Client, id: &str) -> anyhow::Result<Option<SandboxState>> {
    let rows = client.get("sandboxes").await?;
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["id"] == id));
    Ok(row.and_then(|row| SandboxState::parse(text(&row["state"]))))
}

pub(crate) async fn create(client: &Client, args: &CreateArgs) -> anyhow::Result<ExitCode> {
    let mut spec = CreateSpec::new(&args.id);
    spec.name = args.name.clone();
    spec.snapshot = args.snapshot.clone();
    (spec.cpu, spec.memory, spec.disk) = (args.cpu, args.memory, args.disk);
    spec.env = args.env.clone();
    spec.skip_start = args.skip_start;
    spec.network_block_all = args.network_block_all;
    spec.network_allow_list = args.network_allow_list.clone();
    let payload = spec.payload(dialect(client).await?);
    sandbox_job(client, job_type::CREATE_SANDBOX, &args.id, payload, args.wait).await
}

pub(crate) async fn start(client: &Client, args: &IdArgs) -> anyhow::Result<ExitCode> {
    let spec = CreateSpec::new(&args.id);
    let payload = match state(client, &args.id).await? {
        Some(SandboxState::Paused) => payload::resume(&spec.auth_token),
        _ => payload::start(dialect(client).await?, &spec.organization_id, &spec.auth_token),
    };
    sandbox_job(client, job_type::START_SANDBOX, &args.id, payload, args.wait).await
}

pub(crate) async fn stop(client: &Client, args: &IdArgs, force: bool) -> anyhow::Result<ExitCode> {
    let payload = payload::stop(dialect(client).await?, force.then_some(true));
    sandbox_job(client, job_type::STOP_SANDBOX, &args.id, payload, args.wait).await
}

pub(crate) async fn destroy(client: &Client, args: &IdArgs) -> anyhow::Result<ExitCode> {
    let kind = job_type::DESTROY_SANDBOX;
    sandbox_job(client, kind, &args.id, payload::destroy(), args.wait).await
}

pub(crate) async fn submit(client: &Client, args: &SubmitArgs) -> anyhow::Result<ExitCode> {
    let payload = match &args.payload {
        None => Value::Null,
        Some(text) => Value::String(text_or_file(text)?),
    };
    let resource = ResourceType::from(args.resource_type);
    let job = json!({"type": args.job_type, "resourceType": resource,
        "resourceId": args.resource_id, "payload": payload});
    order(client, &job, args.wait).await
}

pub(super) async fn sandbox_job(
    client: &Client,
    kind: &str,
    id: &str,
    payload: Value,
    wait: WaitArgs,
) -> anyhow::Result<ExitCode> {
    let job = json!({"type": kind, "resourceId": id, "payload": payload});
    order(client, &job, wait).await
}

pub(super) async fn order(client: &Client, job: &Value, wait: WaitArgs) -> anyhow::Result<ExitCode> {
    let made = client.call(Method::POST, "jobs", job).await?;
    let id = made["id"].as_str().context("the answer holds no job id")?;
    if !wait.wait {
        println!("{id}");
        return Ok(ExitCode::SUCCESS);
    }
    let deadline = Instant::now() + Duration::from_secs(wait.timeout);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let step = left.min(WAIT_STEP).as_millis();
        let job = client.get(&format!("jobs/{id}?wait={step}")).await?;
        let status = job["status"].as_str().unwrap_or("").to_owned();
        let finished = status == "COMPLETED" || status == "FAILED";
        if finished || left.is_zero() {
            println!("{}", job_line(&job));
            return Ok(match status.as_str() {
                "COMPLETED" => ExitCode::SUCCESS,
                "FAILED" => ExitCode::from(JOB_FAILED),
                _ => ExitCode::from(NOT_IN_TIME),
            });
        }
    }
}

pub(crate) async fn jobs(client: &Client) -> anyhow::Result<ExitCode> {
    let jobs = client.get("jobs").await?;
    for job in jobs.as_array().context("the answer is no list")? {
        println!("{} {}", text(&job["createdAt"]), job_line(job));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn sandboxes(client: &Client) -> anyhow::Result<ExitCode> {
    let rows = client.get("sandboxes").await?;
    for row in rows.as_array().context("the answer is no list")? {
        let mut line = format!(
            "{} {} (wanted: {}) {} vCPU {} GiB memory {} GiB disk",
            text(&row["id"]),
            text(&row["state"]),
            text(&row["desired"]),
            row["cpu"],
            row["memory"],
            row["disk"]
        );
        for (name, label) in [("daemonVersion", "daemon"), ("errorReason", "error")] {
            if let Some(value) = row[name].as_str() {
                line.push_str(&format!(" {label}: {value}"));
            }
        }
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn runner(client: &Client) -> anyhow::Result<ExitCode> {
    let json = client.get("runner").await?;
    println!("{}", serde_json::to_string_pretty(&json)?);
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn faults(client: &Client, set: Option<&str>, clear: bool) -> anyhow::Result<ExitCode> {
    if clear {
        client.call(Method::DELETE, "faults", &Value::Null).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let plan = match set {
        None => client.get("faults").await?,
        Some(plan) => {
            let plan = serde_json::from_str(&text_or_file(plan)?);
            let plan = plan.context("the plan is no JSON")?;
            client.call(Method::PUT, "faults", &plan).await?
        }
    };
    println!("{}", serde_json::to_string_pretty(&plan)?);
    Ok(ExitCode::SUCCESS)
}

fn text_or_file(text: &str) -> anyhow::Result<String> {
    match text.strip_prefix('@') {
        None => Ok(text.to_owned()),
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("reading {path}")),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// A job on one line, with its durations in milliseconds.
fn job_line(job: &Value) -> String {
    let millis = |name: &str| match job[name].as_f64() {
        Some(micros) => format!("{:.1} ms", micros / 1000.0),
        None => "-".to_owned(),
    };
    let mut line = format!(
        "{} {} {} {} (queued {}, ran {})",
        text(&job["id"]),
        text(&job["type"]),
        text(&job["resourceId"]),
        text(&job["status"]),
        millis("queuedUs"),
        millis("runningUs")
    );
    for (name, label) in [("resultMetadata", "result"), ("errorMessage", "error")] {
        if let Some(value) = job[name].as_str() {
            line.push_str(&format!(" {label}: {value}"));
        }
    }
    line
}
