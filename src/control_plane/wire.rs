//! What the API sends and takes, as JSON (PROTOCOL.md 2.1 to 2.3 and 4).
//!
//! Reading is tolerant: unknown fields are ignored, unknown enum values are kept as text, and an
//! element that cannot be read does not spoil the list it came in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{JobId, SandboxId};

/// An enum of the API whose unknown values are kept as they came.
macro_rules! open_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
            /// A value that this version does not know; empty when there was none.
            Other(String),
        }

        impl $name {
            /// The value as it travels.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)+
                    Self::Other(text) => text,
                }
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                match text.as_str() {
                    $($text => Self::$variant,)+
                    _ => Self::Other(text),
                }
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.as_str().to_owned()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

open_enum!(
    /// Where a job stands (PROTOCOL.md 2.1, 2.4).
    JobStatus {
        /// Not handed out yet.
        Pending = "PENDING",
        /// Handed out to this runner.
        InProgress = "IN_PROGRESS",
        /// Done.
        Completed = "COMPLETED",
        /// Given up.
        Failed = "FAILED",
    }
);

open_enum!(
    /// What a job works on (PROTOCOL.md 2.1).
    ResourceType {
        /// A sandbox; the resource id is its id.
        Sandbox = "SANDBOX",
        /// A snapshot; the resource id is its reference.
        Snapshot = "SNAPSHOT",
        /// Not used by the API so far.
        Backup = "BACKUP",
    }
);

/// One job (PROTOCOL.md 2.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// Its id; usable in a path.
    pub id: JobId,
    /// `CREATE_SANDBOX` and so on; [`crate::jobs::payload::parse`] knows which ones are served.
    #[serde(rename = "type")]
    pub job_type: String,
    /// Where the API believes it stands.
    pub status: JobStatus,
    /// What it works on.
    pub resource_type: ResourceType,
    /// Id of that; for a sandbox it becomes a [`SandboxId`] when the payload is parsed.
    pub resource_id: String,
    /// Text holding JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// W3C trace context, `traceparent` and `tracestate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_context: Option<BTreeMap<String, String>>,
    /// Why it failed, when it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Creation time as the API writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// Time of the last change as the API writes it; staleness counts from here (PROTOCOL.md 2.5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
}

impl Job {
    /// Reads one job. The error says which field is missing or wrong.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let fields = value.as_object().ok_or_else(|| "a job must be a JSON object".to_owned())?;
        let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
        let required = |name: &str| text(name).ok_or_else(|| format!("{name} is missing or not a text"));
        Ok(Self {
            id: required("id")?.parse().map_err(|error: crate::ids::Error| error.to_string())?,
            job_type: required("type")?,
            status: text("status").unwrap_or_default().into(),
            resource_type: text("resourceType").unwrap_or_default().into(),
            resource_id: required("resourceId")?,
            payload: payload(fields.get("payload")),
            trace_context: trace_context(fields.get("traceContext")),
            error_message: text("errorMessage"),
            created_at: text("createdAt"),
            updated_at: text("updatedAt"),
        })
    }

    /// The `traceparent` of the request that made this job.
    pub fn traceparent(&self) -> Option<&str> {
        self.trace_context.as_ref()?.get("traceparent").map(String::as_str)
    }
}

impl<'de> Deserialize<'de> for Job {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(&Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A payload is a text holding JSON; should an API ever send the JSON itself, its text serves as well.
fn payload(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// A trace context only helps to follow a request, so whatever is wrong in it is left out.
fn trace_context(value: Option<&Value>) -> Option<BTreeMap<String, String>> {
    let entries = value?.as_object()?.iter();
    Some(entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect())
}

/// An element of a job list that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its `id` as it came, when that is a text.
    pub id: Option<String>,
    /// What is wrong with the element.
    pub reason: String,
}

impl Unreadable {
    /// The id when it can be used to report the job as failed.
    pub fn job_id(&self) -> Option<JobId> {
        self.id.as_deref()?.parse().ok()
    }
}

/// A list of jobs, readable and not, in the order received.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Jobs {
    /// What can be worked on.
    pub jobs: Vec<Job>,
    /// What cannot.
    pub unreadable: Vec<Unreadable>,
}

impl Jobs {
    /// Reads a list, element by element.
    pub fn from_list(list: &[Value]) -> Self {
        let mut jobs = Self::default();
        for element in list {
            match Job::from_json(element) {
                Ok(job) => jobs.jobs.push(job),
                Err(reason) => {
                    let id = element.get("id").and_then(Value::as_str).map(str::to_owned);
                    jobs.unreadable.push(Unreadable { id, reason });
                }
            }
        }
        jobs
    }

    /// True when nothing came at all.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.unreadable.is_empty()
    }
}

