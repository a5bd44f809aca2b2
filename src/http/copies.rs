//! Copies of sandboxes, pause and resize (PROTOCOL.md 6; the form with several copies is ours).

use actix_web::http::StatusCode;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::sandboxes::{order, respond, sandbox_id};
use super::{State, body, error};
use crate::actors::fork::MOST_COPIES;
use crate::error::{ErrorCode, Failure};
use crate::ids::SandboxId;
use crate::jobs::payload;
use crate::messages::fork::{Copies, Fork};
use crate::messages::supervisor::Order;
use crate::sandbox::view::Begun;
use crate::sandbox::{Ask, View, WireState};

/// Body of a fork or clone: one of the three.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForkBody {
    /// Id of the one copy.
    pub new_sandbox_id: Option<String>,
    /// Ids of several copies of the same point in time.
    pub new_sandbox_ids: Option<Vec<String>>,
    /// So many copies, 1 to 100, with ids of the runner's choice.
    pub count: Option<u32>,
}

/// Body of a resize; what is absent or 0 stays.
#[derive(Debug, Serialize, ToSchema)]
pub struct ResizeBody {
    /// Whole vCPUs; of a running sandbox only more, and at once where the hypervisor can.
    pub cpu: Option<u32>,
    /// Memory in GiB; from the next boot on.
    pub memory: Option<u64>,
    /// Root disk in GiB; only more, and only of a stopped sandbox.
    pub disk: Option<u64>,
}

/// Which copies are asked for, and whether as a list.
fn copies(body: &Map<String, Value>) -> Result<(Vec<SandboxId>, bool), Failure> {
    let present = |name: &str| body.get(name).filter(|value| !value.is_null());
    match (present("newSandboxId"), present("newSandboxIds"), present("count")) {
        (Some(id), None, None) => Ok((vec![copy_id("newSandboxId", id)?], false)),
        (None, Some(Value::Array(ids)), None) => {
            let ids = ids.iter().enumerate().map(|(at, id)| copy_id(&format!("newSandboxIds[{at}]"), id));
            Ok((ids.collect::<Result<_, _>>()?, true))
        }
        (None, None, Some(count)) => {
            let wanted = count.as_u64().and_then(|count| usize::try_from(count).ok());
            let wanted = wanted.filter(|count| (1..=MOST_COPIES).contains(count));
            let bad = || bad(format!("count: expected 1 to {MOST_COPIES}, got {count}"));
            let ids = (0..wanted.ok_or_else(bad)?).map(|_| new_id());
            Ok((ids.collect::<Result<_, _>>()?, true))
        }
        (None, None, None) => Err(bad("newSandboxId: expected a sandbox id, got nothing".to_owned())),
        _ => Err(bad("newSandboxId, newSandboxIds (an array) and count: expected one of them".to_owned())),
    }
}

fn copy_id(field: &str, value: &Value) -> Result<SandboxId, Failure> {
    let text = value.as_str().ok_or_else(|| bad(format!("{field}: expected a sandbox id, got {value}")))?;
    text.parse().map_err(|error: crate::ids::Error| bad(format!("{field}: {error}")))
}

fn new_id() -> Result<SandboxId, Failure> {
    uuid::Uuid::new_v4().to_string().parse().map_err(|error: crate::ids::Error| bad(error.to_string()))
}

fn bad(message: String) -> Failure {
    Failure::new(ErrorCode::BadRequest, message)
}

/// Copy a sandbox, with its memory if it has one. With several copies the answer lists each with its state or error;
/// its status is 201 when all were made, 207 when some failed.
#[utoipa::path(post, path = "/sandboxes/{id}/fork", params(("id" = String, Path, description = "sandbox id")), request_body = ForkBody,
    responses((status = 201, body = Object), (status = 207, body = Object), (status = 400, body = error::ErrorBody),
        (status = 404, body = error::ErrorBody), (status = 409, body = error::ErrorBody), (status = 503, body = error::ErrorBody)))]
pub async fn fork(request: HttpRequest, state: Data<State>, id: Path<String>, payload: Payload) -> HttpResponse {
    let made = copy(&state, &id, payload, "parentId").await;
    respond(&request, made)
}

/// The same as fork; the answer names the source `sourceSandboxId`.
#[utoipa::path(post, path = "/sandboxes/{id}/clone", params(("id" = String, Path, description = "sandbox id")), request_body = ForkBody,
    responses((status = 201, body = Object), (status = 207, body = Object), (status = 400, body = error::ErrorBody),
        (status = 404, body = error::ErrorBody), (status = 409, body = error::ErrorBody), (status = 503, body = error::ErrorBody)))]
