//! Runner rows and what a healthcheck does to them (PROTOCOL.md 3).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clock::Timestamp;
use crate::options::RunnerKey;
use crate::score::{self, Capacity};

/// Age of the last healthcheck after which a runner counts as unresponsive.
pub(crate) const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(60);
/// Score from which a runner is given sandboxes.
pub const MIN_SCORE: u32 = 10;

/// State of a runner, as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunnerState {
    /// No healthcheck yet.
    Initializing,
    /// Healthy.
    Ready,
    /// Switched off.
    Disabled,
    /// Given up; its healthchecks are ignored.
    Decommissioned,
    /// Unhealthy or silent.
    Unresponsive,
}

/// A runner row. The API key is left out of the JSON.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Runner {
    /// Id.
    pub id: String,
    #[serde(skip)]
    pub(crate) token: String,
    /// State.
    pub state: RunnerState,
    /// Score 0..100.
    pub availability_score: u32,
    /// Whether new sandboxes may be placed here: READY and a sufficient score.
    pub schedulable: bool,
    /// Version sent by the runner.
    pub app_version: Option<String>,
    /// Domain sent by the runner.
    pub domain: Option<String>,
    /// URL for build logs.
    pub api_url: Option<String>,
    /// URL for proxy traffic.
    pub proxy_url: Option<String>,
    /// Services sent by the runner.
    pub service_health: Option<Value>,
    /// Metrics sent by the runner, the latest ones.
    pub metrics: Option<Value>,
    /// Date of the last healthcheck, or of the change to unresponsive.
    pub last_checked: Option<Timestamp>,
    #[serde(skip)]
    pub(crate) last_checked_clock: Option<Duration>,
    #[serde(skip)]
    capacity: Capacity,
}

/// Why a healthcheck was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The body has a wrong form: 400 with this text.
    #[error("{0}")]
    Invalid(String),
    /// The figures cannot be stored: 500.
    #[error("metrics cannot be stored: {0}")]
    Unstorable(&'static str),
}

impl Runner {
    pub(crate) fn new(key: &RunnerKey) -> Self {
        Self {
            id: key.id.clone(),
            token: key.token.clone(),
            state: RunnerState::Initializing,
            availability_score: 0,
            schedulable: false,
            app_version: None,
            domain: None,
            api_url: None,
            proxy_url: None,
            service_health: None,
            metrics: None,
            last_checked: None,
            last_checked_clock: None,
            capacity: Capacity::default(),
        }
    }

    /// Applies a healthcheck. Nothing changes when it is refused or the runner is decommissioned.
    pub(crate) fn healthcheck(&mut self, body: &Value, now: Duration) -> Result<(), Error> {
        validate(body)?;
        if self.state == RunnerState::Decommissioned {
            return Ok(());
        }
        if let Some(metrics) = body.get("metrics").filter(|value| !value.is_null()) {
            self.apply_metrics(metrics)?;
        }
        let text = |name: &str| {
            let text = body.get(name).and_then(Value::as_str);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        self.app_version = text("appVersion").or(self.app_version.take());
        self.domain = text("domain").or(self.domain.take());
        self.api_url = text("apiUrl").or(self.api_url.take());
        self.proxy_url = text("proxyUrl").or(self.proxy_url.take());
        self.service_health = body.get("serviceHealth").cloned();
        let sick = self
            .service_health
            .as_ref()
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|entry| entry["healthy"] == false));
        let state = if sick { RunnerState::Unresponsive } else { RunnerState::Ready };
        self.check(state, now);
        Ok(())
    }

    /// Sets the state and the date of the check.
    pub(crate) fn check(&mut self, state: RunnerState, now: Duration) {
        self.state = state;
        self.last_checked = Some(Timestamp::now());
        self.last_checked_clock = Some(now);
        self.schedulable = state == RunnerState::Ready && self.availability_score >= MIN_SCORE;
    }

    fn apply_metrics(&mut self, metrics: &Value) -> Result<(), Error> {
        let empty = Map::new();
        let map = metrics.as_object().unwrap_or(&empty);
        let numeric = |(name, value): (&String, &Value)| name == "gpuType" || value.is_number() || value.is_null();
        if !map.iter().all(numeric) {
            return Err(Error::Unstorable("a figure is not a number"));
        }
        let capacity = score::capacity(map, self.capacity);
        let score =
            score::availability(map, capacity).ok_or(Error::Unstorable("the availability score is not a number"))?;
        self.capacity = capacity;
        self.availability_score = score;
        self.metrics = Some(metrics.clone());
        Ok(())
    }
}

/// Form of a healthcheck: only `appVersion` is required, services are checked one by one, metrics are not checked.
fn validate(body: &Value) -> Result<(), Error> {
    if !body["appVersion"].is_string() {
        return Err(Error::Invalid("appVersion must be a string".to_owned()));
    }
    let services = match body.get("serviceHealth") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(services)) => services,
        Some(_) => {
            return Err(Error::Invalid("serviceHealth must be an array".to_owned()));
        }
    };
    for (index, service) in services.iter().enumerate() {
        let at = |text: &str| Err(Error::Invalid(format!("serviceHealth.{index}.{text}")));
        if !service["serviceName"].is_string() {
            return at("serviceName must be a string");
        }
        if !service["healthy"].is_boolean() {
            return at("healthy must be a boolean value");
        }
        if !matches!(service["errorReason"], Value::Null | Value::String(_)) {
            return at("errorReason must be a string");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn runner() -> Runner {
        Runner::new(&RunnerKey { id: "r".to_owned(), token: "t".to_owned() })
    }

    #[test]
    fn without_metrics_ready_but_never_used() {
        let mut runner = runner();
        let body = json!({"appVersion": "1", "domain": ""});
        runner.healthcheck(&body, Duration::ZERO).unwrap();
        assert_eq!(runner.state, RunnerState::Ready);
        assert_eq!(runner.availability_score, 0);
        assert!(!runner.schedulable);
        assert_eq!(runner.domain, None);
    }

    #[test]
    fn sick_service_makes_unresponsive_and_absence_clears() {
        let mut runner = runner();
        let body = json!({"appVersion": "1", "serviceHealth": [{"serviceName": "vmm", "healthy": false}],
            "metrics": {"cpu": 4, "memoryGiB": 8, "diskGiB": 100}});
        runner.healthcheck(&body, Duration::ZERO).unwrap();
        assert_eq!(runner.state, RunnerState::Unresponsive);
        let body = json!({"appVersion": "1"});
        runner.healthcheck(&body, Duration::ZERO).unwrap();
        assert_eq!(runner.state, RunnerState::Ready);
        assert!(runner.service_health.is_none());
        assert!(runner.schedulable);
    }

    #[test]
    fn wrong_forms_are_refused() {
        let mut runner = runner();
        let bodies = [
            json!({}),
            json!({"appVersion": 1}),
            json!({"appVersion": "1", "serviceHealth": {}}),
            json!({"appVersion": "1", "serviceHealth": [{"serviceName": "x", "healthy": "yes"}]}),
        ];
        for body in bodies {
            let result = runner.healthcheck(&body, Duration::ZERO);
            assert!(matches!(result, Err(Error::Invalid(_))), "{body}");
        }
        let body = json!({"appVersion": "1", "metrics": {"cpu": 0}});
        let result = runner.healthcheck(&body, Duration::ZERO);
        assert!(matches!(result, Err(Error::Unstorable(_))));
        assert_eq!(runner.state, RunnerState::Initializing);
    }
}
