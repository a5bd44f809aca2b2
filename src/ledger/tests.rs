//! A host is made that is exactly as it should be, and then one thing on it is changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::disk::survey::{DirectorySeen, DiskSurvey, LayerSeen};
use crate::disk::{Format, RootDisk, SandboxDisks};
use crate::hypervisor::survey::{ProcessSeen, SocketSeen, VmmSurvey};
use crate::hypervisor::wire::MemoryLayout;
use crate::hypervisor::{Known, Version, VmState};
use crate::jobs::payload::CreateSpec;
use crate::net::survey::{LinkSeen, Maker, NamespaceSeen, Naming, NetworkSurvey};
use crate::net::{SlotPool, rule_count};
use crate::sandbox::record::Checkpoint;
use crate::sandbox::{Record, Rest, Size};
use crate::snapshots::SnapshotSurvey;

const BOXES: &str = "/boxes";
const SOCKETS: &str = "/sock";
const LAYER: &str = "/boxes/.layers/0d1a1b6e-0000-4000-8000-000000000001.qcow2";

/// What may become of a sandbox in these tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Stopped,
    Checkpointed,
    Started,
    Paused,
    Busy,
    Broken,
    Unknown,
}

const FORMS: [Form; 7] =
    [Form::Stopped, Form::Checkpointed, Form::Started, Form::Paused, Form::Busy, Form::Broken, Form::Unknown];

fn id(name: &str) -> SandboxId {
    name.parse().unwrap()
}

fn process(pid: i32) -> ProcessIdentity {
    ProcessIdentity { pid, start_ticks: 7, boot_id: "boot".into() }
}

fn checkpoint() -> Checkpoint {
    serde_json::from_value(serde_json::json!({
        "version": Version::parse("v53.0").unwrap(), "stamp": null,
        "size": { "vcpus": 1, "memory": 1 << 30, "disk": 1 << 30 },
        "mode": crate::hypervisor::snapshot::RestoreMode::Map, "taken_at": 1
    }))
    .unwrap()
}

fn stock(number: u32, form: Form) -> Stock {
    let name = format!("box-{number}");
    let dir = Path::new(BOXES).join(&name);
    let spec = CreateSpec::from_json(&serde_json::json!({ "id": name })).unwrap();
    let mut record = Record::new(spec, Size { vcpus: 1, memory: 1 << 30, disk: 1 << 30 }, 1);
    let lives = matches!(form, Form::Started | Form::Paused | Form::Busy);
    record.disks = Some(SandboxDisks {
        root: RootDisk {
            path: dir.join("disk.qcow2"),
            format: Format::Qcow2,
            backed: true,
            size: 1 << 30,
            base: "/snap/base".into(),
            layers: vec![LAYER.into()],
        },
        seed: dir.join("seed.img"),
    });
    record.checkpoint = (form == Form::Checkpointed).then(checkpoint);
    let network = lives.then(|| {
        let mut pool = SlotPool::new("10.9.0.0/16".parse().unwrap()).unwrap();
        let slot = crate::net::Slot(number + 1);
        assert!(pool.claim(slot));
        record.slot = Some(slot);
        record.layout = Some(MemoryLayout::Private { path: dir.join("memory") });
        record.vmm = Some(Known {
            process: process(1000 + i32::try_from(number).unwrap()),
            version: Version::parse("v53.0").unwrap(),
        });
        pool.plan(&record.id, slot)
    });
    let (standing, state) = match form {
        Form::Stopped | Form::Checkpointed => (Standing::Rests(Rest::Stopped), None),
        Form::Started => (Standing::Rests(Rest::Started), Some(VmState::Running)),
        Form::Paused => (Standing::Rests(Rest::Paused), Some(VmState::Paused)),
        Form::Busy => (Standing::Busy, None),
        Form::Broken | Form::Unknown => (Standing::Rests(Rest::Broken), None),
    };
    let socket = Path::new(SOCKETS).join(format!("{name}.sock"));
    Stock { record: Box::new(record), standing, network, socket, dir, vm: state.map(|state| Ok(Some(state))) }
}

