//! What a simulator can be started with.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which generation of the API is imitated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Dialect {
    /// The released API at v0.190 ("M" in PROTOCOL.md).
    #[default]
    #[serde(rename = "v0.190")]
    V0190,
    /// The API of January 2026 that the branch was written against: payloads in the "B" form, no transition check,
    /// one unfinished job per resource over all types and runners, ten minutes of staleness for every type.
    #[serde(rename = "branch")]
    Branch,
}

/// What happens to an open poll whose client goes away (PROTOCOL.md 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisconnectMode {
    /// The poll ends at once and claims nothing: what the server means to do.
    #[default]
    Abort,
    /// The dead poll lives on until its timeout and swallows the jobs that arrive meanwhile.
    Linger,
}

/// Limit of failed logins of one client address (PROTOCOL.md 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedAuthLimit {
    /// The failed login that is answered with 429 instead of 401, and blocks the address.
    pub limit: u32,
    /// Length of the counting window and of the block.
    pub ttl: Duration,
}

/// A runner known to the simulated API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerKey {
    /// Id of the runner row.
    pub id: String,
    /// Its API key, presented as a bearer token.
    pub token: String,
}

/// Settings of a simulator; see [`Default`] for what tests usually need.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address to listen on. Default `127.0.0.1:0`, a free port.
    pub listen: SocketAddr,
    /// Runners with a valid key; the first one receives jobs that name no runner. Never empty in effect: an empty list
    /// is treated as the default one.
    pub runners: Vec<RunnerKey>,
    /// Keys that are valid but belong to another role: answered with 403.
    pub foreign_tokens: Vec<String>,
    /// Generation of the API.
    pub dialect: Dialect,
    /// Fate of polls whose client goes away.
    pub on_disconnect: DisconnectMode,
    /// Limit of failed logins; `None` switches the limit off, as an API without the setting does.
    pub failed_auth: Option<FailedAuthLimit>,
    /// How much faster than real time the age rules run.
    pub clock_speed: f64,
    /// When true a job for a runner that is not READY is refused, as the API creates none then (PROTOCOL.md 3).
    pub require_ready: bool,
    /// Largest accepted request body in bytes.
    pub body_limit: usize,
}

/// Token of the runner that exists by default.
pub const DEFAULT_TOKEN: &str = "sim-runner-token";
/// Id of the runner that exists by default.
pub const DEFAULT_RUNNER: &str = "sim-runner";

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            runners: vec![RunnerKey { id: DEFAULT_RUNNER.to_owned(), token: DEFAULT_TOKEN.to_owned() }],
            foreign_tokens: vec!["sim-user-token".to_owned()],
            dialect: Dialect::V0190,
            on_disconnect: DisconnectMode::Abort,
            failed_auth: Some(FailedAuthLimit { limit: 20, ttl: Duration::from_secs(60) }),
            clock_speed: 1.0,
            require_ready: false,
            body_limit: 100 * 1024,
        }
    }
}

impl Options {
    /// Options with one runner that has this token.
    pub fn with_token(token: impl Into<String>) -> Self {
        Self { runners: vec![RunnerKey { id: DEFAULT_RUNNER.to_owned(), token: token.into() }], ..Self::default() }
    }
}
