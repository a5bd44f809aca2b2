//! What a call to the control plane can fail with, and what to do about it.

use std::time::Duration;

use crate::error::{Certainty, ErrorCode, Failure};

/// Pause after an answer that only an operator can change (a wrong key). Failed logins are
/// counted per client address and end in 429 (PROTOCOL.md 1), so this is not short.
const OPERATOR_PAUSE: Duration = Duration::from_secs(60);

/// What a caller that wants the call to succeed does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once. Never given twice in a row by one client.
    Now,
    /// After this time.
    After(Duration),
    /// With growing pauses.
    Backoff,
    /// The answer would be the same.
    Never,
}

/// Words of an error whose type is bound to its thread or private to the HTTP client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Cause(pub(super) String);

/// A failed call. `call` is method and path, for example `GET /jobs/poll`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that no call can be made with.
    #[error("{setting}: {problem}")]
    Setup {
        /// The environment variable.
        setting: &'static str,
        /// What is wrong with its value, and what was expected.
        problem: String,
    },
    /// No trusted certificates for https.
    #[error("{what}; install the package ca-certificates or set SSL_CERT_FILE to a PEM file with the API's authority")]
    Certificates {
        /// What was tried on which file.
        what: String,
        /// Why it failed.
        source: Cause,
    },
    /// Something answered that is not the API.
    #[error("{call} at {base}: {found}; SERVER_URL must contain /api and be the API's final address")]
    WrongBaseUrl {
        /// Method and path.
        call: String,
        /// The base URL in use.
        base: String,
        /// What came instead of the API's answer.
        found: String,
    },
    /// 401: the key is not known.
    #[error(
        "{call}: the API refused the key ({message}); API_TOKEN must be the key of this runner in the control plane"
    )]
    Unauthorized {
        /// Method and path.
        call: String,
        /// The API's words.
        message: String,
    },
    /// 403: the key is known, but not as a runner's.
    #[error(
        "{call}: the key is not a runner's ({message}); API_TOKEN must be the key of this runner in the control plane"
    )]
    Forbidden {
        /// Method and path.
        call: String,
        /// The API's words.
        message: String,
    },
    /// 429: too many failed logins from this address.
    #[error("{call}: the API takes no calls from this address for now ({message})")]
    Limited {
        /// Method and path.
        call: String,
        /// The API's words.
        message: String,
        /// What it asked to wait, when it did.
        retry_after: Option<Duration>,
    },
    /// 404: no such job or sandbox of this runner.
    #[error("{call}: the API knows no such object of this runner ({message})")]
    NotFound {
        /// Method and path.
        call: String,
        /// The API's words.
        message: String,
    },
    /// 409: the object's state does not allow it; for a job, it already ended otherwise.
    #[error("{call}: the API's state does not allow it ({message})")]
    Conflict {
        /// Method and path.
        call: String,
        /// The API's words.
        message: String,
    },
    /// Any other 4xx: the API does not accept what was sent.
    #[error("{call}: the API refused the request with status {status} ({message})")]
    Rejected {
        /// Method and path.
        call: String,
        /// The HTTP status.
        status: u16,
        /// The API's words.
        message: String,
    },
    /// 5xx: the API, or something before it, is in trouble.
    #[error("{call}: the server failed with status {status} ({message})")]
    Server {
        /// Method and path.
        call: String,
        /// The HTTP status.
        status: u16,
        /// The server's words.
        message: String,
        /// What it asked to wait, when it did.
        retry_after: Option<Duration>,
    },
    /// No connection: nothing was sent.
    #[error("{call}: cannot connect to {base}; the API or the tunnel to it may be down")]
    Connect {
        /// Method and path.
        call: String,
        /// The base URL in use.
        base: String,
        /// Why.
        source: Cause,
    },
    /// Connected, but no TLS session came about: nothing was sent.
    #[error(
        "{call}: the TLS handshake with {base} failed; when its certificate is not trusted, add its authority to this \
         host's certificates or name it by SSL_CERT_FILE"
    )]
    Handshake {
        /// Method and path.
        call: String,
        /// The base URL in use.
        base: String,
        /// Why.
        source: Cause,
    },
    /// The connection ended before any answer.
    #[error("{call}: the connection ended before an answer")]
    Disconnected {
        /// Method and path.
        call: String,
        /// True when it was most likely an idle connection that the server had already closed.
        stale: bool,
        /// How it ended.
        source: Cause,
    },
    /// The connection ended, or spoke no HTTP, in the middle of an answer.
    #[error("{call}: the answer broke off or was no HTTP")]
    Network {
        /// Method and path.
        call: String,
        /// How.
        source: Cause,
    },
    /// No complete answer in time.
    #[error("{call}: no complete answer within {} ms", after.as_millis())]
    Timeout {
        /// Method and path.
        call: String,
        /// The deadline.
        after: Duration,
    },
    /// JSON, but not what the API documents.
    #[error("{call}: cannot read the API's answer")]
    Garbage {
        /// Method and path.
        call: String,
        /// What is wrong with it.
        source: Cause,
    },
    /// More than this program is willing to keep in memory.
    #[error("{call}: the answer is longer than {limit} bytes")]
    TooLarge {
        /// Method and path.
        call: String,
        /// The limit in bytes.
        limit: usize,
    },
}

