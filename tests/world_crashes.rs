//! Every order, with the runner killed right before and right after each of its effects, and the next runner killed in
//! the same way while it recovers and repeats the order, as the control plane repeats its job. The runner after that
//! must bring host, store and views to where the uninterrupted run brings them, and leave nothing after a destroy.
//!
//! The same is done to the real runner by tests/crashes.rs; here it is complete, since lives are in memory and in
//! virtual time. All kills that leave the same machine behind are followed by one and the same life, which is run once.
//! Each test prints how many points and pairs of points it stands for.
//!
//! By default the second runner is killed right after every third effect, each time others, and one copy is made where
//! copies are made; `CRASH_ROUNDS=double` kills it right before and after each, and makes two.

use std::collections::{BTreeMap, HashMap, HashSet};

use runner_ch::sandbox::StopMode;
use serde_json::{Value, json};

#[path = "world/mod.rs"]
mod fakes;

use fakes::deeds::{Answers, Base, Deed};
use fakes::{Cut, Machine, Moment, World};

const NEVER_REACHED: usize = 10_000;
const BOTH: [Moment; 2] = [Moment::Before, Moment::After];

/// What is ordered, and what was before that.
struct Story {
    raw: bool,
    before: Vec<Deed>,
    order: Deed,
}

/// How an order ended, in words that are the same in each run.
fn told(answers: &Answers) -> Value {
    let told = |(id, answer): &(_, Result<(), _>)| json!([id, answer.as_ref().map_err(ToString::to_string).err()]);
    answers.iter().map(told).collect()
}

/// All that can be told of a machine at rest, without what differs between any two runs. `memories`: those that were
/// there before the order.
async fn seen(world: &World, memories: &BTreeMap<u64, String>) -> Value {
    let memory = |memory: Option<u64>| {
        memory.map(|memory| memories.get(&memory).cloned().unwrap_or_else(|| "a new one".to_owned()))
    };
    let mut sandboxes = Vec::new();
    for view in world.views.list() {
        let id = view.id.as_str();
        let record = world.record(id).await.expect("a view has a record");
        sandboxes.push(json!({
            "id": id, "state": view.state, "size": view.size, "running": view.running, "error": view.error,
            "origin": view.origin, "network": view.netns.is_some(),
            "reached": world.routes.get(&view.id).is_some(),
            "record": {
                "phase": record.phase, "slot": record.slot.is_some(), "vmm": record.vmm.is_some(), "mac": record.mac,
                "disk": record.disks.map(|disks| (disks.root.format, disks.root.size)),
                "checkpoint": record.checkpoint.map(|kept| (kept.size, kept.stamp.is_some_and(|stamp| stamp.inode > 0))),
            },
            "memory": memory(world.host.memory(id)), "frozen": memory(world.host.frozen(id)),
            "runs": world.host.runs(id),
        }));
    }
    let host = world.host.0.borrow();
    json!({
        "sandboxes": sandboxes,
        "networks": host.networks.keys().collect::<Vec<_>>(), "disks": host.disks, "checkpoints": host.checkpoints,
        "vmms": host.vmms.keys().collect::<std::collections::BTreeSet<_>>(),
        "copies": [host.captures.len(), host.held],
        "snapshots": host.snapshots.values().map(|kept| (kept.reference.as_str(), kept.warm.is_some())).collect::<Vec<_>>(),
    })
}

/// Everything that outlives a runner, without times.
fn fingerprint(machine: &Machine) -> String {
    let records = machine.records().into_iter().map(|text| {
        let mut record: Value = serde_json::from_str(&text).expect("JSON");
        timeless(&mut record);
        record.to_string()
    });
    format!("{:?} {}", records.collect::<Vec<_>>(), machine.host.0.borrow().fingerprint())
}

fn timeless(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let time =
                    name.ends_with("_micros") || ["created_at", "since", "taken_at", "at"].contains(&name.as_str());
                if time { *field = Value::Null } else { timeless(field) }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(timeless),
        _ => {}
    }
}

struct Enumeration<'a> {
    story: &'a Story,
    memories: BTreeMap<u64, String>,
    expected: Value,
    /// Machines from which the last life was seen to end well.
    good: HashSet<String>,
}