fn inventory(forms: &[Form]) -> Inventory {
    let mut inventory = Inventory::default();
    for (number, form) in (0..).zip(forms) {
        let stock = stock(number, *form);
        match form {
            Form::Unknown => inventory.unknown.push(stock.record.id.clone()),
            _ => inventory.stocks.push(stock),
        }
    }
    inventory
}

fn namespace(name: &str, sandbox: &str, maker: Maker) -> NamespaceSeen {
    NamespaceSeen {
        name: name.parse().unwrap(),
        naming: Naming::Mounted,
        maker,
        sandbox: Some(id(sandbox)),
        tap: true,
        uplink: true,
        other_taps: Vec::new(),
        rules: rule_count(&crate::net::Egress::Open),
    }
}

fn directory(sandbox: &str, files: &[&str]) -> DirectorySeen {
    let files = files.iter().map(|name| (*name).to_owned()).collect();
    DirectorySeen { sandbox: id(sandbox), path: Path::new(BOXES).join(sandbox), private: true, files }
}

/// The host as it should be.
fn host(inventory: &Inventory) -> Observed {
    let (mut network, mut vmms, mut disks) = (
        NetworkSurvey {
            namespaces: Vec::new(),
            links: Vec::new(),
            bridge: ("br0".into(), true),
            host_rules: 20,
            host_rules_made: 20,
            unread: Vec::new(),
        },
        VmmSurvey::default(),
        DiskSurvey { root: BOXES.into(), ..DiskSurvey::default() },
    );
    let mut routes = BTreeSet::new();
    disks.layers.push(LayerSeen { path: LAYER.into(), needed: Some(true) });
    for stock in &inventory.stocks {
        let name = stock.record.id.as_str();
        let mut files = vec!["disk.qcow2", "seed.img", "vmm.out", "serial.log"];
        if stock.record.checkpoint.is_some() {
            files.extend(["checkpoint/", "checkpoint/memory", "checkpoint/device/"]);
            files.extend(["checkpoint/device/config.json", "checkpoint/device/state.json"]);
        }
        if let (Some(plan), Some(known)) = (&stock.network, &stock.record.vmm) {
            files.push("memory");
            network.namespaces.push(namespace(plan.netns.as_str(), name, Maker::Us));
            network.links.push(LinkSeen { name: plan.host_link.to_string(), sandbox: id(name), maker: Maker::Us });
            vmms.processes.push(ProcessSeen { process: known.process.clone(), socket: stock.socket.clone() });
            vmms.sockets.insert(id(name), (stock.socket.clone(), SocketSeen::Served(known.process.pid)));
            vmms.locks.insert(id(name), PathBuf::from(format!("{SOCKETS}/{name}.sock.lock")));
            routes.insert(id(name));
        }
        disks.directories.push(directory(name, &files));
    }
    Observed {
        network: Some(network),
        vmms: Some(vmms),
        disks: Some(disks),
        snapshots: Some(SnapshotSurvey::default()),
        routes: Some(routes),
    }
}

