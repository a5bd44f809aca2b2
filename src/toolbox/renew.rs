//! Runs the identity hook in a guest that woke up as a copy (docs/identity.md), through the daemon's
//! `POST /process/execute`, and reads its confirmation.
//!
//! The daemon of the images runs a command without a shell and splits it at spaces, others hand it to `sh -c`.
//! Both are right for this command: its values are identifiers, hex digits and decimal digits.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Call, FIRST_CONNECT, FIRST_PAUSE, LONGEST_CONNECT, LONGEST_PAUSE, PORT, Renewal};
use crate::error::{Certainty, ErrorCode, Failure};
use crate::net::Namespace;

/// Where images have the hook.
pub const HOOK: &str = "/usr/local/sbin/runner-ch-identity";
/// First word of the confirmation.
const NAME: &str = "runner-ch-identity";
/// The whole of it: reaching the daemon, the hook, the answer.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// What the daemon gives the hook; it kills it afterwards.
const HOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// The daemon's answer to a hook that it had to kill comes after that time.
const ANSWER: Duration = Duration::from_secs(12);
const EXECUTE: &str = "POST /process/execute";
/// Without these a copy is a twin still.
const MANDATORY: [&[&str]; 3] = [&["rng", "rng-mixed"], &["machine-id"], &["hostname"]];
/// Longest part of the guest's words that goes into an error, in characters.
const WORDS: usize = 300;

/// Why a guest's new identity is not confirmed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nobody there runs commands.
    #[error("the guest's daemon on port {PORT} did not run {HOOK} within {:.1} s; last try: {last}", patience.as_secs_f64())]
    NoAnswer {
        /// All of the time that it was given.
        patience: Duration,
        /// What the last try came to.
        last: String,
    },
    /// The daemon refused, or gave up waiting for the hook.
    #[error("the guest's daemon could not run {HOOK}")]
    Refused(#[source] super::Error),
    /// There is no such program in the guest, or it is not executable.
    #[error(
        "the guest has no {HOOK} (exit code {code}); install guest/runner-ch-identity in the image with mode 0755 \
         (docs/identity.md)"
    )]
    NotInstalled {
        /// Exit code that the daemon reported.
        code: i64,
    },
    /// The hook ran and failed.
    #[error("{HOOK} failed in the guest with exit code {code}: {reason}")]
    Failed {
        /// Its exit code; -1 when it was killed.
        code: i64,
        /// Its last words.
        reason: String,
    },
    /// Exit code 0, but not the words of the hook for this sandbox.
    #[error(
        "{HOOK} ended in the guest without confirming; expected {NAME:?}, \"ok\", the sandbox and all steps: {words}"
    )]
    Unconfirmed {
        /// Its last words.
        words: String,
    },
}

impl Error {
    /// The kind of failure.
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::NoAnswer { .. } => ErrorCode::Timeout,
            Self::Refused(super::Error::Status { status, .. }) if *status == StatusCode::REQUEST_TIMEOUT => {
                ErrorCode::Timeout
            }
            Self::NotInstalled { .. } => ErrorCode::UnprocessableEntity,
            Self::Refused(_) | Self::Failed { .. } | Self::Unconfirmed { .. } => ErrorCode::Internal,
        }
    }

    /// Whether the guest may have changed all the same.
    pub(super) fn certainty(&self) -> Certainty {
        match self {
            Self::NotInstalled { .. } => Certainty::NotDone,
            _ => Certainty::Unknown,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.code(), error.certainty(), &error)
    }
}

/// Answer of the daemon (toolbox.swagger.yaml, ExecuteResponse); older daemons call the exit code `code`.
#[derive(Debug, Deserialize)]
struct Executed {
    #[serde(rename = "exitCode", alias = "code")]
    exit_code: Option<i64>,
    #[serde(default)]
    result: String,
}

