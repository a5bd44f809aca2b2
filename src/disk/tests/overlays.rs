//! The overlay strategy on the file system of the temporary directory, and what both strategies share.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use super::Room;
use super::room::{MIB, eventually, plan, qemu_io, refused, run, sha256, text, wait};
use crate::disk::{Disks, Format, Strategy, StrategySetting};
use crate::error::{Certainty, ErrorCode};

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn an_overlay_shows_its_base_and_keeps_it_unchanged() {
    let room = Room::new();
    let base = room.qcow2("ubuntu-base.1/disk.qcow2", 64, b'A');
    let before = sha256(&base);
    let disks = room.disks(StrategySetting::Overlay);
    let made = wait(disks.create(&plan("one", None, 256))).unwrap();
    let root = &made.root;
    assert_eq!((disks.strategy(), root.format, root.backed), (Strategy::Overlay, Format::Qcow2, true));
    assert_eq!((&root.base, root.size), (&base, 256 * MIB));
    assert_eq!(root.path, room.sandboxes().join("one/disk.qcow2"));
    run("qemu-img", &["check", text(&root.path)]);
    let info: serde_json::Value =
        serde_json::from_str(&run("qemu-img", &["info", "--output=json", text(&root.path)])).unwrap();
    assert_eq!(info["virtual-size"], 256 * MIB);
    assert_eq!(info["backing-filename"], text(&base));
    assert_eq!(info["backing-filename-format"], "qcow2");
    for command in
        ["read -P 65 1M 1M", "read -P 0 0 1M", "read -P 65 63M 1M", "read -P 0 64M 192M", "write -P 66 1M 4k"]
    {
        qemu_io(&root.path, "qcow2", command);
    }
    run("qemu-img", &["check", text(&root.path)]);
    assert_eq!(sha256(&base), before);
    assert_eq!((mode(&disks.dir(&"one".parse().unwrap())), mode(&root.path), mode(&made.seed)), (0o700, 0o600, 0o600));
}

#[test]
fn a_raw_base_works_as_backing_file() {
    let room = Room::new();
    room.raw("org/name.raw", 8, b'R');
    let disks = room.disks(StrategySetting::Overlay);
    let made = wait(disks.create(&plan("one", Some("org/name"), 16))).unwrap();
    let info = run("qemu-img", &["info", "--output=json", text(&made.root.path)]);
    assert!(info.contains("\"backing-filename-format\": \"raw\""), "{info}");
    qemu_io(&made.root.path, "qcow2", "read -P 82 7M 1M");
}

#[test]
fn removal_takes_one_sandbox_only_and_can_be_repeated() {
    let room = Room::new();
    room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let disks = room.disks(StrategySetting::Overlay);
    let (one, two) = ("one".parse().unwrap(), "two".parse().unwrap());
    wait(disks.create(&plan("one", None, 8))).unwrap();
    let kept = wait(disks.create(&plan("two", None, 8))).unwrap();
    for _ in 0..2 {
        wait(disks.remove(&one)).unwrap();
    }
    assert_eq!(room.left(), ["two"]);
    assert!(kept.root.path.exists() && kept.seed.exists());
    wait(disks.remove(&two)).unwrap();
    assert!(room.left().is_empty());
}

#[test]
fn removal_of_a_link_leaves_what_it_leads_to() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let precious = room.place("precious/file");
    fs::write(&precious, "x").unwrap();
    symlink(precious.parent().unwrap(), room.sandboxes().join("one")).unwrap();
    wait(disks.remove(&"one".parse().unwrap())).unwrap();
    assert!(room.left().is_empty() && precious.exists());
}

#[test]
fn creation_replaces_what_an_interrupted_one_left() {
    let room = Room::new();
    room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let disks = room.disks(StrategySetting::Overlay);
    let first = wait(disks.create(&plan("one", None, 8))).unwrap();
    let stray = first.seed.with_file_name("stray");
    fs::write(&stray, "half").unwrap();
    let second = wait(disks.create(&plan("one", None, 16))).unwrap();
    assert!(!stray.exists());
    assert_eq!((second.root.size, first.root.path), (16 * MIB, second.root.path));
}

#[test]
fn a_disk_that_a_hypervisor_has_open_is_not_replaced() {
    let room = Room::new();
    room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let disks = room.disks(StrategySetting::Overlay);
    let made = wait(disks.create(&plan("one", None, 8))).unwrap();
    let inode = fs::metadata(&made.root.path).unwrap().ino();
    let running = super::bases::lock_exclusively(&made.root.path);
    let failure = refused(wait(disks.create(&plan("one", None, 8))));
    assert_eq!(failure.code, ErrorCode::Conflict, "{failure}");
    assert_eq!(fs::metadata(&made.root.path).unwrap().ino(), inode);
    drop(running);
    eventually("the disk is free", || wait(disks.create(&plan("one", None, 8))).is_ok());
}

