//! Stories about copies in virtual time: every effect of a fork fails once, and the source runs on.

use std::time::Duration;

use runner_ch::error::ErrorCode;
use runner_ch::hypervisor::Exit;
use runner_ch::sandbox::{Ask, StopMode};

#[path = "world/mod.rs"]
mod fakes;

use fakes::{Machine, Twist, World};

/// What a fork does to its source, and to its copy.
const TO_SOURCE: [&str; 7] = ["begin_capture", "flush", "prepare", "pause", "snapshot", "take", "keep"];
const TO_COPY: [&str; 11] =
    ["room", "network", "launch", "graft", "share", "adapt", "restore", "verify", "resume", "ready", "renew"];

fn raw(world: &World) {
    world.host.0.borrow_mut().raw = true;
}

#[test]
fn whatever_fails_in_a_fork_the_source_runs_on_and_the_copy_leaves_nothing() {
    Machine::new().life(async |world: World| {
        raw(&world);
        world.create("parent").await.unwrap();
        for effect in TO_SOURCE.iter().chain(&["freeze"]).chain(&TO_COPY) {
            // Tried again for the source, so it fails for the copy: the second and later ones are its.
            world.host.twist(effect, Twist::Fails, 1);
            let copies = world.fork("parent", &["child"]).await.expect("the source is there");
            let asked_of_source_first = ["resume", "share"].contains(effect);
            let not_required = *effect == "renew";
            match &copies[0].1 {
                Ok(_) => assert!(asked_of_source_first || not_required, "{effect} failed and nobody noticed"),
                Err(failure) => assert!(failure.message.starts_with("cannot create sandbox child"), "{failure}"),
            }
            assert!(world.host.runs("parent"), "after {effect}");
            assert_eq!(world.state("parent").as_deref(), Some("started"), "after {effect}");
            if copies[0].1.is_ok() {
                world.ask("child", Ask::Destroy).await.unwrap();
            }
            assert_eq!(world.state("child"), None, "after {effect}");
            world.until("captures are removed", || world.host.0.borrow().captures.is_empty()).await;
            world.host.assert_no_captures();
            assert_eq!(world.host.0.borrow().vmms.len(), 1, "after {effect}");
        }
        let copies = world.fork("parent", &["child"]).await.unwrap();
        copies[0].1.as_ref().expect("and then it works");
        for id in ["parent", "child"] {
            world.ask(id, Ask::Destroy).await.unwrap();
        }
        world.host.assert_nothing_left();
    });
}

#[test]
fn whatever_fails_while_a_vmm_is_replaced_the_source_goes_on_from_its_checkpoint() {
    Machine::new().life(async |world: World| {
        world.create("parent").await.unwrap();
        let effects = ["begin_checkpoint", "flush", "prepare", "pause", "snapshot", "take", "keep"];
        let later = ["begin_capture", "copy_snapshot", "split", "adapt", "verify"];
        for effect in effects.iter().chain(&later) {
            let boots = world.host.count("boot");
            world.host.twist(effect, Twist::Fails, 1);
            let copies = world.fork("parent", &["child"]).await.unwrap();
            world.until("the source runs again", || world.host.runs("parent")).await;
            world.until("it rests", || world.state("parent").as_deref() == Some("started")).await;
            assert_eq!(world.host.count("boot"), boots, "it was not booted after {effect}");
            if copies[0].1.is_ok() {
                world.ask("child", Ask::Destroy).await.unwrap();
            }
            assert_eq!(world.state("child"), None, "after {effect}");
            world.until("captures are removed", || world.host.0.borrow().captures.is_empty()).await;
            world.until("nothing is held", || world.host.0.borrow().held == 0).await;
            let checkpoint_is_gone = || world.host.0.borrow().checkpoints.is_empty();
            world.until(&format!("the end of the checkpoint after {effect}"), checkpoint_is_gone).await;
        }
        world.ask("parent", Ask::Destroy).await.unwrap();
        world.host.assert_nothing_left();
    });
}