/// One page of `GET /jobs`, newest first (PROTOCOL.md 2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobPage {
    /// What can be worked on.
    pub jobs: Vec<Job>,
    /// What cannot.
    pub unreadable: Vec<Unreadable>,
    /// Rows over all pages.
    pub total: u64,
    /// This page; the first is 1.
    pub page: u32,
    /// Number of pages.
    pub total_pages: u32,
}

/// Body of the answer to `GET /jobs/poll`.
#[derive(Deserialize)]
pub(super) struct PollAnswer {
    pub(super) jobs: Vec<Value>,
}

/// Body of the answer to `GET /jobs`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageAnswer {
    items: Vec<Value>,
    total: f64,
    page: f64,
    total_pages: f64,
}

impl From<PageAnswer> for JobPage {
    fn from(answer: PageAnswer) -> Self {
        let Jobs { jobs, unreadable } = Jobs::from_list(&answer.items);
        // JSON numbers of JavaScript; `as` saturates and turns NaN into 0, which is all that is needed.
        let (total, page, total_pages) = (answer.total as u64, answer.page as u32, answer.total_pages as u32);
        Self { jobs, unreadable, total, page, total_pages }
    }
}

/// A sandbox as the API sees it; of its many fields only these matter here (PROTOCOL.md 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteSandbox {
    /// Its id.
    pub id: SandboxId,
    /// `started`, `stopped`, ...
    #[serde(default)]
    pub state: String,
}

/// Body of `PUT /sandbox/{id}/state` (PROTOCOL.md 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateUpdate {
    /// The state found on this host.
    pub state: String,
    /// Why, when something went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// Whether RECOVER_SANDBOX can help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recoverable: Option<bool>,
}

impl StateUpdate {
    /// The guest or its VMM ended.
    pub fn stopped() -> Self {
        Self { state: "stopped".into(), error_reason: None, recoverable: None }
    }

    /// The sandbox cannot be used.
    pub fn error(reason: impl Into<String>, recoverable: bool) -> Self {
        Self { state: "error".into(), error_reason: Some(reason.into()), recoverable: Some(recoverable) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample() -> Value {
        json!({
            "id": "6f1c2f0e-8f0a-4c51-8a5e-8b2f5b1f9f11", "type": "CREATE_SANDBOX", "status": "IN_PROGRESS",
            "resourceType": "SANDBOX", "resourceId": "box", "payload": "{\"id\":\"box\"}",
            "traceContext": {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "odd": 1},
            "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:01Z", "someday": {"new": true}
        })
    }

    #[test]
    fn a_job_is_read_and_unknown_fields_are_ignored() {
        let job: Job = serde_json::from_value(sample()).unwrap();
        assert_eq!((job.job_type.as_str(), &job.status), ("CREATE_SANDBOX", &JobStatus::InProgress));
        assert_eq!(job.resource_type, ResourceType::Sandbox);
        assert_eq!(job.payload.as_deref(), Some("{\"id\":\"box\"}"));
        assert!(job.traceparent().unwrap().starts_with("00-4bf9"));
        let again: Job = serde_json::from_value(serde_json::to_value(&job).unwrap()).unwrap();
        assert_eq!(again, job);
    }

    #[test]
    fn unknown_enum_values_are_kept() {
        let mut value = sample();
        value["status"] = json!("PAUSED");
        value["resourceType"] = json!("VOLUME");
        value["traceContext"] = json!("broken");
        let job = Job::from_json(&value).unwrap();
        assert_eq!(job.status, JobStatus::Other("PAUSED".into()));
        assert_eq!(serde_json::to_value(&job).unwrap()["resourceType"], "VOLUME");
        assert_eq!(job.trace_context, None);
    }

    #[test]
    fn one_broken_element_does_not_spoil_the_others() {
        let mut no_type = sample();
        no_type.as_object_mut().unwrap().remove("type");
        let jobs =
            Jobs::from_list(&[json!(null), no_type, sample(), json!({"id": "../x", "type": "A", "resourceId": "b"})]);
        assert_eq!(jobs.jobs.len(), 1);
        let ids: Vec<_> = jobs.unreadable.iter().map(|unreadable| unreadable.job_id().is_some()).collect();
        assert_eq!(ids, [false, true, false]);
        assert_eq!(jobs.unreadable[1].reason, "type is missing or not a text");
        assert_eq!(jobs.unreadable[2].id.as_deref(), Some("../x"));
    }

    #[test]
    fn a_state_update_has_only_what_is_known() {
        assert_eq!(serde_json::to_string(&StateUpdate::stopped()).unwrap(), r#"{"state":"stopped"}"#);
        let update = serde_json::to_value(StateUpdate::error("gone", true)).unwrap();
        assert_eq!(update, json!({"state": "error", "errorReason": "gone", "recoverable": true}));
    }
}
