//! Stories about the actors in virtual time.

use std::time::Duration;

use runner_ch::actors::{JobPollerActor, job_poller};
use runner_ch::error::ErrorCode;
use runner_ch::hypervisor::Exit;
use runner_ch::messages::supervisor::Order;
use runner_ch::messages::vm::Resize;
use runner_ch::sandbox::{Ask, StopMode};

#[path = "world/mod.rs"]
mod fakes;

use fakes::deeds::{Base, Deed};
use fakes::{Machine, Twist, World};

#[test]
fn a_destroy_overtakes_a_hanging_boot() {
    Machine::new().life(async |world: World| {
        world.host.twist("boot", Twist::Hangs, 1);
        let create = actix::spawn(world.create("box"));
        world.until("the boot hangs", || world.host.count("boot") == 1).await;
        world.ask("box", Ask::Destroy).await.expect("a destroy overtakes a hanging boot");
        assert_eq!(create.await.unwrap().unwrap_err().code, ErrorCode::Interrupted);
        world.host.assert_nothing_left();
        assert_eq!(world.state("box"), None);
    });
}

#[test]
fn every_failing_stage_of_a_create_is_undone() {
    Machine::new().life(async |world: World| {
        for effect in ["disk", "network", "launch", "create", "boot", "ready"] {
            world.host.twist(effect, Twist::Fails, 1);
            let failure = world.create("box").await.unwrap_err();
            assert!(failure.message.starts_with("cannot create sandbox box"), "{failure}");
            world.host.assert_nothing_left();
            assert_eq!(world.state("box"), None, "after {effect}");
        }
        world.create("box").await.expect("and then it works");
    });
}

#[test]
fn every_failing_stage_of_a_start_leaves_a_stopped_sandbox() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        world.ask("box", Ask::Stop(StopMode::Shutdown)).await.unwrap();
        for effect in ["network", "launch", "create", "boot", "ready"] {
            world.host.twist(effect, Twist::Fails, 1);
            world.ask("box", Ask::Start).await.unwrap_err();
            assert_eq!(world.state("box").as_deref(), Some("stopped"), "after {effect}");
            assert!(world.host.0.borrow().networks.is_empty() && world.host.0.borrow().vmms.is_empty());
            assert_eq!(world.host.0.borrow().disks.len(), 1, "the disk is kept");
        }
        world.ask("box", Ask::Start).await.expect("and then it works");
    });
}

#[test]
fn an_actor_that_panics_in_any_stage_is_rebuilt_and_the_caller_gets_the_answer() {
    for effect in ["disk", "network", "launch", "create", "boot", "ready"] {
        Machine::new().life(async |world: World| {
            world.host.twist(effect, Twist::Panics, 1);
            world.create("box").await.unwrap_or_else(|failure| panic!("{effect}: {failure}"));
            assert_eq!(world.state("box").as_deref(), Some("started"), "after a panic in {effect}");
            assert_eq!(world.host.0.borrow().vmms.len(), 1);
            world.ask("box", Ask::Destroy).await.unwrap();
            world.host.assert_nothing_left();
        });
    }
    for effect in ["power_button", "end", "unplug"] {
        Machine::new().life(async |world: World| {
            world.create("box").await.unwrap();
            world.host.twist(effect, Twist::Panics, 1);
            world
                .ask("box", Ask::Stop(StopMode::Shutdown))
                .await
                .unwrap_or_else(|failure| panic!("{effect}: {failure}"));
            assert_eq!(world.state("box").as_deref(), Some("stopped"), "after a panic in {effect}");
            world.ask("box", Ask::Destroy).await.unwrap();
            world.host.assert_nothing_left();
        });
    }
}

#[test]
fn a_panic_beside_a_running_vm_does_not_touch_it() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        world.create("other").await.unwrap();
        let known = world.host.0.borrow().vmms["box"].known.clone();
        // The watch of the actor is where it panics; the process itself is not gone.
        world.host.twist("exited", Twist::Panics, 1);
        let vmm = world.host.0.borrow().vmms["box"].clone();
        vmm.exit(Exit::Unknown);
        world.host.0.borrow_mut().vmms.insert("box".into(), vmm.revived());
        world.until("the actor is rebuilt", || world.host.count("adopt") == 1).await;
        world.until("it is started again", || world.state("box").as_deref() == Some("started")).await;
        assert_eq!(world.host.0.borrow().vmms["box"].known, known, "the same VMM");
        assert_eq!(world.host.count("launch"), 2, "nothing was started again");
        assert!(world.routes.get(&"box".parse().unwrap()).is_some(), "and it can be reached");
        world.ask("box", Ask::Stop(StopMode::Shutdown)).await.unwrap();
    });
}

