//! State sync between runner and API (PROTOCOL.md 4).

use std::time::Duration;

use serde_json::Value;

use crate::sandbox::{Sandbox, SandboxState};
use crate::state::{State, word};

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// 404.
    #[error("Sandbox with ID or name {0} not found")]
    NotFound(String),
    /// 400.
    #[error("{0}")]
    Invalid(String),
    /// 409.
    #[error("Sandbox was modified by another operation")]
    Conflict,
}

/// A validated body of `PUT /sandbox/{id}/state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateUpdate {
    state: SandboxState,
    error_reason: Option<String>,
    recoverable: bool,
}

impl StateUpdate {
    /// Reads a body; unknown fields are ignored.
    pub fn parse(body: &Value) -> Result<Self, Error> {
        let state = body["state"].as_str().and_then(SandboxState::parse);
        let mut problems = Vec::new();
        if state.is_none() {
            problems.push("state must be one of the sandbox states");
        }
        if !matches!(body["errorReason"], Value::Null | Value::String(_)) {
            problems.push("errorReason must be a string");
        }
        if !matches!(body["recoverable"], Value::Null | Value::Bool(_)) {
            problems.push("recoverable must be a boolean value");
        }
        match state {
            Some(state) if problems.is_empty() => Ok(Self {
                state,
                error_reason: body["errorReason"].as_str().map(str::to_owned),
                recoverable: body["recoverable"].as_bool().unwrap_or(false),
            }),
            _ => Err(Error::Invalid(problems.join(", "))),
        }
    }
}

impl State {
    /// The sandboxes of a runner, filtered as the query says.
    pub fn for_runner(
        &self,
        runner_id: &str,
        states: Option<&str>,
        skip_reconciling: bool,
    ) -> Result<Vec<Value>, Error> {
        let wanted = states.filter(|text| !text.is_empty()).map(parse_states);
        let wanted = wanted.transpose()?;
        let fits = |row: &&Sandbox| {
            row.runner_id.as_deref() == Some(runner_id)
                && wanted.as_ref().is_none_or(|list| list.contains(&row.state))
                && (!skip_reconciling || row.state.at_rest() == Some(row.desired))
        };
        let rows = self.sandboxes.values().filter(fits);
        Ok(rows.map(Sandbox::api_json).collect())
    }

    /// Fails with 404 unless the sandbox is this runner's.
    pub fn check_owner(&self, runner_id: &str, id: &str) -> Result<&Sandbox, Error> {
        self.sandboxes
            .get(id)
            .filter(|row| row.runner_id.as_deref() == Some(runner_id))
            .ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// Takes over a state that the runner has observed.
    pub fn put_state(&mut self, runner_id: &str, id: &str, update: StateUpdate, now: Duration) -> Result<(), Error> {
        let row = self.check_owner(runner_id, id)?;
        if row.state == update.state {
            return Ok(());
        }
        if !matches!(row.state, SandboxState::Started | SandboxState::Stopped) {
            let text = "Sandbox is not in a valid state to be updated";
            return Err(Error::Invalid(text.to_owned()));
        }
        if row.desired == crate::sandbox::DesiredState::Destroyed {
            return Ok(());
        }
        if row.pending {
            return Err(Error::Conflict);
        }
        self.update_sandbox(id, now, |row| {
            row.state = update.state;
            row.recoverable = false;
            if let Some(reason) = update.error_reason {
                row.error_reason = Some(reason);
                row.recoverable = update.recoverable && update.state == SandboxState::Error;
            }
            if let Some(desired) = update.state.at_rest() {
                row.desired = desired;
            }
        });
        Ok(())
    }
}

fn parse_states(text: &str) -> Result<Vec<SandboxState>, Error> {
    text.split(',')
        .map(|part| {
            let state =
                SandboxState::parse(part).ok_or_else(|| Error::Invalid(format!("Invalid sandbox state: {part}")))?;
            if state.at_rest().is_none() {
                let text = format!("State {} does not have a corresponding desired state", word(&state));
                return Err(Error::Invalid(text));
            }
            Ok(state)
        })
        .collect()
}
