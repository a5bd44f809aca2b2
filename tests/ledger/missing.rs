//! What should be there and is not, and what is not as it should be.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use runner_ch::net::nft::Transaction;
use serde_json::json;

use super::plant::ip;
use super::{KINDS, differences, empty, ledger, outcome, repair};
use crate::common::Host;
use crate::common::copies::{beats, destroy};

/// One call of a VMM's API, past the runner.
fn call(socket: &Path, name: &str) {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "PUT /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 20"), "{}", String::from_utf8_lossy(&answer));
}

fn without_rules(namespace: &str) {
    let file = File::open(Path::new("/run/netns").join(namespace)).unwrap();
    let work = move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        Transaction::delete("runner_ch").commit().unwrap();
    };
    std::thread::spawn(work).join().unwrap();
}

#[test]
fn what_is_missing_is_told_and_the_host_is_made_whole() {
    let host = Host::new();
    let _runner = host.runner();
    for id in ["a", "b", "c", "d"] {
        host.completed(&host.api.create_sandbox(&host.spec(id)).unwrap());
    }
    host.completed(&host.api.stop_sandbox("d", None).unwrap());
    empty(&host);
    let link =
        host.http().get("/sandboxes/b").json()["address"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
    let link = format!("chv{}", link.parse::<u32>().unwrap() - 1);

    ip("netns delete ns-a");
    std::fs::remove_file(host.path("sock/a.sock")).unwrap();
    std::fs::remove_file(host.path("boxes/a/seed.img")).unwrap();
    ip(&format!("link delete {link}"));
    without_rules("ns-c");
    std::fs::remove_file(host.path("boxes/c/memory")).unwrap();
    std::fs::remove_file(host.path("boxes/d/checkpoint/memory")).unwrap();
    Transaction::delete("runner_ch").commit().unwrap();

    let path = |name: &str| host.path(name).display().to_string();
    let wanted: BTreeSet<_> = [
        ("namespace", "ns-a".to_owned()),
        ("socket", path("sock/a.sock")),
        ("disk", path("boxes/a/seed.img")),
        ("link", link),
        ("rules", "the nftables table in ns-c".to_owned()),
        ("rules", "the host's nftables table".to_owned()),
        ("memory", path("boxes/c/memory")),
        ("checkpoint", path("boxes/d/checkpoint/memory")),
    ]
    .into_iter()
    .map(|(kind, object)| (kind.to_owned(), "missing".to_owned(), object))
    .collect();
    assert_eq!(differences(&ledger(&host)), wanted);

    let done = repair(&host, &json!({ "dryRun": false, "kinds": KINDS }));
    assert_eq!(outcome(&done, "done"), BTreeSet::from(["rules".to_owned()]), "{done:#}");
    let left: BTreeSet<_> = wanted.into_iter().filter(|(_, _, object)| !object.contains("the host's")).collect();
    assert_eq!(differences(&ledger(&host)), left, "the rest needs its sandbox to be started again");
    for id in ["a", "c"] {
        host.in_guest(id, "true");
    }
    for id in ["a", "b", "c", "d"] {
        destroy(&host, id);
    }
    empty(&host);
}

#[test]
fn a_guest_that_was_paused_past_the_runner_runs_on() {
    let host = Host::new();
    let _runner = host.runner();
    host.completed(&host.api.create_sandbox(&host.spec("box")).unwrap());
    let before = beats(&host, "box");
    call(&host.path("sock/box.sock"), "vm.pause");
    let report = ledger(&host);
    assert_eq!(
        differences(&report),
        BTreeSet::from([("state".to_owned(), "wrong".to_owned(), "the VM of box".to_owned())])
    );
    assert_eq!(report["differences"][0]["remedy"], json!({ "action": "resume" }));
    let done = repair(&host, &json!({ "dryRun": false }));
    assert_eq!(outcome(&done, "done"), BTreeSet::from(["state".to_owned()]), "{done:#}");
    let after = beats(&host, "box");
    assert!(after.1 == before.1 && after.0 >= before.0, "{after:?} after {before:?}");
    empty(&host);
}
