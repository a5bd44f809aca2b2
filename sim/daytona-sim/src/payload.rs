//! Payloads of the basic jobs in both dialects (PROTOCOL.md 5). CPU in vCPUs, memory and disk in GiB.

use serde_json::{Map, Value, json};

use crate::job::job_type;
use crate::options::Dialect;
use crate::sandbox::SandboxState;

/// The payload of a job: a text holding JSON, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payload(Option<String>);

impl Payload {
    /// No payload.
    pub fn none() -> Self {
        Self(None)
    }

    /// This text as it stands, JSON or not.
    pub fn text(text: impl Into<String>) -> Self {
        Self(Some(text.into()))
    }

    pub(crate) fn into_text(self) -> Option<String> {
        // The API stores an empty payload as none.
        self.0.filter(|text| !text.is_empty())
    }
}

impl From<()> for Payload {
    fn from((): ()) -> Self {
        Self(None)
    }
}

impl From<Value> for Payload {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self(None),
            value => Self(Some(value.to_string())),
        }
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

/// A registry as payloads carry it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// `host[:port]`, without a scheme.
    pub url: String,
    /// Project below the host.
    pub project: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
}

impl Registry {
    /// The object inside a payload; what is unset is left out.
    pub fn json(&self) -> Value {
        let mut json = json!({ "url": self.url });
        for (name, value) in [("project", &self.project), ("username", &self.username), ("password", &self.password)] {
            if let Some(text) = value {
                json[name] = Value::from(text.as_str());
            }
        }
        json
    }
}

/// What to create.
#[derive(Debug, Clone)]
pub struct CreateSpec {
    /// Sandbox id.
    pub id: String,
    /// Name; the id when `None`.
    pub name: Option<String>,
    /// Snapshot ref.
    pub snapshot: String,
    /// User inside the guest.
    pub os_user: String,
    /// vCPUs.
    pub cpu: u32,
    /// GPUs.
    pub gpu: u32,
    /// GiB.
    pub memory: u32,
    /// GiB.
    pub disk: u32,
    /// Environment of the guest.
    pub env: Vec<(String, String)>,
    /// Registry of the snapshot.
    pub registry: Option<Registry>,
    /// Entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// No network at all.
    pub network_block_all: bool,
    /// Comma-separated IPv4 CIDRs.
    pub network_allow_list: Option<String>,
    /// Comma-separated names (v0.190 only).
    pub domain_allow_list: Option<String>,
    /// Organization.
    pub organization_id: String,
    /// Token for the guest daemon (v0.190 only).
    pub auth_token: String,
    /// Create without starting (v0.190 only).
    pub skip_start: bool,
    /// Sandbox to be placed beside (v0.190 only).
    pub linked_sandbox_id: Option<String>,
    /// `linux-vm`, `container`, `android` or `windows` (v0.190 only).
    pub sandbox_class: String,
}

impl CreateSpec {
    /// A small sandbox with defaults everywhere.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            name: None,
            snapshot: "ubuntu-base.1".to_owned(),
            os_user: "daytona".to_owned(),
            cpu: 1,
            gpu: 0,
            memory: 1,
            disk: 3,
            env: Vec::new(),
            registry: None,
            entrypoint: None,
            network_block_all: false,
            network_allow_list: None,
            domain_allow_list: None,
            organization_id: "sim-organization".to_owned(),
            auth_token: "0123456789abcdef0123456789abcdef".to_owned(),
            skip_start: false,
            linked_sandbox_id: None,
            sandbox_class: "linux-vm".to_owned(),
        }
    }

    /// The payload of CREATE_SANDBOX.
    pub fn payload(&self, dialect: Dialect) -> Value {
        let mut map = self.common_fields();
        if dialect == Dialect::V0190 {
            self.add_v0190_fields(&mut map);
        }
        Value::Object(map)
    }

    fn common_fields(&self) -> Map<String, Value> {
        let env: Map<String, Value> =
            self.env.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        let json = json!({
            "id": self.id, "userId": self.organization_id, "snapshot": self.snapshot, "osUser": self.os_user,
            "cpuQuota": self.cpu, "gpuQuota": self.gpu, "memoryQuota": self.memory, "storageQuota": self.disk,
            "env": env, "volumes": [], "networkBlockAll": self.network_block_all,
            "metadata": metadata(&self.organization_id, self.name.as_deref().unwrap_or(&self.id)),
        });
        let mut map = into_map(json);
        put(&mut map, "registry", self.registry.as_ref().map(Registry::json));
        put(&mut map, "entrypoint", self.entrypoint.clone());
        put(&mut map, "networkAllowList", self.network_allow_list.clone());
        map
    }

    fn add_v0190_fields(&self, map: &mut Map<String, Value>) {
        let name = self.name.as_deref().unwrap_or(&self.id);
        put(map, "name", Some(name));
        put(map, "authToken", Some(self.auth_token.as_str()));
        put(map, "skipStart", self.skip_start.then_some(true));
        put(map, "organizationId", Some(self.organization_id.as_str()));
        put(map, "regionId", Some("sim"));
        put(map, "sandboxClass", Some(self.sandbox_class.as_str()));
        put(map, "linkedSandboxId", self.linked_sandbox_id.clone());
        put(map, "domainAllowList", self.domain_allow_list.clone());
    }
}

