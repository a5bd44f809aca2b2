//! Saved VMs that run again in other VMMs, with the hypervisor of CH_BINARY or else the simulator.

use super::support::{Bench, LONG};
use super::*;
use crate::error::{Certainty, chain};
use crate::hypervisor::snapshot::{RestoreMode, SnapshotMemory};
use crate::hypervisor::wire::MemoryLayout;
use crate::hypervisor::{Exit, VmState};
use machine::{Machine, RAM, blank, mark_in, timed};

mod machine;

const GRACE: Duration = Duration::from_secs(10);

fn private(path: PathBuf) -> MemoryLayout {
    MemoryLayout::Private { path }
}

fn file(path: PathBuf) -> MemoryLayout {
    MemoryLayout::File { path }
}

fn shared(_: PathBuf) -> MemoryLayout {
    MemoryLayout::Shared
}

/// Pauses the machine, saves it without memory, copies its memory from outside and lets it go on.
async fn captured(parent: &Machine, base: &Path) -> (PathBuf, PathBuf) {
    let (snapshot, memory) = (parent.dir("capture"), parent.path("captured"));
    timed("pause", parent.vmm.pause()).await.unwrap();
    parent.vmm.pause().await.unwrap();
    assert_eq!(parent.state().await, Some(VmState::Paused));
    timed("snapshot without memory", parent.vmm.snapshot(&snapshot, SnapshotMemory::Left)).await.unwrap();
    assert_eq!(std::fs::read_dir(&snapshot).unwrap().count(), 2, "configuration and state, no placeholder");
    parent.copy_memory(base, &memory);
    timed("resume", parent.vmm.resume()).await.unwrap();
    parent.vmm.resume().await.unwrap();
    (snapshot, memory)
}

