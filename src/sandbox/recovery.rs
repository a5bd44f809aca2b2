//! What a restart makes of a stored record, given what the host shows.

use super::op::{Ask, Op, Rest, StopMode};
use super::record::Phase;

/// What the host shows of a record's VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The very process (pid, start time, boot id) lives.
    Alive,
    /// It is gone, or none was ever stored.
    Gone,
    /// It could not be found out. Never treated as dead.
    Unknown,
}

/// How the sandbox's actor goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continue {
    /// Nothing is under way; a started sandbox is adopted as it is.
    Rest(Rest),
    /// Finish or take back what was begun.
    Do(Op),
    /// The same, and then begin this.
    Then(Op, Ask),
    /// Nothing is touched: the sandbox is shown as broken until an operator or a later request acts.
    LeaveAlone,
}

/// Decides from the stored phase and the evidence. An interrupted creation or start is taken back:
/// its job is executed again from the control plane's list (PROTOCOL.md 2.3), and a caller over
/// HTTP got no answer, so nothing is promised to anybody.
pub fn decide(phase: Phase, evidence: Evidence) -> Continue {
    match (phase, evidence) {
        (_, Evidence::Unknown) => Continue::LeaveAlone,
        (Phase::Started, Evidence::Alive) => Continue::Rest(Rest::Started),
        (Phase::Started | Phase::Pausing | Phase::Paused | Phase::Capturing | Phase::Waking, Evidence::Gone) => {
            Continue::Do(Op::Clear)
        }
        // Its checkpoint is stored, and nothing has run since.
        (Phase::Replacing, _) => Continue::Then(Op::UndoStart, Ask::Start),
        // To pause twice does no harm.
        (Phase::Pausing, Evidence::Alive) => Continue::Do(Op::Pause),
        (Phase::Paused, Evidence::Alive) => Continue::Rest(Rest::Paused),
        // Paused, or about to be, or running on already: to resume it is right in each case.
        (Phase::Capturing | Phase::Waking, Evidence::Alive) => Continue::Do(Op::Awake),
        (Phase::Stopped, Evidence::Gone) => Continue::Rest(Rest::Stopped),
        (Phase::Stopped, Evidence::Alive) | (Phase::Stopping, _) => Continue::Do(Op::Stop(StopMode::Kill)),
        (Phase::Creating, _) => Continue::Do(Op::UndoCreate),
        (Phase::Starting, _) => Continue::Do(Op::UndoStart),
        (Phase::Destroying, _) => Continue::Do(Op::Destroy),
        (Phase::Broken, _) => Continue::Rest(Rest::Broken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_never_treated_as_dead() {
        for phase in [
            Phase::Creating,
            Phase::Stopped,
            Phase::Starting,
            Phase::Waking,
            Phase::Started,
            Phase::Pausing,
            Phase::Paused,
            Phase::Capturing,
            Phase::Replacing,
            Phase::Stopping,
            Phase::Destroying,
            Phase::Broken,
        ] {
            assert_eq!(decide(phase, Evidence::Unknown), Continue::LeaveAlone, "{phase:?}");
        }
    }

    #[test]
    fn a_running_vm_is_adopted_and_a_dead_one_is_cleared() {
        assert_eq!(decide(Phase::Started, Evidence::Alive), Continue::Rest(Rest::Started));
        assert_eq!(decide(Phase::Started, Evidence::Gone), Continue::Do(Op::Clear));
        assert_eq!(decide(Phase::Paused, Evidence::Alive), Continue::Rest(Rest::Paused));
    }

    #[test]
    fn a_vm_that_was_being_copied_runs_on() {
        assert_eq!(decide(Phase::Capturing, Evidence::Alive), Continue::Do(Op::Awake));
        assert_eq!(decide(Phase::Waking, Evidence::Alive), Continue::Do(Op::Awake));
        assert_eq!(decide(Phase::Replacing, Evidence::Gone), Continue::Then(Op::UndoStart, Ask::Start));
        assert_eq!(decide(Phase::Replacing, Evidence::Alive), Continue::Then(Op::UndoStart, Ask::Start));
    }

    #[test]
    fn unfinished_work_is_finished_or_taken_back() {
        for evidence in [Evidence::Alive, Evidence::Gone] {
            assert_eq!(decide(Phase::Creating, evidence), Continue::Do(Op::UndoCreate));
            assert_eq!(decide(Phase::Starting, evidence), Continue::Do(Op::UndoStart));
            assert_eq!(decide(Phase::Stopping, evidence), Continue::Do(Op::Stop(StopMode::Kill)));
            assert_eq!(decide(Phase::Destroying, evidence), Continue::Do(Op::Destroy));
        }
    }
}