#[test]
fn eight_creations_at_once() {
    let room = Room::new();
    let base = room.qcow2("ubuntu-base.1/disk.qcow2", 32, b'A');
    let before = sha256(&base);
    let disks = room.disks(StrategySetting::Overlay);
    let plans: Vec<_> = (0..8).map(|n| plan(&format!("box{n}"), None, 64)).collect();
    let all = wait(futures::future::join_all(plans.iter().map(|plan| disks.create(plan))));
    for made in all {
        run("qemu-img", &["check", text(&made.unwrap().root.path)]);
    }
    assert_eq!(room.left().len(), 8);
    assert_eq!(sha256(&base), before);
}

#[test]
fn an_abandoned_creation_leaves_nothing_after_a_removal() {
    let room = Room::new();
    room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let disks = room.disks(StrategySetting::Overlay);
    let (id, plan) = ("one".parse().unwrap(), plan("one", None, 8));
    for _ in 0..50 {
        wait(async {
            let creation = disks.create(&plan);
            futures::pin_mut!(creation);
            // On a busy machine it may be done already; then it is removed like any other.
            drop(futures::poll!(creation.as_mut()));
        });
        // The runtime above has ended, and with it the blocking thread: nothing runs on.
        wait(disks.remove(&id)).unwrap();
        assert!(room.left().is_empty());
    }
}

#[test]
fn a_removal_overtakes_an_abandoned_creation() {
    let room = Room::new();
    room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let disks = room.disks(StrategySetting::Overlay);
    let (id, plan) = ("one".parse().unwrap(), plan("one", None, 8));
    for _ in 0..50 {
        wait(async {
            {
                let creation = disks.create(&plan);
                futures::pin_mut!(creation);
                drop(futures::poll!(creation.as_mut()));
            }
            disks.remove(&id).await.unwrap();
        });
        assert!(room.left().is_empty());
    }
}

#[test]
fn a_full_volume_is_no_space_and_leaves_nothing() {
    let small = Room::tmpfs(512 << 10);
    let other = Room::new();
    other.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let mut settings = small.settings(StrategySetting::Auto);
    settings.base_image = other.snapshots().join("ubuntu-base.1/disk.qcow2");
    let disks = crate::disk::FileDisks::open(settings).unwrap();
    assert_eq!(disks.strategy(), Strategy::Overlay);
    let mut failures = 0;
    for n in 0..16 {
        match wait(disks.create(&plan(&format!("box{n}"), None, 8))) {
            Ok(_) => assert_eq!(failures, 0),
            Err(error) => {
                let failure: crate::error::Failure = error.into();
                assert_eq!((failure.code, failure.certainty), (ErrorCode::NoSpace, Certainty::NotDone), "{failure}");
                assert!(failure.recoverable(), "{failure}");
                failures += 1;
            }
        }
    }
    assert!((1..16).contains(&failures), "{failures}");
    assert_eq!(small.left().len(), 16 - failures);
    assert!(wait(disks.space()).unwrap().available < 512 << 10);
}

#[test]
fn space_is_that_of_the_volume() {
    let room = Room::tmpfs(4 * MIB);
    let disks = room.disks(StrategySetting::Auto);
    let space = wait(disks.space()).unwrap();
    assert_eq!(space.total, 4 * MIB);
    assert!(space.available <= space.total && space.available > 3 * MIB, "{space:?}");
}

#[test]
fn reflink_where_it_cannot_be_is_an_error_with_a_remedy() {
    let room = Room::tmpfs(4 * MIB);
    let Err(error) = crate::disk::FileDisks::open(room.settings(StrategySetting::Reflink)) else {
        panic!("tmpfs cannot clone files")
    };
    let failure: crate::error::Failure = error.into();
    for words in ["RUNNER_DISK_STRATEGY=reflink", text(&room.sandboxes()), "XFS", "RUNNER_DISK_STRATEGY=overlay"] {
        assert!(failure.message.contains(words), "{failure}");
    }
    assert!(room.left().is_empty() && fs::read_dir(room.sandboxes()).unwrap().next().is_none());
}

#[test]
fn qemu_readers_of_a_base_in_use_work_and_writers_are_refused() {
    let room = Room::new();
    let base = room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let disks = room.disks(StrategySetting::Overlay);
    wait(disks.create(&plan("one", None, 8))).unwrap();
    run("qemu-img", &["info", text(&base)]);
    run("qemu-img", &["check", text(&base)]);
    let resize = || Command::new("qemu-img").args(["resize", text(&base), "16M"]).output().unwrap();
    let resized = resize();
    assert!(!resized.status.success() && String::from_utf8_lossy(&resized.stderr).contains("lock"), "{resized:?}");
    wait(disks.remove(&"one".parse().unwrap())).unwrap();
    eventually("the base is free", || resize().status.success());
}
