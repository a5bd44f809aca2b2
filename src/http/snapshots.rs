//! Snapshots of this host (PROTOCOL.md 6). The two dialects name the reference `snapshot` and `ref`, and each gets the
//! answer that it knows.

use actix_web::web::{Data, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::sandboxes::{respond, sandbox_id};
use super::{State, body, error};
use crate::error::{ErrorCode, Failure};
use crate::ids::SnapshotRef;
use crate::jobs::payload::{SnapshotSpec, copy};
use crate::messages::fork::{FindSnapshot, RemoveSnapshot, TakeSnapshot};
use crate::snapshots::Found;

/// Which snapshot; one of the two.
#[derive(Debug, Deserialize, IntoParams)]
pub struct Which {
    /// The reference, as the current API names it.
    pub snapshot: Option<String>,
    /// The reference, as the original runner names it.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
}

impl Which {
    fn reference(&self) -> Result<(SnapshotRef, bool), Failure> {
        match (&self.snapshot, &self.reference) {
            (Some(text), None) => Ok((copy::reference("snapshot", text)?, false)),
            (None, Some(text)) => Ok((copy::reference("ref", text)?, true)),
            _ => {
                let message = "snapshot or ref: expected the reference of a snapshot in one of them";
                Err(Failure::new(ErrorCode::BadRequest, message))
            }
        }
    }
}

/// Body of a snapshot's creation.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateSnapshotBody {
    /// The sandbox.
    pub sandbox_id: String,
    /// Any text; the reference is made of it.
    pub name: String,
    /// First part of the reference.
    pub organization_id: Option<String>,
    /// With the sandbox's memory, which must then run, be paused, or have a checkpoint.
    pub live: Option<bool>,
}

/// A snapshot that was made.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedSnapshot {
    /// Its name.
    pub name: String,
    /// Its reference.
    pub snapshot_path: String,
    /// Bytes that it takes on disk.
    pub size_bytes: u64,
    /// With memory.
    pub live_mode: bool,
    /// sha256 over the checksums of its files.
    pub hash: String,
}

async fn find(state: &State, reference: &SnapshotRef) -> Result<Option<Found>, Failure> {
    state.forks.send(FindSnapshot(reference.clone())).await.map_err(|_| gone())?
}

fn gone() -> Failure {
    Failure::new(ErrorCode::Busy, "the runner is shutting down")
}

/// Make a snapshot of a sandbox.
#[utoipa::path(post, path = "/snapshots/create", request_body = CreateSnapshotBody,
    responses((status = 200, body = CreatedSnapshot), (status = 400, body = error::ErrorBody), (status = 404, body = error::ErrorBody),
        (status = 409, body = error::ErrorBody)))]
pub async fn create(request: HttpRequest, state: Data<State>, payload: Payload) -> HttpResponse {
    let made = async {
        state.work.takes_work()?;
        let body = body::object(payload).await?;
        let source = match body.get("sandboxId") {
            Some(Value::String(id)) => sandbox_id(id)?,
            _ => return Err(Failure::new(ErrorCode::BadRequest, "sandboxId: expected a sandbox id")),
        };
        let SnapshotSpec { source, reference, name, memory, .. } = copy::snapshot(source, &body, true)?;
        let take = TakeSnapshot { source, reference, name, memory, by_job: false };
        let manifest = state.forks.send(take).await.map_err(|_| gone())??;
        Ok(HttpResponse::Ok().json(CreatedSnapshot {
            hash: manifest.hash(),
            size_bytes: manifest.bytes(),
            snapshot_path: manifest.reference.to_string(),
            live_mode: manifest.warm.is_some(),
            name: manifest.name,
        }))
    };
    respond(&request, made.await)
}

/// Whether a snapshot is on this host: `{"exists"}` for `snapshot`, a bare boolean for `ref`.
#[utoipa::path(get, path = "/snapshots/exists", params(Which),
    responses((status = 200, body = Object), (status = 400, body = error::ErrorBody)))]
pub async fn exists(request: HttpRequest, state: Data<State>, which: Query<Which>) -> HttpResponse {
    let found = async {
        let (reference, bare) = which.reference()?;
        let exists = find(&state, &reference).await?.is_some();
        Ok(HttpResponse::Ok().json(if bare { json!(exists) } else { json!({ "exists": exists }) }))
    };
    respond(&request, found.await)
}

/// What is known of a snapshot.
#[utoipa::path(get, path = "/snapshots/info", params(Which),
    responses((status = 200, body = Object), (status = 400, body = error::ErrorBody), (status = 404, body = error::ErrorBody),
        (status = 422, body = error::ErrorBody)))]
pub async fn info(request: HttpRequest, state: Data<State>, which: Query<Which>) -> HttpResponse {
    let found = async {
        let (reference, _) = which.reference()?;
        let missing = || Failure::new(ErrorCode::NotFound, format!("snapshot {reference} is not on this host"));
        let found = find(&state, &reference).await?.ok_or_else(missing)?;
        let mut info = json!({
            "name": reference,
            "size": found.bytes,
            "sizeGB": found.bytes as f64 / (1_u64 << 30) as f64,
            "created": found.created_at,
        });
        if let Some(manifest) = found.manifest {
            info["hash"] = json!(manifest.hash());
            info["manifest"] = json!(manifest);
        }
        Ok(HttpResponse::Ok().json(info))
    };
    respond(&request, found.await)
}

/// Remove a snapshot; not there is success. The reference is in the query or in the body (`ref`).
#[utoipa::path(post, path = "/snapshots/remove", params(Which),
    responses((status = 200, body = String), (status = 400, body = error::ErrorBody), (status = 409, body = error::ErrorBody)))]
pub async fn remove(request: HttpRequest, state: Data<State>, which: Query<Which>, payload: Payload) -> HttpResponse {
    let removed = async {
        let body = body::object(payload).await?;
        let which = match body.get("ref").and_then(Value::as_str) {
            Some(text) if which.snapshot.is_none() && which.reference.is_none() => {
                Which { snapshot: None, reference: Some(text.to_owned()) }
            }
            _ => which.into_inner(),
        };
        let (reference, _) = which.reference()?;
        state.forks.send(RemoveSnapshot(reference)).await.map_err(|_| gone())??;
        Ok(HttpResponse::Ok().json("Snapshot removed"))
    };
    respond(&request, removed.await)
}