impl Error {
    /// Whether and when to try the call again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Setup { .. } | Self::Certificates { .. } => Retry::Never,
            Self::NotFound { .. } | Self::Conflict { .. } | Self::Rejected { .. } => Retry::Never,
            Self::Unauthorized { .. } | Self::Forbidden { .. } => Retry::After(OPERATOR_PAUSE),
            Self::Limited { retry_after, .. } => Retry::After(retry_after.unwrap_or(OPERATOR_PAUSE)),
            Self::Server { retry_after: Some(pause), .. } => Retry::After(*pause),
            Self::Disconnected { stale: true, .. } => Retry::Now,
            // A page instead of the API is also what a proxy shows while the API restarts.
            Self::WrongBaseUrl { .. }
            | Self::Server { .. }
            | Self::Connect { .. }
            | Self::Handshake { .. }
            | Self::Disconnected { .. }
            | Self::Network { .. }
            | Self::Timeout { .. }
            | Self::Garbage { .. }
            | Self::TooLarge { .. } => Retry::Backoff,
        }
    }

    /// The kind of failure.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Setup { .. } => ErrorCode::BadRequest,
            Self::Unauthorized { .. } | Self::Forbidden { .. } => ErrorCode::Unauthorized,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Conflict { .. } => ErrorCode::Conflict,
            Self::Limited { .. } => ErrorCode::Busy,
            Self::Timeout { .. } => ErrorCode::Timeout,
            _ => ErrorCode::Internal,
        }
    }

    /// Whether the API can have acted on the call. For a poll, "acted" means that jobs were handed out.
    pub fn certainty(&self) -> Certainty {
        match self {
            Self::Disconnected { .. }
            | Self::Network { .. }
            | Self::Timeout { .. }
            | Self::Garbage { .. }
            | Self::TooLarge { .. }
            | Self::Server { .. } => Certainty::Unknown,
            _ => Certainty::NotDone,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::from_error(error.code(), error.certainty(), &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> String {
        "POST /jobs/j/status".into()
    }

    #[test]
    fn the_retry_decision_follows_the_kind() {
        let seconds = Duration::from_secs;
        let busy = |retry_after| Error::Limited { call: call(), message: String::new(), retry_after };
        let server = |retry_after| Error::Server { call: call(), status: 503, message: String::new(), retry_after };
        let gone = |stale| Error::Disconnected { call: call(), stale, source: Cause("x".into()) };
        let table = [
            (busy(Some(seconds(7))), Retry::After(seconds(7))),
            (busy(None), Retry::After(OPERATOR_PAUSE)),
            (server(None), Retry::Backoff),
            (server(Some(seconds(3))), Retry::After(seconds(3))),
            (gone(true), Retry::Now),
            (gone(false), Retry::Backoff),
            (Error::Conflict { call: call(), message: String::new() }, Retry::Never),
            (Error::Unauthorized { call: call(), message: String::new() }, Retry::After(OPERATOR_PAUSE)),
        ];
        for (error, expected) in table {
            assert_eq!(error.retry(), expected, "{error}");
        }
    }

    #[test]
    fn a_failure_carries_the_cause_once() {
        let error = Error::Connect { call: call(), base: "http://h/api".into(), source: Cause("refused".into()) };
        let failure = Failure::from(error);
        assert_eq!(failure.certainty, Certainty::NotDone);
        assert_eq!(failure.message.matches("refused").count(), 1, "{failure}");
    }
}
