//! The runner's log as a source of times: it tells when a job was begun, when each stage was done and
//! when the job was finished, which the API's side cannot see.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Turns times of day into the monotonic clock's.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    instant: Instant,
    system: SystemTime,
}

impl Clock {
    /// Both clocks now. Good as long as nobody sets the time of day.
    pub fn now() -> Self {
        Self { instant: Instant::now(), system: SystemTime::now() }
    }

    fn instant(&self, at: SystemTime) -> Option<Instant> {
        match at.duration_since(self.system) {
            Ok(later) => self.instant.checked_add(later),
            Err(earlier) => self.instant.checked_sub(earlier.duration()),
        }
    }
}

/// A line of the log.
#[derive(Debug, Clone)]
pub struct Line {
    /// When it was written.
    pub at: Instant,
    /// Its text without its fields.
    pub message: String,
    fields: Value,
}

impl Line {
    /// A field as text, of the line or of the span around it.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields[name].as_str().or_else(|| self.fields["span"][name].as_str())
    }

    /// Whether something was not as it should be.
    pub fn warns(&self) -> bool {
        matches!(self.field("level"), Some("WARN" | "ERROR"))
    }

    /// The stage's name and duration, where the line tells the end of one.
    pub fn stage(&self) -> Option<(&str, Duration)> {
        let micros = self.fields["micros"].as_u64()?;
        (self.message == "stage done").then_some(())?;
        Some((self.field("stage")?, Duration::from_micros(micros)))
    }
}

/// All lines of a log in JSON form.
pub fn read(path: &Path, clock: Clock) -> anyhow::Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().filter_map(|line| parse(line, clock)).collect())
}

fn parse(line: &str, clock: Clock) -> Option<Line> {
    let fields: Value = serde_json::from_str(line).ok()?;
    let at = OffsetDateTime::parse(fields["timestamp"].as_str()?, &Rfc3339).ok()?;
    let message = fields["message"].as_str()?.to_owned();
    Some(Line { at: clock.instant(at.into())?, message, fields })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_placed_on_the_monotonic_clock() {
        let clock = Clock { instant: Instant::now(), system: SystemTime::UNIX_EPOCH };
        let text = r#"{"timestamp":"1970-01-01T00:00:02.000500Z","level":"INFO","message":"stage done",
            "stage":"gate","micros":7,"span":{"job":"j1"}}"#;
        let line = parse(text, clock).unwrap();
        assert_eq!(line.at - clock.instant, Duration::from_micros(2_000_500));
        assert_eq!(line.stage(), Some(("gate", Duration::from_micros(7))));
        assert_eq!(line.field("job"), Some("j1"));
        assert!(parse("not JSON", clock).is_none());
    }
}
