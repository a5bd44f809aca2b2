//! Log lines: to stderr, and to LOG_FILE_PATH beside it. Secrets cannot get here, because the type
//! that holds them formats as a mask ([`crate::config::Secret`]).

use std::fs::{File, OpenOptions};
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt};

use crate::config::{LogConfig, LogFormat};
use crate::error::{Certainty, ErrorCode, Failure};

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is none; the configuration's check finds this first.
    #[error("LOG_LEVEL = {level:?}: expected {expected}")]
    Level {
        /// What was given.
        level: String,
        /// What would have been right.
        expected: String,
    },
    /// The log file cannot be written.
    #[error("cannot open the log file {path} for appending; make its directory writable or change LOG_FILE_PATH")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Somebody has set a subscriber before.
    #[error("cannot install the log subscriber")]
    Install {
        /// The cause.
        source: TryInitError,
    },
}

impl Error {
    /// The kind, for callers.
    pub fn code(&self) -> ErrorCode {
        match self {
            Error::Level { .. } => ErrorCode::BadRequest,
            Error::File { .. } | Error::Install { .. } => ErrorCode::Internal,
        }
    }

    /// Nothing of this leaves a trace when it fails.
    pub fn certainty(&self) -> Certainty {
        Certainty::NotDone
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::from_error(error.code(), error.certainty(), &error)
    }
}

/// Sets the process's subscriber.
///
/// # Errors
/// The log file cannot be opened, or a subscriber is set already.
pub fn init(config: &LogConfig) -> Result<(), Error> {
    let level = |expected| Error::Level { level: config.level.clone(), expected };
    let filter = filter(&config.level).map_err(level)?;
    let file = config.file.as_deref().map(open).transpose()?;
    let to_file = file.map(|file| lines(config.format, false, Mutex::new(file)));
    let to_stderr = lines(config.format, std::io::stderr().is_terminal(), std::io::stderr);
    let subscriber = tracing_subscriber::registry().with(filter).with(to_stderr).with(to_file);
    subscriber.try_init().map_err(|source| Error::Install { source })
}

/// The filter for a level's name as the original knew it, or for directives such as
/// `info,runner_ch::net=debug`.
///
/// # Errors
/// What would have been right.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    const EXPECTED: &str = "trace, debug, info, warn or error, or directives such as info,runner_ch::net=debug";
    // A lone unknown word would be a directive too, "everything of that module", and log nothing of ours.
    let bare = text.split(',').map(str::trim).filter(|part| !part.contains(['=', ':', '[']));
    if text.is_empty() || bare.into_iter().any(|word| level(word).is_none()) {
        return Err(EXPECTED.into());
    }
    let mut directives: Vec<String> =
        text.split(',').map(|part| level(part.trim()).map_or(part.trim().into(), |l| l.to_string())).collect();
    // It logs what clients send as it is, line breaks too; our own lines tell what matters. For who asks by name.
    if !text.contains("russh") {
        directives.push("russh=off".to_owned());
    }
    EnvFilter::builder().parse(directives.join(",")).map_err(|error| format!("{EXPECTED} ({error})"))
}

/// Names of Go's loggers included, as operators have them in their files.
fn level(word: &str) -> Option<LevelFilter> {
    match word.to_ascii_lowercase().as_str() {
        "warning" => Some(LevelFilter::WARN),
        "fatal" | "panic" => Some(LevelFilter::ERROR),
        "trace" | "debug" | "info" | "warn" | "error" | "off" => word.parse().ok(),
        _ => None,
    }
}

/// Readable by its owner and group only: lines name sandboxes and hosts.
fn open(path: &Path) -> Result<File, Error> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    opened.map_err(|source| Error::File { path: path.to_owned(), source })
}

fn lines<S, W>(format: LogFormat, colour: bool, to: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(to).with_ansi(colour);
    match format {
        LogFormat::Human => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn logged(format: LogFormat, level: &str, act: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runner.log");
        let layer = lines(format, false, Mutex::new(open(&path).unwrap()));
        let subscriber = tracing_subscriber::registry().with(filter(level).unwrap()).with(layer);
        tracing::subscriber::with_default(subscriber, act);
        std::fs::read_to_string(&path).unwrap()
    }

    #[test]
    fn levels_of_the_original_and_directives() {
        for good in ["debug", "info", "INFO", "warn", "warning", "error", "fatal", "trace", "info,runner_ch::net=debug"]
        {
            assert!(filter(good).is_ok(), "{good:?} must be accepted");
        }
        for bad in ["", "verbose", "info,loud", "runner_ch=loud", "=,"] {
            assert!(filter(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn json_lines_parse_and_keep_secrets() {
        let secret = Secret::new("hunter2-hunter2-hunter2");
        let text = logged(LogFormat::Json, "info", || {
            tracing::info!(sandbox = "s1", token = ?secret, "created");
            tracing::debug!("not this one");
        });
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0]["sandbox"].as_str(), lines[0]["level"].as_str()), (Some("s1"), Some("INFO")));
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn human_lines_are_plain_text_in_a_file() {
        let text = logged(LogFormat::Human, "warning", || tracing::warn!(slot = 3, "busy"));
        assert!(text.contains("WARN") && text.contains("slot=3") && !text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let config = LogConfig {
            level: "info".into(),
            format: LogFormat::Human,
            file: Some("/nowhere/runner.log".into()),
            environment: None,
        };
        let failure = Failure::from(init(&config).unwrap_err());
        assert!(
            failure.message.contains("/nowhere/runner.log") && failure.message.contains("No such file"),
            "{failure}"
        );
    }
}
