//! Stories of overload in virtual time: who is let in, who has to wait, and what a full volume stops.

use std::time::Duration;

use futures::future::join_all;
use runner_ch::error::ErrorCode;
use runner_ch::messages::fork::TakeSnapshot;
use runner_ch::sandbox::capacity::Limits;
use runner_ch::sandbox::{Ask, StopMode};

#[path = "world/mod.rs"]
mod fakes;

use fakes::{Machine, Twist, World};

const GIB: u64 = 1 << 30;

/// A machine of 4 CPUs and 64 GiB; sandboxes have 1 vCPU and 512 MiB.
fn limited(limits: Limits) -> Machine {
    let machine = Machine::new();
    machine.host.0.borrow_mut().limits = Some(limits);
    machine.host.0.borrow_mut().available = 32 * GIB;
    machine
}

#[test]
fn two_creations_at_once_do_not_get_the_last_place_both() {
    let limits = Limits { vcpus_per_cpu: 1, ..Limits::NONE };
    limited(limits).life(async |world: World| {
        let created = join_all((0..9).map(|n| world.create(&format!("box-{n}")))).await;
        let refused: Vec<_> = created.iter().filter_map(|created| created.as_ref().err()).collect();
        assert_eq!(refused.len(), 5, "4 CPUs, one vCPU each: {refused:?}");
        for failure in refused {
            assert_eq!(failure.code, ErrorCode::Busy);
            assert!(failure.message.contains("RUNNER_CPU_OVERCOMMIT"), "{failure}");
        }
        assert_eq!(world.host.count("disk"), 4, "a refused creation does nothing");
        assert_eq!(world.views.list().len(), 4, "and is not seen");
    });
}

#[test]
fn room_comes_back_with_a_stop_and_a_destroy_and_a_failure() {
    let limits = Limits { memory_percent: 1, ..Limits::NONE };
    limited(limits).life(async |world: World| {
        // 1 % of 64 GiB is 655 MiB: one sandbox.
        world.create("one").await.unwrap();
        let failure = world.create("two").await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Busy);
        assert!(failure.message.contains("512 MiB asked for, 512 MiB are promised to 1 sandboxes"), "{failure}");
        world.create("one").await.expect("one that runs is only found again");
        world.ask("one", Ask::Pause).await.expect("a pause needs no room");
        world.ask("one", Ask::Start).await.expect("nor does the end of a pause");
        world.ask("one", Ask::Stop(StopMode::Checkpoint)).await.unwrap();
        world.create("two").await.expect("a stopped one holds nothing");
        assert_eq!(world.ask("one", Ask::Start).await.unwrap_err().code, ErrorCode::Busy, "a start needs room again");
        world.ask("two", Ask::Destroy).await.unwrap();
        world.host.twist("boot", Twist::Fails, 1);
        world.create("three").await.unwrap_err();
        world.ask("one", Ask::Start).await.expect("what failed holds nothing");
        let copies = world.fork("one", &["copy"]).await.unwrap();
        assert_eq!(copies[0].1.as_ref().unwrap_err().code, ErrorCode::Busy, "a copy is held against the limit, too");
        assert!(world.host.runs("one"));
        world.host.assert_no_captures();
    });
}

#[test]
fn a_panic_gives_its_room_back() {
    let limits = Limits { vcpus_per_cpu: 1, ..Limits::NONE };
    limited(limits).life(async |world: World| {
        for _ in 0..5 {
            // Three lives of the actor end in a panic, and the creation with them.
            world.host.twist("disk", Twist::Panics, 3);
            world.create("box").await.unwrap_err();
            world.until("it is gone", || world.state("box").is_none()).await;
        }
        for created in join_all((0..4).map(|n| world.create(&format!("box-{n}")))).await {
            created.unwrap();
        }
    });
}