#[test]
fn a_vmm_that_dies_is_cleared_and_the_reason_is_shown() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        let vmm = world.host.0.borrow().vmms["box"].clone();
        vmm.exit(Exit::Signal { signal: 11 });
        world.until("it is stopped", || world.state("box").as_deref() == Some("stopped")).await;
        let view = world.views.get(&"box".parse().unwrap()).unwrap();
        assert!(view.error.as_deref().unwrap().contains("signal 11"), "{:?}", view.error);
        assert!(world.host.0.borrow().networks.is_empty(), "its network and slot are free");
        assert!(world.routes.get(&"box".parse().unwrap()).is_none());
    });
}

#[test]
fn only_so_many_start_at_once() {
    Machine::new().life(async |world: World| {
        let creates: Vec<_> = (0..9).map(|n| world.create(&format!("box-{n}"))).collect();
        for created in futures::future::join_all(creates).await {
            created.unwrap();
        }
        assert_eq!(world.host.0.borrow().most_booting, 2);
    });
}

#[test]
fn a_long_job_says_that_it_is_alive_and_each_time_something_new() {
    Machine::new().life(async |world: World| {
        world.host.twist("boot", Twist::Hangs, 1);
        let settings = job_poller::Settings {
            poll_timeout: Duration::from_secs(30),
            poll_limit: 10,
            reconcile_interval: Duration::from_secs(60),
            heartbeat: job_poller::HEARTBEAT,
        };
        let orders = world.supervisor.clone().recipient();
        let _poller = JobPollerActor::start_with(
            world.ports.clone(),
            orders,
            world.forks.clone(),
            settings,
            Vec::new(),
            world.work.clone(),
            tokio::sync::mpsc::unbounded_channel().0,
        );
        world.api.hand_out(serde_json::json!({
            "id": "job-1", "type": "CREATE_SANDBOX", "status": "IN_PROGRESS", "resourceType": "SANDBOX",
            "resourceId": "box", "payload": "{\"id\":\"box\"}",
        }));
        tokio::time::sleep(Duration::from_secs(9 * 60 + 30)).await;
        let bodies: Vec<_> = world.api.reports.borrow().iter().map(|(_, body)| body.clone()).collect();
        assert_eq!(bodies.len(), 9, "one a minute: {bodies:?}");
        let different: std::collections::BTreeSet<_> = bodies.iter().map(ToString::to_string).collect();
        assert_eq!(different.len(), 9, "a report that changes nothing does not move updatedAt");
        assert!(bodies.iter().all(|body| body["status"] == "IN_PROGRESS"));
    });
}

#[test]
fn a_create_that_waits_for_a_destroy_makes_what_it_asked_for() {
    Machine::new().life(async |world: World| {
        world.create_with("box", 1).await.unwrap();
        world.host.twist("unplug", Twist::Slow, 1);
        let destroy = actix::spawn(world.ask("box", Ask::Destroy));
        world.until("the destroy is under way", || world.host.count("unplug") == 1).await;
        let create = actix::spawn(world.create_with("box", 3));
        destroy.await.unwrap().unwrap();
        create.await.unwrap().unwrap();
        assert_eq!(world.views.get(&"box".parse().unwrap()).unwrap().size.vcpus, 3);
    });
}

#[test]
fn a_vmm_that_dies_right_after_it_was_ready_is_no_success() {
    Machine::new().life(async |world: World| {
        world.host.twist("ready", Twist::Slow, 1);
        let create = actix::spawn(world.create("box"));
        world.until("the guest is asked", || world.host.count("ready") == 1).await;
        let vmm = world.host.0.borrow().vmms["box"].clone();
        vmm.exit(Exit::Signal { signal: 6 });
        let failure = create.await.unwrap().unwrap_err();
        assert!(failure.message.contains("signal 6"), "{failure}");
        world.host.assert_nothing_left();
    });
}

#[test]
fn a_destroy_does_not_wait_for_a_base_that_is_being_flattened() {
    Machine::new().life(async |world: World| {
        world.host.twist("disk", Twist::Hangs, 1);
        let create = actix::spawn(world.create("box"));
        world.until("the disk is being made", || world.host.count("disk") == 1).await;
        world.ask("box", Ask::Destroy).await.unwrap();
        assert_eq!(create.await.unwrap().unwrap_err().code, ErrorCode::Interrupted);
        world.host.assert_nothing_left();
    });
}

