//! Freezing and continuing raw disks.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use super::Room;
use super::bases::lock_exclusively;
use super::layers::{graft, id};
use super::room::{MIB, plan, refused, sha256, wait};
use crate::disk::{Disks, FileDisks, Format, RootDisk, StrategySetting};
use crate::error::{Certainty, ErrorCode};

fn write(path: &Path, letter: u8, at: u64) {
    File::options().write(true).open(path).unwrap().write_all_at(&vec![letter; MIB as usize], at * MIB).unwrap();
}

fn letter(path: &Path, at: u64) -> u8 {
    let mut byte = [0];
    File::open(path).unwrap().read_exact_at(&mut byte, at * MIB).unwrap();
    byte[0]
}

#[test]
fn a_frozen_clone_stays_while_parent_and_child_go_on() {
    let room = Room::xfs();
    room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'B');
    let disks = room.disks(StrategySetting::Reflink);
    let root = wait(disks.create(&plan("parent", None, 64))).unwrap().root;
    write(&root.path, b'P', 2);
    let capture = wait(disks.begin_capture()).unwrap();
    let running = lock_exclusively(&root.path);
    wait(disks.flush(&root)).unwrap();
    let frozen = wait(disks.freeze(&root, &capture)).unwrap();
    assert_eq!((&frozen.path, frozen.size, frozen.format), (&capture.join("disk.raw"), 64 * MIB, Format::Raw));
    assert_eq!((frozen.backed, &frozen.base, &frozen.layers), (false, &root.base, &vec![]));
    assert_eq!(wait(disks.freeze(&root, &capture)).unwrap(), frozen);
    write(&root.path, b'X', 2);
    wait(disks.room(&id("child"))).unwrap();
    let child = wait(disks.graft(&graft("child", &frozen, 128))).unwrap().root;
    assert_eq!((child.size, fs::metadata(&child.path).unwrap().len(), child.backed), (128 * MIB, 128 * MIB, false));
    write(&child.path, b'C', 100);
    assert_eq!(fs::metadata(&child.path).unwrap().mode() & 0o7777, 0o600);
    wait(disks.end_capture(&capture)).unwrap();
    drop(running);
    wait(disks.remove(&id("parent"))).unwrap();
    assert_eq!([1, 2, 3, 7, 100].map(|at| letter(&child.path, at)), [b'B', b'P', 0, b'B', b'C']);
}

#[test]
fn without_reflink_only_the_data_is_copied() {
    let room = Room::new();
    room.raw("ubuntu-base.1/disk.raw", 8, b'B');
    let disks = room.disks(StrategySetting::Overlay);
    let dir = disks.dir(&id("parent"));
    fs::create_dir(&dir).unwrap();
    let path = dir.join("disk.raw");
    File::create(&path).unwrap().set_len(1024 * MIB).unwrap();
    write(&path, b'P', 700);
    let root = RootDisk {
        path,
        format: Format::Raw,
        backed: false,
        size: 1024 * MIB,
        base: room.snapshots(),
        layers: Vec::new(),
    };
    let capture = wait(disks.begin_capture()).unwrap();
    let frozen = wait(disks.freeze(&root, &capture)).unwrap();
    write(&root.path, b'X', 700);
    let child = wait(disks.graft(&graft("child", &frozen, 2048))).unwrap().root;
    for copy in [&frozen.path, &child.path] {
        assert_eq!((letter(copy, 700), letter(copy, 701)), (b'P', 0));
        assert!(fs::metadata(copy).unwrap().blocks() * 512 <= 2 * MIB);
    }
    assert_eq!((frozen.size, child.size), (1024 * MIB, 2048 * MIB));
    let stamp = wait(disks.stamp(&child)).unwrap();
    assert_eq!(wait(disks.stamp(&child)).unwrap(), stamp);
    let grown = wait(disks.grow(&child, 3 * 1024 * MIB)).unwrap();
    assert_eq!(fs::metadata(&grown.path).unwrap().len(), 3 * 1024 * MIB);
    let larger = wait(disks.stamp(&child)).unwrap();
    assert_ne!(larger, stamp);
    write(&grown.path, b'W', 1);
    assert_ne!(wait(disks.stamp(&child)).unwrap(), larger);
    assert_eq!(refused(wait(disks.grow(&grown, MIB))).code, ErrorCode::BadRequest);
    let running = lock_exclusively(&grown.path);
    assert_eq!(refused(wait(disks.grow(&grown, 4 * 1024 * MIB))).code, ErrorCode::Conflict);
    drop(running);
}

