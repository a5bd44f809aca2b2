use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn perform(stage: Stage, must_save: bool) -> Action {
    Action::Perform { stage, must_save }
}

/// Runs every stage to its end without failures and returns all actions.
fn run_out(machine: &mut Machine, first: Vec<Action>) -> Vec<Action> {
    let mut all = first;
    while let Some((_, stage)) = machine.work() {
        all.extend(machine.step(Event::StageDone(stage)));
    }
    all
}

fn answers(actions: &[Action]) -> Vec<(Caller, Result<(), ErrorCode>)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Answer(callers, result) => Some((callers, result)),
            _ => None,
        })
        .flat_map(|(callers, result)| callers.iter().map(|&c| (c, result.clone().map_err(|f| f.code))))
        .collect()
}

fn stages(actions: &[Action]) -> Vec<Stage> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Perform { stage, .. } => Some(*stage),
            _ => None,
        })
        .collect()
}

#[test]
fn a_create_passes_every_stage_and_commits_before_it_answers() {
    let mut machine = Machine::resting(Rest::Absent, false);
    let first = machine.step(Event::Asked(Caller(1), Ask::Create(Make::Boot)));
    assert_eq!(first, [perform(Stage::Gate, true)]);
    let all = run_out(&mut machine, first);
    assert_eq!(stages(&all), Op::Create(Make::Boot).stages());
    assert_eq!(all[all.len() - 2..], [Action::Settle(Rest::Started), Action::Answer(vec![Caller(1)], Ok(()))]);
}

#[test]
fn a_failed_boot_is_undone_and_the_reason_is_answered() {
    let mut machine = Machine::resting(Rest::Absent, false);
    machine.step(Event::Asked(Caller(1), Ask::Create(Make::Boot)));
    for stage in [Stage::Gate, Stage::Provide, Stage::Launch, Stage::Configure] {
        machine.step(Event::StageDone(stage));
    }
    let failure = Failure::new(ErrorCode::Internal, "no kernel");
    let undo = machine.step(Event::StageFailed(Stage::Boot, failure.clone()));
    assert_eq!(undo, [perform(Stage::End, false)]);
    let all = run_out(&mut machine, undo);
    assert_eq!(stages(&all), [Stage::End, Stage::Unplug, Stage::Erase]);
    assert_eq!(all.last(), Some(&Action::Answer(vec![Caller(1)], Err(failure))));
    assert_eq!(machine.rest(), Some(Rest::Absent));
}

#[test]
fn a_destroy_overtakes_a_hanging_boot() {
    let mut machine = Machine::resting(Rest::Absent, false);
    machine.step(Event::Asked(Caller(1), Ask::Create(Make::Boot)));
    for stage in [Stage::Gate, Stage::Provide, Stage::Launch, Stage::Configure] {
        machine.step(Event::StageDone(stage));
    }
    assert_eq!(machine.step(Event::Asked(Caller(2), Ask::Destroy)), [Action::Interrupt]);
    let interrupted = Failure::new(ErrorCode::Interrupted, "interrupted");
    let first = machine.step(Event::StageFailed(Stage::Boot, interrupted));
    let all = run_out(&mut machine, first);
    assert_eq!(answers(&all), [(Caller(1), Err(ErrorCode::Interrupted)), (Caller(2), Ok(()))]);
    assert_eq!(stages(&all), [Stage::End, Stage::Unplug, Stage::Erase]);
}

#[test]
fn a_stop_during_create_keeps_the_disk() {
    let mut machine = Machine::resting(Rest::Absent, false);
    machine.step(Event::Asked(Caller(1), Ask::Create(Make::Boot)));
    machine.step(Event::StageDone(Stage::Gate));
    machine.step(Event::Asked(Caller(2), Ask::Stop(StopMode::Shutdown)));
    let first = machine.step(Event::StageDone(Stage::Provide));
    let all = run_out(&mut machine, first);
    assert_eq!(machine.rest(), Some(Rest::Stopped));
    assert_eq!(answers(&all), [(Caller(1), Err(ErrorCode::Interrupted)), (Caller(2), Ok(()))]);
}

