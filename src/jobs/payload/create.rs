//! CREATE_SANDBOX, which is also the body of `POST /sandboxes` (PROTOCOL.md 5 and 6).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::PayloadError;
use super::fields::{Fields, error, kind, quoted};
use crate::ids::{SandboxId, SnapshotRef};
use crate::net::Ipv4Net;

/// The guest's user when the payload names none.
pub const DEFAULT_OS_USER: &str = "daytona";

/// A text that does not show itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// What a new sandbox shall be. Limits: 1 to 255 vCPUs, 1 to 4096 GiB of memory, 1 to 65536 GiB of disk.
/// Network policy, volumes and entrypoint are read here; whether they can be honoured is for the caller to say.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSpec {
    /// The sandbox.
    pub id: SandboxId,
    /// Name that its owner gave it.
    #[serde(default)]
    pub name: Option<String>,
    /// Its owner; the current API puts the organisation's id here.
    #[serde(default)]
    pub user_id: Option<String>,
    /// The organisation it belongs to.
    #[serde(default)]
    pub organization_id: Option<String>,
    /// The snapshot to start from; none for the configured base image.
    #[serde(default)]
    pub snapshot: Option<SnapshotRef>,
    /// The guest's user: `[a-z_][a-z0-9_-]{0,31}`.
    pub os_user: String,
    /// vCPUs; none for the default.
    #[serde(default)]
    pub vcpus: Option<u32>,
    /// Memory in GiB; none for the default.
    #[serde(default)]
    pub memory_gib: Option<u64>,
    /// Disk in GiB; none for the default.
    #[serde(default)]
    pub disk_gib: Option<u64>,
    /// Environment of the guest's daemon.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// For the guest's daemon (`POST /init`).
    #[serde(default)]
    pub auth_token: Option<Secret>,
    /// No egress at all.
    #[serde(default)]
    pub network_block_all: bool,
    /// Egress only to these; an empty list means everything, none means "not said" (PROTOCOL.md 10).
    #[serde(default)]
    pub network_allow_list: Option<Vec<Ipv4Net>>,
    /// Egress only to these names, as the API writes them.
    #[serde(default)]
    pub domain_allow_list: Option<String>,
    /// Volumes as the API writes them.
    #[serde(default)]
    pub volumes: Vec<Value>,
    /// Program to run in the guest.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Organisation, network limits and the like.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// True: create without starting.
    #[serde(default)]
    pub skip_start: bool,
    /// Another sandbox that this one belongs with.
    #[serde(default)]
    pub linked_sandbox_id: Option<SandboxId>,
    /// `linux-vm` and the like; only the current API sends it.
    #[serde(default)]
    pub sandbox_class: Option<String>,
}

impl CreateSpec {
    /// Reads the payload of CREATE_SANDBOX or the body of `POST /sandboxes`.
    pub fn from_json(value: &Value) -> Result<Self, PayloadError> {
        let body = value.as_object().ok_or_else(|| error("payload", "a JSON object", kind(value)))?;
        let fields = Fields::new(body);
        refuse_devices(fields)?;
        let missing = || error("id", "a sandbox id", "nothing");
        Ok(Self {
            id: fields.id("id", "a sandbox id")?.ok_or_else(missing)?,
            name: fields.owned("name")?,
            user_id: fields.owned("userId")?,
            organization_id: fields.owned("organizationId")?,
            snapshot: fields.id("snapshot", "a snapshot reference")?,
            os_user: os_user(fields)?,
            // At most 255, so that nothing is lost.
            vcpus: fields.amount("cpuQuota", 1..=255, "cores")?.map(|cores| cores as u32),
            memory_gib: fields.amount("memoryQuota", 1..=4096, "GiB")?,
            disk_gib: fields.amount("storageQuota", 1..=65_536, "GiB")?,
            env: fields.environment("env")?,
            auth_token: fields.secret("authToken")?,
            network_block_all: fields.flag("networkBlockAll")?,
            network_allow_list: fields.networks("networkAllowList")?,
            domain_allow_list: fields.owned("domainAllowList")?,
            volumes: fields.list("volumes")?.to_vec(),
            entrypoint: fields.texts("entrypoint")?,
            metadata: fields.metadata("metadata")?,
            skip_start: fields.flag("skipStart")?,
            linked_sandbox_id: fields.id("linkedSandboxId", "a sandbox id")?,
            sandbox_class: fields.owned("sandboxClass")?,
        })
    }
}

/// What would make a different machine if it were ignored: GPUs, and (in the dialect of the original) a
/// volume to boot from.
fn refuse_devices(fields: Fields<'_>) -> Result<(), PayloadError> {
    const NO_GPU: &str = "0, as this runner passes no GPU through";
    match fields.amount("gpuQuota", 1..=u64::from(u32::MAX), "GPUs")? {
        Some(count) => return Err(error("gpuQuota", NO_GPU, count.to_string())),
        None if !fields.list("gpuDevices")?.is_empty() => {
            return Err(error("gpuDevices", "none, as this runner passes no GPU through", "some"));
        }
        None => {}
    }
    match fields.text("fromVolumeId")? {
        Some(volume) => Err(error("fromVolumeId", "none, as this runner cannot boot from a volume", quoted(volume))),
        None => Ok(()),
    }
}

fn os_user(fields: Fields<'_>) -> Result<String, PayloadError> {
    let user = fields.text("osUser")?.unwrap_or(DEFAULT_OS_USER);
    let first = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let inner = |byte: u8| first(byte) || byte.is_ascii_digit() || byte == b'-';
    if user.len() <= 32 && user.bytes().next().is_some_and(first) && user.bytes().all(inner) {
        return Ok(user.to_owned());
    }
    let expected =
        "a Linux user name of up to 32 lower-case letters, digits, '_' and '-', the first one a letter or '_'";
    Err(error("osUser", expected, quoted(user)))
}

/// Without the values of the environment, which may be secrets.
impl fmt::Debug for CreateSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateSpec")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("user_id", &self.user_id)
            .field("organization_id", &self.organization_id)
            .field("snapshot", &self.snapshot)
            .field("os_user", &self.os_user)
            .field("vcpus", &self.vcpus)
            .field("memory_gib", &self.memory_gib)
            .field("disk_gib", &self.disk_gib)
            .field("env", &self.env.keys())
            .field("auth_token", &self.auth_token)
            .field("network_block_all", &self.network_block_all)
            .field("network_allow_list", &self.network_allow_list)
            .field("domain_allow_list", &self.domain_allow_list)
            .field("volumes", &self.volumes.len())
            .field("entrypoint", &self.entrypoint.len())
            .field("metadata", &self.metadata)
            .field("skip_start", &self.skip_start)
            .field("linked_sandbox_id", &self.linked_sandbox_id)
            .field("sandbox_class", &self.sandbox_class)
            .finish()
    }
}