#[test]
fn a_full_volume_leaves_neither_half_a_freeze_nor_half_a_graft() {
    let room = Room::tmpfs(24 * MIB);
    let disks = room.disks(StrategySetting::Overlay);
    let dir = disks.dir(&id("parent"));
    fs::create_dir(&dir).unwrap();
    let path = dir.join("disk.raw");
    fs::write(&path, vec![7; 13 * MIB as usize]).unwrap();
    let size = 13 * MIB;
    let root = RootDisk { path, format: Format::Raw, backed: false, size, base: room.snapshots(), layers: Vec::new() };
    let capture = wait(disks.begin_capture()).unwrap();
    let failure = refused(wait(disks.freeze(&root, &capture)));
    assert_eq!((failure.code, failure.certainty), (ErrorCode::NoSpace, Certainty::NotDone), "{failure}");
    assert_eq!(fs::read_dir(&capture).unwrap().count(), 0);
    wait(disks.room(&id("child"))).unwrap();
    fs::write(disks.dir(&id("child")).join("ch.log"), "x").unwrap();
    let failure = refused(wait(disks.graft(&graft("child", &root, 13))));
    assert_eq!(failure.code, ErrorCode::NoSpace, "{failure}");
    let left: Vec<_> = fs::read_dir(disks.dir(&id("child"))).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["ch.log"]);
    assert_eq!(fs::metadata(&root.path).unwrap().len(), 13 * MIB);
}

#[test]
fn a_snapshot_s_disk_is_cloned_from_near_and_from_far() {
    let (room, other) = (Room::xfs(), Room::new());
    let near = room.raw("near/disk.raw", 8, b'N');
    let far = other.raw("far/disk.raw", 8, b'F');
    for (name, settings, image) in [
        ("one", room.settings(StrategySetting::Reflink), near),
        ("two", crate::disk::Settings { snapshots: other.snapshots(), ..room.settings(StrategySetting::Reflink) }, far),
    ] {
        let disks = FileDisks::open(settings).unwrap();
        let frozen = RootDisk {
            path: image.clone(),
            format: Format::Raw,
            backed: false,
            size: 8 * MIB,
            base: image.clone(),
            layers: Vec::new(),
        };
        let made = wait(disks.graft(&graft(name, &frozen, 8))).unwrap().root;
        assert_eq!((sha256(&made.path), made.format, made.backed), (sha256(&image), Format::Raw, false));
        assert_eq!(made.base, image);
    }
}

/// Prints what the steps of a fork cost; the bounds are wide, for a machine that is busy.
#[test]
fn figures() {
    let timed = |what: &str, step: &mut dyn FnMut()| {
        let begun = Instant::now();
        step();
        eprintln!("{what}: {:.2} ms", begun.elapsed().as_secs_f64() * 1000.0);
        assert!(begun.elapsed().as_secs() < 10);
    };
    let room = Room::xfs();
    room.qcow2("ubuntu-base.1/disk.qcow2", 64, b'B');
    let disks = room.disks(StrategySetting::Reflink);
    let root = wait(disks.create(&plan("parent", None, 2048))).unwrap().root;
    for at in 0..100 {
        write(&root.path, b'D', at);
    }
    timed("fdatasync of 100 MiB", &mut || wait(disks.flush(&root)).unwrap());
    let mut frozen = None;
    for _ in 0..3 {
        let capture = wait(disks.begin_capture()).unwrap();
        timed("freeze by clone", &mut || frozen = Some(wait(disks.freeze(&root, &capture)).unwrap()));
    }
    let frozen = frozen.unwrap();
    for name in ["a", "b", "c"] {
        timed("graft by clone", &mut || drop(wait(disks.graft(&graft(name, &frozen, 2048))).unwrap()));
    }
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let mut root = super::layers::parent(&room, &disks).root;
    for name in ["a", "b", "c"] {
        let mut frozen = None;
        timed("split", &mut || {
            let parts = wait(disks.split(&id("parent"), &root)).unwrap();
            root = parts.0;
            frozen = Some(parts.1);
        });
        let frozen = frozen.unwrap();
        timed("graft of a layer", &mut || drop(wait(disks.graft(&graft(name, &frozen, 16))).unwrap()));
        timed("release", &mut || wait(disks.release(&frozen)).unwrap());
    }
    let mut merged = None;
    timed("merge", &mut || merged = wait(disks.merge(&root)).unwrap());
    timed("rebase", &mut || drop(wait(disks.rebase(&id("parent"), &root, merged.as_ref().unwrap())).unwrap()));
}