#[test]
fn a_stop_before_there_is_a_disk_leaves_nothing() {
    let mut machine = Machine::resting(Rest::Absent, false);
    machine.step(Event::Asked(Caller(1), Ask::Create(Make::Boot)));
    machine.step(Event::Asked(Caller(2), Ask::Stop(StopMode::Shutdown)));
    let first = machine.step(Event::StageFailed(Stage::Gate, Failure::new(ErrorCode::Interrupted, "")));
    let all = run_out(&mut machine, first);
    assert_eq!(machine.rest(), Some(Rest::Absent));
    assert_eq!(answers(&all), [(Caller(1), Err(ErrorCode::Interrupted)), (Caller(2), Err(ErrorCode::NotFound))]);
}

#[test]
fn a_start_during_a_stop_waits_and_then_starts() {
    let mut machine = Machine::resting(Rest::Started, true);
    let mut all = machine.step(Event::Asked(Caller(1), Ask::Stop(StopMode::Shutdown)));
    all.extend(machine.step(Event::Asked(Caller(2), Ask::Start)));
    let all = run_out(&mut machine, all);
    assert_eq!(answers(&all), [(Caller(1), Ok(())), (Caller(2), Ok(()))]);
    assert_eq!(machine.rest(), Some(Rest::Started));
}

#[test]
fn a_guest_that_ignores_the_button_is_ended() {
    let mut machine = Machine::resting(Rest::Started, true);
    machine.step(Event::Asked(Caller(1), Ask::Stop(StopMode::Shutdown)));
    let next = machine.step(Event::StageFailed(Stage::PowerOff, Failure::new(ErrorCode::Timeout, "late")));
    assert_eq!(next, [perform(Stage::End, false)]);
    let all = run_out(&mut machine, next);
    assert_eq!(answers(&all), [(Caller(1), Ok(()))]);
}

#[test]
fn a_failed_tear_down_is_broken_and_can_be_tried_again() {
    let mut machine = Machine::resting(Rest::Started, true);
    machine.step(Event::Asked(Caller(1), Ask::Destroy));
    let all = machine.step(Event::StageFailed(Stage::End, Failure::new(ErrorCode::Internal, "undead")));
    assert_eq!(machine.rest(), Some(Rest::Broken));
    assert_eq!(answers(&all), [(Caller(1), Err(ErrorCode::Internal))]);
    let refused = machine.step(Event::Asked(Caller(2), Ask::Start));
    assert_eq!(answers(&refused), [(Caller(2), Err(ErrorCode::Conflict))]);
    let again = machine.step(Event::Asked(Caller(3), Ask::Destroy));
    let all = run_out(&mut machine, again);
    assert_eq!(answers(&all), [(Caller(3), Ok(()))]);
    assert_eq!(machine.rest(), Some(Rest::Absent));
}

#[test]
fn a_dead_vmm_is_cleared_without_a_caller() {
    let mut machine = Machine::resting(Rest::Started, true);
    let first = machine.step(Event::VmmExited);
    let all = run_out(&mut machine, first);
    assert_eq!(stages(&all), [Stage::End, Stage::Unplug]);
    assert!(answers(&all).is_empty());
    assert_eq!(machine.rest(), Some(Rest::Stopped));
}

#[test]
fn a_stop_with_checkpoint_goes_on_from_it_once() {
    let mut machine = Machine::resting(Rest::Started, true);
    let first = machine.step(Event::Asked(Caller(1), Ask::Stop(StopMode::Checkpoint)));
    let all = run_out(&mut machine, first);
    assert_eq!(stages(&all), [Stage::Suspend, Stage::End, Stage::Unplug]);
    let first = machine.step(Event::Asked(Caller(2), Ask::Start));
    let all = run_out(&mut machine, first);
    assert_eq!(stages(&all), Op::Start { warm: true }.stages());
    run_out_asked(&mut machine, 3, Ask::Stop(StopMode::Kill));
    let all = run_out_asked(&mut machine, 4, Ask::Start);
    assert_eq!(stages(&all), Op::Start { warm: false }.stages());
}

