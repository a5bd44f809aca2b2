//! What can go wrong with a VMM. Every text says what was tried on which object; the cause is the
//! error's `source`. API errors carry Cloud Hypervisor's own words.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::Exit;
use super::version::OLDEST;
use crate::error::{Certainty, ErrorCode, Failure};
use crate::ids::SandboxId;

/// Any failure of this module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hypervisor binary is not there or cannot be executed.
    #[error("cannot execute the hypervisor {}; set CH_BINARY to an executable cloud-hypervisor", path.display())]
    Binary {
        /// The configured binary.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The process could not be made for another reason than the binary.
    #[error("cannot start a process for {}", path.display())]
    Spawn {
        /// The configured binary.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A launch was asked for without a namespace.
    #[error("cannot start a VMM for sandbox {sandbox}: it has no network namespace")]
    NoNamespace {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// The thread that starts the process could not enter the sandbox's network namespace.
    #[error("cannot enter network namespace {name} to start its VMM")]
    Namespace {
        /// Name below /run/netns.
        name: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// A file or directory operation failed.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried, as a verb.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A path that Cloud Hypervisor's option parser or a socket address cannot take.
    #[error("{} cannot be given to the hypervisor: {why}; choose another directory", path.display())]
    Path {
        /// The refused path.
        path: PathBuf,
        /// Why it is refused.
        why: &'static str,
    },
    /// Somebody lives behind the socket that a new VMM should get.
    #[error("API socket {} is served by process {pid}; end that VMM first", socket.display())]
    SocketInUse {
        /// The socket.
        socket: PathBuf,
        /// Who listens there.
        pid: i32,
    },
    /// Something that is not a socket has the socket's name.
    #[error("{} exists and is not a socket; it was left alone, remove it by hand", socket.display())]
    NotASocket {
        /// The socket's path.
        socket: PathBuf,
    },
    /// The API socket is served by another process than the one it should belong to.
    #[error("API socket {} is served by process {found}, not by the VMM {expected}; CH_BINARY must be the hypervisor itself or `exec` it", socket.display())]
    Impostor {
        /// The socket.
        socket: PathBuf,
        /// The VMM's pid.
        expected: i32,
        /// The pid found behind the socket.
        found: i32,
    },
    /// The VMM is alive, but nobody answers on its socket.
    #[error("VMM {pid} is alive but nobody serves its API socket {}", socket.display())]
    Unreachable {
        /// The VMM's pid.
        pid: i32,
        /// The socket.
        socket: PathBuf,
    },
    /// The process ended before its API answered.
    #[error("{} ended before it answered on {}: {exit}{}", binary.display(), socket.display(), said(lines))]
    DiedAtStart {
        /// The binary.
        binary: PathBuf,
        /// The API socket it should have served.
        socket: PathBuf,
        /// How it ended.
        exit: Exit,
        /// The last lines of its output and log, oldest first.
        lines: Vec<String>,
    },
    /// The process did not open its socket in time; it was killed.
    #[error("{} opened no API socket {} within {limit:?}{}", binary.display(), socket.display(), said(lines))]
    StartDeadline {
        /// The binary.
        binary: PathBuf,
        /// The API socket it should have served.
        socket: PathBuf,
        /// How long it was waited for.
        limit: Duration,
        /// The last lines of its output and log, oldest first.
        lines: Vec<String>,
    },
    /// The API socket did not take a connection; nothing was sent.
    #[error("{call}: cannot connect to API socket {}", socket.display())]
    Connect {
        /// The API call.
        call: &'static str,
        /// The socket.
        socket: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The deadline of a call passed. The VMM runs the call to its end all the same.
    #[error("{call} on {} got no answer within {limit:?}", socket.display())]
    Deadline {
        /// The API call.
        call: &'static str,
        /// The socket.
        socket: PathBuf,
        /// The deadline.
        limit: Duration,
        /// Whether the request had been handed to the socket.
        sent: bool,
    },
    /// The connection broke after the request was sent.
    #[error("{call} on {}: the connection broke before the answer was complete", socket.display())]
    Exchange {
        /// The API call.
        call: &'static str,
        /// The socket.
        socket: PathBuf,
        /// What broke.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The VMM process ended during a call.
    #[error("{call} on {} cannot be answered: {exit}", socket.display())]
    Ended {
        /// The API call.
        call: &'static str,
        /// The socket.
        socket: PathBuf,
        /// How the process ended.
        exit: Exit,
        /// Whether the request had been handed to the socket.
        sent: bool,
    },
    /// Cloud Hypervisor refused or failed the call; its own words, outermost first.
    #[error("{call} on {} answered {status}: {}", socket.display(), own_words(words))]
    Api {
        /// The API call.
        call: &'static str,
        /// The socket.
        socket: PathBuf,
        /// HTTP status. What it means differs between versions (cloud-hypervisor.md 2.2).
        status: u16,
        /// Cloud Hypervisor's words.
        words: Vec<String>,
    },
    /// A call failed and the VM it left behind could not be deleted either.
    #[error("{failed}; deleting the half-made VM failed too")]
    HalfDone {
        /// The first failure.
        failed: Box<Error>,
        /// The failure of the clean-up.
        source: Box<Error>,
    },
    /// A body that Cloud Hypervisor would not read (cloud-hypervisor.md 2.1).
    #[error("{call}: the request body has {len} bytes, the hypervisor takes at most {max}")]
    BodyTooLarge {
        /// The API call.
        call: &'static str,
        /// Length of the body in bytes.
        len: usize,
        /// Largest body in bytes.
        max: usize,
    },
    /// A request could not be written as JSON.
    #[error("{call}: the request cannot be written as JSON")]
    Encode {
        /// The API call.
        call: &'static str,
        /// What serde said.
        source: serde_json::Error,
    },
    /// An answer that is not what the call answers with.
    #[error("{call} on {} answered something that is not understood: {body:?}", socket.display())]
    Reply {
        /// The API call.
        call: &'static str,
        /// The socket.
        socket: PathBuf,
        /// Beginning of the body.
        body: String,
        /// What serde said.
        source: serde_json::Error,
    },
    /// A text that is not a version.
    #[error("{text:?} is not a Cloud Hypervisor version like v53.0")]
    VersionSyntax {
        /// The text.
        text: String,
    },
    /// A version that is too old.
    #[error(
        "Cloud Hypervisor {found} is too old, v{OLDEST}.0 is the oldest supported; install a newer one or set CH_BINARY"
    )]
    VersionTooOld {
        /// The version found.
        found: String,
    },
    /// `--version` failed.
    #[error("{} --version {how}{}", path.display(), said(lines))]
    VersionCommand {
        /// The binary.
        path: PathBuf,
        /// How it ended.
        how: String,
        /// What it printed.
        lines: Vec<String>,
    },
    /// A directory that a snapshot cannot be written to or made in.
    #[error("snapshot directory {} cannot be used: {why}", path.display())]
    SnapshotDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file of a snapshot that is no JSON, or only the beginning of some.
    #[error("snapshot file {} is not complete JSON", path.display())]
    SnapshotJson {
        /// The file.
        path: PathBuf,
        /// What serde said.
        source: serde_json::Error,
    },
    /// A file of a snapshot that describes another VM than the one that is to be restored.
    #[error("snapshot file {} does not fit: expected {expected}, found {found}", path.display())]
    SnapshotMismatch {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A snapshot whose restore would empty a serial file outside of the VMM's own directory
    /// (cloud-hypervisor.md 8).
    #[error("snapshot {} would write the serial output to {}, not below {}; adapt it first", path.display(), serial.display(), own.display())]
    ForeignSerial {
        /// The snapshot.
        path: PathBuf,
        /// The file it names.
        serial: PathBuf,
        /// The directory of the VMM's sandbox.
        own: PathBuf,
    },
    /// Who a process is could not be found out.
    #[error("cannot read the identity of process {pid} from {}", path.display())]
    Identity {
        /// The process.
        pid: i32,
        /// The file below /proc, or what stands for it.
        path: PathBuf,
        /// The kernel's word, or what is wrong with the file's text.
        source: io::Error,
    },
    /// A process could not be watched, signalled or waited for.
    #[error("cannot {what} process {pid}")]
    Process {
        /// What was tried, as a verb.
        what: &'static str,
        /// The process.
        pid: i32,
        /// The kernel's word.
        source: io::Error,
    },
    /// A process that is still there after SIGKILL.
    #[error("VMM {pid} is still there {waited:?} after SIGKILL; it hangs in the kernel, look at /proc/{pid}/stack")]
    StillAlive {
        /// The process.
        pid: i32,
        /// How long it was waited for after SIGKILL.
        waited: Duration,
    },
    /// A helper thread went away without an answer.
    #[error("the thread that should {what} ended without an answer")]
    Thread {
        /// What it should have done.
        what: &'static str,
    },
}

impl Error {
    /// The failure kind that callers see.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Deadline { .. } | Self::StartDeadline { .. } | Self::StillAlive { .. } => ErrorCode::Timeout,
            Self::SocketInUse { .. } => ErrorCode::Conflict,
            Self::Api { status: 503, .. } => ErrorCode::Busy,
            // Said of snapshots and of memory files; the number is the kernel's in every language.
            Self::Api { .. } if self.says("os error 28") || self.says("No space left on device") => ErrorCode::NoSpace,
            Self::HalfDone { failed, .. } => failed.code(),
            Self::BodyTooLarge { .. } => ErrorCode::UnprocessableEntity,
            _ => ErrorCode::Internal,
        }
    }

    /// Whether the effect can have happened: a request that was sent and not answered may still be
    /// executed, because the VMM finishes what it began (cloud-hypervisor.md 1).
    pub fn certainty(&self) -> Certainty {
        let unsure = match self {
            Self::Deadline { sent, .. } | Self::Ended { sent, .. } => *sent,
            Self::Exchange { .. } | Self::Reply { .. } | Self::HalfDone { .. } | Self::StillAlive { .. } => true,
            _ => false,
        };
        if unsure { Certainty::Unknown } else { Certainty::NotDone }
    }

    /// True when Cloud Hypervisor's words contain `text`. Its statuses change between versions, its
    /// texts do not (cloud-hypervisor.md 2.2).
    pub fn says(&self, text: &str) -> bool {
        matches!(self, Self::Api { words, .. } if words.iter().any(|word| word.contains(text)))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.code(), error.certainty(), &error)
    }
}

fn own_words(words: &[String]) -> String {
    if words.is_empty() { "no reason given".to_owned() } else { words.join(": ") }
}

fn said(lines: &[String]) -> String {
    if lines.is_empty() { String::new() } else { format!("; its last words: {}", lines.join(" | ")) }
}

#[cfg(test)]
mod tests;