/// Runs the hook until it has confirmed. A daemon that cannot be reached yet is tried again, and so is a connection
/// that breaks: the hook may run twice.
pub(super) async fn renew(netns: &Namespace, renewal: &Renewal, patience: Duration) -> Result<(), Error> {
    let began = Instant::now();
    let deadline = began + patience;
    let (mut pause, mut connect) = (FIRST_PAUSE, FIRST_CONNECT);
    let mut last = "no try was finished".to_owned();
    loop {
        let tried = Instant::now();
        match timeout_at(deadline, execute(netns, renewal, began, connect)).await {
            Ok(Ok(executed)) => return judge(&executed, renewal),
            Ok(Err(error @ (super::Error::Connect(_) | super::Error::Broken { .. }))) => {
                last = crate::error::chain(&error);
            }
            Ok(Err(error @ super::Error::Slow { .. })) => {
                return Err(Error::NoAnswer { patience: ANSWER, last: crate::error::chain(&error) });
            }
            Ok(Err(error)) => return Err(Error::Refused(error)),
            Err(_) => return Err(Error::NoAnswer { patience, last }),
        }
        // A connection that timed out has waited long enough.
        if tried.elapsed() < connect {
            if Instant::now() + pause >= deadline {
                return Err(Error::NoAnswer { patience, last });
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
        connect = (connect * 5 / 4).min(LONGEST_CONNECT);
    }
}

/// One try. The time that the guest is told is moved on by what has passed since `began`.
async fn execute(
    netns: &Namespace,
    renewal: &Renewal,
    began: Instant,
    connect: Duration,
) -> Result<Executed, super::Error> {
    let command = command(renewal, began.elapsed());
    let body = serde_json::json!({ "command": command, "timeout": HOOK_TIMEOUT.as_secs() }).to_string();
    let body = Bytes::from(body);
    let order = Call { name: EXECUTE, method: Method::POST, path: "/process/execute", body, patience: ANSWER };
    let answer = super::call(netns, order, connect).await?;
    let expected = "the result of a command";
    serde_json::from_slice(&answer).map_err(|_| super::Error::Answer { call: EXECUTE, expected })
}

/// The hook's command line.
fn command(renewal: &Renewal, passed: Duration) -> String {
    let Renewal { sandbox, machine_id, entropy, unix_nanos } = renewal;
    let time = unix_nanos + passed.as_nanos();
    let (machine_id, entropy) = (hex(machine_id), hex(entropy));
    format!("{HOOK} --sandbox {sandbox} --machine-id {machine_id} --entropy {entropy} --time {time}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether the hook has confirmed this sandbox's identity.
fn judge(executed: &Executed, renewal: &Renewal) -> Result<(), Error> {
    let output = executed.result.trim_end();
    let words = || last_words(output);
    match executed.exit_code {
        Some(0) => {}
        Some(code @ (126 | 127)) => return Err(Error::NotInstalled { code }),
        // A daemon without a shell reports a program that it cannot start as -1 without a word.
        Some(-1) if output.is_empty() => return Err(Error::NotInstalled { code: -1 }),
        Some(code) => return Err(Error::Failed { code, reason: words() }),
        None => return Err(Error::Unconfirmed { words: words() }),
    }
    let line = output.lines().next_back().unwrap_or_default();
    let Some(steps) = confirmed(line, renewal.sandbox.as_str()) else {
        return Err(Error::Unconfirmed { words: words() });
    };
    let sandbox = &renewal.sandbox;
    match steps.contains(&"rng") {
        true => tracing::debug!(%sandbox, ?steps, "the guest has an identity of its own"),
        false => tracing::warn!(
            %sandbox, ?steps,
            "the guest could not reseed its random generator at once: its image has neither perl nor python3"
        ),
    }
    Ok(())
}

/// The steps in the confirmation of a sandbox; `None` when it is something else or a mandatory step is missing.
fn confirmed<'a>(line: &'a str, sandbox: &str) -> Option<Vec<&'a str>> {
    let mut words = line.trim_end_matches('\r').split(' ');
    let head = [words.next()?, words.next()?, words.next()?];
    let steps: Vec<&str> = words.next()?.split(',').collect();
    let complete = MANDATORY.iter().all(|step| step.iter().any(|name| steps.contains(name)));
    let known = |step: &&str| !step.is_empty() && step.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let good = head == [NAME, "ok", sandbox] && words.next().is_none() && complete && steps.iter().all(known);
    good.then_some(steps)
}

/// The end of what the guest said, without control characters, on one line: it is not trusted, and it ends up in the
/// API's database.
fn last_words(output: &str) -> String {
    let clean: Vec<char> = output.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text: String = clean[clean.len().saturating_sub(WORDS)..].iter().collect();
    match text.trim() {
        "" => "it said nothing".to_owned(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
#[path = "renew_tests.rs"]
mod tests;
