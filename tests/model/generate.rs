//! What happens to a runner in a test: steps, and the outline of what is there that makes most of them meaningful.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest_state_machine::ReferenceStateMachine;
use runner_ch::sandbox::StopMode;

use super::fakes::deeds::{Base, Deed, Id};
use super::fakes::{Cut, Moment, Twist};

pub const IDS: [Id; 4] = ["ann", "bob", "cid", "dot"];
pub const SNAPSHOTS: [Id; 2] = ["one", "two"];

/// Effects that can fail. Those of the guest, the VMM and the host; of copies, checkpoints and the store.
const FAILING: [&str; 42] = [
    "disk",
    "network",
    "launch",
    "create",
    "boot",
    "ready",
    "pause",
    "resume",
    "resize",
    "power_button",
    "unload",
    "end",
    "unplug",
    "erase",
    "clear",
    "adopt",
    "snapshot",
    "take",
    "keep",
    "freeze",
    "flush",
    "prepare",
    "sync",
    "share",
    "room",
    "graft",
    "adapt",
    "restore",
    "verify",
    "renew",
    "split",
    "begin_capture",
    "end_capture",
    "begin_checkpoint",
    "end_checkpoint",
    "copy_snapshot",
    "save",
    "release",
    "sweep",
    "put",
    "forget",
    "blank",
];

/// Effects whose callers bound the time themselves: the ports of the others do.
const HANGING: [&str; 14] = [
    "disk",
    "network",
    "launch",
    "boot",
    "ready",
    "unplug",
    "erase",
    "clear",
    "freeze",
    "flush",
    "split",
    "graft",
    "begin_capture",
    "begin_checkpoint",
];

/// Effects in which an actor can panic.
const PANICKING: [&str; 10] =
    ["disk", "network", "launch", "boot", "ready", "power_button", "end", "unplug", "erase", "restore"];

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// Orders at the same time, until all are answered.
    Orders(Vec<Deed>),
    /// The same, and the runner is killed in the middle.
    Cut(Cut, Vec<Deed>),
    /// The effect does this when it is reached next.
    Twist(&'static str, Twist),
    /// The runner is killed at rest.
    Kill,
    /// The VMM ends; true: after the runner was killed.
    End(Id, bool),
}

/// What is probably there.
#[derive(Debug, Clone, Default)]
pub struct Outline {
    pub raw: bool,
    present: Vec<Id>,
}

fn mode() -> impl Strategy<Value = StopMode> {
    select(vec![StopMode::Checkpoint, StopMode::Checkpoint, StopMode::Shutdown, StopMode::Kill, StopMode::Usual])
}

/// An order about any of these; what is there is met more often than what is not.
fn deed(present: &[Id]) -> BoxedStrategy<Deed> {
    let mut ids = IDS.to_vec();
    for _ in 0..4 {
        ids.extend(present);
    }
    let (id, anyone) = (select(ids), select(IDS.to_vec()));
    let base = prop_oneof![
        4 => Just(Base::Boot),
        1 => Just(Base::Idle),
        2 => select(SNAPSHOTS.to_vec()).prop_map(Base::Snapshot),
    ];
    let copies = |source: Id| {
        let others: Vec<Id> = IDS.into_iter().filter(|id| *id != source).collect();
        subsequence(others, 1..=3).prop_map(move |copies| Deed::Fork(source, copies))
    };
    prop_oneof![
        4 => (anyone, base).prop_map(|(id, base)| Deed::Create(id, base)),
        4 => id.clone().prop_map(Deed::Start),
        5 => (id.clone(), mode()).prop_map(|(id, mode)| Deed::Stop(id, mode)),
        2 => id.clone().prop_map(Deed::Pause),
        2 => (id.clone(), 1_u32..=4).prop_map(|(id, vcpus)| Deed::Resize(id, vcpus)),
        4 => id.clone().prop_flat_map(copies),
        3 => (id.clone(), select(SNAPSHOTS.to_vec()), any::<bool>())
            .prop_map(|(id, name, memory)| Deed::Snapshot(id, name, memory)),
        1 => select(SNAPSHOTS.to_vec()).prop_map(Deed::RemoveSnapshot),
        2 => id.prop_map(Deed::Destroy),
    ]
    .boxed()
}

fn twist() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => select(FAILING.to_vec()).prop_map(|effect| Step::Twist(effect, Twist::Fails)),
        2 => select(FAILING.to_vec()).prop_map(|effect| Step::Twist(effect, Twist::Slow)),
        1 => select(HANGING.to_vec()).prop_map(|effect| Step::Twist(effect, Twist::Hangs)),
        1 => select(PANICKING.to_vec()).prop_map(|effect| Step::Twist(effect, Twist::Panics)),
    ]
}

impl ReferenceStateMachine for Outline {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        any::<bool>().prop_map(|raw| Self { raw, ..Self::default() }).boxed()
    }

    fn transitions(outline: &Self) -> BoxedStrategy<Step> {
        let deeds = || prop_oneof![3 => prop::collection::vec(deed(&outline.present), 1), 1 => prop::collection::vec(deed(&outline.present), 2)];
        let cut = (1_usize..40, select(vec![Moment::Before, Moment::After])).prop_map(|(at, moment)| Cut(at, moment));
        prop_oneof![
            8 => deeds().prop_map(Step::Orders),
            4 => (cut, deeds()).prop_map(|(cut, deeds)| Step::Cut(cut, deeds)),
            2 => twist(),
            1 => Just(Step::Kill),
            1 => (select(IDS.to_vec()), any::<bool>()).prop_map(|(id, killed)| Step::End(id, killed)),
        ]
        .boxed()
    }

    fn apply(mut outline: Self, step: &Step) -> Self {
        let (Step::Orders(deeds) | Step::Cut(_, deeds)) = step else { return outline };
        for deed in deeds {
            match deed {
                Deed::Create(id, _) => outline.present.push(id),
                Deed::Fork(source, copies) if outline.present.contains(source) => outline.present.extend(copies),
                Deed::Destroy(id) => outline.present.retain(|present| present != id),
                _ => {}
            }
        }
        outline.present.sort_unstable();
        outline.present.dedup();
        outline
    }

    /// A VMM ends only where there may be one.
    fn preconditions(outline: &Self, step: &Step) -> bool {
        !matches!(step, Step::End(id, _) if !outline.present.contains(id))
    }
}