fn run_out_asked(machine: &mut Machine, caller: u64, ask: Ask) -> Vec<Action> {
    let first = machine.step(Event::Asked(Caller(caller), ask));
    run_out(machine, first)
}

#[test]
fn a_failed_checkpoint_is_a_failed_stop_of_a_running_sandbox() {
    let mut machine = Machine::resting(Rest::Started, true);
    machine.step(Event::Asked(Caller(1), Ask::Stop(StopMode::Checkpoint)));
    let all = machine.step(Event::StageFailed(Stage::Suspend, Failure::new(ErrorCode::NoSpace, "full")));
    assert_eq!(answers(&all), [(Caller(1), Err(ErrorCode::NoSpace))]);
    assert_eq!(machine.rest(), Some(Rest::Started));
}

#[test]
fn memory_that_cannot_be_restored_is_booted_over_for_the_same_caller() {
    let mut machine = Machine::resting(Rest::Stopped, true).with_checkpoint(true);
    machine.step(Event::Asked(Caller(1), Ask::Start));
    for stage in [Stage::Gate, Stage::Network, Stage::Launch] {
        machine.step(Event::StageDone(stage));
    }
    let rescue = machine.step(Event::StageFailed(Stage::Restore, Failure::new(ErrorCode::Conflict, "old")));
    let all = run_out(&mut machine, rescue);
    assert_eq!(stages(&all), Op::Rescue { create: false }.stages());
    assert_eq!(answers(&all), [(Caller(1), Ok(()))]);
}

#[test]
fn a_copied_sandbox_rests_where_it_was() {
    for rest in [Rest::Started, Rest::Paused, Rest::Stopped] {
        for fails in [false, true] {
            let mut machine = Machine::resting(rest, true);
            machine.step(Event::Asked(Caller(1), Ask::Capture));
            let event = if fails {
                Event::StageFailed(Stage::Capture, Failure::new(ErrorCode::Internal, "x"))
            } else {
                Event::StageDone(Stage::Capture)
            };
            assert_eq!(answers(&machine.step(event)).len(), 1);
            assert_eq!(machine.rest(), Some(rest));
        }
    }
}

#[test]
fn a_replaced_vmm_that_does_not_come_up_is_started_again_from_the_checkpoint() {
    let mut machine = Machine::resting(Rest::Started, true);
    machine.set_replaces(true);
    machine.step(Event::Asked(Caller(1), Ask::Capture));
    for stage in [Stage::Gate, Stage::Suspend, Stage::End, Stage::Layer] {
        machine.step(Event::StageDone(stage));
    }
    let first = machine.step(Event::StageFailed(Stage::Launch, Failure::new(ErrorCode::Internal, "no memory")));
    let all = run_out(&mut machine, first);
    assert_eq!(answers(&all), [(Caller(1), Err(ErrorCode::Internal))]);
    assert_eq!(stages(&all)[..2], [Stage::End, Stage::Unplug]);
    assert_eq!(&stages(&all)[2..], Op::Start { warm: true }.stages());
    assert_eq!(machine.rest(), Some(Rest::Started));
}

#[test]
fn a_source_that_waits_for_its_turn_to_be_replaced_can_be_destroyed_at_once() {
    let mut machine = Machine::resting(Rest::Started, true);
    machine.set_replaces(true);
    assert_eq!(machine.step(Event::Asked(Caller(1), Ask::Capture)), [perform(Stage::Gate, true)]);
    assert_eq!(machine.step(Event::Asked(Caller(2), Ask::Destroy)), [Action::Interrupt]);
    let first = machine.step(Event::StageFailed(Stage::Gate, Failure::new(ErrorCode::Interrupted, "")));
    let all = run_out(&mut machine, first);
    assert_eq!(answers(&all), [(Caller(1), Err(ErrorCode::Interrupted)), (Caller(2), Ok(()))]);
    assert_eq!(stages(&all), Op::Destroy.stages());
    assert_eq!(machine.rest(), Some(Rest::Absent));
}