fn double() -> bool {
    std::env::var("CRASH_ROUNDS").is_ok_and(|rounds| rounds == "double")
}

impl Enumeration<'_> {
    /// A life that recovers and carries the order out; none if it is killed on the way.
    fn ordered(&self, machine: &Machine, cut: Option<Cut>) -> Option<()> {
        machine.host.0.borrow_mut().cut = cut;
        machine.mortal(async |world: World| {
            world.carry_out(&self.story.order, true).await;
            world.settled().await;
        })
    }

    /// A life that nothing happens to, and what is to be seen at its end.
    fn last(&self, machine: &Machine) -> Value {
        machine.life(async |world: World| {
            let answers = world.carry_out(&self.story.order, true).await;
            world.settled().await;
            let seen = seen(&world, &self.memories).await;
            let ids: Vec<String> = world.views.list().iter().map(|view| view.id.to_string()).collect();
            for id in ids {
                world.ask(&id, runner_ch::sandbox::Ask::Destroy).await.expect("a destroy");
            }
            world.settled().await;
            world.host.assert_nothing_left();
            json!({ "told": told(&answers), "seen": seen })
        })
    }

    fn check(&mut self, machine: Machine, after: &[Cut]) {
        if self.good.insert(fingerprint(&machine)) {
            let found = self.last(&machine);
            assert!(
                found == self.expected,
                "killed at {after:?} (effects {:?})\nfound {found:#}\nexpected {:#}",
                machine.host.0.borrow().effects,
                self.expected
            );
            assert!(machine.records().is_empty(), "records are left: {:?}", machine.records());
        }
    }

    /// Kills a life on this machine at these of its effects; those that were reached, with what was left.
    fn kills(
        &self,
        machine: &Machine,
        effects: impl Iterator<Item = usize>,
        moments: &[Moment],
    ) -> Vec<(Cut, Machine)> {
        let mut left = Vec::new();
        for effect in effects.take_while(|effect| *effect < NEVER_REACHED) {
            for &moment in moments {
                let (cut, copy) = (Cut(effect, moment), machine.copy());
                if self.ordered(&copy, Some(cut)).is_some() {
                    return left;
                }
                left.push((cut, copy));
            }
        }
        panic!("a life has no end");
    }
}

fn enumerate(name: &str, story: &Story) {
    let began = std::time::Instant::now();
    let machine = Machine::light();
    machine.host.0.borrow_mut().raw = story.raw;
    machine.life(async |world: World| {
        for deed in &story.before {
            for (id, answer) in world.carry_out(deed, true).await {
                answer.unwrap_or_else(|failure| panic!("{deed:?} of {id}: {failure}"));
            }
            world.settled().await;
        }
    });
    let host = &machine.host;
    let ids: Vec<String> = host.0.borrow().disks.iter().cloned().collect();
    let memories = ids.iter().filter_map(|id| Some((host.memory(id).or(host.frozen(id))?, format!("that of {id}"))));
    let memories = memories.collect();
    let mut run = Enumeration { story, memories, expected: Value::Null, good: HashSet::new() };
    run.expected = run.last(&machine.copy());

    let (mut points, mut pairs) = (0, 0);
    let mut seconds = HashMap::<String, usize>::new();
    for (first, killed) in run.kills(&machine, 1.., &BOTH) {
        points += 1;
        let print = fingerprint(&killed);
        if !seconds.contains_key(&print) {
            let second = match double() {
                true => run.kills(&killed, 1.., &BOTH),
                false => run.kills(&killed, (1 + points % 3..).step_by(3), &[Moment::After]),
            };
            seconds.insert(print.clone(), second.len());
            run.check(killed, &[first]);
            for (second, killed) in second {
                run.check(killed, &[first, second]);
            }
        }
        pairs += seconds[&print];
    }
    println!(
        "{name}: {points} points, {pairs} pairs, {} different machines left; all as uninterrupted; {:.1} s",
        run.good.len(),
        began.elapsed().as_secs_f64()
    );
    assert!(points >= 4 && pairs >= points, "there is hardly anything to kill");
}

