//! Stories of overload in virtual time: who is let in, who has to wait, and what a full volume stops.

use std::time::Duration;

use futures::future::join_all;
use runner_ch::error::ErrorCode;
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