#[test]
fn all_who_ask_while_copies_get_ready_are_served_by_one_pause() {
    Machine::new().life(async |world: World| {
        raw(&world);
        world.create("parent").await.unwrap();
        world.host.twist("launch", Twist::Slow, 1);
        let forks: Vec<_> = ["a", "b", "c"].iter().map(|copy| actix::spawn(world.fork("parent", &[*copy]))).collect();
        for fork in forks {
            fork.await.unwrap().unwrap()[0].1.as_ref().expect("each is made");
        }
        assert_eq!(world.host.count("pause"), 1);
        assert_eq!(world.host.count("freeze"), 1);
        world.until("captures are removed", || world.host.0.borrow().captures.is_empty()).await;
        world.host.assert_no_captures();
    });
}

#[test]
fn a_copy_that_fails_does_not_disturb_the_others() {
    Machine::new().life(async |world: World| {
        raw(&world);
        world.create("parent").await.unwrap();
        world.host.twist("restore", Twist::Fails, 1);
        let copies = world.fork("parent", &["a", "b", "c", "d"]).await.unwrap();
        assert_eq!(copies.iter().filter(|(_, made)| made.is_err()).count(), 1);
        assert_eq!(world.host.0.borrow().vmms.len(), 4);
    });
}

#[test]
fn a_destroy_overtakes_a_copy_that_waits_for_its_source() {
    Machine::new().life(async |world: World| {
        raw(&world);
        world.create("parent").await.unwrap();
        world.host.twist("snapshot", Twist::Slow, 1);
        let fork = actix::spawn(world.fork("parent", &["child"]));
        world.until("the source is captured", || world.host.count("snapshot") == 1).await;
        world.ask("child", Ask::Destroy).await.unwrap();
        assert_eq!(fork.await.unwrap().unwrap()[0].1.as_ref().unwrap_err().code, ErrorCode::Interrupted);
        world.until("the source runs on", || world.host.runs("parent")).await;
        world.until("captures are removed", || world.host.0.borrow().captures.is_empty()).await;
        world.host.assert_no_captures();
    });
}

#[test]
fn a_source_that_dies_while_it_is_copied_takes_no_copy_with_it() {
    Machine::new().life(async |world: World| {
        raw(&world);
        world.create("parent").await.unwrap();
        world.host.twist("take", Twist::Slow, 1);
        let fork = actix::spawn(world.fork("parent", &["child"]));
        world.until("memory is taken", || world.host.count("take") == 1).await;
        let vmm = world.host.0.borrow().vmms["parent"].clone();
        world.host.twist("resume", Twist::Fails, 20);
        vmm.exit(Exit::Signal { signal: 9 });
        assert!(fork.await.unwrap().unwrap()[0].1.is_err());
        world.until("it is cleared", || world.state("parent").as_deref() == Some("stopped")).await;
        assert_eq!(world.state("child"), None);
    });
}

#[test]
fn a_stop_keeps_memory_and_a_failed_checkpoint_is_a_failed_stop() {
    Machine::new().life(async |world: World| {
        raw(&world);
        world.create("box").await.unwrap();
        for effect in ["begin_checkpoint", "prepare", "pause", "snapshot", "take", "keep", "sync"] {
            world.host.twist(effect, Twist::Fails, 1);
            world.ask("box", Ask::Stop(StopMode::Usual)).await.expect_err(effect);
            assert!(world.host.runs("box"), "after {effect}");
            assert_eq!(world.state("box").as_deref(), Some("started"), "after {effect}");
        }
        world.ask("box", Ask::Stop(StopMode::Usual)).await.unwrap();
        assert!(world.host.0.borrow().vmms.is_empty());
        world.ask("box", Ask::Start).await.unwrap();
        assert_eq!((world.host.count("boot"), world.host.count("restore")), (1, 1));
        world.until("the checkpoint is used up", || world.host.0.borrow().checkpoints.is_empty()).await;
    });
}

#[test]
fn memory_never_meets_a_newer_disk() {
    Machine::new().life(async |world: World| {
        raw(&world);
        world.create("box").await.unwrap();
        world.ask("box", Ask::Stop(StopMode::Checkpoint)).await.unwrap();
        *world.host.0.borrow_mut().writes.get_mut("box").unwrap() += 1;
        world.ask("box", Ask::Start).await.expect("it boots from the disk");
        assert_eq!((world.host.count("boot"), world.host.count("restore")), (2, 0));
        let view = world.views.get(&"box".parse().unwrap()).unwrap();
        assert!(view.begin.note.as_ref().unwrap().contains("written to after"), "{:?}", view.begin);
    });
}