/// The payload of START_SANDBOX: wrapped with a token in v0.190, the bare metadata map on the branch.
pub fn start(dialect: Dialect, organization_id: &str, auth_token: &str) -> Value {
    let metadata = json!({"organizationId": organization_id, "limitNetworkEgress": "false"});
    match dialect {
        Dialect::V0190 => json!({"authToken": auth_token, "metadata": metadata}),
        Dialect::Branch => metadata,
    }
}

/// The payload of START_SANDBOX for a paused sandbox: only the token.
pub fn resume(auth_token: &str) -> Value {
    json!({ "authToken": auth_token })
}

/// The payload of PAUSE_SANDBOX.
pub fn pause(id: &str) -> Value {
    json!({ "sandboxId": id })
}

/// Figures of RESIZE_SANDBOX; what is `None` is left out and stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resize {
    /// vCPUs.
    pub cpu: Option<u32>,
    /// GiB.
    pub memory: Option<u32>,
    /// GiB.
    pub disk: Option<u32>,
}

impl Resize {
    /// The payload.
    pub fn payload(self) -> Value {
        let mut map = Map::new();
        put(&mut map, "cpu", self.cpu);
        put(&mut map, "memory", self.memory);
        put(&mut map, "disk", self.disk);
        Value::Object(map)
    }
}

/// Job type and payload of a snapshot of a sandbox. v0.190 leaves out `includeMemory` when it is false, the branch
/// always sends `live`.
pub fn snapshot(dialect: Dialect, id: &str, name: &str, organization_id: &str, memory: bool) -> (&'static str, Value) {
    let mut json = json!({"sandboxId": id, "name": name, "organizationId": organization_id});
    match dialect {
        Dialect::Branch => {
            json["live"] = Value::from(memory);
            (job_type::CREATE_SANDBOX_SNAPSHOT, json)
        }
        Dialect::V0190 => {
            if memory {
                json["includeMemory"] = Value::from(true);
            }
            (job_type::SNAPSHOT_SANDBOX, json)
        }
    }
}

/// The payload of STOP_SANDBOX: `{}` or `{"force":…}` in v0.190, none on the branch.
pub fn stop(dialect: Dialect, force: Option<bool>) -> Value {
    match (dialect, force) {
        (Dialect::Branch, _) => Value::Null,
        (Dialect::V0190, None) => json!({}),
        (Dialect::V0190, Some(force)) => json!({ "force": force }),
    }
}

/// The payload of DESTROY_SANDBOX: none in both dialects.
pub fn destroy() -> Value {
    Value::Null
}

/// The payload of FORK_SANDBOX; the branch adds the state of the source (`started` or `stopped`).
pub fn fork(dialect: Dialect, source: &str, new: &str, source_state: &str) -> Value {
    let mut json = json!({"sourceSandboxId": source, "newSandboxId": new});
    if dialect == Dialect::Branch {
        json["sourceState"] = Value::from(source_state);
    }
    json
}

/// What the branch's fork says about the source.
pub fn source_state(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Stopped => "stopped",
        _ => "started",
    }
}

fn metadata(organization_id: &str, name: &str) -> Value {
    json!({"organizationId": organization_id, "organizationName": organization_id,
        "limitNetworkEgress": "false", "sandboxName": name})
}

fn into_map(json: Value) -> Map<String, Value> {
    match json {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn put(map: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(name.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branch_create_lacks_the_newer_fields() {
        let spec = CreateSpec::new("a");
        let new = spec.payload(Dialect::V0190);
        let old = spec.payload(Dialect::Branch);
        for name in ["name", "authToken", "organizationId", "regionId", "sandboxClass"] {
            assert!(new.get(name).is_some() && old.get(name).is_none(), "{name}");
        }
        assert_eq!(old["cpuQuota"], 1);
        assert!(new.get("registry").is_none());
    }

    #[test]
    fn start_is_wrapped_only_in_the_new_dialect() {
        assert!(start(Dialect::V0190, "o", "t")["metadata"].is_object());
        assert_eq!(start(Dialect::Branch, "o", "t")["organizationId"], "o");
    }

    #[test]
    fn snapshots_differ_between_the_dialects() {
        let new = |memory| snapshot(Dialect::V0190, "a", "n", "o", memory);
        assert_eq!(new(true).0, "SNAPSHOT_SANDBOX");
        assert_eq!(new(true).1["includeMemory"], true);
        assert!(new(false).1.get("includeMemory").is_none());
        let old = snapshot(Dialect::Branch, "a", "n", "o", false);
        assert_eq!((old.0, &old.1["live"]), ("CREATE_SANDBOX_SNAPSHOT", &Value::from(false)));
        assert_eq!(Resize { cpu: Some(2), ..Resize::default() }.payload(), json!({"cpu": 2}));
    }

    #[test]
    fn empty_payloads_are_absent() {
        assert_eq!(Payload::from(destroy()).into_text(), None);
        assert_eq!(Payload::text("").into_text(), None);
        let stop = Payload::from(stop(Dialect::V0190, None));
        assert_eq!(stop.into_text().as_deref(), Some("{}"));
    }
}
