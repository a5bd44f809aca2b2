//! No room for a copy's memory.

use std::fs::File;

use daytona_sim::JobStatus;

use crate::common::copies::{beats, consistent, destroy, fork, only, parent};
use crate::common::{Host, eventually};

/// More than what is left on the volume.
const TOUCHED_MIB: u64 = 64;
const LEFT: u64 = 8 << 20;
/// Blocks that the guest's writer goes round in (ch-sim's README).
const WRITERS_BLOCKS: u64 = 64;

/// Takes all room of the volume but a little.
fn fill(host: &Host) {
    let volume = host.path("volume");
    let about = rustix::fs::statvfs(&volume).expect("the volume");
    let room = about.f_bavail * about.f_frsize;
    let filler = File::create(volume.join("filler")).expect("a file");
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, room - LEFT).expect("room");
}

fn no_room(strategy: &str) {
    let mut host = Host::on_xfs();
    host.set("RUNNER_DISK_STRATEGY", strategy);
    let _runner = host.runner();
    parent(&host);
    host.in_guest("parent", &format!("touch-ram {TOUCHED_MIB}"));
    // The guest has all the room that it writes to: otherwise it could be the one for whom there is none.
    eventually("the guest writes its blocks for the second time", || {
        let check: serde_json::Value = serde_json::from_str(&host.in_guest("parent", "writer check")).expect("JSON");
        (check["disk"].as_u64() > Some(WRITERS_BLOCKS)).then_some(())
    });
    fill(&host);
    let before = beats(&host, "parent");

    let answer = fork(&host, "parent", "child");
    assert_eq!(answer.status, 507, "{}", answer.body);
    assert!(answer.body.to_lowercase().contains("no space left on device"), "{}", answer.body);
    only(&host, &["parent"], &[]);
    let job = host.done(&host.api.fork_sandbox("parent", "child").unwrap());
    assert_eq!(job.status, JobStatus::Failed);
    let reason = job.error_message.unwrap().to_lowercase();
    assert!(reason.contains("no space left on device"), "{reason}");
    assert!(reason.contains("\"recoverable\":true"), "the API is told that freeing space helps: {reason}");
    println!("{strategy}: {reason}");
    only(&host, &["parent"], &[]);
    let after = beats(&host, "parent");
    assert!(after.1 == before.1 && after.0 >= before.0, "{before:?} {after:?}");
    consistent(&host, "parent");

    std::fs::remove_file(host.path("volume/filler")).unwrap();
    host.completed(&host.api.fork_sandbox("parent", "second").unwrap());
    consistent(&host, "second");
    assert_eq!(beats(&host, "second").1, before.1);
    destroy(&host, "second");
    only(&host, &["parent"], &[]);
}

#[test]
fn no_room_for_a_copy_on_reflink() {
    no_room("reflink");
}

#[test]
fn no_room_for_a_copy_on_overlays() {
    no_room("overlay");
}
