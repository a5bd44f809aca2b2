//! The runner about itself.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

use super::State;
use crate::actors::reporter::{ApiContact, totals};
use crate::control_plane::{Metrics, ServiceHealth};
use crate::host;

/// Answer of `GET /`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Root {
    /// `ok`, `recovering` while stored sandboxes are being looked at after a start, or `draining` while the operator
    /// drains this runner.
    #[schema(example = "ok")]
    pub status: &'static str,
    /// Version of the runner.
    pub version: String,
}

/// Alive? Needs no token.
#[utoipa::path(get, path = "/", security(()), responses((status = 200, body = Root)))]
pub async fn root(state: Data<State>) -> HttpResponse {
    let status = match (state.recovered.get(), state.work.draining()) {
        (false, _) => "recovering",
        (true, Some(_)) => "draining",
        (true, None) => "ok",
    };
    HttpResponse::Ok().json(Root { status, version: state.identity.version.clone() })
}

/// Answer of `GET /info`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// Kind of runner.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Version of the runner.
    pub app_version: String,
    /// Number of sandboxes in any state.
    pub sandboxes: usize,
    /// The operator drains this runner: nothing new is begun.
    pub draining: bool,
    /// As sent to the control plane.
    #[schema(value_type = Vec<Object>)]
    pub service_health: Vec<ServiceHealth>,
    /// As sent to the control plane; absent until the first healthcheck.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metrics: Option<Metrics>,
    /// How the last healthcheck went; absent until the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<ApiContact>,
}

/// What the scheduler sees of this runner, and whether the API is reachable.
#[utoipa::path(get, path = "/info", responses((status = 200, body = Info)))]
pub async fn info(state: Data<State>) -> HttpResponse {
    let services = vec![crate::app::service_health(&state.ch_binary)];
    let metrics = state.seen.host().map(|(snapshot, space, snapshots)| {
        let totals = totals(&state.views, snapshots);
        host::healthcheck(&snapshot, &space, &totals, &state.identity, Vec::new()).metrics
    });
    HttpResponse::Ok().json(Info {
        kind: "cloud-hypervisor",
        app_version: state.identity.version.clone(),
        sandboxes: state.views.list().len(),
        draining: state.work.draining().is_some(),
        service_health: services,
        metrics,
        api: state.seen.api(),
    })
}
