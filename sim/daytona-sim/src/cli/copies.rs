//! The commands for forks, pauses, sizes and snapshots.

use std::process::ExitCode;

use daytona_sim::{CreateSpec, Resize, ResourceType, SandboxState, job_type, payload};
use serde_json::json;

use super::client::Client;
use super::commands::{dialect, order, sandbox_job, state};
use super::{CopyArgs, IdArgs, ResizeArgs, SnapshotArgs};

pub(crate) async fn copy(client: &Client, kind: &str, args: &CopyArgs) -> anyhow::Result<ExitCode> {
    let source = state(client, &args.source).await?.unwrap_or(SandboxState::Started);
    let payload = payload::fork(dialect(client).await?, &args.source, &args.new, payload::source_state(source));
    sandbox_job(client, kind, &args.new, payload, args.wait).await
}

pub(crate) async fn pause(client: &Client, args: &IdArgs) -> anyhow::Result<ExitCode> {
    sandbox_job(client, job_type::PAUSE_SANDBOX, &args.id, payload::pause(&args.id), args.wait).await
}

pub(crate) async fn resize(client: &Client, args: &ResizeArgs) -> anyhow::Result<ExitCode> {
    let payload = Resize { cpu: args.cpu, memory: args.memory, disk: args.disk }.payload();
    sandbox_job(client, job_type::RESIZE_SANDBOX, &args.target.id, payload, args.target.wait).await
}

pub(crate) async fn snapshot(client: &Client, args: &SnapshotArgs) -> anyhow::Result<ExitCode> {
    let organization = CreateSpec::new(&args.id).organization_id;
    let (kind, payload) = payload::snapshot(dialect(client).await?, &args.id, &args.name, &organization, args.memory);
    sandbox_job(client, kind, &args.id, payload, args.wait).await
}

pub(crate) async fn remove_snapshot(client: &Client, args: &IdArgs) -> anyhow::Result<ExitCode> {
    let job = json!({"type": job_type::REMOVE_SNAPSHOT, "resourceType": ResourceType::Snapshot, "resourceId": args.id});
    order(client, &job, args.wait).await
}
