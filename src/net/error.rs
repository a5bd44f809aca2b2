//! What can go wrong with a sandbox's network, in words that name the object and the remedy.

use std::io;
use std::net::SocketAddrV4;

use super::addresses::Ipv4Net;
use crate::error::{Certainty, ErrorCode, Failure};
use crate::ids::{LinkName, NetnsName, SandboxId};

/// Failures of this module. Causes are in `source`, not in the text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text that is no IPv4 network in CIDR form.
    #[error("{text:?} is not an IPv4 network: {reason}")]
    Network {
        /// What was given.
        text: String,
        /// What was expected instead.
        reason: String,
    },
    /// A pool without room for a gateway and a few sandboxes.
    #[error(
        "the address pool {pool} is too small: it needs a prefix of /29 or shorter; \
         set RUNNER_NETWORK_POOL to a larger private network that this host does not use, such as 10.220.0.0/16"
    )]
    PoolTooSmall {
        /// The pool.
        pool: Ipv4Net,
    },
    /// The pool would take addresses away from somebody else.
    #[error(
        "the address pool {pool} overlaps {other}; \
         set RUNNER_NETWORK_POOL to a private network that this host does not use, such as 10.220.0.0/16"
    )]
    Overlap {
        /// The pool.
        pool: Ipv4Net,
        /// The address or route in the way.
        other: String,
    },
    /// Something that this runner did not make has the name that it needs.
    #[error("{object} is in the way: {why}; the runner does not delete what it did not make, remove or rename it")]
    Foreign {
        /// Kind and name, as in "link chv5".
        object: String,
        /// How it is known to be foreign.
        why: String,
    },
    /// The bridge that the sandboxes hang on does not exist.
    #[error("there is no bridge {bridge}; restart the runner (it makes the bridge) or set CH_BRIDGE_NAME")]
    NoBridge {
        /// The bridge.
        bridge: LinkName,
    },
    /// A namespace that should be there is not.
    #[error("there is no network namespace {netns} in /run/netns")]
    NoNamespace {
        /// The namespace.
        netns: NetnsName,
    },
    /// A request of the kernel failed.
    #[error("cannot {what}")]
    Kernel {
        /// What was tried, with the object: "add link chv5".
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The same, for want of privileges.
    #[error("cannot {what}; the runner needs CAP_NET_ADMIN and CAP_SYS_ADMIN, run it as root")]
    Denied {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's answer could not be understood.
    #[error("cannot {what}: the kernel's answer is not understood ({answer})")]
    Answer {
        /// What was tried.
        what: String,
        /// What was wrong with the answer.
        answer: String,
    },
    /// Tear-down did not end in time.
    #[error("link {link} of sandbox {sandbox} is still there {seconds} s after its removal; its slot stays taken")]
    StillThere {
        /// Host end of the veth.
        link: LinkName,
        /// The sandbox.
        sandbox: SandboxId,
        /// How long was waited.
        seconds: u64,
    },
    /// Nobody listens in the guest, or the guest is gone.
    #[error("cannot connect to {address} in {netns}")]
    Connect {
        /// Where to.
        address: SocketAddrV4,
        /// In which namespace.
        netns: NetnsName,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The guest did not answer the connection request.
    #[error("no answer from {address} in {netns} within {millis} ms")]
    ConnectTimeout {
        /// Where to.
        address: SocketAddrV4,
        /// In which namespace.
        netns: NetnsName,
        /// How long was waited.
        millis: u128,
    },
    /// A creation failed and everything that it had made is gone again.
    #[error("the network of sandbox {sandbox} was not made; nothing of it is left")]
    Undone {
        /// The sandbox.
        sandbox: SandboxId,
        /// Why.
        source: Box<Error>,
    },
    /// The thread that did the work ended without an answer.
    #[error("{what} ended without a result: its thread died, see the log for its panic")]
    Thread {
        /// What was being done.
        what: String,
    },
}

impl Error {
    /// An error of the kernel while doing `what`.
    pub(super) fn kernel(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (what, source) = (what.into(), source.into());
        if source.kind() == io::ErrorKind::PermissionDenied {
            return Self::Denied { what, source };
        }
        Self::Kernel { what, source }
    }

    /// The kernel's error number, when the kernel is where this comes from.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } | Self::Denied { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The kind of failure for callers.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Network { .. } => ErrorCode::BadRequest,
            Self::PoolTooSmall { .. } | Self::Overlap { .. } | Self::NoBridge { .. } => ErrorCode::UnprocessableEntity,
            Self::Foreign { .. } => ErrorCode::Conflict,
            Self::NoNamespace { .. } => ErrorCode::NotFound,
            Self::StillThere { .. } | Self::ConnectTimeout { .. } => ErrorCode::Timeout,
            Self::Undone { source, .. } => source.code(),
            Self::Kernel { .. }
            | Self::Denied { .. }
            | Self::Answer { .. }
            | Self::Connect { .. }
            | Self::Thread { .. } => ErrorCode::Internal,
        }
    }

    /// Whether the host can have been changed.
    pub fn certainty(&self) -> Certainty {
        match self {
            Self::Network { .. }
            | Self::PoolTooSmall { .. }
            | Self::Overlap { .. }
            | Self::Foreign { .. }
            | Self::NoBridge { .. }
            | Self::NoNamespace { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Undone { .. } => Certainty::NotDone,
            Self::Kernel { .. }
            | Self::Denied { .. }
            | Self::Answer { .. }
            | Self::StillThere { .. }
            | Self::Thread { .. } => Certainty::Unknown,
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

    #[test]
    fn a_failed_creation_tells_its_cause_and_that_nothing_is_left() {
        let cause = Error::kernel("add link chv5", io::Error::from_raw_os_error(17));
        let error = Error::Undone { sandbox: "box".parse().unwrap(), source: Box::new(cause) };
        let failure = Failure::from(error);
        assert_eq!(failure.certainty, Certainty::NotDone);
        assert_eq!(
            failure.message,
            "the network of sandbox box was not made; nothing of it is left: cannot add link chv5: \
             File exists (os error 17)"
        );
    }

    #[test]
    fn missing_privileges_name_the_remedy() {
        let error = Error::kernel("add link chv5", io::Error::from_raw_os_error(libc::EPERM));
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        assert_eq!(error.errno(), Some(libc::EPERM));
    }
}