pub async fn clone(request: HttpRequest, state: Data<State>, id: Path<String>, payload: Payload) -> HttpResponse {
    let made = copy(&state, &id, payload, "sourceSandboxId").await;
    respond(&request, made)
}

async fn copy(state: &State, source: &str, payload: Payload, parent: &str) -> Result<HttpResponse, Failure> {
    let source = sandbox_id(source)?;
    state.work.takes_work()?;
    // `prefault` of the original is accepted: memory is read when it is needed.
    let (copies, many) = copies(&body::object(payload).await?)?;
    let fork = Fork { source: source.clone(), copies, by_job: false };
    let made: Copies = state.forks.send(fork).await.map_err(|_| gone())??;
    if many {
        return Ok(list(&made, &source, parent));
    }
    match made.into_iter().next() {
        Some((_, made)) => Ok(HttpResponse::Created().json(one(&*made?, &source, parent))),
        None => Err(Failure::new(ErrorCode::Internal, "nothing was copied (a defect of the runner)")),
    }
}

fn gone() -> Failure {
    Failure::new(ErrorCode::Busy, "the runner is shutting down")
}

fn one(view: &View, source: &SandboxId, parent: &str) -> Value {
    json!({ "id": view.id, "state": view.state, parent: source, "daemonVersion": view.daemon_version, "begin": Begun::from(view) })
}

fn list(made: &Copies, source: &SandboxId, parent: &str) -> HttpResponse {
    let failed = made.iter().filter(|(_, made)| made.is_err()).count();
    let status = if failed == 0 { StatusCode::CREATED } else { StatusCode::MULTI_STATUS };
    let copies = made.iter().map(|(id, made)| match made {
        Ok(view) => one(view, source, parent),
        Err(failure) => json!({ "id": id, "state": "error", parent: source, "error": { "code": failure.code, "message": failure.message } }),
    });
    HttpResponse::build(status).json(json!({ "sandboxes": copies.collect::<Vec<_>>(), "failed": failed }))
}

/// Pause a running sandbox: it keeps its memory and does not run. Already paused is success.
#[utoipa::path(post, path = "/sandboxes/{id}/pause", params(("id" = String, Path, description = "sandbox id")),
    responses((status = 200, body = String), (status = 404, body = error::ErrorBody), (status = 409, body = error::ErrorBody)))]
pub async fn pause(request: HttpRequest, state: Data<State>, id: Path<String>) -> HttpResponse {
    let paused = async {
        order(&state, Order::new(sandbox_id(&id)?, Ask::Pause)).await?;
        Ok(HttpResponse::Ok().json("Sandbox paused"))
    };
    respond(&request, paused.await)
}

/// Let a paused sandbox run on; a stopped one is started.
#[utoipa::path(post, path = "/sandboxes/{id}/resume", params(("id" = String, Path, description = "sandbox id")),
    responses((status = 200, body = String), (status = 404, body = error::ErrorBody), (status = 409, body = error::ErrorBody)))]
pub async fn resume(request: HttpRequest, state: Data<State>, id: Path<String>) -> HttpResponse {
    let resumed = async {
        let id = sandbox_id(&id)?;
        // One that is paused is no new work.
        if state.views.get(&id).is_none_or(|view| view.state != WireState::Paused) {
            state.work.takes_work()?;
        }
        order(&state, Order::new(id, Ask::Start)).await?;
        Ok(HttpResponse::Ok().json("Sandbox resumed"))
    };
    respond(&request, resumed.await)
}

/// Change a sandbox's resources. What cannot be changed while it runs counts from its next boot on.
#[utoipa::path(post, path = "/sandboxes/{id}/resize", params(("id" = String, Path, description = "sandbox id")), request_body = ResizeBody,
    responses((status = 200, body = String), (status = 400, body = error::ErrorBody), (status = 404, body = error::ErrorBody),
        (status = 422, body = error::ErrorBody)))]
pub async fn resize(request: HttpRequest, state: Data<State>, id: Path<String>, payload: Payload) -> HttpResponse {
    let resized = async {
        let id = sandbox_id(&id)?;
        let resize = payload::copy::resize(&body::object(payload).await?)?;
        order(&state, Order { resize: Some(resize), ..Order::new(id, Ask::Resize) }).await?;
        Ok(HttpResponse::Ok().json("Sandbox resized"))
    };
    respond(&request, resized.await)
}
