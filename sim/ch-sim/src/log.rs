//! The log: stderr or `--log-file` (truncated at start), one line per message (cloud-hypervisor.md 3).

use std::fs::File;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::Instant;

/// How much is written; each `-v` adds one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// The process's log.
pub struct Log {
    sink: Mutex<Box<dyn Write + Send>>,
    level: Level,
    start: Instant,
}

impl Log {
    /// Opens the log. `verbosity` is the number of `-v` given.
    pub fn open(file: Option<&str>, verbosity: u8) -> io::Result<Self> {
        let sink: Box<dyn Write + Send> = match file {
            Some(path) => Box::new(File::create(path)?),
            None => Box::new(io::stderr()),
        };
        let level = match verbosity {
            0 => Level::Warn,
            1 => Level::Info,
            _ => Level::Debug,
        };
        Ok(Self { sink: Mutex::new(sink), level, start: Instant::now() })
    }

    /// Writes one line; a log that cannot be written is not worth ending a VM for.
    pub fn write(&self, level: Level, text: &str) {
        if level > self.level {
            return;
        }
        let name = match level {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug => "DEBUG",
        };
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("anonymous");
        let at = self.start.elapsed().as_secs_f64();
        let line = format!("cloud-hypervisor: {at:>10.6}s: <{thread}> {name}:ch-sim -- {text}\n");
        if let Ok(mut sink) = self.sink.lock() {
            let _ = sink.write_all(line.as_bytes());
        }
    }

    /// An `ERROR` line.
    pub fn error(&self, text: &str) {
        self.write(Level::Error, text);
    }

    /// A `WARN` line.
    pub fn warn(&self, text: &str) {
        self.write(Level::Warn, text);
    }

    /// An `INFO` line, shown with `-v`.
    pub fn info(&self, text: &str) {
        self.write(Level::Info, text);
    }
}