const BOX: &str = "box";
const CREATE: Deed = Deed::Create(BOX, Base::Boot);
const PAUSE: Deed = Deed::Pause(BOX);
const START: Deed = Deed::Start(BOX);
const RAW: bool = true;
const QCOW2: bool = false;

fn stop(mode: StopMode) -> Deed {
    Deed::Stop(BOX, mode)
}

fn fork() -> Deed {
    Deed::Fork(BOX, if double() { vec!["copy-1", "copy-2"] } else { vec!["copy-1"] })
}

fn save(memory: bool) -> Deed {
    Deed::Snapshot(BOX, "kept", memory)
}

macro_rules! stories {
    ($($name:ident: $raw:expr, [$($before:expr),*], $order:expr;)*) => {
        $(#[test]
        fn $name() {
            enumerate(stringify!($name), &Story { raw: $raw, before: vec![$($before),*], order: $order });
        })*
    };
}

stories! {
    create_raw: RAW, [], CREATE;
    create_qcow2: QCOW2, [], CREATE;
    create_idle: RAW, [], Deed::Create(BOX, Base::Idle);
    create_from_memory: RAW, [CREATE, save(true)], Deed::Create("copy-1", Base::Snapshot("kept"));
    create_from_a_disk: RAW, [CREATE, save(false)], Deed::Create("copy-1", Base::Snapshot("kept"));
    start_from_memory_raw: RAW, [CREATE, stop(StopMode::Checkpoint)], START;
    start_from_memory_qcow2: QCOW2, [CREATE, stop(StopMode::Checkpoint)], START;
    start_by_boot: RAW, [CREATE, stop(StopMode::Kill)], START;
    start_of_another_size: RAW, [CREATE, stop(StopMode::Checkpoint), Deed::Resize(BOX, 2)], START;
    stop_with_memory_raw: RAW, [CREATE], stop(StopMode::Checkpoint);
    stop_with_memory_qcow2: QCOW2, [CREATE], stop(StopMode::Checkpoint);
    stop_by_shutdown: RAW, [CREATE], stop(StopMode::Shutdown);
    stop_by_force: RAW, [CREATE], stop(StopMode::Kill);
    stop_of_a_paused_one: RAW, [CREATE, PAUSE], stop(StopMode::Checkpoint);
    pause: RAW, [CREATE], PAUSE;
    resume: RAW, [CREATE, PAUSE], START;
    resize_running: RAW, [CREATE], Deed::Resize(BOX, 3);
    resize_paused: RAW, [CREATE, PAUSE], Deed::Resize(BOX, 3);
    resize_stopped: QCOW2, [CREATE, stop(StopMode::Checkpoint)], Deed::Resize(BOX, 3);
    fork_running_raw: RAW, [CREATE], fork();
    fork_running_qcow2: QCOW2, [CREATE], fork();
    fork_paused_raw: RAW, [CREATE, PAUSE], fork();
    fork_paused_qcow2: QCOW2, [CREATE, PAUSE], fork();
    fork_stopped_raw: RAW, [CREATE, stop(StopMode::Checkpoint)], fork();
    fork_stopped_qcow2: QCOW2, [CREATE, stop(StopMode::Checkpoint)], fork();
    fork_without_memory: QCOW2, [CREATE, stop(StopMode::Kill)], fork();
    snapshot_with_memory_raw: RAW, [CREATE], save(true);
    snapshot_with_memory_qcow2: QCOW2, [CREATE], save(true);
    snapshot_of_the_disk: RAW, [CREATE], save(false);
    snapshot_of_a_stopped_one: QCOW2, [CREATE, stop(StopMode::Checkpoint)], save(true);
    remove_snapshot: RAW, [CREATE, save(true)], Deed::RemoveSnapshot("kept");
    destroy_raw: RAW, [CREATE], Deed::Destroy(BOX);
    destroy_qcow2: QCOW2, [CREATE, fork()], Deed::Destroy(BOX);
    destroy_paused: RAW, [CREATE, PAUSE], Deed::Destroy(BOX);
    destroy_stopped: RAW, [CREATE, stop(StopMode::Checkpoint)], Deed::Destroy(BOX);
}
