//! What a VMM says of itself in its event file (cloud-hypervisor.md 4): a pause as seen from outside the
//! runner, by the VMM's own clock.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

/// From the beginning of the last pause (`pausing`) to the end of the resume after it (`resumed`); none where the
/// VMM was not paused, or has not been resumed.
pub fn last_pause(file: &Path) -> anyhow::Result<Option<Duration>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(pause_in(&text))
}

fn pause_in(text: &str) -> Option<Duration> {
    // The last event may be half written.
    let events: Vec<Value> =
        serde_json::Deserializer::from_str(text).into_iter::<Value>().map_while(Result::ok).collect();
    let began = events.iter().rposition(|event| event["event"] == "pausing")?;
    let ended = events[began..].iter().find(|event| event["event"] == "resumed")?;
    time(ended)?.checked_sub(time(&events[began])?)
}

fn time(event: &Value) -> Option<Duration> {
    let (secs, nanos) = (event["timestamp"]["secs"].as_u64()?, event["timestamp"]["nanos"].as_u64()?);
    Some(Duration::new(secs, u32::try_from(nanos).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_pause_counts() {
        let event = |name: &str, nanos: u32| {
            format!(r#"{{"timestamp":{{"secs":1,"nanos":{nanos}}},"source":"vm","event":"{name}","properties":null}}"#)
        };
        let lines = [event("pausing", 1), event("resumed", 2), event("pausing", 10), event("paused", 20)].join("\n\n");
        assert_eq!(pause_in(&lines), None, "it is still paused");
        let lines = format!("{lines}\n\n{}\n\n{{\"time", event("resumed", 50));
        assert_eq!(pause_in(&lines), Some(Duration::from_nanos(40)));
        assert_eq!(pause_in(""), None);
    }
}
