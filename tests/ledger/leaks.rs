//! One leak of each kind, and beside it what looks like one and is somebody else's.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::json;

use super::plant::{self, RANDOM, Vmm, ip};
use super::{KINDS, differences, empty, ledger, outcome, repair};
use crate::common::copies::host;
use crate::common::{Host, eventually};

/// A link of slot 9000 of the usual pool.
const OURS: &str = "fe:63:0a:dc:23:29";
const OTHER_POOL: &str = "fe:63:0a:dd:23:29";

/// What is planted: the differences it is seen as, and the files of it.
struct Planted {
    vmm: Vmm,
    files: Vec<PathBuf>,
    seen: BTreeSet<(String, String, String)>,
}

fn plant_leaks(host: &Host) -> Planted {
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    let mut note = |kind: &str, what: &str, object: String| {
        seen.insert((kind.to_owned(), what.to_owned(), object));
    };
    plant::namespace("ns-ghost-1", "ghost-1", plant::our_number(host));
    note("namespace", "leaked", "ns-ghost-1".into());
    plant::link("chv9000", OURS, Some("ghost-2"));
    note("link", "leaked", "chv9000".into());

    let socket = host.path("sock/ghost-3.sock");
    let vmm = Vmm::start(host, &socket);
    files.extend([socket.clone(), socket.with_extension("sock.lock")]);
    let stat = procfs::process::Process::new(vmm.0.id().cast_signed()).unwrap().stat().unwrap();
    note("vmm", "leaked", format!("process {} (started at tick {})", stat.pid, stat.starttime));
    let socket = host.path("sock/ghost-4.sock");
    plant::stale_socket(&socket);
    files.extend([socket.clone(), plant::file(host.path("sock/ghost-4.sock.lock"))]);
    note("socket", "leaked", socket.display().to_string());

    let mut file = |kind: &str, path: PathBuf| {
        note(kind, "leaked", path.display().to_string());
        files.push(path);
    };
    file("lock", plant::file(host.path("sock/ghost-5.sock.lock")));
    let dir = plant::directory(host.path("boxes/ghost-6"), 0o700);
    for name in ["disk.raw", "seed.img", "serial.log"] {
        plant::file(dir.join(name));
    }
    file("directory", dir);
    file("layer", plant::file(host.path(format!("boxes/.layers/{}.qcow2", RANDOM[0]))));
    file("layer", plant::file(host.path(format!("boxes/.layers/{}.tmp", RANDOM[1]))));
    file("capture", plant::directory(host.path(format!("boxes/.captures/{}", RANDOM[2])), 0o700));
    let checkpoint = plant::directory(host.path("boxes/box-1/checkpoint"), 0o700);
    plant::file(checkpoint.join("memory"));
    file("checkpoint", checkpoint);
    file("unfinished", plant::file(host.path("boxes/box-1/.memory.7-1.unfinished")));
    file("unfinished", plant::file(host.path("boxes/box-2/disk.qcow2.new")));
    let snapshot = plant::directory(host.path(format!("snap/.tmp-{}", RANDOM[3])), 0o700);
    plant::file(snapshot.join("disk.raw"));
    file("snapshot", snapshot);
    file("mount", plant::file("/run/netns/ns-box-2".into()));
    Planted { vmm, files, seen }
}

/// What is left to the operator, as it is seen.
fn plant_doubtful(host: &Host) -> BTreeSet<(String, String, String)> {
    let backup = plant::directory(host.path("boxes/backup"), 0o755);
    plant::file(backup.join("disk.raw"));
    plant::namespace("ns-ghost-7", "ghost-7", 0);
    ip("netns exec ns-box-1 ip tuntap add tap9 mode tap");
    let text = |kind: &str, what: &str, object: String| (kind.to_owned(), what.to_owned(), object);
    [
        text("directory", "leaked", backup.display().to_string()),
        text("namespace", "leaked", "ns-ghost-7".into()),
        text("tap", "wrong", "tap9 in ns-box-1".into()),
    ]
    .into()
}

/// What nothing is said about.
struct Foreign {
    vmm: Vmm,
    files: Vec<PathBuf>,
}

fn plant_foreign(host: &Host) -> Foreign {
    ip("netns add ns-foreign-1");
    plant::namespace("ns-foreign-2", "foreign-2", plant::our_number(host) ^ 1);
    plant::link("chv8999", OURS, None);
    plant::link("chv8998", OTHER_POOL, Some("foreign-3"));
    plant::directory(host.path("other"), 0o700);
    let socket = host.path("other/foreign-4.sock");
    let vmm = Vmm::start(host, &socket);
    let files = [
        "sock/operator.txt",
        "sock/notes.lock",
        "boxes/README",
        "boxes/.captures/notes",
        "boxes/.layers/notes.txt",
        "snap/.tmp-notes",
    ];
    let mut files: Vec<_> = files.into_iter().map(|name| plant::file(host.path(name))).collect();
    files.extend([socket, plant::file("/run/netns/ns-foreign-5".into())]);
    Foreign { vmm, files }
}