type Change = (&'static str, Kind, What, fn(&mut Observed));

fn network(seen: &mut Observed) -> &mut NetworkSurvey {
    seen.network.as_mut().unwrap()
}

fn vmms(seen: &mut Observed) -> &mut VmmSurvey {
    seen.vmms.as_mut().unwrap()
}

fn disks(seen: &mut Observed) -> &mut DiskSurvey {
    seen.disks.as_mut().unwrap()
}

fn files_of_box_0(seen: &mut Observed) -> &mut BTreeSet<String> {
    &mut disks(seen).directories.iter_mut().find(|seen| seen.sandbox.as_str() == "box-0").unwrap().files
}

/// Each changes one thing, whatever else there is: box-0 is started, box-1 is stopped.
const CHANGES: &[Change] = &[
    ("a VMM of nobody", Kind::Vmm, What::Leaked, |seen| {
        vmms(seen).processes.push(ProcessSeen { process: process(77), socket: "/sock/ghost.sock".into() });
    }),
    ("a VMM of a stopped sandbox", Kind::Vmm, What::Leaked, |seen| {
        vmms(seen).processes.push(ProcessSeen { process: process(77), socket: "/sock/box-1.sock".into() });
    }),
    ("a second VMM of a started sandbox", Kind::Vmm, What::Leaked, |seen| {
        vmms(seen).processes.push(ProcessSeen { process: process(77), socket: "/sock/box-0.sock".into() });
    }),
    ("its VMM is gone", Kind::Vmm, What::Missing, |seen| {
        vmms(seen).processes.retain(|seen| seen.process.pid != 1000);
    }),
    ("another process with its pid", Kind::Vmm, What::Missing, |seen| {
        let found = vmms(seen).processes.iter_mut().find(|seen| seen.process.pid == 1000).unwrap();
        (found.process.start_ticks, found.socket) = (8, "/sock/no id.sock".into());
    }),
    ("a stale socket", Kind::Socket, What::Leaked, |seen| {
        vmms(seen).sockets.insert(id("ghost"), ("/sock/ghost.sock".into(), SocketSeen::Stale));
    }),
    ("a stale socket and its lock are one", Kind::Socket, What::Leaked, |seen| {
        vmms(seen).sockets.insert(id("box-1"), ("/sock/box-1.sock".into(), SocketSeen::Stale));
        vmms(seen).locks.insert(id("box-1"), "/sock/box-1.sock.lock".into());
    }),
    ("a lock file", Kind::Lock, What::Leaked, |seen| {
        vmms(seen).locks.insert(id("ghost"), "/sock/ghost.sock.lock".into());
    }),
    ("its socket is gone", Kind::Socket, What::Missing, |seen| {
        vmms(seen).sockets.remove(&id("box-0"));
    }),
    ("nobody serves its socket", Kind::Socket, What::Wrong, |seen| {
        vmms(seen).sockets.get_mut(&id("box-0")).unwrap().1 = SocketSeen::Stale;
    }),
    ("another process serves its socket", Kind::Socket, What::Wrong, |seen| {
        vmms(seen).sockets.get_mut(&id("box-0")).unwrap().1 = SocketSeen::Served(78);
    }),
    ("a namespace of nobody", Kind::Namespace, What::Leaked, |seen| {
        network(seen).namespaces.push(namespace("ns-ghost", "ghost", Maker::Us));
    }),
    ("a namespace of some runner", Kind::Namespace, What::Leaked, |seen| {
        network(seen).namespaces.push(namespace("ns-ghost", "ghost", Maker::Unproven));
    }),
    ("a namespace of a stopped sandbox", Kind::Namespace, What::Leaked, |seen| {
        network(seen).namespaces.push(namespace("ns-box-1", "box-1", Maker::Us));
    }),
    ("a second namespace of a started sandbox", Kind::Namespace, What::Leaked, |seen| {
        network(seen).namespaces.push(namespace("ns-other", "box-0", Maker::Us));
    }),
    ("its namespace has lost its name", Kind::Namespace, What::Missing, |seen| {
        network(seen).namespaces.retain(|seen| seen.name.as_str() != "ns-box-0");
    }),
    ("the name of its namespace is a plain file", Kind::Namespace, What::Missing, |seen| {
        let found = network(seen).namespaces.iter_mut().find(|seen| seen.name.as_str() == "ns-box-0").unwrap();
        (found.naming, found.sandbox, found.maker) = (Naming::Plain, None, Maker::Stranger);
    }),
    ("its namespace is mounted over", Kind::Mount, What::Wrong, |seen| {
        network(seen).namespaces[0].naming = Naming::Stacked(2);
    }),
    ("a name that was once mounted", Kind::Mount, What::Leaked, |seen| {
        let plain = namespace("ns-box-1", "box-1", Maker::Stranger);
        network(seen).namespaces.push(NamespaceSeen { naming: Naming::Plain, sandbox: None, ..plain });
    }),
    ("a link of nobody", Kind::Link, What::Leaked, |seen| {
        network(seen).links.push(LinkSeen { name: "chv9".into(), sandbox: id("ghost"), maker: Maker::Us });
    }),
    ("a second link", Kind::Link, What::Leaked, |seen| {
        network(seen).links.push(LinkSeen { name: "chv9".into(), sandbox: id("box-0"), maker: Maker::Us });
    }),
    ("its link is gone", Kind::Link, What::Missing, |seen| {
        network(seen).links.retain(|seen| seen.sandbox.as_str() != "box-0");
    }),
    ("the bridge is gone", Kind::Link, What::Missing, |seen| network(seen).bridge.1 = false),
    ("its TAP is gone", Kind::Tap, What::Missing, |seen| network(seen).namespaces[0].tap = false),
    ("another TAP", Kind::Tap, What::Wrong, |seen| network(seen).namespaces[0].other_taps.push("tap9".into())),
    ("its rules are gone", Kind::Rules, What::Missing, |seen| network(seen).namespaces[0].rules = 0),
    ("a rule of it is gone", Kind::Rules, What::Wrong, |seen| network(seen).namespaces[0].rules -= 1),
    ("the host's rules are gone", Kind::Rules, What::Missing, |seen| network(seen).host_rules = 0),
    ("a rule of the host is gone", Kind::Rules, What::Wrong, |seen| network(seen).host_rules -= 1),
    ("its route is gone", Kind::Route, What::Missing, |seen| {
        seen.routes.as_mut().unwrap().remove(&id("box-0"));
    }),
    ("a route to a stopped sandbox", Kind::Route, What::Leaked, |seen| {
        seen.routes.as_mut().unwrap().insert(id("box-1"));
    }),
    ("a directory of nobody", Kind::Directory, What::Leaked, |seen| {
        disks(seen).directories.push(directory("ghost", &["disk.raw", "checkpoint/", "checkpoint/memory"]));
    }),
    ("its directory is gone", Kind::Directory, What::Missing, |seen| {
        disks(seen).directories.retain(|seen| seen.sandbox.as_str() != "box-0");
    }),
    ("its disk is gone", Kind::Disk, What::Missing, |seen| files_of_box_0(seen).retain(|name| name != "disk.qcow2")),
    ("its seed is gone", Kind::Disk, What::Missing, |seen| files_of_box_0(seen).retain(|name| name != "seed.img")),
    ("its memory is gone", Kind::Memory, What::Missing, |seen| files_of_box_0(seen).retain(|name| name != "memory")),
    ("a checkpoint that nobody knows", Kind::Checkpoint, What::Leaked, |seen| {
        files_of_box_0(seen).extend(["checkpoint/".to_owned(), "checkpoint/.memory.1-1.unfinished".to_owned()]);
    }),
    ("an unfinished image", Kind::Unfinished, What::Leaked, |seen| {
        files_of_box_0(seen).insert("disk.qcow2.new".to_owned());
    }),
    ("an unfinished memory file", Kind::Unfinished, What::Leaked, |seen| {
        files_of_box_0(seen).insert(".memory.17-3.unfinished".to_owned());
    }),
    ("a capture", Kind::Capture, What::Leaked, |seen| disks(seen).captures.push(("/boxes/.captures/x".into(), None))),
    ("a capture that does not end", Kind::Capture, What::Leaked, |seen| {
        disks(seen).captures.push(("/boxes/.captures/x".into(), Some(std::time::Duration::from_secs(3601))));
    }),
    ("a layer", Kind::Layer, What::Leaked, |seen| {
        disks(seen).layers.push(LayerSeen { path: "/boxes/.layers/x.qcow2".into(), needed: Some(false) });
    }),
    ("a snapshot's temporary name", Kind::Snapshot, What::Leaked, |seen| {
        seen.snapshots.as_mut().unwrap().temporaries.push(("/snap/.tmp-x".into(), false));
    }),
];

/// Things of others, or of work under way. Nothing is ever said about them.
const FOREIGN: &[fn(&mut Observed)] = &[
    |seen| network(seen).namespaces.push(namespace("ns-ghost", "ghost", Maker::Another)),
    |seen| network(seen).namespaces.push(namespace("ns-box-1", "box-1", Maker::Another)),
    |seen| network(seen).links.push(LinkSeen { name: "chv9".into(), sandbox: id("ghost"), maker: Maker::Another }),
    |seen| {
        let plain = namespace("ns-ghost", "ghost", Maker::Stranger);
        network(seen).namespaces.push(NamespaceSeen { naming: Naming::Plain, sandbox: None, ..plain });
    },
    |seen| vmms(seen).processes.push(ProcessSeen { process: process(77), socket: "/sock/not an id.sock".into() }),
    |seen| drop(vmms(seen).sockets.insert(id("ghost"), ("/sock/ghost.sock".into(), SocketSeen::Served(5)))),
    |seen| disks(seen).captures.push(("/boxes/.captures/x".into(), Some(std::time::Duration::from_secs(3599)))),
    |seen| disks(seen).layers.push(LayerSeen { path: "/boxes/.layers/x.qcow2".into(), needed: Some(true) }),
    |seen| disks(seen).layers.push(LayerSeen { path: "/boxes/.layers/y.qcow2".into(), needed: None }),
    |seen| seen.snapshots.as_mut().unwrap().temporaries.push(("/snap/.tmp-x".into(), true)),
];

fn form() -> impl Strategy<Value = Form> {
    (0..FORMS.len()).prop_map(|at| FORMS[at])
}

proptest! {
    #[test]
    fn a_host_as_it_should_be_has_no_differences(
        forms in prop::collection::vec(form(), 0..12),
        foreign in prop::collection::vec(0..FOREIGN.len(), 0..6),
    ) {
        let forms: Vec<_> = [Form::Started, Form::Stopped].into_iter().chain(forms).collect();
        let inventory = inventory(&forms);
        let mut seen = host(&inventory);
        for at in foreign {
            FOREIGN[at](&mut seen);
        }
        prop_assert_eq!(compare(&Expected::at(&inventory), &seen), Vec::new());
        prop_assert_eq!(compare(&Expected::between(&inventory, &inventory), &seen), Vec::new());
    }

    #[test]
    fn each_change_is_one_difference(
        forms in prop::collection::vec(form(), 0..8),
        change in 0..CHANGES.len(),
        foreign in 0..FOREIGN.len(),
    ) {
        let forms: Vec<_> = [Form::Started, Form::Stopped].into_iter().chain(forms).collect();
        let inventory = inventory(&forms);
        let mut seen = host(&inventory);
        let (name, kind, what, change) = CHANGES[change];
        // Some foreign things stand in the place of what is changed.
        if !matches!(kind, Kind::Namespace | Kind::Link | Kind::Socket | Kind::Lock | Kind::Mount) {
            FOREIGN[foreign](&mut seen);
        }
        change(&mut seen);
        let found = compare(&Expected::at(&inventory), &seen);
        prop_assert_eq!(found.len(), 1, "{}: {:#?}", name, found);
        prop_assert_eq!((found[0].kind, found[0].what), (kind, what), "{}", name);
        let removes = matches!(found[0].remedy, Remedy::RemoveFiles { .. } | Remedy::EndProcess { .. });
        prop_assert!(found[0].what == What::Leaked || !removes, "only what is leaked is ever removed");
    }

    #[test]
    fn nothing_is_said_about_what_is_busy_broken_or_unknown(
        form in prop::sample::select(vec![Form::Busy, Form::Broken, Form::Unknown]),
        change in 0..CHANGES.len(),
    ) {
        let inventory = inventory(&[form, form]);
        let mut seen = host(&self::inventory(&[Form::Started, Form::Stopped]));
        CHANGES[change].3(&mut seen);
        let said = compare(&Expected::at(&inventory), &seen);
        let about = said.iter().filter(|found| found.sandbox.as_ref().is_some_and(|id| id.as_str().starts_with("box")));
        prop_assert_eq!(about.count(), 0, "{:#?}", said);
    }
}

#[test]
fn a_sandbox_that_changed_during_a_survey_is_left_out() {
    let nothing = host(&Inventory::default());
    let (started, stopped) = (inventory(&[Form::Started]), inventory(&[Form::Stopped]));
    let none = Inventory::default();
    for (before, after) in [(&started, &stopped), (&stopped, &started), (&none, &started), (&started, &none)] {
        assert_eq!(compare(&Expected::between(before, after), &nothing), Vec::new());
    }
    let found = compare(&Expected::between(&started, &started), &nothing);
    assert!(found.iter().all(|found| found.what == What::Missing) && found.len() > 3, "{found:#?}");
    // Another run in between is another VMM.
    let mut again = started.clone();
    again.stocks[0].record.vmm.as_mut().unwrap().process.pid += 1;
    assert_eq!(compare(&Expected::between(&started, &again), &nothing), Vec::new());
    // What the VMM says is asked once, and is no change.
    let mut silent = started.clone();
    silent.stocks[0].vm = None;
    assert_eq!(compare(&Expected::between(&silent, &started), &host(&started)), Vec::new());
}

#[test]
fn what_a_vmm_says_of_its_vm_is_held_against_the_record() {
    let said = |form, answer: VmAnswer| {
        let mut inventory = inventory(&[form]);
        inventory.stocks[0].vm = Some(answer);
        compare(&Expected::at(&inventory), &host(&inventory))
    };
    let [found] = &said(Form::Started, Ok(Some(VmState::Paused)))[..] else { panic!() };
    assert_eq!((found.kind, found.what, &found.remedy), (Kind::State, What::Wrong, &Remedy::Resume));
    for (form, answer) in [
        (Form::Started, None),
        (Form::Started, Some(VmState::Created)),
        (Form::Paused, None),
        (Form::Paused, Some(VmState::Running)),
    ] {
        let found = said(form, Ok(answer.clone()));
        assert_eq!(found.len(), 1, "{form:?} {answer:?}");
        assert!(found[0].kind == Kind::State && !found[0].remedy.is_some(), "{found:?}");
    }
    assert_eq!(said(Form::Started, Err("no answer".into())), Vec::new(), "silence says nothing");
}

#[test]
fn what_cannot_be_seen_is_not_missing() {
    let inventory = inventory(&[Form::Started, Form::Checkpointed]);
    assert_eq!(compare(&Expected::at(&inventory), &Observed::default()), Vec::new());
    let mut seen = host(&inventory);
    network(&mut seen).namespaces.clear();
    network(&mut seen).unread.push("network namespace ns-box-0: cannot enter".into());
    vmms(&mut seen).sockets.clear();
    vmms(&mut seen).unread.push("socket /sock/box-0.sock: busy".into());
    disks(&mut seen).directories.clear();
    disks(&mut seen).unread.extend(["cannot list \"/boxes/box-0\"".into(), "cannot list \"/boxes/box-1\"".into()]);
    assert_eq!(compare(&Expected::at(&inventory), &seen), Vec::new());
}

#[test]
fn a_checkpoint_that_lacks_a_part_is_missing() {
    let inventory = inventory(&[Form::Checkpointed]);
    for part in ["checkpoint/memory", "checkpoint/device/config.json", "checkpoint/device/state.json"] {
        let mut seen = host(&inventory);
        files_of_box_0(&mut seen).remove(part);
        let found = compare(&Expected::at(&inventory), &seen);
        assert_eq!(found.len(), 1);
        assert!(found[0].kind == Kind::Checkpoint && found[0].object.ends_with(part), "{found:?}");
    }
}

#[test]
fn what_somebody_may_need_is_not_harmless() {
    let change = |name: &str| CHANGES.iter().find(|change| change.0 == name).unwrap().3;
    let harmless = |names: &[&str]| {
        let inventory = inventory(&[Form::Started, Form::Stopped]);
        let mut seen = host(&inventory);
        names.iter().for_each(|name| change(name)(&mut seen));
        let found = compare(&Expected::at(&inventory), &seen);
        found.into_iter().map(|found| (found.kind, found.harmless)).collect::<Vec<_>>()
    };
    let (namespace, vmm, directory) = ("a namespace of nobody", "a VMM of nobody", "a directory of nobody");
    assert_eq!(harmless(&[namespace]), [(Kind::Namespace, true)]);
    assert_eq!(harmless(&[vmm, namespace]), [(Kind::Vmm, false), (Kind::Namespace, false)]);
    assert_eq!(harmless(&[namespace, directory]), [(Kind::Namespace, false), (Kind::Directory, false)]);
    assert_eq!(harmless(&["a stale socket", directory]), [(Kind::Socket, false), (Kind::Directory, false)]);
    assert_eq!(harmless(&["a checkpoint that nobody knows"]), [(Kind::Checkpoint, false)]);
    assert_eq!(harmless(&["a capture", "a layer"]), [(Kind::Capture, true), (Kind::Layer, true)]);
}

#[test]
fn a_directory_with_something_of_somebody_else_is_left_to_the_operator() {
    for stranger in [
        DirectorySeen { private: false, ..directory("backup", &[]) },
        directory("backup", &["disk.raw", "notes.txt"]),
        directory("backup", &["photos/"]),
    ] {
        let mut seen = host(&Inventory::default());
        disks(&mut seen).directories.push(stranger);
        let found = compare(&Expected::default(), &seen);
        assert!(found.len() == 1 && !found[0].remedy.is_some(), "{found:?}");
    }
    assert_eq!(directory("box", &["disk.raw", "restore/", ".memory.3-1.unfinished"]).stranger(), None);
}

#[test]
fn only_what_two_looks_have_seen_counts() {
    let of = |names: &[&str]| {
        let mut seen = host(&Inventory::default());
        for name in names {
            network(&mut seen).links.push(LinkSeen { name: (*name).into(), sandbox: id("ghost"), maker: Maker::Us });
        }
        compare(&Expected::default(), &seen)
    };
    let names = |found: Vec<Difference>| found.into_iter().map(|found| found.object).collect::<Vec<_>>();
    assert_eq!(names(confirm(&of(&["chv1", "chv2"]), of(&["chv2", "chv3"]))), ["chv2"]);
    assert_eq!(names(confirm(&of(&["chv1"]), of(&[]))), Vec::<String>::new());
    assert_eq!(names(confirm(&[], of(&["chv1"]))), Vec::<String>::new());
    let (first, second) = (
        Audit { differences: of(&["chv1", "chv2"]), ..Audit::default() },
        Audit { differences: of(&["chv2", "chv3"]), ..Audit::default() },
    );
    assert_eq!(second.new_since(Some(&first)).count(), 1);
    assert_eq!(second.new_since(None).count(), 2);
    assert_eq!(second.counts()["link"], Tally { leaked: 2, missing: 0, wrong: 0 });
    assert_eq!(second.counts().len(), Kind::ALL.len());
}

#[test]
fn repairs_come_in_an_order_that_works() {
    let mut seen = host(&Inventory::default());
    let wanted = ["a directory of nobody", "a namespace of nobody", "a link of nobody", "a VMM of nobody"];
    for name in wanted {
        CHANGES.iter().find(|change| change.0 == name).unwrap().3(&mut seen);
    }
    let found: Vec<_> = compare(&Expected::default(), &seen).into_iter().map(|found| found.kind).collect();
    assert_eq!(found, [Kind::Vmm, Kind::Namespace, Kind::Link, Kind::Directory]);
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}
