//! Stories in virtual time about sandboxes that end unasked.

use std::time::Duration;

use runner_ch::hypervisor::Exit;
use runner_ch::sandbox::restart::{Policy, Settings};
use runner_ch::sandbox::{Ask, StopMode, View};

#[path = "world/mod.rs"]
mod fakes;

use fakes::{Machine, Twist, World};

const CRASH: Exit = Exit::Signal { signal: 11 };

fn machine(policy: Policy, most: u32) -> Machine {
    let machine = Machine::new();
    machine.host.0.borrow_mut().restart = Settings { policy, most, window: Duration::from_secs(600) };
    machine
}

fn view(world: &World, id: &str) -> std::sync::Arc<View> {
    world.views.get(&id.parse().unwrap()).expect("it is there")
}

fn end(world: &World, id: &str, exit: Exit) {
    let vmm = world.host.0.borrow().vmms[id].clone();
    vmm.exit(exit);
}

async fn settled(world: &World, id: &str, state: &str) {
    world.until(state, || world.state(id).as_deref() == Some(state) && view(world, id).settled).await;
}

/// It was running, ended, and waits for its restart.
async fn waits(world: &World, id: &str) {
    end(world, id, CRASH);
    world.until("it waits", || world.count_networks() == 0 && view(world, id).restart.is_some()).await;
}

trait Networks {
    fn count_networks(&self) -> usize;
}

impl Networks for World {
    fn count_networks(&self) -> usize {
        self.host.0.borrow().networks.len()
    }
}

#[test]
fn a_sandbox_that_crashes_is_started_again_and_nobody_sees_it_settled_meanwhile() {
    machine(Policy::OnFailure, 5).life(async |world: World| {
        world.create("box").await.unwrap();
        end(&world, "box", CRASH);
        world.until("it begins again", || world.host.count("launch") == 2).await;
        settled(&world, "box", "started").await;
        let view = view(&world, "box");
        assert_eq!(view.last_exit.as_ref().unwrap().cause, "signal");
        assert!(view.restart.is_none() && view.error.is_none());
        let kept = world.host.0.borrow().kept.clone();
        assert_eq!((kept.len(), kept[0].cause.as_str(), kept[0].during.as_str()), (1, "signal", "running"));
        assert_eq!(world.views.untold().len(), 1, "the reporter finds that there is nothing to tell");
    });
}

#[test]
fn what_a_guest_wants_is_only_undone_by_the_policy_always() {
    for (policy, expected) in [(Policy::OnFailure, "stopped"), (Policy::Always, "started")] {
        machine(policy, 5).life(async |world: World| {
            world.create("box").await.unwrap();
            end(&world, "box", Exit::GuestPowerOff);
            world.until("it ended", || view(&world, "box").last_exit.is_some()).await;
            settled(&world, "box", expected).await;
            assert_eq!(world.host.count("launch"), if expected == "started" { 2 } else { 1 });
        });
    }
}

#[test]
fn a_stop_a_start_or_a_destroy_overtakes_the_wait_for_a_restart() {
    machine(Policy::OnFailure, 5).life(async |world: World| {
        world.create("box").await.unwrap();
        waits(&world, "box").await;
        assert_eq!(world.state("box").as_deref(), Some("starting"));
        world.ask("box", Ask::Stop(StopMode::Kill)).await.unwrap();
        settled(&world, "box", "stopped").await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!((world.state("box").as_deref(), world.host.count("launch")), (Some("stopped"), 1));
        assert!(world.views.untold().is_empty(), "the stop itself is the news");
        world.ask("box", Ask::Start).await.unwrap();

        waits(&world, "box").await;
        world.ask("box", Ask::Start).await.expect("at once");
        assert_eq!(world.host.count("launch"), 3);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(world.host.count("launch"), 3, "and not once more");

        waits(&world, "box").await;
        world.ask("box", Ask::Destroy).await.unwrap();
        tokio::time::sleep(Duration::from_secs(600)).await;
        world.host.assert_nothing_left();
        assert_eq!(world.state("box"), None);
    });
}

#[test]
fn a_stop_in_the_wait_is_not_forgotten_by_a_crash_of_the_runner() {
    let machine = machine(Policy::OnFailure, 5);
    machine.life(async |world: World| {
        world.create("box").await.unwrap();
        waits(&world, "box").await;
        world.ask("box", Ask::Stop(StopMode::Checkpoint)).await.unwrap();
    });
    machine.life(async |world: World| {
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!((world.state("box").as_deref(), world.host.count("launch")), (Some("stopped"), 1));
    });
}

#[test]
fn a_runner_that_is_killed_while_it_waits_or_restarts_goes_on_with_it() {
    for effect in [None, Some("network"), Some("launch"), Some("boot"), Some("ready")] {
        let machine = machine(Policy::OnFailure, 5);
        machine.life(async |world: World| {
            world.create("box").await.unwrap();
            if let Some(effect) = effect {
                let before = world.host.count(effect);
                world.host.twist(effect, Twist::Hangs, 1);
                end(&world, "box", CRASH);
                world.until("it hangs", || world.host.count(effect) > before).await;
            } else {
                waits(&world, "box").await;
            }
        });
        machine.life(async |world: World| {
            settled(&world, "box", "started").await;
            assert_eq!(view(&world, "box").last_exit.as_ref().unwrap().cause, "signal", "{effect:?}");
        });
    }
}

