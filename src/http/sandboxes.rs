//! The sandbox routes.

use std::sync::Arc;

use actix_web::web::{Data, Path, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{State, body, error};
use crate::error::{ErrorCode, Failure};
use crate::ids::SandboxId;
use crate::jobs::payload::{CreateSpec, Secret};
use crate::messages::supervisor::Order;
use crate::sandbox::record::{LastExit, Origin};
use crate::sandbox::view::StageTime;
use crate::sandbox::view::{Begun, Restart};
use crate::sandbox::{Ask, StopMode, View, WireState};

/// A sandbox as this API shows it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: WireState,
    /// State of its backup; this version makes none.
    #[schema(example = "NONE")]
    pub backup_state: &'static str,
    /// Version of the guest's toolbox at the last start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daemon_version: Option<String>,
    /// Why it stands as it does, when nobody asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// Virtual CPUs.
    pub cpu: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
    /// Root disk in GiB.
    #[serde(rename = "diskGiB")]
    pub disk_gib: u64,
    /// Its address on the bridge, while it has a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Its namespace, while it has a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// Pid of its Cloud Hypervisor, while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// When it was asked for, in milliseconds since 1970.
    pub created_at: u64,
    /// When it came into this state, in milliseconds since 1970.
    pub since: u64,
    /// How long the stages of the last operation took.
    pub timings: Vec<StageTime>,
    /// How its present run began.
    pub begin: Begun,
    /// The sandbox that it is a copy of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<String>,
    /// Its memory is on disk, and the next start goes on from it.
    pub checkpoint: bool,
    /// vCPUs of the running VM, where a resize waits for the next boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_cpu: Option<u32>,
    /// Memory of the running VM in MiB, where a resize waits for the next boot.
    #[serde(rename = "runningMemoryMiB", skip_serializing_if = "Option::is_none")]
    pub running_memory_mib: Option<u64>,
    /// How long the last copy of it has paused it, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_pause_micros: Option<u64>,
    /// Frozen images between its disk and the base.
    pub disk_layers: usize,
    /// How its last run ended, if nobody had asked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<LastExit>,
    /// It is started by itself then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
}

impl From<&View> for Sandbox {
    fn from(view: &View) -> Self {
        Self {
            id: view.id.to_string(),
            state: view.state,
            backup_state: "NONE",
            daemon_version: view.daemon_version.clone(),
            error_reason: view.error.clone(),
            cpu: view.size.vcpus,
            memory_mib: view.size.memory >> 20,
            disk_gib: view.size.disk >> 30,
            address: view.address.map(|address| address.to_string()),
            netns: view.netns.clone(),
            pid: view.pid,
            created_at: view.created_at,
            since: view.since,
            timings: view.timings.clone(),
            begin: Begun::from(view),
            parent_id: match &view.origin {
                Some(Origin::Sandbox { id }) => Some(id.to_string()),
                _ => None,
            },
            checkpoint: view.checkpoint,
            running_cpu: view.running.map(|size| size.vcpus).filter(|cpu| *cpu != view.size.vcpus),
            running_memory_mib: view.running.map(|size| size.memory >> 20).filter(|mib| *mib != view.size.memory >> 20),
            last_pause_micros: view.last_pause,
            disk_layers: view.disk_layers,
            last_exit: view.last_exit.clone(),
            restart: view.restart,
        }
    }
}

/// Body of a create: the payload of CREATE_SANDBOX (PROTOCOL.md 5). Unknown fields are ignored.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateBody {
    /// 1 to 64 characters of letters, digits, `-` and `_`.
    pub id: String,
    /// Base to start from: a reference below CH_SNAPSHOTS_PATH; absent for the configured base image.
    pub snapshot: Option<String>,
    /// The guest's user.
    pub os_user: Option<String>,
    /// Whole vCPUs.
    pub cpu_quota: Option<u32>,
    /// Memory in GiB.
    pub memory_quota: Option<u64>,
    /// Root disk in GiB.
    pub storage_quota: Option<u64>,
    /// Environment of the guest's daemon.
    pub env: Option<std::collections::BTreeMap<String, String>>,
    /// No egress at all.
    pub network_block_all: Option<bool>,
    /// Egress only to these, comma-separated CIDRs, at most 10.
    pub network_allow_list: Option<String>,
    /// Create without starting.
    pub skip_start: Option<bool>,
    /// Token for the guest's daemon.
    pub auth_token: Option<String>,
}

