//! Failures that a test can order: what the next responses of a route do instead of, or beside, their work.

use serde::{Deserialize, Serialize};

/// A route of the runner side of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Every route below `/api`.
    #[default]
    Any,
    /// `GET /jobs/poll`
    Poll,
    /// `GET /jobs`
    List,
    /// `GET /jobs/{id}`
    Get,
    /// `POST /jobs/{id}/status`
    Status,
    /// `POST /runners/healthcheck`
    Healthcheck,
    /// `GET /runners/me`
    Me,
    /// `GET /sandbox/for-runner`
    ForRunner,
    /// `PUT /sandbox/{id}/state`
    SandboxState,
}

/// What goes wrong. Unless said otherwise the request is **not** processed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Action {
    /// Answers with this status and the usual error body.
    Status {
        /// HTTP status code.
        code: u16,
        /// Seconds for a `Retry-After` header.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<u64>,
    },
    /// Answers 200 with the dashboard's HTML.
    Html,
    /// Answers 200 with a JSON content type and broken JSON.
    Garbage,
    /// Answers 200 with an empty body.
    Empty,
    /// Never answers; the connection stays open until the client closes it.
    Hang,
    /// Closes the connection without an answer.
    CloseBefore,
    /// Processes the request, then closes the connection without an answer.
    CloseAfter,
    /// Waits, then processes and answers as usual.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// Processes the request, waits, then answers.
    DelayAfter {
        /// Milliseconds.
        ms: u64,
    },
}

/// An ordered failure of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Where.
    #[serde(default)]
    pub route: Route,
    /// What.
    #[serde(flatten)]
    pub action: Action,
    /// How many requests; JSON `null` means until cleared. Default 1.
    #[serde(default = "once")]
    pub times: Option<u32>,
}

fn once() -> Option<u32> {
    Some(1)
}

impl Fault {
    /// Fails the next request of the route.
    pub fn once(route: Route, action: Action) -> Self {
        Self::times(route, action, 1)
    }

    /// Fails the next `n` requests of the route.
    pub fn times(route: Route, action: Action, n: u32) -> Self {
        Self { route, action, times: Some(n) }
    }

    /// Fails every request of the route until cleared.
    pub fn always(route: Route, action: Action) -> Self {
        Self { route, action, times: None }
    }
}

/// How the API is away as a whole. The admin interface below `/sim` stays reachable in `Close` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DownMode {
    /// Connections are accepted and closed without an answer, as a tunnel with a dead far end does. Open ones are cut.
    Close,
    /// Nothing listens: connections are refused. Open ones are cut.
    Refuse,
}

/// An outage of the whole API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Down {
    /// Kind of outage.
    pub mode: DownMode,
    /// Milliseconds until the API comes back by itself; absent: when told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
}

/// Everything ordered at a time; the body of `PUT /sim/faults`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// Failures of routes; for each request the first one that fits is used up.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// The next so many jobs that are handed out are handed out a second time.
    #[serde(default)]
    pub double_delivery: u32,
    /// Outage of the whole API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<Down>,
}

impl FaultPlan {
    /// Takes the failure that applies to a request of this route, if any.
    pub(crate) fn take(&mut self, route: Route) -> Option<Action> {
        let index = self.faults.iter().position(|fault| matches!(fault.route, Route::Any) || fault.route == route)?;
        let fault = &mut self.faults[index];
        let action = fault.action.clone();
        let used_up = match fault.times.as_mut() {
            None => false,
            Some(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
        };
        if used_up {
            self.faults.remove(index);
        }
        Some(action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_used_up_in_order() {
        let mut plan: FaultPlan = serde_json::from_str(
            r#"{"faults":[{"route":"poll","kind":"status","code":503,"times":2},{"kind":"html","times":null}]}"#,
        )
        .unwrap();
        let busy = Action::Status { code: 503, retry_after: None };
        assert_eq!(plan.take(Route::Poll), Some(busy.clone()));
        assert_eq!(plan.take(Route::List), Some(Action::Html));
        assert_eq!(plan.take(Route::Poll), Some(busy));
        assert_eq!(plan.take(Route::Poll), Some(Action::Html));
        assert_eq!(plan.faults.len(), 1);
    }

    #[test]
    fn unknown_field_is_refused() {
        assert!(serde_json::from_str::<FaultPlan>(r#"{"fautls":[]}"#).is_err());
    }
}