#[test]
fn nothing_is_started_into_the_last_free_memory() {
    let limits = Limits { min_free_memory: GIB, ..Limits::NONE };
    limited(limits).life(async |world: World| {
        world.create("one").await.unwrap();
        world.ask("one", Ask::Stop(StopMode::Shutdown)).await.unwrap();
        world.host.0.borrow_mut().available = GIB;
        let failure = world.ask("one", Ask::Start).await.unwrap_err();
        assert!(failure.message.contains("1024 MiB of 65536 MiB are available"), "{failure}");
        assert!(failure.message.contains("RUNNER_MIN_FREE_MEMORY_MB"), "{failure}");
        world.host.0.borrow_mut().available = 2 * GIB;
        world.ask("one", Ask::Start).await.unwrap();
    });
}

#[test]
fn network_slots_are_promised_with_the_admission() {
    Machine::new().life(async |world: World| {
        let created = join_all((0..260).map(|n| world.create(&format!("box-{n}")))).await;
        let refused: Vec<_> = created.into_iter().filter_map(Result::err).collect();
        assert!(!refused.is_empty() && refused.len() < 20, "a /24 has some 250 slots: {}", refused.len());
        for failure in refused {
            assert_eq!(failure.code, ErrorCode::Busy);
            assert!(failure.message.contains("network slots of this host are taken"), "{failure}");
        }
        assert_eq!(world.host.count("network"), world.views.list().len(), "nobody began in vain");
    });
}

#[test]
fn a_full_volume_stops_what_writes_and_nothing_else() {
    Machine::new().life(async |world: World| {
        for id in ["runs", "paused", "stopped"] {
            world.create(id).await.unwrap();
        }
        world.ask("paused", Ask::Pause).await.unwrap();
        world.ask("stopped", Ask::Stop(StopMode::Checkpoint)).await.unwrap();
        world.pressure.set_data(Some("the volume of /data has 3 MiB free".to_owned()));

        let refused = [world.create("new").await, world.ask("stopped", Ask::Start).await];
        for failure in refused.into_iter().map(Result::unwrap_err) {
            assert_eq!(failure.code, ErrorCode::NoSpace);
            let words = "no space left on device: the volume of /data has 3 MiB free";
            assert!(failure.message.contains(words), "{failure}");
        }
        let copies = world.fork("runs", &["copy"]).await.unwrap();
        assert_eq!(copies[0].1.as_ref().unwrap_err().code, ErrorCode::NoSpace);
        let failure = world.ask("runs", Ask::Stop(StopMode::Checkpoint)).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::NoSpace);
        assert!(world.host.runs("runs"), "its memory is not thrown away when it was asked for");

        world.ask("paused", Ask::Start).await.expect("it is in memory already");
        world.ask("stopped", Ask::Stop(StopMode::Checkpoint)).await.expect("already stopped is success");
        world.ask("runs", Ask::Stop(StopMode::Usual)).await.expect("the usual stop shuts down");
        assert_eq!(world.host.count("power_button"), 1);
        let view = world.views.get(&"runs".parse().unwrap()).unwrap();
        let note = view.begin.note.clone().unwrap();
        assert!(note.starts_with("stopped without its memory: no space left on device"), "{note}");
        assert!(!view.checkpoint);
        world.ask("paused", Ask::Destroy).await.expect("a destroy gives space");

        world.pressure.set_data(None);
        world.ask("runs", Ask::Start).await.unwrap();
        assert_eq!(world.views.get(&"runs".parse().unwrap()).unwrap().begin.note, None);
        world.ask("stopped", Ask::Start).await.unwrap();
        world.create("new").await.unwrap();
    });
}

#[test]
fn what_runs_when_the_runner_comes_back_counts() {
    let machine = limited(Limits { vcpus_per_cpu: 1, ..Limits::NONE });
    machine.life(async |world: World| {
        for n in 0..4 {
            world.create(&format!("box-{n}")).await.unwrap();
        }
    });
    machine.life(async |world: World| {
        world.create("more").await.unwrap_err();
        world.ask("box-0", Ask::Destroy).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        world.create("more").await.unwrap();
    });
}

