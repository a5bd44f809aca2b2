//! Whether a sandbox that ended unasked is started again, and when. Decided from what is stored of it alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::hypervisor::Exit;

/// The first pause before a restart; it doubles with each further end.
const FIRST: Duration = Duration::from_millis(500);
/// The longest, before jitter.
const LONGEST: Duration = Duration::from_secs(60);
/// More ends than that are not kept, whatever the limit says.
const MOST: usize = 1000;

/// Which ends are followed by a restart (`RUNNER_RESTART_POLICY`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// None: the control plane is told that it stopped, and why.
    #[default]
    Never,
    /// Those that nobody wanted.
    OnFailure,
    /// Those, and the guest's own power-off.
    Always,
}

/// When to restart and when to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Which ends count.
    pub policy: Policy,
    /// Restarts within the window; one end more is a crash loop.
    pub most: u32,
    /// Ends that are older are forgotten.
    pub window: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { policy: Policy::Never, most: 5, window: Duration::from_secs(600) }
    }
}

/// How it came to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The guest powered itself off, or somebody but the runner shut its VMM down in order.
    Wanted,
    /// The VMM or the guest's kernel failed, or was killed, or an automatic start failed.
    Failure,
    /// The host was rebooted: no fault of the sandbox, however often.
    HostRebooted,
}

impl From<&Exit> for Cause {
    fn from(exit: &Exit) -> Self {
        match exit {
            Exit::GuestPowerOff | Exit::Orderly => Cause::Wanted,
            Exit::HostRebooted => Cause::HostRebooted,
            Exit::GuestPanic { .. } | Exit::OutOfMemory | Exit::Signal { .. } | Exit::Failed { .. } | Exit::Unknown => {
                Cause::Failure
            }
        }
    }
}

/// What is stored of a sandbox's unasked ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// When it ended, in milliseconds since 1970, oldest first; only those within the window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<u64>,
    /// It is owed a start at that time, in milliseconds since 1970, until it has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<u64>,
    /// That start is owed whatever the policy: the runner itself has ended its VMM, to put another one in its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaced: bool,
    /// That start leaves it paused, as it was before its VMM was ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// It ended too often and is not started any more until somebody asks for it.
    #[serde(default)]
    pub given_up: bool,
}

/// What follows an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It stays stopped.
    Rest,
    /// It is started after this pause.
    Restart(Duration),
    /// It stays stopped, as an error: so many ends within the window.
    GiveUp(usize),
}

impl Restarts {
    /// Decides about an end at `now` (milliseconds since 1970) and notes it. `chance` spreads the pause: the whole range
    /// makes it up to twice as long.
    pub fn ended(&mut self, settings: Settings, cause: Cause, now: u64, chance: u16) -> Decision {
        let decision = self.decide(settings, cause, now, chance);
        self.given_up = matches!(decision, Decision::GiveUp(_));
        (self.replaced, self.paused) = (false, false);
        self.due = match decision {
            Decision::Restart(pause) => Some(now.saturating_add(millis(pause))),
            Decision::Rest | Decision::GiveUp(_) => None,
        };
        decision
    }

    fn decide(&mut self, settings: Settings, cause: Cause, now: u64, chance: u16) -> Decision {
        let wanted = match settings.policy {
            Policy::Never => false,
            Policy::OnFailure => cause != Cause::Wanted,
            Policy::Always => true,
        };
        let oldest = now.saturating_sub(millis(settings.window));
        // An end in the future is one before the clock was set back: it counts, or a loop would never be seen.
        self.ends.retain(|&end| end >= oldest);
        if !wanted {
            return Decision::Rest;
        }
        if cause == Cause::HostRebooted {
            return Decision::Restart(pause(0, chance));
        }
        self.ends.push(now);
        let drop = self.ends.len().saturating_sub(MOST);
        self.ends.drain(..drop);
        let count = self.ends.len();
        if count > usize::try_from(settings.most).unwrap_or(usize::MAX) {
            return Decision::GiveUp(count);
        }
        // Those before a long run are forgotten by now, so that the pause is short again.
        Decision::Restart(pause(count - 1, chance))
    }

    /// Its VMM was ended to be replaced, and the exchange was cut off: it is owed a start at once.
    pub fn replace(&mut self, now: u64) {
        (self.due, self.replaced) = (Some(now), true);
    }

    /// It has been started.
    pub fn started(&mut self) {
        (self.due, self.replaced, self.paused) = (None, false, false);
    }

    /// How long to wait at `now` for the start that is owed; none if none is. Never longer than a pause can be, even
    /// if the clock was set back.
    pub fn wait(&self, now: u64) -> Option<Duration> {
        self.due.map(|due| Duration::from_millis(due.saturating_sub(now)).min(2 * LONGEST))
    }