#[tokio::test(flavor = "current_thread")]
async fn a_private_map_is_forked_and_its_child_is_forked_again() {
    let mut parent = Machine::booted(private, RAM).await;
    let mut base = parent.path("memory");
    let mut elders = Vec::new();
    for generation in 0..3 {
        let (snapshot, memory) = captured(&parent, &base).await;
        let saved = mark_in(&memory);
        let said = parent.said();
        let child = Machine::empty().await;
        std::fs::hard_link(&memory, child.path("memory")).unwrap();
        base = child.path("memory");
        child.run_from(&snapshot, &child.adaptation(RestoreMode::Map, &base, RAM)).await;
        assert_eq!(child.mappings_of(&base).iter().map(|(start, end, _)| end - start).sum::<u64>(), RAM);
        for (name, machine) in [("parent", &parent), ("child", &child)] {
            assert_eq!(machine.state().await, Some(VmState::Running), "{name} {generation}");
            let now = machine.mark(&format!("{name}-mark")).await;
            assert_eq!(now.boot, saved.boot, "{name} {generation}");
            assert!(now.count >= saved.count, "{name} {generation}: {now:?} after {saved:?}");
        }
        assert_eq!(mark_in(&memory), saved, "nobody writes to a frozen memory file");
        assert!(parent.said() >= said, "the parent's serial file is left alone");
        elders.push(std::mem::replace(&mut parent, child));
    }
    for machine in elders.iter().chain([&parent]) {
        assert_eq!(machine.vmm.end(GRACE).await.unwrap(), Exit::Orderly);
        machine.bench.assert_nothing_left();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn memory_that_is_a_file_is_not_in_the_snapshot_and_serves_two() {
    let first = Machine::booted(file, RAM).await;
    let snapshot = first.dir("capture");
    first.vmm.pause().await.unwrap();
    first.vmm.snapshot(&snapshot, SnapshotMemory::Left).await.unwrap();
    assert_eq!(std::fs::read_dir(&snapshot).unwrap().count(), 2);
    assert_eq!(first.vmm.end(GRACE).await.unwrap(), Exit::Orderly);
    let memory = first.path("memory");
    let saved = mark_in(&memory);
    let identity = first.vmm.identity().clone();
    // The VM itself, in a new process, and a child.
    let again = Machine::with(first.bench, first.hypervisor).await;
    assert_ne!(*again.vmm.identity(), identity);
    let child = Machine::empty().await;
    for (machine, mode) in [(&again, RestoreMode::Map), (&child, RestoreMode::Copy)] {
        machine.run_from(&snapshot, &machine.adaptation(mode, &memory, RAM)).await;
        let now = machine.mark("mark").await;
        assert_eq!(now.boot, saved.boot);
        assert!(now.count >= saved.count, "{now:?} after {saved:?}");
        assert_eq!(mark_in(&memory), saved);
    }
    for machine in [again, child] {
        machine.vmm.end(GRACE).await.unwrap();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn memory_that_the_vmm_wrote_is_mapped_or_copied() {
    let parent = Machine::booted(shared, RAM).await;
    let snapshot = parent.dir("capture");
    parent.vmm.pause().await.unwrap();
    timed("snapshot with memory", parent.vmm.snapshot(&snapshot, SnapshotMemory::Written)).await.unwrap();
    parent.vmm.resume().await.unwrap();
    let memory = snapshot.join("memory-ranges");
    let saved = mark_in(&memory);
    for mode in [RestoreMode::Map, RestoreMode::Copy] {
        let child = Machine::empty().await;
        child.run_from(&snapshot, &child.adaptation(mode, &memory, RAM)).await;
        let now = child.mark("mark").await;
        assert_eq!(now.boot, saved.boot, "{mode:?}");
        assert!(now.count >= saved.count, "{mode:?}: {now:?} after {saved:?}");
        assert_eq!(child.mappings_of(&memory).is_empty(), mode == RestoreMode::Copy);
        child.vmm.end(GRACE).await.unwrap();
    }
    assert_eq!(parent.state().await, Some(VmState::Running));
    parent.vmm.end(GRACE).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn more_than_3_gib_are_two_mappings_of_one_file() {
    const LARGE: u64 = 4 << 30;
    const LOW: u64 = 3 << 30;
    let parent = Machine::booted(file, LARGE).await;
    let snapshot = parent.dir("capture");
    parent.vmm.pause().await.unwrap();
    parent.vmm.snapshot(&snapshot, SnapshotMemory::Left).await.unwrap();
    parent.vmm.end(GRACE).await.unwrap();
    let child = Machine::empty().await;
    let memory = parent.path("memory");
    child.run_from(&snapshot, &child.adaptation(RestoreMode::Map, &memory, LARGE)).await;
    let mut parts: Vec<_> = child.mappings_of(&memory).iter().map(|(start, end, at)| (*at, end - start)).collect();
    parts.sort_unstable();
    assert_eq!(parts, [(0, LOW), (LOW, LARGE - LOW)]);
    child.vmm.end(GRACE).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_failed_restore_leaves_no_vm_and_the_next_one_works() {
    let parent = Machine::booted(private, RAM).await;
    let (snapshot, memory) = captured(&parent, &parent.path("memory")).await;
    let child = Machine::empty().await;
    let adaptation = child.adaptation(RestoreMode::Map, &memory, RAM);
    let (adapted, aside) = (child.path("adapted"), child.path("aside"));
    child.hypervisor.adapt(&snapshot, &adapted, &adaptation).await.unwrap();
    for missing in ["root.raw", "adapted/state.json"] {
        std::fs::rename(child.path(missing), &aside).unwrap();
        let error = child.vmm.restore(&adapted).await.unwrap_err();
        assert!(matches!(error, Error::Api { call: "vm.restore", .. }), "{missing}: {error}");
        assert_eq!(error.certainty(), Certainty::NotDone);
        assert_eq!(child.state().await, None, "{missing}");
        std::fs::rename(&aside, child.path(missing)).unwrap();
    }
    // The parent's disk, which the parent holds a lock on.
    let mut wrong = adaptation.clone();
    wrong.root.0 = parent.path("root.raw");
    child.hypervisor.adapt(&snapshot, &adapted, &wrong).await.unwrap();
    let error = child.vmm.restore(&adapted).await.unwrap_err();
    assert!(error.says("lock"), "{error}");
    assert_eq!(child.state().await, None);

    child.run_from(&snapshot, &adaptation).await;
    let error = child.vmm.restore(&adapted).await.unwrap_err();
    assert!(error.says("already created"), "{error}");
    assert_eq!(child.state().await, Some(VmState::Running), "the VM that was there before is left alone");
    for machine in [parent, child] {
        machine.vmm.end(GRACE).await.unwrap();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn snapshots_at_the_wrong_time_or_place() {
    let machine = Machine::booted(private, RAM).await;
    let dir = machine.dir("capture");
    for memory in [SnapshotMemory::Left, SnapshotMemory::Written] {
        let error = machine.vmm.snapshot(&dir, memory).await.unwrap_err();
        assert!(error.says("while VM is running"), "{error}");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "no placeholder is left");
        assert_eq!(machine.state().await, Some(VmState::Running));
    }
    machine.vmm.pause().await.unwrap();
    machine.vmm.snapshot(&dir, SnapshotMemory::Left).await.unwrap();
    machine.vmm.snapshot(&dir, SnapshotMemory::Left).await.expect("what is there is replaced");
    let error = machine.vmm.snapshot(Path::new("capture"), SnapshotMemory::Written).await.unwrap_err();
    assert!(matches!(error, Error::Path { .. }), "{error}");
    assert_eq!(machine.state().await, Some(VmState::Paused), "nothing resumes it");
    machine.vmm.end(GRACE).await.unwrap();

    let empty = Machine::empty().await;
    for error in [empty.vmm.pause().await, empty.vmm.resume().await] {
        let error = error.unwrap_err();
        assert!(error.says("VM is not running"), "{error}");
    }
    empty.vmm.end(GRACE).await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_snapshot_that_was_not_adapted_does_not_empty_the_parents_serial_file() {
    let parent = Machine::booted(private, RAM).await;
    let dir = parent.dir("capture");
    parent.vmm.pause().await.unwrap();
    parent.vmm.snapshot(&dir, SnapshotMemory::Left).await.unwrap();
    let said = parent.said();
    let child = Machine::empty().await;
    let error = child.vmm.restore(&dir).await.unwrap_err();
    assert!(matches!(error, Error::ForeignSerial { .. }), "{error}");
    assert_eq!((parent.said(), child.state().await), (said, None));
    for machine in [parent, child] {
        machine.vmm.end(GRACE).await.unwrap();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn processors_are_added_up_to_the_bound() {
    let machine = Machine::booted(private, RAM).await;
    machine.vmm.resize(2).await.unwrap();
    let error = machine.vmm.resize(3).await.unwrap_err();
    assert!(matches!(error, Error::Api { call: "vm.resize", .. }), "{error}");
    assert_eq!(machine.state().await, Some(VmState::Running));
    machine.vmm.end(GRACE).await.unwrap();
    machine.bench.assert_nothing_left();
}

/// A machine whose simulator has variables set.
async fn simulated(variables: impl Fn(&Bench) -> String) -> Machine {
    let bench = Bench::new();
    let hypervisor = bench.simulator_with(&variables(&bench));
    Machine::with(bench, hypervisor).await
}

#[tokio::test(flavor = "current_thread")]
async fn old_versions_pause_twice_and_save_without_memory() {
    for version in ["v44.0", "v46.0", "v47.0", "v51.0", "v52.0"] {
        let machine = simulated(|_| format!("CH_SIM_VERSION={version}")).await;
        machine.boot(MemoryLayout::Private { path: machine.path("memory") }, RAM).await;
        let dir = machine.dir("capture");
        let error = machine.vmm.snapshot(&dir, SnapshotMemory::Left).await.unwrap_err();
        assert!(error.says("while VM is running"), "{version}: {error}");
        for _ in 0..2 {
            machine.vmm.pause().await.unwrap_or_else(|error| panic!("{version}: {error}"));
        }
        machine.vmm.snapshot(&dir, SnapshotMemory::Left).await.unwrap_or_else(|error| panic!("{version}: {error}"));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "{version}");
        for _ in 0..2 {
            machine.vmm.resume().await.unwrap_or_else(|error| panic!("{version}: {error}"));
        }
        machine.vmm.end(GRACE).await.unwrap();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn calls_that_fail_hang_or_end_the_vmm() {
    for (when, action) in
        [("vm.snapshot", "error"), ("vm.snapshot", "hang"), ("vm.snapshot", "crash"), ("vm.snapshot:done", "crash")]
    {
        let fault = format!(r#"[{{"when": "{when}", "action": "{action}", "value": "no luck"}}]"#);
        let bench = Bench::new();
        std::fs::write(bench.path("faults"), fault).unwrap();
        let mut hypervisor = bench.simulator_with(&format!("CH_SIM_FAULTS='{}'", bench.path("faults").display()));
        hypervisor.settings.deadlines.snapshot = Duration::from_millis(300);
        hypervisor.settings.term = Duration::from_millis(200);
        let machine = Machine::with(bench, hypervisor).await;
        machine.boot(MemoryLayout::Private { path: machine.path("memory") }, RAM).await;
        machine.vmm.pause().await.unwrap();
        let dir = machine.dir("capture");
        let error = machine.vmm.snapshot(&dir, SnapshotMemory::Left).await.unwrap_err();
        let expected = match action {
            "error" => error.says("no luck") && error.certainty() == Certainty::NotDone,
            "hang" => matches!(error, Error::Deadline { call: "vm.snapshot", sent: true, .. }),
            _ => matches!(error, Error::Ended { call: "vm.snapshot", exit: Exit::Signal { signal: 9 }, .. }),
        };
        assert!(expected, "{when} {action}: {}", chain(&error));
        let placeholder = dir.join("memory-ranges").exists();
        assert_eq!(placeholder, error.certainty() == Certainty::Unknown, "{when} {action}");
        timeout(LONG, machine.vmm.end(Duration::from_millis(200))).await.unwrap().unwrap();
        machine.bench.assert_nothing_left();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn memory_of_the_wrong_size_is_refused_before_anything_is_written() {
    let parent = Machine::booted(private, RAM).await;
    let (snapshot, memory) = captured(&parent, &parent.path("memory")).await;
    let child = Machine::empty().await;
    let wrong = child.path("wrong");
    blank(&wrong, RAM / 2);
    let to = child.path("adapted");
    for (file, bytes) in [(&wrong, RAM), (&wrong, RAM / 2), (&memory, 2 * RAM)] {
        let adaptation = child.adaptation(RestoreMode::Map, file, bytes);
        let error = child.hypervisor.adapt(&snapshot, &to, &adaptation).await.unwrap_err();
        assert!(matches!(error, Error::SnapshotMismatch { .. }), "{error}");
        assert!(!to.exists());
    }
    for machine in [parent, child] {
        machine.vmm.end(GRACE).await.unwrap();
    }
}
