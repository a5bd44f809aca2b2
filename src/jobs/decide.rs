//! A job against what is known of it: run it, leave it alone, or tell the result again.

use std::time::Duration;

/// What this process knows of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Begun before a restart; it waits for the control plane to say that it is still wanted.
    Suspended,
    /// Being executed, or its result is being reported.
    Active,
    /// Reported this long ago.
    Reported(Duration),
}

/// What to do with a job that was polled or listed as IN_PROGRESS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Execute it.
    Run,
    /// It is in hand.
    Ignore,
    /// It was reported, yet the control plane still holds it open: tell the same result again.
    ReportAgain,
}

/// A list may have been read just before our report arrived; only after this long it counts as lost.
/// Repeating a report runs the API's completion handler again (PROTOCOL.md 2.4), so not sooner.
pub const REPORT_SETTLES: Duration = Duration::from_secs(30);

/// Decides.
pub fn decide(standing: Option<Standing>) -> Decision {
    match standing {
        None | Some(Standing::Suspended) => Decision::Run,
        Some(Standing::Active) => Decision::Ignore,
        Some(Standing::Reported(ago)) if ago < REPORT_SETTLES => Decision::Ignore,
        Some(Standing::Reported(_)) => Decision::ReportAgain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_run_once() {
        assert_eq!(decide(None), Decision::Run);
        assert_eq!(decide(Some(Standing::Suspended)), Decision::Run);
        assert_eq!(decide(Some(Standing::Active)), Decision::Ignore);
    }

    #[test]
    fn a_lost_report_is_repeated_but_not_at_once() {
        assert_eq!(decide(Some(Standing::Reported(Duration::ZERO))), Decision::Ignore);
        assert_eq!(decide(Some(Standing::Reported(REPORT_SETTLES))), Decision::ReportAgain);
    }
}
