//! The event monitor: pretty-printed JSON objects separated by a blank line (cloud-hypervisor.md 4).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, FromRawFd, RawFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;

/// Where events go, if anywhere.
pub struct Events {
    file: Option<Mutex<File>>,
    start: Instant,
}

#[derive(Serialize)]
struct Event<'a> {
    timestamp: Duration,
    source: &'a str,
    event: &'a str,
    properties: Option<&'a BTreeMap<&'a str, String>>,
}

/// The argument of `--event-monitor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `path=FILE`, truncated.
    Path(String),
    /// `fd=N`, taken over.
    Fd(RawFd),
}

impl Events {
    /// Opens the target; `None` drops all events.
    pub fn open(target: Option<&Target>) -> io::Result<Self> {
        let file = match target {
            None => None,
            Some(Target::Path(path)) => Some(OpenOptions::new().write(true).create(true).truncate(true).open(path)?),
            // SAFETY: the caller of the process handed this descriptor over; nothing else here uses it.
            Some(Target::Fd(fd)) => Some(unsafe { File::from_raw_fd(*fd) }),
        };
        if let Some(file) = &file {
            let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
            fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self { file: file.map(Mutex::new), start: Instant::now() })
    }

    /// Writes an event without properties.
    pub fn emit(&self, source: &str, event: &str) {
        self.write(source, event, None);
    }

    /// Writes an event with properties.
    pub fn emit_with(&self, source: &str, event: &str, properties: &BTreeMap<&str, String>) {
        self.write(source, event, Some(properties));
    }

    fn write(&self, source: &str, event: &str, properties: Option<&BTreeMap<&str, String>>) {
        let Some(file) = &self.file else { return };
        let event = Event { timestamp: self.start.elapsed(), source, event, properties };
        // A full pipe loses the text but may still get the blank line, like the program itself.
        if let (Ok(text), Ok(mut file)) = (serde_json::to_string_pretty(&event), file.lock()) {
            let _ = file.write_all(text.as_bytes());
            let _ = file.write_all(b"\n\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Events, Target};

    #[test]
    fn events_are_pretty_json_with_a_blank_line_between() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let target = Target::Path(path.to_str().unwrap().to_owned());
        let events = Events::open(Some(&target)).unwrap();
        events.emit("vmm", "starting");
        events.emit("vm", "booting");
        let text = std::fs::read_to_string(&path).unwrap();
        let parts: Vec<&str> = text.split("\n\n").filter(|p| !p.is_empty()).collect();
        assert_eq!(parts.len(), 2);
        let first: serde_json::Value = serde_json::from_str(parts[0]).unwrap();
        assert_eq!(first["source"], "vmm");
        assert!(first["properties"].is_null() && first["timestamp"]["nanos"].is_u64());
    }
}