#[test]
fn an_end_that_was_being_cleared_when_the_runner_died_keeps_its_reason() {
    for (policy, state) in [(Policy::Never, "stopped"), (Policy::OnFailure, "started")] {
        let machine = machine(policy, 5);
        machine.life(async |world: World| {
            world.create("box").await.unwrap();
            world.host.twist("unplug", Twist::Hangs, 1);
            end(&world, "box", CRASH);
            world.until("it is being cleared", || world.host.count("unplug") == 1).await;
        });
        machine.life(async |world: World| {
            settled(&world, "box", state).await;
            let view = view(&world, "box");
            assert_eq!(view.last_exit.as_ref().unwrap().cause, "signal");
            assert_eq!(view.error.is_some(), state == "stopped", "{:?}", view.error);
        });
    }
}

#[test]
fn a_crash_loop_ends_in_an_error_until_somebody_starts_it() {
    let machine = machine(Policy::OnFailure, 2);
    machine.life(async |world: World| {
        world.create("box").await.unwrap();
        // A start that fails is an end like any other.
        end(&world, "box", CRASH);
        world.host.twist("boot", Twist::Fails, 1);
        world.until("the start fails and is tried again", || world.host.count("boot") == 3).await;
        settled(&world, "box", "started").await;
        end(&world, "box", Exit::OutOfMemory);
        settled(&world, "box", "error").await;
        let view = view(&world, "box");
        let reason = view.error.clone().unwrap();
        for words in ["crash loop", "3 times within 600 s", "RUNNER_RESTART_MAX=2", "want of memory", "crashes"] {
            assert!(reason.contains(words), "{words:?} is not in {reason:?}");
        }
        assert_eq!(world.views.untold().len(), 1);
        assert_eq!(world.host.0.borrow().kept.len(), 3);
        assert_eq!((world.count_networks(), world.host.0.borrow().disks.len()), (0, 1));
    });
    machine.life(async |world: World| {
        settled(&world, "box", "error").await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(world.host.count("launch"), 3, "a new life of the runner does not begin anew");
        world.ask("box", Ask::Start).await.expect("a start by somebody does");
        settled(&world, "box", "started").await;
        waits(&world, "box").await;
        settled(&world, "box", "started").await;
        world.ask("box", Ask::Stop(StopMode::Kill)).await.unwrap();
        settled(&world, "box", "stopped").await;
    });
}

#[test]
fn after_a_reboot_of_the_host_all_that_ran_are_started_as_many_at_once_as_may() {
    let machine = machine(Policy::OnFailure, 1);
    let boxes = ["a", "b", "c", "d", "e", "f"];
    machine.life(async |world: World| {
        for id in boxes {
            world.create(id).await.unwrap();
        }
        world.ask("e", Ask::Pause).await.unwrap();
        world.ask("f", Ask::Stop(StopMode::Kill)).await.unwrap();
    });
    machine.host.0.borrow_mut().vmms.clear();
    machine.host.0.borrow_mut().post_mortem = Some(Exit::HostRebooted);
    // Longer than the jitter, so that they meet.
    machine.host.twist("boot", Twist::Slow, 4);
    for _ in 0..3 {
        machine.life(async |world: World| {
            for id in &boxes[..4] {
                settled(&world, id, "started").await;
                let last = view(&world, id).last_exit.clone().unwrap();
                assert_eq!((last.cause.as_str(), last.detail.as_str()), ("host_rebooted", "the host was rebooted"));
            }
            settled(&world, "e", "stopped").await;
            assert!(
                view(&world, "e").error.as_deref().unwrap().contains("rebooted"),
                "whoever paused it does not want it to run"
            );
            settled(&world, "f", "stopped").await;
            assert_eq!(world.host.0.borrow().most_booting, 2, "the gate's limit");
        });
        machine.host.0.borrow_mut().vmms.clear();
    }
}

#[test]
fn a_policy_that_was_taken_back_leaves_nothing_owed() {
    let machine = machine(Policy::OnFailure, 5);
    machine.life(async |world: World| {
        world.create("box").await.unwrap();
        waits(&world, "box").await;
    });
    machine.host.0.borrow_mut().restart.policy = Policy::Never;
    machine.life(async |world: World| {
        settled(&world, "box", "stopped").await;
        assert_eq!(world.views.untold().len(), 1, "and the API is told");
        assert!(view(&world, "box").error.as_deref().unwrap().contains("signal 11"));
    });
}

#[test]
fn what_cannot_be_kept_neither_delays_nor_fails_anything() {
    for twist in [Twist::Fails, Twist::Hangs, Twist::Panics] {
        machine(Policy::Never, 5).life(async |world: World| {
            world.create("box").await.unwrap();
            world.host.twist("keep", twist, 1);
            end(&world, "box", CRASH);
            settled(&world, "box", "stopped").await;
            world.ask("box", Ask::Start).await.expect("the start goes on without it");
            world.ask("box", Ask::Destroy).await.unwrap();
            world.host.assert_nothing_left();
        });
    }
}

#[test]
fn a_start_does_not_overwrite_what_is_still_being_kept() {
    machine(Policy::Never, 5).life(async |world: World| {
        world.create("box").await.unwrap();
        world.host.twist("keep", Twist::Slow, 1);
        end(&world, "box", CRASH);
        settled(&world, "box", "stopped").await;
        assert!(world.host.0.borrow().kept.is_empty());
        world.ask("box", Ask::Start).await.unwrap();
        let effects = world.host.0.borrow().effects.clone();
        assert_eq!(world.host.0.borrow().kept.len(), 1, "{effects:?}");
    });
}
