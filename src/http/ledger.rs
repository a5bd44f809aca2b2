//! The ledger: what on this host is not as it should be, and its repair (docs/ledger.md).

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use actix::Addr;
use actix_web::web::{Data, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::sandboxes::respond;
use super::{State, body, error};
use crate::actors::LedgerActor;
use crate::error::{ErrorCode, Failure};
use crate::ledger::{Audit, Counts, Difference, Kind, Ledger};
use crate::messages::ledger::{Outcome, Repair, Repairs, RunLedger};

/// The way to the ledger, which is there when stored sandboxes are recovered.
#[derive(Debug, Clone, Default)]
pub struct LedgerAccess {
    /// Its last result.
    pub results: Ledger,
    actor: Arc<OnceLock<Addr<LedgerActor>>>,
}

impl LedgerAccess {
    /// From now on it can be asked.
    pub fn open(&self, actor: Addr<LedgerActor>) {
        // There is one ledger in a life of the runner.
        let _ = self.actor.set(actor);
    }

    fn actor(&self) -> Result<&Addr<LedgerActor>, Failure> {
        let message = "the runner is still recovering its sandboxes; try again in a moment";
        self.actor.get().ok_or_else(|| Failure::new(ErrorCode::Busy, message))
    }
}

/// Which result.
#[derive(Debug, Deserialize, IntoParams)]
pub struct Fresh {
    /// Compare now; otherwise the last result is shown.
    #[serde(default)]
    pub refresh: bool,
}

/// What on this host is not as it should be.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LedgerReport {
    /// What the last run has found.
    #[serde(flatten)]
    pub audit: Audit,
    /// Number of differences.
    pub total: usize,
    /// Numbers by kind and direction.
    #[schema(value_type = Object)]
    pub counts: Counts,
    /// Runs since the runner's start.
    pub runs: u64,
    /// Differences that were repaired since the runner's start.
    pub repaired: u64,
    /// Repairs that failed since the runner's start.
    pub failed: u64,
}

/// Body of a repair.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RepairBody {
    /// Only say what would be done; true unless it is false.
    pub dry_run: Option<bool>,
    /// Kinds to repair. Without it, all that is harmless; VMMs, directories and checkpoints have to be named.
    pub kinds: Option<BTreeSet<Kind>>,
}

/// What became of a difference.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Repaired {
    /// The difference.
    #[serde(flatten)]
    pub difference: Difference,
    /// `would`, `done`, `skipped` or `failed`.
    #[schema(example = "done")]
    pub outcome: &'static str,
    /// Why it was skipped or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a repair has done, or would do.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepairReport {
    /// Nothing was changed.
    pub dry_run: bool,
    /// How many would be or were repaired.
    pub repaired: usize,
    /// How many could not be repaired.
    pub failed: usize,
    /// Each difference, in the order of the work.
    pub items: Vec<Repaired>,
}

fn gone() -> Failure {
    Failure::new(ErrorCode::Busy, "the runner is shutting down")
}

/// What is on this host and should not be, what should be and is not, and what is wrong.
#[utoipa::path(get, path = "/ledger", params(Fresh),
    responses((status = 200, body = LedgerReport), (status = 503, body = error::ErrorBody)))]
pub async fn show(request: HttpRequest, state: Data<State>, fresh: Query<Fresh>) -> HttpResponse {
    let shown = async {
        let results = &state.ledger.results;
        let audit = match results.last().filter(|_| !fresh.refresh) {
            Some(audit) => audit,
            None => state.ledger.actor()?.send(RunLedger).await.map_err(|_| gone())??,
        };
        let (repaired, failed) = results.repairs();
        Ok(HttpResponse::Ok().json(LedgerReport {
            total: audit.differences.len(),
            counts: audit.counts(),
            audit: (*audit).clone(),
            runs: results.runs(),
            repaired,
            failed,
        }))
    };
    respond(&request, shown.await)
}

/// Repair what a comparison finds now; by default only say what would be done.
#[utoipa::path(post, path = "/ledger/repair", request_body = RepairBody,
    responses((status = 200, body = RepairReport), (status = 400, body = error::ErrorBody), (status = 503, body = error::ErrorBody)))]
pub async fn repair(request: HttpRequest, state: Data<State>, payload: Payload) -> HttpResponse {
    let repaired = async {
        let fields = body::object(payload).await?;
        let RepairBody { dry_run, kinds } = serde_json::from_value(Value::Object(fields)).map_err(bad)?;
        let dry_run = dry_run.unwrap_or(true);
        let done = state.ledger.actor()?.send(Repair { dry_run, kinds }).await.map_err(|_| gone())??;
        Ok(HttpResponse::Ok().json(report(dry_run, done)))
    };
    respond(&request, repaired.await)
}

fn bad(error: serde_json::Error) -> Failure {
    let expected = "expected {\"dryRun\": true or false, \"kinds\": [names of kinds]}, both optional";
    Failure::new(ErrorCode::BadRequest, format!("the body of a repair is wrong: {error}; {expected}"))
}

fn report(dry_run: bool, done: Repairs) -> RepairReport {
    let items: Vec<_> = done
        .outcomes
        .into_iter()
        .map(|(difference, outcome)| {
            let (outcome, reason) = match outcome {
                Outcome::Would => ("would", None),
                Outcome::Done => ("done", None),
                Outcome::Skipped(reason) => ("skipped", Some(reason)),
                Outcome::Failed(reason) => ("failed", Some(reason)),
            };
            Repaired { difference, outcome, reason }
        })
        .collect();
    let count = |wanted: &[&str]| items.iter().filter(|item| wanted.contains(&item.outcome)).count();
    RepairReport { dry_run, repaired: count(&["would", "done"]), failed: count(&["failed"]), items }
}
