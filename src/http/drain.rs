//! Draining this runner for its operator: nothing new is begun, what is under way is finished, and one look tells when
//! that is so. Healthchecks go on, and the API keeps its jobs.

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

use super::State;

/// A request that is not answered yet.
#[derive(Debug, Serialize, ToSchema)]
pub struct DrainRequest {
    /// What is done.
    #[schema(example = "create")]
    pub verb: &'static str,
    /// The sandbox or snapshot.
    pub object: String,
    /// Milliseconds since 1970.
    pub since: u64,
}

/// A job that is being executed, or whose result the API has not taken yet.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DrainJob {
    /// Its id.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it is about.
    pub resource_id: String,
    /// It is done, and its result is being reported.
    pub reporting: bool,
}

/// Whether this runner is being drained, and what is still under way.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// Nothing new is begun.
    pub draining: bool,
    /// Since when, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// It is being drained, and nothing is under way any more: the runner can be stopped.
    pub drained: bool,
    /// The last poll for jobs is still open; what it brings is carried out. It ends within POLL_TIMEOUT.
    pub polling: bool,
    /// Jobs in hand.
    pub jobs: Vec<DrainJob>,
    /// Requests that are not answered yet.
    pub requests: Vec<DrainRequest>,
    /// Sandboxes with an operation under way.
    pub unsettled: Vec<String>,
}

fn look(state: &State) -> HttpResponse {
    let work = &state.work;
    // Before the jobs: what a poll brings in is counted there by the time it has ended.
    let polling = work.polling();
    let since = work.draining();
    let jobs: Vec<_> = work
        .jobs_in_hand()
        .into_iter()
        .map(|(id, job)| DrainJob {
            id: id.to_string(),
            kind: job.kind,
            resource_id: job.resource,
            reporting: job.reporting,
        })
        .collect();
    let requests: Vec<_> = work
        .underway()
        .into_iter()
        .map(|request| DrainRequest { verb: request.verb, object: request.object, since: request.since })
        .collect();
    let unsettled: Vec<_> =
        state.views.list().iter().filter(|view| !view.settled).map(|view| view.id.to_string()).collect();
    let quiet = jobs.is_empty() && requests.is_empty() && unsettled.is_empty() && !polling;
    let drained = since.is_some() && quiet && state.recovered.get();
    HttpResponse::Ok().json(Drain { draining: since.is_some(), since, drained, polling, jobs, requests, unsettled })
}

/// Whether this runner is being drained, and what is still under way.
#[utoipa::path(get, path = "/drain", responses((status = 200, body = Drain)))]
pub async fn get(state: Data<State>) -> HttpResponse {
    look(&state)
}

/// Begin nothing new: no jobs are polled (the API keeps them), and starts, creations, copies and snapshots are refused
/// with 503. Stops, destroys, reads and the proxy work. Ends with DELETE, or with the runner: it is not stored.
#[utoipa::path(post, path = "/drain", responses((status = 200, body = Drain)))]
pub async fn begin(state: Data<State>) -> HttpResponse {
    state.work.drain(true);
    tracing::info!("the operator drains this runner: nothing new is begun");
    look(&state)
}

/// Take work again.
#[utoipa::path(delete, path = "/drain", responses((status = 200, body = Drain)))]
pub async fn end(state: Data<State>) -> HttpResponse {
    state.work.drain(false);
    tracing::info!("the operator has ended the drain: work is taken again");
    look(&state)
}
