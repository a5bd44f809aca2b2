//! Holding sandboxes still for a repair, in virtual time: whoever asks waits and is served, and what has come to life
//! is not touched.

use std::collections::BTreeSet;
use std::time::Duration;

use runner_ch::actors::ledger::Settings;
use runner_ch::actors::{LedgerActor, Routes};
use runner_ch::ledger::{Kind, Ledger, RepairSetting};
use runner_ch::messages::ledger::{HoldSandbox, Outcome, Repair, RunLedger};
use runner_ch::sandbox::{Ask, StopMode};

#[path = "world/mod.rs"]
mod world;

use world::{Machine, World};

fn start(world: &World, routes: &Routes) -> actix::Addr<LedgerActor> {
    let settings =
        Settings { interval: Duration::from_secs(3600), repair: RepairSetting::Off, sockets: "/nowhere".into() };
    let deaths = tokio::sync::mpsc::unbounded_channel().0;
    let (ports, supervisor) = (world.ports.clone(), world.supervisor.clone());
    LedgerActor::start_with(ports, supervisor, routes.clone(), Ledger::default(), settings, deaths)
}

fn hold(id: &str) -> HoldSandbox {
    HoldSandbox(id.parse().expect("an id"))
}

#[test]
fn who_asks_for_a_sandbox_that_is_held_waits_and_is_served() {
    Machine::new().life(async |world: World| {
        // There is none of that id: none is made, and one that is to go is gone.
        let held = world.supervisor.send(hold("box")).await.unwrap().unwrap().expect("a hold");
        assert!(held.stock.is_none());
        assert!(world.supervisor.send(hold("box")).await.unwrap().unwrap().is_none(), "it is held once");
        world.ask("box", Ask::Destroy).await.unwrap();
        world.ask("box", Ask::Start).await.unwrap_err();
        let create = actix::spawn(world.create("box"));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!create.is_finished() && world.host.count("disk") == 0);
        drop(held);
        create.await.unwrap().unwrap();
        assert!(world.host.runs("box"));

        // It is at rest: what is asked of it is done afterwards, all of it.
        let held = world.supervisor.send(hold("box")).await.unwrap().unwrap().expect("a hold");
        assert!(held.stock.as_ref().is_some_and(|stock| stock.record.vmm.is_some()));
        let stop = actix::spawn(world.ask("box", Ask::Stop(StopMode::Kill)));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!stop.is_finished() && world.host.runs("box"));
        drop(held);
        stop.await.unwrap().unwrap();
        assert_eq!(world.state("box").as_deref(), Some("stopped"));

        // It is busy.
        world.host.twist("launch", world::Twist::Slow, 1);
        let starting = actix::spawn(world.ask("box", Ask::Start));
        world.until("it starts", || world.host.count("launch") == 2).await;
        assert!(world.supervisor.send(hold("box")).await.unwrap().unwrap().is_none());
        starting.await.unwrap().unwrap();
        world.ask("box", Ask::Destroy).await.unwrap();
        world.host.assert_nothing_left();
    });
}

#[test]
fn a_vmm_that_dies_while_its_sandbox_is_held_is_noticed_afterwards() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        let held = world.supervisor.send(hold("box")).await.unwrap().unwrap().expect("a hold");
        let vmm = world.host.0.borrow().vmms["box"].clone();
        vmm.exit(runner_ch::hypervisor::Exit::Signal { signal: 9 });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.state("box").as_deref(), Some("started"));
        drop(held);
        world.until("its end is noticed", || world.state("box").as_deref() == Some("stopped")).await;
    });
}

#[test]
fn leaks_are_repaired_while_others_live() {
    Machine::new().life(async |world: World| {
        world.create("box").await.unwrap();
        let ledger = start(&world, &world.routes);
        let audit = ledger.send(RunLedger).await.unwrap().unwrap();
        assert_eq!((&audit.differences[..], &audit.blind[..]), (&[][..], &[][..]));
        {
            let mut host = world.host.0.borrow_mut();
            host.disks.insert("ghost".to_owned());
            host.networks.insert("ghost".to_owned(), "chv9".to_owned());
        }
        let kinds = BTreeSet::from([Kind::Namespace, Kind::Link, Kind::Directory]);
        let repairs = ledger.send(Repair { dry_run: false, kinds: Some(kinds) }).await.unwrap().unwrap();
        let done: Vec<_> = repairs.outcomes.iter().map(|(found, outcome)| (found.kind, outcome.clone())).collect();
        // The link has gone with the namespace.
        assert!(
            matches!(
                &done[..],
                [(Kind::Namespace, Outcome::Done), (Kind::Link, Outcome::Skipped(_)), (Kind::Directory, Outcome::Done)]
            ),
            "{done:?}"
        );
        assert!(world.host.runs("box"));
        world.ask("box", Ask::Destroy).await.unwrap();
        world.host.assert_nothing_left();
        assert!(ledger.send(RunLedger).await.unwrap().unwrap().differences.is_empty());
    });
}

#[test]
fn a_sandbox_that_is_made_between_two_looks_is_no_leak() {
    Machine::new().life(async |world: World| {
        let ledger = start(&world, &world.routes);
        ledger.send(RunLedger).await.unwrap().unwrap();
        world.host.0.borrow_mut().disks.insert("box".to_owned());
        let repair = actix::spawn(ledger.send(Repair { dry_run: false, kinds: Some(Kind::ALL.into()) }));
        // The first look has seen a leak; before the second the sandbox is made.
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.create("box").await.unwrap();
        let repairs = repair.await.unwrap().unwrap().unwrap();
        assert!(repairs.outcomes.is_empty(), "{:?}", repairs.outcomes);
        assert!(world.host.runs("box"));
        world.ask("box", Ask::Destroy).await.unwrap();
        world.host.assert_nothing_left();
    });
}