/// Answer of a create or start.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Version of the guest's toolbox; absent for a guest without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daemon_version: Option<String>,
}

/// Query of a start.
#[derive(Debug, Deserialize, IntoParams)]
pub struct StartQuery {
    /// Token for the guest's daemon.
    pub token: Option<String>,
}

/// Body of a stop.
#[derive(Debug, Serialize, ToSchema)]
pub struct StopBody {
    /// End the VMM without asking the guest: the same as mode `kill`.
    pub force: Option<bool>,
    /// `checkpoint`: its memory is kept on disk, and the next start goes on from there. `shutdown`: the guest is asked to
    /// shut down. `kill`: the VMM is ended. RUNNER_STOP_MODE when absent.
    pub mode: Option<String>,
}

/// Body of a start.
#[derive(Debug, Serialize, ToSchema)]
pub struct StartBody {
    /// Boot, even if a checkpoint is there, which is then lost.
    pub cold: Option<bool>,
}

pub(super) fn sandbox_id(text: &str) -> Result<SandboxId, Failure> {
    text.parse().map_err(|error: crate::ids::Error| Failure::new(ErrorCode::BadRequest, format!("id: {error}")))
}

pub(super) fn find(state: &State, id: &SandboxId) -> Result<Arc<View>, Failure> {
    let missing = || Failure::new(ErrorCode::NotFound, format!("sandbox {id} does not exist on this host"));
    state.views.get(id).ok_or_else(missing)
}

pub(super) async fn order(state: &State, order: Order) -> Result<Option<Arc<View>>, Failure> {
    let answered = state.supervisor.send(order).await;
    answered.map_err(|_| Failure::new(ErrorCode::Busy, "the runner is shutting down"))?
}

pub(super) fn respond(request: &HttpRequest, result: Result<HttpResponse, Failure>) -> HttpResponse {
    result.unwrap_or_else(|failure| error::answer(request, &failure))
}

/// Make a sandbox and start it.
#[utoipa::path(post, path = "/sandboxes", request_body = CreateBody,
    responses((status = 201, body = Started), (status = 400, body = error::ErrorBody), (status = 401, body = error::ErrorBody),
        (status = 409, body = error::ErrorBody), (status = 422, body = error::ErrorBody), (status = 503, body = error::ErrorBody)))]
pub async fn create(request: HttpRequest, state: Data<State>, payload: Payload) -> HttpResponse {
    let created = async {
        state.work.takes_work()?;
        let spec = CreateSpec::from_json(&Value::Object(body::object(payload).await?))?;
        let view = order(&state, Order::create(spec)).await?;
        let daemon_version = view.and_then(|view| view.daemon_version.clone());
        Ok(HttpResponse::Created().json(Started { daemon_version }))
    };
    respond(&request, created.await)
}

/// All sandboxes of this host.
#[utoipa::path(get, path = "/sandboxes", responses((status = 200, body = Vec<Sandbox>), (status = 401, body = error::ErrorBody)))]
pub async fn list(state: Data<State>) -> HttpResponse {
    let all: Vec<Sandbox> = state.views.list().iter().map(|view| Sandbox::from(&**view)).collect();
    HttpResponse::Ok().json(all)
}

/// One sandbox.
#[utoipa::path(get, path = "/sandboxes/{id}", params(("id" = String, Path, description = "sandbox id")),
    responses((status = 200, body = Sandbox), (status = 400, body = error::ErrorBody), (status = 404, body = error::ErrorBody)))]
pub async fn get(request: HttpRequest, state: Data<State>, id: Path<String>) -> HttpResponse {
    let found = sandbox_id(&id).and_then(|id| find(&state, &id));
    respond(&request, found.map(|view| HttpResponse::Ok().json(Sandbox::from(&*view))))
}