/// The runner is cut off at every effect of every operation, and started again on the same store and
/// the same host.
#[test]
fn whatever_a_crash_interrupts_is_finished_or_taken_back_by_the_next_start() {
    for effect in ["disk", "network", "launch", "create", "boot", "ready"] {
        let machine = Machine::new();
        machine.host.twist(effect, Twist::Hangs, 1);
        machine.life(async |world: World| {
            actix::spawn(world.create("box"));
            world.until("the effect is reached", || world.host.count(effect) == 1).await;
        });
        machine.life(async |world: World| {
            world.until("it is settled", || world.state("box").is_none()).await;
            world.host.assert_nothing_left();
            world.create("box").await.unwrap_or_else(|failure| panic!("after a crash in {effect}: {failure}"));
        });
    }
}

#[test]
fn an_interrupted_stop_or_destroy_is_finished_by_the_next_start() {
    let cases = [
        ("power_button", Ask::Stop(StopMode::Shutdown)),
        ("end", Ask::Stop(StopMode::Kill)),
        ("unplug", Ask::Stop(StopMode::Kill)),
        ("end", Ask::Destroy),
        ("unplug", Ask::Destroy),
        ("erase", Ask::Destroy),
    ];
    for (effect, ask) in cases {
        let machine = Machine::new();
        machine.life(async |world: World| {
            world.create("box").await.unwrap();
            world.host.twist(effect, Twist::Hangs, 1);
            actix::spawn(world.ask("box", ask));
            world.until("the effect is reached", || world.host.count(effect) == 1).await;
        });
        machine.life(async |world: World| {
            let end = if ask == Ask::Destroy { None } else { Some("stopped") };
            world.until("it is finished", || world.state("box").as_deref() == end).await;
            let host = world.host.0.borrow();
            assert!(host.vmms.is_empty() && host.networks.is_empty(), "{effect} {ask:?}");
            assert_eq!(host.disks.is_empty(), ask == Ask::Destroy, "{effect} {ask:?}");
        });
    }
}

#[test]
fn running_vms_are_adopted_and_what_cannot_be_checked_is_left_alone() {
    let machine = Machine::new();
    let known = machine.life(async |world: World| {
        world.create("box").await.unwrap();
        world.host.0.borrow().vmms["box"].known.clone()
    });
    machine.life(async |world: World| {
        assert_eq!(world.state("box").as_deref(), Some("started"));
        assert_eq!(world.host.0.borrow().vmms["box"].known, known);
        assert!(world.routes.get(&"box".parse().unwrap()).is_some());
    });
    machine.host.twist("adopt", Twist::Fails, 1);
    machine.life(async |world: World| {
        assert_eq!(world.state("box").as_deref(), Some("unknown"));
        assert_eq!(world.host.0.borrow().vmms.len(), 1, "it is not treated as dead");
        let refused = world.ask("box", Ask::Start).await.unwrap_err();
        assert!(refused.message.contains("cannot be found out"), "{refused}");
        // The next look finds it, and it is as it was.
        world.until("it is looked at again", || world.state("box").as_deref() == Some("started")).await;
        assert_eq!(world.host.0.borrow().vmms["box"].known, known);
        world.until("its route is open", || world.routes.get(&"box".parse().unwrap()).is_some()).await;
        world.ask("box", Ask::Start).await.unwrap();
    });
    machine.host.twist("adopt", Twist::Fails, 1);
    machine.life(async |world: World| {
        assert_eq!(world.state("box").as_deref(), Some("unknown"));
        world.ask("box", Ask::Destroy).await.unwrap();
        world.host.assert_nothing_left();
    });
}

#[test]
fn a_resize_that_could_not_be_stored_is_not_done() {
    let machine = Machine::new();
    machine.life(async |world: World| {
        world.create("box").await.unwrap();
        world.host.twist("put", Twist::Fails, 1);
        let refused = world.carry_out(&Deed::Resize("box", 2), false).await.remove(0).1;
        assert!(refused.unwrap_err().message.contains("cannot save"), "a kill would undo it");
        world.carry_out(&Deed::Resize("box", 3), false).await.remove(0).1.unwrap();
    });
    machine.life(async |world: World| {
        assert_eq!(world.views.get(&"box".parse().unwrap()).unwrap().size.vcpus, 3);
    });
}