#[test]
fn whatever_a_crash_interrupts_no_source_stays_paused_and_no_memory_is_lost() {
    for (is_raw, effects) in [
        (true, &["pause", "snapshot", "take", "freeze", "keep", "restore"][..]),
        (false, &["pause", "snapshot", "keep", "end", "split", "launch", "adapt", "verify", "resume"][..]),
    ] {
        for effect in effects {
            let machine = Machine::new();
            machine.host.0.borrow_mut().raw = is_raw;
            machine.life(async |world: World| {
                world.create("parent").await.unwrap();
                // The child's own effects come first where both have them; it hangs alike.
                world.host.twist(effect, Twist::Hangs, 1);
                let before = world.host.count(effect);
                let fork = actix::spawn(world.fork("parent", &["child"]));
                world.until(effect, || world.host.count(effect) > before).await;
                drop(fork);
            });
            machine.life(async |world: World| {
                world.until("the source runs", || world.host.runs("parent")).await;
                world.until("it rests", || world.state("parent").as_deref() == Some("started")).await;
                // It was complete already where only the source was interrupted.
                let settled = || matches!(world.state("child").as_deref(), None | Some("started"));
                world.until(&format!("the end of the child after {effect}"), settled).await;
                assert_eq!(world.host.count("boot"), 1, "the memory was not lost at {effect}");
                world.host.assert_no_captures();
                for id in ["parent", "child"] {
                    world.ask(id, Ask::Destroy).await.unwrap();
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                world.host.assert_nothing_left();
            });
        }
    }
}

#[test]
fn a_crash_in_a_stop_or_start_loses_no_memory() {
    for effect in ["pause", "snapshot", "keep", "sync", "unload", "end", "unplug"] {
        let machine = Machine::new();
        machine.host.0.borrow_mut().raw = true;
        machine.life(async |world: World| {
            world.create("box").await.unwrap();
            world.host.twist(effect, Twist::Hangs, 1);
            let stop = actix::spawn(world.ask("box", Ask::Stop(StopMode::Checkpoint)));
            world.until(effect, || world.host.count(effect) == 1).await;
            drop(stop);
        });
        machine.life(async |world: World| goes_on(&world, effect).await);
    }
    for effect in ["network", "launch", "adapt", "restore", "resume"] {
        let machine = Machine::new();
        machine.host.0.borrow_mut().raw = true;
        machine.life(async |world: World| {
            world.create("box").await.unwrap();
            world.ask("box", Ask::Stop(StopMode::Checkpoint)).await.unwrap();
            let before = world.host.count(effect);
            world.host.twist(effect, Twist::Hangs, 1);
            let start = actix::spawn(world.ask("box", Ask::Start));
            world.until(effect, || world.host.count(effect) > before).await;
            drop(start);
        });
        machine.life(async |world: World| goes_on(&world, effect).await);
    }
}

/// Started or stopped, it has its memory.
async fn goes_on(world: &World, after: &str) {
    let settled = || matches!(world.state("box").as_deref(), Some("started" | "stopped"));
    world.until("it rests", settled).await;
    world.ask("box", Ask::Start).await.unwrap_or_else(|failure| panic!("{after}: {failure}"));
    assert!(world.host.runs("box"), "after {after}");
    assert_eq!(world.host.count("boot"), 1, "the memory was lost at {after}");
    world.ask("box", Ask::Destroy).await.unwrap();
    world.host.assert_nothing_left();
}

#[test]
fn memory_is_not_used_where_the_disk_may_lack_writes() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        world.host.twist("unload", Twist::Fails, 3);
        world.ask("box", Ask::Stop(StopMode::Checkpoint)).await.unwrap();
        world.ask("box", Ask::Start).await.expect("it boots from the disk");
        assert_eq!((world.host.count("boot"), world.host.count("restore")), (2, 0));
        world.host.twist("unload", Twist::Fails, 3);
        let copies = world.fork("box", &["child"]).await.unwrap();
        let failure = copies[0].1.as_ref().unwrap_err();
        assert!(failure.message.contains("before it had written all of the disk"), "{failure}");
        world.until("it boots", || world.host.count("boot") == 3).await;
        world.until("it rests", || world.state("box").as_deref() == Some("started")).await;
        assert_eq!(world.state("child"), None);
    });
}