/// Start a stopped sandbox; already running is success.
#[utoipa::path(post, path = "/sandboxes/{id}/start", params(("id" = String, Path, description = "sandbox id"), StartQuery), request_body(content = Option<StartBody>),
    responses((status = 200, body = Started), (status = 404, body = error::ErrorBody), (status = 409, body = error::ErrorBody)))]
pub async fn start(
    request: HttpRequest,
    state: Data<State>,
    id: Path<String>,
    query: Query<StartQuery>,
    payload: Payload,
) -> HttpResponse {
    let started = async {
        let id = sandbox_id(&id)?;
        state.work.takes_work()?;
        // The rest of the body is metadata that this runner does not need, but it must be readable.
        let cold = flag(&body::object(payload).await?, "cold")?;
        let ask = if cold { Ask::Boot } else { Ask::Start };
        let view =
            order(&state, Order { auth_token: query.token.clone().map(Secret::from), ..Order::new(id, ask) }).await?;
        let daemon_version = view.and_then(|view| view.daemon_version.clone());
        Ok(HttpResponse::Ok().json(Started { daemon_version }))
    };
    respond(&request, started.await)
}

fn flag(body: &serde_json::Map<String, Value>, name: &str) -> Result<bool, Failure> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(Failure::new(ErrorCode::BadRequest, format!("{name}: expected true or false, got {other}"))),
    }
}

fn stop_mode(mode: &Value) -> Result<StopMode, Failure> {
    match mode.as_str() {
        Some("checkpoint") => Ok(StopMode::Checkpoint),
        Some("shutdown") => Ok(StopMode::Shutdown),
        Some("kill") => Ok(StopMode::Kill),
        _ => {
            let message = format!("mode: expected \"checkpoint\", \"shutdown\" or \"kill\", got {mode}");
            Err(Failure::new(ErrorCode::BadRequest, message))
        }
    }
}

/// Stop a sandbox; already stopped is success.
#[utoipa::path(post, path = "/sandboxes/{id}/stop", params(("id" = String, Path, description = "sandbox id")),
    request_body(content = Option<StopBody>), responses((status = 200, body = String), (status = 404, body = error::ErrorBody)))]
pub async fn stop(request: HttpRequest, state: Data<State>, id: Path<String>, payload: Payload) -> HttpResponse {
    let stopped = async {
        let id = sandbox_id(&id)?;
        let body = body::object(payload).await?;
        let mode = match (flag(&body, "force")?, body.get("mode").filter(|mode| !mode.is_null())) {
            (true, None) => StopMode::Kill,
            (false, None) => StopMode::Usual,
            (false, Some(mode)) => stop_mode(mode)?,
            (true, Some(_)) => {
                let message = "force and mode: give one of them; force is the same as mode \"kill\"";
                return Err(Failure::new(ErrorCode::BadRequest, message));
            }
        };
        order(&state, Order::new(id, Ask::Stop(mode))).await?;
        Ok(HttpResponse::Ok().json("Sandbox stopped"))
    };
    respond(&request, stopped.await)
}

async fn end(state: &State, id: &str, words: &str) -> Result<HttpResponse, Failure> {
    order(state, Order::new(sandbox_id(id)?, Ask::Destroy)).await?;
    Ok(HttpResponse::Ok().json(words))
}

/// Remove a sandbox with its disk; not there is success.
#[utoipa::path(post, path = "/sandboxes/{id}/destroy", params(("id" = String, Path, description = "sandbox id")),
    responses((status = 200, body = String), (status = 400, body = error::ErrorBody)))]
pub async fn destroy(request: HttpRequest, state: Data<State>, id: Path<String>) -> HttpResponse {
    respond(&request, end(&state, &id, "Sandbox destroyed").await)
}

/// The same as destroy.
#[utoipa::path(delete, path = "/sandboxes/{id}", params(("id" = String, Path, description = "sandbox id")),
    responses((status = 200, body = String), (status = 400, body = error::ErrorBody)))]
pub async fn remove(request: HttpRequest, state: Data<State>, id: Path<String>) -> HttpResponse {
    respond(&request, end(&state, &id, "Sandbox removed").await)
}