#[test]
fn a_source_that_cannot_be_started_again_after_a_kill_is_shown_as_broken() {
    let machine = Machine::new();
    machine.life(async |world: World| {
        world.create("box").await.unwrap();
        world.host.twist("split", Twist::Hangs, 1);
        actix::spawn(world.fork("box", &["copy"]));
        world.until("its VMM is replaced", || world.host.count("split") == 1).await;
    });
    machine.host.twist("clear", Twist::Fails, 1);
    machine.life(async |world: World| {
        world.until("it is settled", || world.views.list().iter().all(|view| view.settled)).await;
        assert_eq!(world.state("box").as_deref(), Some("error"));
        world.ask("box", Ask::Stop(StopMode::Kill)).await.unwrap();
        world.ask("box", Ask::Start).await.unwrap();
        assert_eq!(world.host.count("boot"), 1, "it goes on from its memory");
    });
}

#[test]
fn a_paused_source_whose_copy_fails_is_paused_again() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        world.ask("box", Ask::Pause).await.unwrap();
        let memory = world.host.memory("box");
        for effect in ["begin_capture", "copy_snapshot", "split"] {
            world.host.twist(effect, Twist::Fails, 1);
            world.fork("box", &["copy"]).await.unwrap().remove(0).1.expect_err(effect);
            world.until("it is settled", || world.views.list().iter().all(|view| view.settled)).await;
            assert_eq!(world.state("box").as_deref(), Some("paused"), "after {effect}");
            assert_eq!(world.host.memory("box"), memory, "after {effect}");
        }
        let resumes = world.host.count("resume");
        world.ask("box", Ask::Start).await.unwrap();
        assert_eq!(world.host.count("resume"), resumes + 1, "nobody has let it run meanwhile");
    });
}

#[test]
fn a_guest_that_runs_to_power_off_uses_up_the_memory_of_its_last_copy() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        world.ask("box", Ask::Pause).await.unwrap();
        world.fork("box", &["copy"]).await.unwrap().remove(0).1.unwrap();
        world.ask("box", Ask::Stop(StopMode::Shutdown)).await.unwrap();
        assert!(!world.views.get(&"box".parse().unwrap()).unwrap().checkpoint);
    });
}

#[test]
fn a_create_that_waits_for_a_destroy_is_not_told_of_the_old_vmm() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        let destroy = world.carry_out(&Deed::Destroy("box"), false);
        let create = world.carry_out(&Deed::Create("box", Base::Idle), false);
        let (destroyed, created) = futures::future::join(destroy, create).await;
        destroyed[0].1.as_ref().unwrap();
        created[0].1.as_ref().unwrap();
        assert_eq!(world.state("box").as_deref(), Some("stopped"));
    });
}

/// More memory than it was booted with waits for the next boot; a copy is none.
#[test]
fn a_source_that_waits_for_its_resize_keeps_its_memory_when_it_is_copied() {
    let machine = Machine::new();
    machine.life(async |world: World| {
        world.create("box").await.unwrap();
        let resize = Some(Resize { memory: Some(1 << 30), ..Resize::default() });
        let order = Order { resize, ..Order::new("box".parse().unwrap(), Ask::Resize) };
        world.supervisor.send(order).await.unwrap().unwrap();
        world.fork("box", &["copy"]).await.unwrap().remove(0).1.unwrap();
        assert_eq!((world.host.count("boot"), world.host.memory("copy")), (1, world.host.memory("box")));
        world.host.twist("split", Twist::Hangs, 1);
        actix::spawn(world.fork("box", &["other"]));
        world.until("its VMM is replaced", || world.host.count("split") == 2).await;
    });
    machine.life(async |world: World| {
        world.until("it goes on", || world.state("box").as_deref() == Some("started")).await;
        assert_eq!((world.host.count("boot"), world.host.memory("copy")), (1, world.host.memory("box")));
    });
}

#[test]
fn a_copy_has_the_size_of_the_memory_that_it_goes_on_from() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        let resize = world.carry_out(&Deed::Resize("box", 3), false);
        let fork = world.carry_out(&Deed::Fork("box", vec!["copy"]), false);
        let (resized, forked) = futures::future::join(resize, fork).await;
        assert!(resized[0].1.is_ok() && forked[0].1.is_ok());
        let record = world.record("copy").await.unwrap();
        assert_eq!((record.size.vcpus, record.running.unwrap().vcpus), (3, 3));
        world.fork("copy", &["another"]).await.unwrap().remove(0).1.unwrap();
        assert_eq!(world.host.count("boot"), 1, "the memory was lost");
    });
}
