//! When a WebSocket's legs are asked whether they are still there. No I/O in here; the clock is given.

use std::time::Duration;

use tokio::time::Instant;

/// A peer that was silent for so many intervals after a ping is dead.
const PATIENCE: u32 = 2;

/// What is due on a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing before that time.
    Wait(Instant),
    /// A ping.
    Ping,
    /// Nothing any more: the peer is gone.
    Dead,
}

/// The pings to one leg.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pinger {
    interval: Duration,
    /// When something was sent to it the last time.
    sent: Instant,
    /// When the ping was sent that it has not answered by anything.
    asked: Option<Instant>,
}

impl Pinger {
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, sent: now, asked: None }
    }

    /// After how much quiet a ping is sent.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Something other than a ping was sent to it.
    pub fn sent(&mut self, now: Instant) {
        self.sent = now;
    }

    /// It has sent something.
    pub fn heard(&mut self) {
        self.asked = None;
    }

    /// A ping was sent to it, which will be answered unless `mute`.
    pub fn pinged(&mut self, now: Instant, mute: bool) {
        self.sent = now;
        if !mute {
            self.asked = Some(now);
        }
    }

    /// What is due; `free` tells whether a ping could be sent.
    pub fn due(&self, now: Instant, free: bool) -> Due {
        let idle = self.sent + self.interval;
        match self.asked.map(|asked| asked + PATIENCE * self.interval) {
            Some(dead) if dead <= now => Due::Dead,
            Some(dead) => Due::Wait(if idle > now { idle.min(dead) } else { dead }),
            None if idle > now => Due::Wait(idle),
            None if free => Due::Ping,
            // Something is on its way, or the other side is inside a frame: another look after a while.
            None => Due::Wait(now + self.interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_ping_after_an_idle_interval_and_death_two_later() {
        let start = Instant::now();
        let at = |seconds: u32| start + seconds * SECOND;
        let mut pinger = Pinger::new(10 * SECOND, start);
        assert_eq!(pinger.due(at(9), true), Due::Wait(at(10)));
        pinger.sent(at(9));
        assert_eq!(pinger.due(at(10), true), Due::Wait(at(19)));
        assert_eq!(pinger.due(at(19), false), Due::Wait(at(29)));
        assert_eq!(pinger.due(at(29), true), Due::Ping);
        pinger.pinged(at(29), false);
        assert_eq!(pinger.due(at(29), true), Due::Wait(at(39)));
        assert_eq!(pinger.due(at(39), true), Due::Wait(at(49)));
        assert_eq!(pinger.due(at(49), true), Due::Dead);
        pinger.heard();
        assert_eq!(pinger.due(at(49), true), Due::Ping);
    }

    #[test]
    fn who_cannot_answer_is_not_waited_for() {
        let start = Instant::now();
        let mut pinger = Pinger::new(SECOND, start);
        pinger.pinged(start + SECOND, true);
        assert_eq!(pinger.due(start + 9 * SECOND, true), Due::Ping);
    }
}