#[test]
fn two_captures_that_wait_are_not_taken_for_one() {
    let mut machine = Machine::resting(Rest::Started, true);
    let capture = Ask::Capture;
    machine.step(Event::Asked(Caller(1), capture));
    machine.step(Event::Asked(Caller(2), capture));
    let refused = machine.step(Event::Asked(Caller(3), capture));
    assert_eq!(answers(&refused), [(Caller(3), Err(ErrorCode::Conflict))]);
}

#[test]
fn a_restart_goes_on_from_where_it_rests_and_a_stop_ends_the_wait_for_it() {
    let mut machine = Machine::resting(Rest::Stopped, true);
    let first = machine.step(Event::Restart);
    let all = run_out(&mut machine, first);
    assert_eq!(stages(&all), Op::Start { warm: false }.stages());
    assert!(answers(&all).is_empty());
    assert!(machine.step(Event::Restart).is_empty(), "it runs already");

    let mut machine = Machine::resting(Rest::Stopped, true);
    machine.set_unsettled(true);
    let all = run_out_asked(&mut machine, 1, Ask::Stop(StopMode::Checkpoint));
    assert_eq!(stages(&all), [Stage::End, Stage::Unplug], "an intent that is stored");
    assert_eq!(answers(&all), [(Caller(1), Ok(()))]);

    let mut machine = Machine::resting(Rest::Stopped, true);
    machine.step(Event::Restart);
    machine.step(Event::Asked(Caller(1), Ask::Start));
    let first = machine.step(Event::Asked(Caller(2), Ask::Stop(StopMode::Kill)));
    assert_eq!(first, [Action::Interrupt]);
    let first = machine.step(Event::StageFailed(Stage::Gate, Failure::new(ErrorCode::Interrupted, "")));
    let all = run_out(&mut machine, first);
    assert_eq!(answers(&all), [(Caller(1), Err(ErrorCode::Interrupted)), (Caller(2), Ok(()))]);
    assert_eq!(machine.rest(), Some(Rest::Stopped));
}

#[derive(Debug, Clone)]
enum Input {
    Ask(Ask),
    Done,
    Fail,
    Exit,
    Restart,
}

fn input() -> impl Strategy<Value = Input> {
    let make = prop_oneof![Just(Make::Idle), Just(Make::Boot), Just(Make::Copy), Just(Make::Revive), Just(Make::Warm)];
    let mode = prop_oneof![Just(StopMode::Checkpoint), Just(StopMode::Shutdown), Just(StopMode::Kill)];
    let ask = prop_oneof![
        3 => make.prop_map(Ask::Create),
        3 => Just(Ask::Start),
        1 => Just(Ask::Boot),
        3 => mode.prop_map(Ask::Stop),
        2 => Just(Ask::Pause),
        3 => Just(Ask::Capture),
        1 => Just(Ask::Resize),
        2 => Just(Ask::Destroy),
    ];
    prop_oneof![4 => ask.prop_map(Input::Ask), 6 => Just(Input::Done), 2 => Just(Input::Fail), 1 => Just(Input::Exit), 1 => Just(Input::Restart)]
}

/// What the host would hold, as a second and simpler model: each stage adds or removes one thing.
#[derive(Debug, Default)]
struct Host {
    disk: bool,
    network: bool,
    vmm: bool,
    /// Memory on disk that nothing has run over yet.
    checkpoint: bool,
}

impl Host {
    fn done(&mut self, stage: Stage) {
        match stage {
            Stage::Disk | Stage::Graft => self.disk = true,
            Stage::Network | Stage::Room => self.network = true,
            Stage::Suspend => self.checkpoint = true,
            Stage::Provide => (self.disk, self.network) = (true, true),
            Stage::Launch => self.vmm = true,
            Stage::End => self.vmm = false,
            Stage::Unplug => self.network = false,
            Stage::Erase => self.disk = false,
            _ => {}
        }
    }