#[test]
fn more_requests_than_may_wait_are_refused_at_once() {
    let machine = Machine::new();
    machine.host.0.borrow_mut().max_queued = Some(8);
    machine.life(async |world: World| {
        world.host.twist("boot", Twist::Hangs, 2);
        let waiting: Vec<_> = (0..8).map(|n| actix::spawn(world.create(&format!("box-{n}")))).collect();
        world.until("both places are taken", || world.host.count("boot") == 2).await;
        let began = tokio::time::Instant::now();
        let failure = world.create("more").await.unwrap_err();
        assert_eq!((failure.code, began.elapsed()), (ErrorCode::Busy, Duration::ZERO));
        assert!(failure.message.contains("8 requests are under way"), "{failure}");
        assert!(failure.message.contains("RUNNER_MAX_QUEUED"), "{failure}");
        // What frees the host is let in: the two that hang are destroyed, and the rest goes on.
        let hanging: Vec<_> =
            (0..8).map(|n| format!("box-{n}")).filter(|id| world.host.0.borrow().vmms.contains_key(id)).collect();
        assert_eq!(hanging.len(), 2);
        for id in &hanging {
            world.ask(id, Ask::Destroy).await.expect("a destroy is let in");
        }
        let created = join_all(waiting).await.into_iter().map(Result::unwrap);
        assert_eq!(created.filter(Result::is_ok).count(), 6);
        world.create("more").await.expect("and there is room again");
        assert!(world.work.underway().is_empty());
    });
}

/// Sandboxes that start again and again stand in line like everybody else.
#[test]
fn the_gate_is_fair() {
    Machine::new().life(async |world: World| {
        for id in ["loop-0", "loop-1", "loop-2", "loop-3"] {
            world.create(id).await.unwrap();
        }
        world.host.0.borrow_mut().most_booting = 0;
        let world = std::rc::Rc::new(world);
        let rounds = std::rc::Rc::new(std::cell::Cell::new(0));
        let loops: Vec<_> = (0..4)
            .map(|n| {
                let (world, rounds) = (world.clone(), rounds.clone());
                actix::spawn(async move {
                    loop {
                        world.ask(&format!("loop-{n}"), Ask::Stop(StopMode::Kill)).await.unwrap();
                        world.ask(&format!("loop-{n}"), Ask::Start).await.unwrap();
                        rounds.set(rounds.get() + 1);
                    }
                })
            })
            .collect();
        world.until("they turn", || rounds.get() > 20).await;
        for n in 0..5 {
            let before = rounds.get();
            world.create(&format!("new-{n}")).await.unwrap();
            let passed = rounds.get() - before;
            // Those who stood in line before it, and those who had a place: nobody starts twice before it does.
            assert!(passed <= 8, "{passed} starts went before a new sandbox");
        }
        assert_eq!(world.host.0.borrow().most_booting, 2, "two places, and never more");
        loops.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

/// A source whose VMM is exchanged for a copy starts a VMM, too; and copies wait for it without holding a place.
#[test]
fn copies_and_their_sources_share_the_places_without_deadlock() {
    Machine::new().life(async |world: World| {
        world.create("source").await.unwrap();
        let copies: Vec<String> = (0..12).map(|n| format!("copy-{n}")).collect();
        let names: Vec<&str> = copies.iter().map(String::as_str).collect();
        let fork = actix::spawn(world.fork("source", &names));
        let creates = join_all((0..6).map(|n| world.create(&format!("box-{n}"))));
        for created in creates.await {
            created.unwrap();
        }
        for (id, made) in fork.await.unwrap().unwrap() {
            made.unwrap_or_else(|failure| panic!("{id}: {failure}"));
        }
        assert!(world.host.runs("source"));
        assert!(world.host.0.borrow().most_booting <= 2);
        assert!(world.host.0.borrow().most_restoring <= 2, "{}", world.host.0.borrow().most_restoring);
        world.host.assert_no_captures();
    });
}

/// Whatever of a capture hangs, the source runs on in bounded time, and nobody waits for ever.
#[test]
fn a_source_that_hangs_while_it_is_copied_is_let_go() {
    for raw in [false, true] {
        for effect in ["pause", "snapshot", "freeze", "take", "flush", "prepare"] {
            let machine = Machine::new();
            machine.host.0.borrow_mut().raw = raw;
            machine.life(async |world: World| {
                world.create("source").await.unwrap();
                let before = world.host.count(effect);
                world.host.twist(effect, Twist::Hangs, 1);
                let began = tokio::time::Instant::now();
                let copies = world.fork("source", &["copy"]).await;
                if world.host.count(effect) == before {
                    return; // Not part of this recipe.
                }
                let copies = copies.unwrap();
                assert!(copies[0].1.is_err(), "{effect}: {copies:?}");
                assert!(began.elapsed() <= Duration::from_secs(16 * 60), "{effect}: {:?}", began.elapsed());
                assert!(world.host.runs("source"), "{effect} hangs: the source runs on");
                assert_eq!(world.state("source").as_deref(), Some("started"), "{effect}");
                world.until("nothing is left of the copy", || world.state("copy").is_none()).await;
                let copies = world.fork("source", &["again"]).await.unwrap();
                copies[0].1.as_ref().unwrap_or_else(|failure| panic!("after {effect}: {failure}"));
                world.ask("source", Ask::Destroy).await.unwrap();
                world.ask("again", Ask::Destroy).await.unwrap();
                world.host.assert_nothing_left();
            });
        }
    }
}

#[test]
fn a_pause_that_hangs_lets_the_sandbox_run_on() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        world.host.twist("pause", Twist::Hangs, 1);
        let failure = world.ask("box", Ask::Pause).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Timeout);
        assert!(world.host.runs("box"));
        assert_eq!(world.state("box").as_deref(), Some("started"));
        world.ask("box", Ask::Pause).await.expect("and the next one works");
        assert!(!world.host.runs("box"));
    });
}

