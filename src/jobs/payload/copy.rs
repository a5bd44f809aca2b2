//! FORK_SANDBOX, CLONE_SANDBOX, RESIZE_SANDBOX and the snapshot jobs, which are also bodies of the HTTP API
//! (PROTOCOL.md 5 and 6).

use serde_json::{Map, Value};

use super::fields::{Fields, error, quoted};
use super::{Command, PayloadError, SnapshotSpec};
use crate::ids::{SandboxId, SnapshotRef};
use crate::messages::vm::Resize;

const GIB: u64 = 1 << 30;

/// The payload of FORK_SANDBOX or CLONE_SANDBOX. `sourceState` of the older dialect is not needed: the source
/// itself knows.
pub(super) fn fork(copy: SandboxId, body: &Map<String, Value>, clone: bool) -> Result<Command, PayloadError> {
    let fields = Fields::new(body);
    let missing = || error("sourceSandboxId", "a sandbox id", "nothing");
    let source = fields.id("sourceSandboxId", "a sandbox id")?.ok_or_else(missing)?;
    same(fields, "newSandboxId", &copy)?;
    Ok(Command::Fork { source, copy, clone })
}

fn same(fields: Fields<'_>, name: &str, expected: &SandboxId) -> Result<(), PayloadError> {
    match fields.id::<SandboxId>(name, "a sandbox id")? {
        Some(id) if id != *expected => Err(error(name, format!("the job's resourceId {expected}"), id.to_string())),
        _ => Ok(()),
    }
}

/// `{"cpu","memory","disk"}` in vCPUs and GiB; what is absent or 0 stays.
pub fn resize(body: &Map<String, Value>) -> Result<Resize, PayloadError> {
    let fields = Fields::new(body);
    Ok(Resize {
        // At most 255, so that nothing is lost.
        vcpus: fields.amount("cpu", 1..=255, "vCPUs")?.and_then(|cpu| u32::try_from(cpu).ok()),
        memory: fields.amount("memory", 1..=4096, "GiB")?.map(|gib| gib * GIB),
        disk: fields.amount("disk", 1..=65_536, "GiB")?.map(|gib| gib * GIB),
    })
}

/// The payload of SNAPSHOT_SANDBOX, or of CREATE_SANDBOX_SNAPSHOT (`branch`), where `live` says what `includeMemory`
/// says in the other.
pub fn snapshot(source: SandboxId, body: &Map<String, Value>, branch: bool) -> Result<SnapshotSpec, PayloadError> {
    let fields = Fields::new(body);
    same(fields, "sandboxId", &source)?;
    let name = fields.owned("name")?.ok_or_else(|| error("name", "text", "nothing"))?;
    let organization = fields.text("organizationId")?;
    if let Some(text) = organization {
        SnapshotRef::of([text]).map_err(|cause| error("organizationId", cause.to_string(), quoted(text)))?;
    }
    let registry = if branch { None } else { registry(fields)? };
    let parts = registry.iter().flatten().map(String::as_str).chain(organization).chain([name.as_str()]);
    let reference = SnapshotRef::of(parts).map_err(|cause| error("name", cause.to_string(), quoted(&name)))?;
    let memory = fields.flag(if branch { "live" } else { "includeMemory" })?;
    Ok(SnapshotSpec { source, reference, name, memory, branch })
}

/// The current API only takes references that begin with the registry's address and project (PROTOCOL.md 5).
fn registry(fields: Fields<'_>) -> Result<Option<[String; 2]>, PayloadError> {
    let Some(registry) = fields.object("registry")? else { return Ok(None) };
    let registry = Fields::new(registry);
    let Some(url) = registry.owned("url")? else { return Ok(None) };
    let project = registry.owned("project")?.unwrap_or_else(|| "daytona".to_owned());
    Ok(Some([url, project]))
}

/// A snapshot's reference.
pub fn reference(field: &str, text: &str) -> Result<SnapshotRef, PayloadError> {
    text.parse()
        .map_err(|cause: crate::ids::Error| error(field, format!("a snapshot reference ({cause})"), quoted(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    fn id(text: &str) -> SandboxId {
        text.parse().unwrap()
    }

    #[test]
    fn both_dialects_of_a_fork() {
        for body in [
            r#"{"sourceSandboxId":"a","newSandboxId":"b"}"#,
            r#"{"sourceSandboxId":"a","newSandboxId":"b","sourceState":"started"}"#,
        ] {
            let expected = Command::Fork { source: id("a"), copy: id("b"), clone: false };
            assert_eq!(fork(id("b"), &object(body), false).unwrap(), expected);
        }
        for (body, field) in [
            (r#"{"newSandboxId":"b"}"#, "sourceSandboxId"),
            (r#"{"sourceSandboxId":"../a"}"#, "sourceSandboxId"),
            (r#"{"sourceSandboxId":"a","newSandboxId":"c"}"#, "newSandboxId"),
        ] {
            assert_eq!(fork(id("b"), &object(body), false).unwrap_err().field, field);
        }
    }

    #[test]
    fn a_resize_is_in_gib_and_zero_means_unchanged() {
        let resize = resize(&object(r#"{"cpu":4,"memory":8,"disk":0,"registry":{}}"#)).unwrap();
        assert_eq!(resize, Resize { vcpus: Some(4), memory: Some(8 << 30), disk: None });
        assert!(super::resize(&object(r#"{"memory":"8"}"#)).is_err());
    }

    #[test]
    fn names_of_snapshots_are_data_and_never_paths() {
        let of = |name: &str| {
            let body = serde_json::json!({ "name": name, "organizationId": "org" });
            snapshot(id("a"), body.as_object().unwrap(), false).map(|spec| spec.reference.to_string())
        };
        assert_eq!(of("plain-1.2").unwrap(), "org/plain-1.2");
        assert_eq!(of("../../etc").unwrap(), "org/%2E.%2F..%2Fetc");
        assert_eq!(of("my snap/$(x)'\"é").unwrap(), "org/my%20snap%2F%24%28x%29%27%22%C3%A9");
        assert_eq!(of("100%").unwrap(), "org/100%25");
        assert!(of(&"x".repeat(300)).is_err());
        assert!(of("").is_err());
    }

    #[test]
    fn a_reference_begins_with_the_registry_that_came_along() {
        let body =
            object(r#"{"name":"n","organizationId":"o","includeMemory":true,"registry":{"url":"r.local:5000"}}"#);
        let spec = snapshot(id("a"), &body, false).unwrap();
        assert_eq!(spec.reference.as_str(), "r.local:5000/daytona/o/n");
        assert!(spec.memory);
        let body = object(r#"{"name":"n","organizationId":"o","live":true,"registry":{"server":"x"}}"#);
        let spec = snapshot(id("a"), &body, true).unwrap();
        assert_eq!((spec.reference.as_str(), spec.memory), ("o/n", true));
    }
}