    /// What the very beginning of a stage does.
    fn begun(&mut self, stage: Stage) {
        self.checkpoint &= !matches!(stage, Stage::Suspend | Stage::Wake | Stage::Configure | Stage::Erase);
    }

    /// The worst case of a failing stage: half of it happened.
    fn failed(&mut self, stage: Stage) {
        if matches!(stage, Stage::Disk | Stage::Graft | Stage::Network | Stage::Room | Stage::Provide | Stage::Launch) {
            self.done(stage);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn everybody_is_answered_once_and_nothing_is_forgotten(
            inputs in prop::collection::vec(input(), 1..60), replaces in any::<bool>(), unsettled in any::<bool>(),
        ) {
        let mut machine = Machine::resting(Rest::Absent, false);
        machine.set_replaces(replaces);
        machine.set_unsettled(unsettled);
        let mut host = Host::default();
        let mut asked = 0_u64;
        let mut replies: BTreeMap<Caller, usize> = BTreeMap::new();
        let mut note = |machine: &Machine, host: &mut Host, actions: &[Action]| -> Result<(), TestCaseError> {
            for (caller, _) in answers(actions) {
                *replies.entry(caller).or_default() += 1;
            }
            // At most one stage is ever under way, and it is the one the machine names.
            let performing = stages(actions);
            prop_assert!(performing.len() <= 1, "{performing:?}");
            if let (Some(&stage), Some((op, at))) = (performing.last(), machine.work()) {
                prop_assert_eq!(stage, at);
                prop_assert_eq!(actions.contains(&perform(stage, true)), op.must_save());
                host.begun(stage);
                // Memory is gone on from at most once, and never after something else has run.
                if stage == Stage::Restore && !matches!(op, Op::Create(_)) {
                    prop_assert!(host.checkpoint, "{op:?}");
                }
            }
            match machine.rest() {
                Some(Rest::Absent) => prop_assert!(!host.disk && !host.network && !host.vmm, "{host:?}"),
                Some(Rest::Stopped) => prop_assert!(host.disk && !host.network && !host.vmm, "{host:?}"),
                Some(Rest::Started | Rest::Paused) => {
                    prop_assert!(host.disk && host.network && host.vmm, "{host:?}");
                }
                Some(Rest::Broken | Rest::Unknown) | None => {}
            }
            Ok(())
        };
        for input in inputs {
            let actions = match (input, machine.work()) {
                (Input::Ask(ask), _) => {
                    asked += 1;
                    machine.step(Event::Asked(Caller(asked), ask))
                }
                (Input::Done, Some((_, stage))) => {
                    host.done(stage);
                    machine.step(Event::StageDone(stage))
                }
                (Input::Fail, Some((_, stage))) => {
                    host.failed(stage);
                    machine.step(Event::StageFailed(stage, Failure::new(ErrorCode::Internal, "fault")))
                }
                (Input::Restart, _) => machine.step(Event::Restart),
                (Input::Exit, _) => {
                    host.vmm &= !machine.rest().is_some_and(Rest::lives);
                    machine.step(Event::VmmExited)
                }
                _ => Vec::new(),
            };
            note(&machine, &mut host, &actions)?;
        }
        // From anywhere, undisturbed stages lead to rest.
        while let Some((_, stage)) = machine.work() {
            host.done(stage);
            let actions = machine.step(Event::StageDone(stage));
            note(&machine, &mut host, &actions)?;
        }
        // A destroy from rest leaves nothing on the host.
        let actions = machine.step(Event::Asked(Caller(asked + 1), Ask::Destroy));
        note(&machine, &mut host, &actions)?;
        while let Some((_, stage)) = machine.work() {
            host.done(stage);
            let actions = machine.step(Event::StageDone(stage));
            note(&machine, &mut host, &actions)?;
        }
        prop_assert_eq!(machine.rest(), Some(Rest::Absent));
        for caller in 1..=asked + 1 {
            prop_assert_eq!(replies.get(&Caller(caller)), Some(&1), "caller {} of {}", caller, asked);
        }
    }
}