    /// Somebody asks for its start: what was before does not count any more.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

fn pause(before: usize, chance: u16) -> Duration {
    let doubled = u32::try_from(before).ok().and_then(|before| 1_u32.checked_shl(before));
    let pause = doubled.and_then(|factor| FIRST.checked_mul(factor)).unwrap_or(LONGEST).min(LONGEST);
    let spread = millis(pause) * u64::from(chance) / u64::from(u16::MAX);
    pause + Duration::from_millis(spread)
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(policy: Policy, most: u32) -> Settings {
        Settings { policy, most, ..Settings::default() }
    }

    #[test]
    fn the_policy_decides_by_the_cause() {
        let restarts = |policy, cause| {
            let decision = Restarts::default().ended(settings(policy, 5), cause, 1_000_000, 0);
            decision != Decision::Rest
        };
        let table = [
            (Policy::Never, [false, false, false]),
            (Policy::OnFailure, [false, true, true]),
            (Policy::Always, [true, true, true]),
        ];
        for (policy, expected) in table {
            let causes = [Cause::Wanted, Cause::Failure, Cause::HostRebooted];
            assert_eq!(causes.map(|cause| restarts(policy, cause)), expected, "{policy:?}");
        }
        let failed = Exit::Failed { code: Some(1), reason: None };
        for exit in
            [Exit::GuestPanic { line: None }, Exit::OutOfMemory, Exit::Signal { signal: 11 }, failed, Exit::Unknown]
        {
            assert_eq!(Cause::from(&exit), Cause::Failure, "{exit:?}");
        }
        assert_eq!(Cause::from(&Exit::GuestPowerOff), Cause::Wanted);
        assert_eq!(Cause::from(&Exit::Orderly), Cause::Wanted);
    }

    #[test]
    fn a_crash_loop_is_tried_with_growing_pauses_and_then_given_up() {
        let mut restarts = Restarts::default();
        let settings = settings(Policy::OnFailure, 9);
        let mut now = 1_000_000;
        for expected in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            let decision = restarts.ended(settings, Cause::Failure, now, 0);
            assert_eq!(decision, Decision::Restart(Duration::from_millis(expected)));
            assert_eq!(restarts.wait(now), Some(Duration::from_millis(expected)));
            now += expected;
        }
        assert_eq!(restarts.ended(settings, Cause::Failure, now, 0), Decision::GiveUp(10));
        assert!(restarts.given_up && restarts.due.is_none());
        restarts.forget();
        assert_eq!(restarts.ended(settings, Cause::Failure, now, 0), Decision::Restart(FIRST));
        assert!(!restarts.given_up);
    }

    #[test]
    fn a_long_run_makes_the_pause_short_again() {
        let mut restarts = Restarts::default();
        let settings = settings(Policy::OnFailure, 2);
        for now in [0, 1_000] {
            restarts.ended(settings, Cause::Failure, now, 0);
        }
        let after = restarts.ended(settings, Cause::Failure, 1_000 + 600_001, 0);
        assert_eq!(after, Decision::Restart(FIRST));
    }

    #[test]
    fn reboots_of_the_host_never_end_in_a_loop() {
        let mut restarts = Restarts::default();
        for now in 0..100 {
            let decision = restarts.ended(settings(Policy::OnFailure, 1), Cause::HostRebooted, now, 0);
            assert_eq!(decision, Decision::Restart(FIRST));
        }
    }

    fn cause() -> impl Strategy<Value = Cause> {
        prop_oneof![Just(Cause::Wanted), Just(Cause::Failure), Just(Cause::HostRebooted)]
    }

    proptest! {
        #[test]
        fn whatever_happens_the_pauses_are_bounded_and_a_loop_ends(
            policy in prop_oneof![Just(Policy::Never), Just(Policy::OnFailure), Just(Policy::Always)],
            most in 1_u32..20,
            window in 1_u64..10_000,
            // The clock may be set back, too.
            steps in prop::collection::vec((cause(), -100_000_i64..100_000, any::<u16>()), 1..80),
        ) {
            let settings = Settings { policy, most, window: Duration::from_secs(window) };
            let mut restarts = Restarts::default();
            let mut now = 1_700_000_000_000_u64;
            for (cause, passed, chance) in steps {
                now = now.saturating_add_signed(passed);
                let before = restarts.clone();
                let decision = restarts.ended(settings, cause, now, chance);
                prop_assert!(restarts.ends.len() <= before.ends.len() + 1);
                // What is stored and read again decides the same.
                let json = serde_json::to_string(&before).unwrap();
                let mut again: Restarts = serde_json::from_str(&json).unwrap();
                prop_assert_eq!(again.ended(settings, cause, now, chance), decision);
                match decision {
                    Decision::Rest => prop_assert!(restarts.due.is_none() && !restarts.given_up),
                    Decision::Restart(pause) => {
                        prop_assert!(policy != Policy::Never);
                        prop_assert!((FIRST..=2 * LONGEST).contains(&pause), "{:?}", pause);
                        prop_assert_eq!(restarts.wait(now), Some(pause));
                        prop_assert!(cause == Cause::HostRebooted || restarts.ends.len() <= most as usize);
                        // A clock that is set back makes nobody wait for ever.
                        prop_assert!(restarts.wait(0).unwrap() <= 2 * LONGEST);
                    }
                    Decision::GiveUp(count) => {
                        prop_assert!(count > most as usize);
                        prop_assert!(restarts.due.is_none() && restarts.given_up);
                    }
                }
            }
        }

        #[test]
        fn ends_in_quick_succession_are_given_up_after_exactly_so_many(most in 1_u32..50, chance in any::<u16>()) {
            let settings = settings(Policy::Always, most);
            let mut restarts = Restarts::default();
            for n in 0..most {
                let decision = restarts.ended(settings, Cause::Failure, 1_000_000 + u64::from(n), chance);
                prop_assert!(matches!(decision, Decision::Restart(_)));
            }
            let last = restarts.ended(settings, Cause::Wanted, 1_001_000, chance);
            prop_assert_eq!(last, Decision::GiveUp(most as usize + 1));
        }
    }
}
