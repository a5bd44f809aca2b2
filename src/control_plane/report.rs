//! The body of `POST /jobs/{id}/status` (PROTOCOL.md 2.4 to 2.6).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::wire::{Job, JobStatus};

/// Longest error message sent, in UTF-16 units, the measure of the API, which cuts at 10,000. A cut made there
/// would break the JSON form of the message.
const MAX_MESSAGE: usize = 9_999;

/// How a job went, or that it still goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobReport {
    status: JobStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result_metadata: Option<String>,
    #[serde(skip)]
    traceparent: Option<String>,
}

impl JobReport {
    /// The job is done. Without a result `{}` is sent, so that the progress of a heartbeat does not
    /// stay behind as if it were the result.
    pub fn completed(result: Option<Value>) -> Self {
        let result = result.unwrap_or_else(|| json!({}));
        Self::new(JobStatus::Completed, None, Some(result.to_string()))
    }

    /// The job failed. `recoverable` chooses the JSON form of the message, from which the API offers
    /// RECOVER_SANDBOX ([`crate::error::Failure::recoverable`]).
    pub fn failed(message: &str, recoverable: bool) -> Self {
        // PostgreSQL text cannot hold NUL: with one in it the API would answer 500 for ever.
        let message = message.replace('\0', "\u{fffd}");
        // An empty message counts as absent; the sandbox would then show no reason at all.
        let message = if message.trim().is_empty() { "no reason was given".to_owned() } else { message };
        let message = if recoverable { recoverable_form(&message) } else { shorten(&message, MAX_MESSAGE) };
        Self::new(JobStatus::Failed, Some(message), None)
    }

    /// The job still goes. The counter must differ from the last one: an update that changes nothing
    /// writes no row, and the staleness clock of the API goes on (PROTOCOL.md 2.5).
    pub fn heartbeat(progress: u64) -> Self {
        Self::new(JobStatus::InProgress, None, Some(json!({ "progress": progress }).to_string()))
    }

    /// The same, sent under the trace of the job.
    #[must_use]
    pub fn traced(mut self, job: &Job) -> Self {
        self.traceparent = job.traceparent().map(str::to_owned);
        self
    }

    /// The status that is reported.
    pub fn status(&self) -> &JobStatus {
        &self.status
    }

    /// The message of a failure as it is sent.
    pub fn error_message(&self) -> Option<&str> {
        self.error_message.as_deref()
    }

    /// The result as it is sent: a text holding JSON.
    pub fn result_metadata(&self) -> Option<&str> {
        self.result_metadata.as_deref()
    }

    /// The `traceparent` header to send along.
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    fn new(status: JobStatus, error_message: Option<String>, result_metadata: Option<String>) -> Self {
        Self { status, error_message, result_metadata, traceparent: None }
    }
}

/// The JSON form, whose reason is shortened until the whole fits.
fn recoverable_form(reason: &str) -> String {
    let mut limit = MAX_MESSAGE;
    loop {
        let text = json!({ "errorReason": shorten(reason, limit), "recoverable": true }).to_string();
        let excess = units(&text).saturating_sub(MAX_MESSAGE);
        // At limit 0 the reason is empty and the text far below the maximum, so this ends.
        if excess == 0 || limit == 0 {
            return text;
        }
        // One character becomes up to six in JSON: take away no more than surely needed.
        limit = limit.saturating_sub(excess / 6 + 1);
    }
}

/// Length in UTF-16 units.
fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

/// At most `limit` UTF-16 units of `text`: its first line, which says what was tried, and its end, which
/// says why it failed.
fn shorten(text: &str, limit: usize) -> String {
    const GAP: &str = "\n[...]\n";
    if units(text) <= limit {
        return text.to_owned();
    }
    let first = prefix(text.lines().next().unwrap_or_default(), limit / 2);
    let room = limit.saturating_sub(units(first) + GAP.len());
    format!("{first}{GAP}{}", suffix(text, room)).chars().take(limit).collect()
}

fn prefix(text: &str, limit: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find(|(_, c)| {
        used += c.len_utf16();
        used > limit
    });
    &text[..end.map_or(text.len(), |(at, _)| at)]
}

fn suffix(text: &str, limit: usize) -> &str {
    let mut used = 0;
    let cut = text.char_indices().rev().find(|(_, c)| {
        used += c.len_utf16();
        used > limit
    });
    &text[cut.map_or(0, |(at, c)| at + c.len_utf8())..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(report: &JobReport) -> Value {
        serde_json::to_value(report).unwrap()
    }

    #[test]
    fn the_result_is_a_text_of_json() {
        let report = JobReport::completed(Some(json!({"daemonVersion": "0.190.0"})));
        assert_eq!(body(&report), json!({"status": "COMPLETED", "resultMetadata": "{\"daemonVersion\":\"0.190.0\"}"}));
        assert_eq!(body(&JobReport::completed(None)), json!({"status": "COMPLETED", "resultMetadata": "{}"}));
    }

    #[test]
    fn heartbeats_differ() {
        assert_eq!(
            body(&JobReport::heartbeat(7)),
            json!({"status": "IN_PROGRESS", "resultMetadata": "{\"progress\":7}"})
        );
        assert_ne!(JobReport::heartbeat(7), JobReport::heartbeat(8));
    }

    #[test]
    fn a_failure_is_text_unless_recoverable() {
        assert_eq!(body(&JobReport::failed("no", false)), json!({"status": "FAILED", "errorMessage": "no"}));
        let report = JobReport::failed("no space \"left\"", true);
        let inner: Value = serde_json::from_str(report.error_message().unwrap()).unwrap();
        assert_eq!(inner, json!({"errorReason": "no space \"left\"", "recoverable": true}));
    }

    #[test]
    fn a_failure_always_has_a_reason_that_a_database_takes() {
        assert_eq!(JobReport::failed(" \n", false).error_message(), Some("no reason was given"));
        assert_eq!(JobReport::failed("a\0b", false).error_message(), Some("a\u{fffd}b"));
        assert!(!JobReport::failed("a\0b", true).error_message().unwrap().contains("\\u0000"));
    }

    #[test]
    fn long_messages_keep_first_line_and_end() {
        let texts = [
            format!("what was tried\n{}\nwhy it failed", "x".repeat(50_000)),
            format!("what was tried\n{}\nwhy it failed", "\"\u{1}".repeat(50_000)),
            format!("what was tried\n{}\nwhy it failed", "\u{1f980}ä".repeat(50_000)),
        ];
        for text in &texts {
            for recoverable in [false, true] {
                let report = JobReport::failed(text, recoverable);
                let sent = report.error_message().unwrap();
                assert!(units(sent) < 10_000, "{}", units(sent));
                let reason = if recoverable {
                    serde_json::from_str::<Value>(sent).unwrap()["errorReason"].as_str().unwrap().to_owned()
                } else {
                    sent.to_owned()
                };
                assert!(reason.starts_with("what was tried\n[...]\n"), "{reason:.40}");
                assert!(reason.ends_with("why it failed"));
            }
        }
        let line = "y".repeat(20_000);
        assert!(units(JobReport::failed(&line, false).error_message().unwrap()) < 10_000);
    }

    #[test]
    fn a_stored_report_reads_back() {
        let report = JobReport::failed("disk", true);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<JobReport>(&text).unwrap(), report);
    }
}