impl Foreign {
    #[track_caller]
    fn is_untouched(&mut self) {
        for file in &self.files {
            assert!(file.symlink_metadata().is_ok(), "{file:?} is gone");
        }
        for name in ["ns-foreign-1", "ns-foreign-2", "ns-ghost-7"] {
            assert!(PathBuf::from("/run/netns").join(name).exists(), "{name} is gone");
        }
        for name in ["chv8999", "chv8998"] {
            assert!(plant::has_link(name), "{name} is gone");
        }
        assert!(!self.vmm.has_ended(), "a VMM of somebody else was ended");
    }
}

#[test]
fn each_leak_is_seen_and_removed_and_nothing_else() {
    let host = host("overlay");
    let _runner = host.runner();
    for id in ["box-1", "box-2"] {
        host.completed(&host.api.create_sandbox(&host.spec(id)).unwrap());
    }
    host.in_guest("box-1", "echo kept > /tmp/mark");
    host.completed(&host.api.stop_sandbox("box-2", None).unwrap());
    empty(&host);

    let mut foreign = plant_foreign(&host);
    empty(&host);
    let mut planted = plant_leaks(&host);
    let doubtful = plant_doubtful(&host);
    let all: BTreeSet<_> = planted.seen.union(&doubtful).cloned().collect();
    assert_eq!(differences(&ledger(&host)), all);

    // By default nothing is done, and what may be somebody's work would not be touched.
    let dry = repair(&host, &json!({}));
    assert_eq!((dry["dryRun"].as_bool(), dry["failed"].as_u64()), (Some(true), Some(0)));
    let harmless = ["namespace", "link", "socket", "lock", "mount", "layer", "capture", "unfinished", "snapshot"];
    let would = outcome(&dry, "would");
    let at_stake = ["vmm", "directory", "checkpoint"].map(str::to_owned);
    assert!(would.is_disjoint(&at_stake.into()), "{would:?}");
    // A plain file in the place of box-2's namespace: box-2 has a directory.
    assert_eq!(would, harmless.iter().filter(|kind| **kind != "mount").map(|kind| (*kind).to_owned()).collect());
    let dry = repair(&host, &json!({ "dryRun": true, "kinds": KINDS }));
    assert_eq!(dry["repaired"], planted.seen.len(), "{dry:#}");
    assert_eq!(differences(&ledger(&host)), all, "a dry run changes nothing");
    assert!(planted.files.iter().all(|file| file.symlink_metadata().is_ok()) && !planted.vmm.has_ended());

    let done = repair(&host, &json!({ "dryRun": false }));
    assert_eq!((outcome(&done, "done"), &done["failed"]), (would, &json!(0)), "{done:#}");
    let done = repair(&host, &json!({ "dryRun": false, "kinds": KINDS }));
    assert_eq!(done["failed"], 0, "{done:#}");
    assert_eq!(differences(&ledger(&host)), doubtful);
    for file in &planted.files {
        assert!(file.symlink_metadata().is_err(), "{file:?} is still there");
    }
    assert!(!plant::has_link("chv9000") && !PathBuf::from("/run/netns/ns-ghost-1").exists());
    eventually("the end of the stray VMM", || planted.vmm.has_ended().then_some(()));
    foreign.is_untouched();
    assert!(host.path("boxes/backup/disk.raw").exists());

    assert_eq!(host.in_guest("box-1", "cat /tmp/mark"), "kept");
    host.completed(&host.api.start_sandbox("box-2").unwrap());
    host.in_guest("box-2", "true");
    for id in ["box-1", "box-2"] {
        host.completed(&host.api.destroy_sandbox(id).unwrap());
    }
    foreign.is_untouched();
}

#[test]
fn a_repair_is_asked_for_in_words_that_are_understood() {
    let host = Host::new();
    let _runner = host.runner();
    for body in ["{\"kinds\": [\"everything\"]}", "{\"dryrun\": false}", "{\"dryRun\": \"no\"}", "[]"] {
        let answer = host.http().post("/ledger/repair", body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
    }
    let answer = host.http().post("/ledger/repair", "{\"kinds\": [\"everything\"]}");
    assert!(answer.body.contains("everything") && answer.body.contains("namespace"), "{}", answer.body);
    for (method, path) in [("GET", "/ledger"), ("POST", "/ledger/repair")] {
        assert_eq!(host.http().with_token("wrong").request(method, path, "").status, 401);
    }
}

#[test]
fn auto_removes_only_what_nobody_can_miss() {
    let mut host = Host::new();
    host.set("RUNNER_LEDGER_REPAIR", "auto");
    host.set("RUNNER_LEDGER_INTERVAL_SEC", "1");
    let _runner = host.runner();
    for name in ["lone", "data"] {
        plant::namespace(&format!("ns-{name}"), name, plant::our_number(&host));
    }
    let dir = plant::directory(host.path("boxes/data"), 0o700);
    plant::file(dir.join("disk.raw"));
    eventually("the removal of the lone one", || (!PathBuf::from("/run/netns/ns-lone").exists()).then_some(()));
    let report = ledger(&host);
    let left: Vec<_> = differences(&report).into_iter().map(|(kind, _, _)| kind).collect();
    assert_eq!(left, ["directory", "namespace"], "{report:#}");
    assert!(dir.join("disk.raw").exists() && PathBuf::from("/run/netns/ns-data").exists());
    assert!(report["repaired"].as_u64() >= Some(1), "{report:#}");
}
