//! What a guest knows: how long it has run, which tells from inside how long it stood still.
//!
//! The simulated guest is asked through its toolbox. The tiny real one (tests/real_vm/counter.S) writes its
//! ticks to its serial file, now and then; how long one is has to be measured.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::isolate::until;
use crate::world::World;

/// The tiny guest's tick in seconds: the same for all guests of this machine.
static TICK: OnceLock<f64> = OnceLock::new();
/// How long it is measured.
const CALIBRATION: Duration = Duration::from_millis(1000);
/// Between two looks for a new line.
const LOOK: Duration = Duration::from_micros(100);
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a guest had run at one instant.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    at: Instant,
    running: Duration,
}

impl Reading {
    /// How long the guest stood still until a later reading.
    pub fn lost_until(self, later: Self) -> Duration {
        (later.at - self.at).saturating_sub(later.running.saturating_sub(self.running))
    }
}

/// Asks a guest how long it has run.
pub fn read(world: &World, id: &str) -> anyhow::Result<Reading> {
    if world.simulated() {
        let before = Instant::now();
        let answer = world.http().get(&format!("/sandboxes/{id}/toolbox/counter"))?;
        let running = answer["runningMs"].as_u64().context("the guest's counter has no known form")?;
        return Ok(Reading { at: before + before.elapsed() / 2, running: Duration::from_millis(running) });
    }
    let serial = world.sandbox(id).join("serial.log");
    let (at, ticks) = next(&serial)?;
    let tick = match TICK.get() {
        Some(tick) => *tick,
        None => {
            std::thread::sleep(CALIBRATION);
            let (later, more) = next(&serial)?;
            let measured = (later - at).as_secs_f64() / f64::from(more - ticks);
            *TICK.get_or_init(|| measured)
        }
    };
    Ok(Reading { at, running: Duration::from_secs_f64(f64::from(ticks) * tick) })
}

/// The next line's number, and when it was there.
fn next(serial: &Path) -> anyhow::Result<(Instant, u32)> {
    let first = ticks(serial)?;
    until("the guest counts", PATIENCE, LOOK, || {
        let now = ticks(serial)?;
        Ok(now.filter(|_| now != first).map(|ticks| (Instant::now(), ticks)))
    })
}

/// The number in the last whole line.
fn ticks(serial: &Path) -> anyhow::Result<Option<u32>> {
    let text = std::fs::read(serial).with_context(|| format!("cannot read {}", serial.display()))?;
    Ok(last_ticks(&String::from_utf8_lossy(&text)))
}

fn last_ticks(text: &str) -> Option<u32> {
    let (whole, _) = text.rsplit_once('\n')?;
    let line = whole.lines().next_back()?;
    let digits = line.trim_end().strip_prefix("n=")?.get(..8)?;
    u32::from_str_radix(digits, 16).ok()
}

/// Makes a guest hold so much memory of its own. The real one has done so when it is up, as its kernel
/// command line says; the simulated one does at its next pause.
pub fn touch(world: &World, id: &str, mib: u64) -> anyhow::Result<()> {
    if !world.simulated() {
        let serial = world.sandbox(id).join("serial.log");
        return until("the guest has touched its memory", PATIENCE, LOOK, || {
            let text = std::fs::read(&serial).with_context(|| format!("cannot read {}", serial.display()))?;
            Ok(String::from_utf8_lossy(&text).contains("guest up").then_some(()))
        });
    }
    let command = json!({ "command": format!("touch-ram {mib}") });
    let answer = world.http().post(&format!("/sandboxes/{id}/toolbox/process/execute"), &command)?;
    ensure!(answer["exitCode"] == 0, "touch-ram: {answer}");
    for call in ["pause", "resume"] {
        world.http().post(&format!("/sandboxes/{id}/{call}"), &Value::Null)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_time_that_the_guest_did_not_see() {
        let at = Instant::now();
        let reading = |wall: u64, running: u64| Reading {
            at: at + Duration::from_millis(wall),
            running: Duration::from_millis(running),
        };
        assert_eq!(reading(0, 500).lost_until(reading(100, 580)), Duration::from_millis(20));
        assert_eq!(reading(0, 500).lost_until(reading(100, 601)), Duration::ZERO);
    }

    #[test]
    fn only_whole_lines_count() {
        assert_eq!(last_ticks("n=0000000a\r\nn=00000014\r\nn=000"), Some(20));
        assert_eq!(last_ticks("guest up\r\n"), None);
        assert_eq!(last_ticks("n=00"), None);
    }
}