/// A stage that hangs ends, gives its place at the gate back, and leaves nothing.
#[test]
fn a_start_that_hangs_anywhere_ends_and_gives_its_place_back() {
    for effect in ["disk", "network", "launch", "create"] {
        Machine::new().life(async |world: World| {
            world.host.twist(effect, Twist::Hangs, 2);
            let hanging: Vec<_> = (0..2).map(|n| actix::spawn(world.create(&format!("box-{n}")))).collect();
            world.until("both hang", || world.host.count(effect) == 2).await;
            world.create("other").await.unwrap_or_else(|failure| panic!("{effect}: {failure}"));
            for created in join_all(hanging).await {
                assert_eq!(created.unwrap().unwrap_err().code, ErrorCode::Timeout, "{effect}");
            }
            world.ask("other", Ask::Destroy).await.unwrap();
            world.host.assert_nothing_left();
        });
    }
}

/// What a copy or snapshot leaves to be removed, or writes, may hang: who asked gets an answer all the same.
#[test]
fn a_disk_that_hangs_beside_a_copy_or_snapshot_holds_nobody_for_ever() {
    Machine::new().life(async |world: World| {
        world.create("source").await.unwrap();
        world.ask("source", Ask::Stop(StopMode::Checkpoint)).await.unwrap();
        world.host.twist("end_capture", Twist::Hangs, 1);
        let began = tokio::time::Instant::now();
        let copies = world.fork("source", &["copy"]).await.unwrap();
        copies[0].1.as_ref().expect("the copy is made");
        assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());

        world.host.twist("save", Twist::Hangs, 1);
        let take = TakeSnapshot {
            source: "source".parse().unwrap(),
            reference: "org/point".parse().unwrap(),
            name: "point".to_owned(),
            memory: false,
            by_job: false,
        };
        let failure = world.forks.send(take.clone()).await.unwrap().unwrap_err();
        assert_eq!(failure.code, ErrorCode::Timeout);
        assert!(failure.message.contains("cannot make snapshot org/point"), "{failure}");
        world.forks.send(take).await.unwrap().expect("and then it works");
        assert!(world.work.underway().is_empty());
    });
}
