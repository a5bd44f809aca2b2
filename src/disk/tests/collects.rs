//! Crashes at every instant of a split, and what may be removed after them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Room;
use super::bases::lock_exclusively;
use super::layers::{content, graft, id, layers, parent};
use super::room::{MIB, plan, qemu_io, refused, run, text, wait};
use crate::disk::{Disks, Format, RootDisk, StrategySetting};
use crate::error::ErrorCode;

fn overlay(at: &Path, below: &Path) {
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(below), "-F", "qcow2", text(at), "16M"]);
}

#[test]
fn a_crash_at_any_instant_of_a_split_leaves_a_whole_disk() {
    for state in 0..5 {
        let room = Room::new();
        let disks = room.disks(StrategySetting::Overlay);
        let made = parent(&room, &disks);
        let before = content(&room, &made.root.path);
        drop(disks);
        let path = made.root.path.clone();
        let (layer, new) = (room.sandboxes().join(".layers/one.qcow2"), path.with_extension("qcow2.new"));
        fs::hard_link(&path, &layer).unwrap();
        match state {
            0 => {}
            1 => fs::write(&new, [0; 4096]).unwrap(),
            _ => overlay(&new, &layer),
        }
        if state >= 3 {
            fs::rename(&new, &path).unwrap();
        }
        let running = (state == 4).then(|| lock_exclusively(&path));
        let disks = room.disks(StrategySetting::Overlay);
        let removed = wait(disks.sweep()).unwrap();
        assert_eq!((removed, layers(&room).len()), [(1, 0), (2, 0), (2, 0), (0, 1), (0, 1)][state]);
        assert!(!new.exists());
        assert!(layer.metadata().map_or(true, |about| about.mode() & 0o7777 == 0o400));
        wait(disks.hold(&id("parent"), &made.root)).unwrap();
        drop(running);
        assert_eq!(content(&room, &path), before, "state {state}");
        // The record is that of before; what counts is what the images say.
        let (root, frozen) = wait(disks.split(&id("parent"), &made.root)).unwrap();
        assert_eq!(root.layers.len(), [1, 1, 1, 2, 2][state]);
        assert_eq!(frozen.layers.len() + 1, root.layers.len());
        assert_eq!(content(&room, &path), before);
    }
}

#[test]
fn a_start_removes_captures_and_what_nobody_stands_on() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let (root, frozen) = wait(disks.split(&id("parent"), &made.root)).unwrap();
    let child = wait(disks.graft(&graft("child", &frozen, 16))).unwrap();
    let (child_root, _) = wait(disks.split(&id("child"), &child.root)).unwrap();
    let capture = wait(disks.begin_capture()).unwrap();
    fs::write(capture.join("memory"), "x").unwrap();
    fs::create_dir_all(room.sandboxes().join(".memory")).unwrap();
    fs::write(room.sandboxes().join(".memory/blank"), "x").unwrap();
    fs::write(room.sandboxes().join(".layers/half.tmp"), "x").unwrap();
    overlay(&room.sandboxes().join(".layers/unused.qcow2"), &frozen.path);
    drop(disks);
    // The parent's directory was removed without a word to anybody; both layers are still needed by the child.
    fs::remove_dir_all(root.path.parent().unwrap()).unwrap();
    let disks = room.disks(StrategySetting::Overlay);
    assert_eq!(wait(disks.sweep()).unwrap(), 3);
    assert_eq!(layers(&room).len(), 2);
    assert!(!capture.exists() && room.sandboxes().join(".memory/blank").exists());
    wait(disks.hold(&id("child"), &child_root)).unwrap();
    qemu_io(&child_root.path, "qcow2", "read -P 80 2M 1M");
    wait(disks.remove(&id("child"))).unwrap();
    assert!(layers(&room).is_empty());
}

#[test]
fn nothing_is_removed_while_one_image_cannot_be_read() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let (root, frozen) = wait(disks.split(&id("parent"), &made.root)).unwrap();
    let good = fs::read(&root.path).unwrap();
    fs::write(&root.path, [0; 100]).unwrap();
    wait(disks.release(&frozen)).unwrap();
    drop(disks);
    let disks = room.disks(StrategySetting::Overlay);
    for broken in [vec![], vec![1; 65536], good[..60].to_vec()] {
        fs::write(&root.path, broken).unwrap();
        assert_eq!(wait(disks.sweep()).unwrap(), 0);
        assert_eq!(layers(&room), std::slice::from_ref(&frozen.path));
        assert!(refused(wait(disks.users_of(&room.snapshots()))).message.contains("parent/disk.qcow2"));
    }
    fs::write(&root.path, &good).unwrap();
    assert_eq!(wait(disks.sweep()).unwrap(), 0);
    fs::rename(&frozen.path, frozen.path.with_extension("away")).unwrap();
    overlay(&room.sandboxes().join(".layers/other.qcow2"), &made.root.base);
    assert_eq!(wait(disks.sweep()).unwrap(), 0, "a layer is missing: nobody knows what it stood on");
    fs::remove_dir_all(root.path.parent().unwrap()).unwrap();
    assert_eq!(wait(disks.sweep()).unwrap(), 1);
}

#[test]
fn what_is_under_way_is_in_use() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let (_, frozen) = wait(disks.split(&id("parent"), &made.root)).unwrap();
    wait(disks.remove(&id("parent"))).unwrap();
    assert_eq!(wait(disks.sweep()).unwrap(), 0, "the capture holds it");
    let child = wait(disks.graft(&graft("child", &frozen, 16))).unwrap();
    wait(disks.release(&frozen)).unwrap();
    wait(disks.release(&frozen)).unwrap();
    qemu_io(&child.root.path, "qcow2", "read -P 80 2M 1M");
    wait(disks.remove(&id("child"))).unwrap();
    let gone = refused(wait(disks.graft(&graft("late", &frozen, 16))));
    assert_eq!(gone.code, ErrorCode::UnprocessableEntity);
    assert!(layers(&room).is_empty() && room.left().is_empty());
}

#[test]
fn users_of_a_directory_are_found_through_layers() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let snapshot = room.raw("org/snap/disk.raw", 8, b'S');
    let dir = snapshot.parent().unwrap().to_owned();
    let made = parent(&room, &disks);
    assert!(wait(disks.users_of(&dir)).unwrap().is_empty());
    let frozen = RootDisk {
        path: snapshot.clone(),
        format: Format::Raw,
        backed: false,
        size: 8 * MIB,
        base: made.root.base.clone(),
        layers: Vec::new(),
    };
    let one = wait(disks.graft(&graft("one", &frozen, 16))).unwrap();
    assert_eq!((one.root.format, one.root.backed, &one.root.base), (Format::Qcow2, true, &snapshot));
    qemu_io(&one.root.path, "qcow2", "read -P 83 7M 1M");
    let (_, split) = wait(disks.split(&id("one"), &one.root)).unwrap();
    wait(disks.graft(&graft("two", &split, 16))).unwrap();
    wait(disks.create(&plan("three", Some("org/snap"), 16))).unwrap();
    let expected = [id("one"), id("three"), id("two")];
    assert_eq!(wait(disks.users_of(&dir)).unwrap(), expected);
    assert_eq!(wait(disks.users_of(&snapshot)).unwrap(), expected);
    drop(disks);
    let disks = room.disks(StrategySetting::Overlay);
    assert_eq!(wait(disks.users_of(&dir)).unwrap(), expected, "without anything in memory");
    assert_eq!(wait(disks.users_of(&room.snapshots())).unwrap().len(), 4);
    assert!(wait(disks.users_of(&room.snapshots().join("nothing"))).unwrap().is_empty());
}

#[test]
fn captures_end_only_where_captures_are() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let capture = wait(disks.begin_capture()).unwrap();
    let about = fs::metadata(&capture).unwrap();
    assert_eq!(
        (about.mode() & 0o7777, capture.parent().unwrap()),
        (0o700, room.sandboxes().join(".captures").as_path())
    );
    let captures = capture.parent().unwrap().to_owned();
    for foreign in [
        captures.clone(),
        captures.join(".."),
        captures.join("../parent"),
        captures.join("a/b"),
        room.sandboxes(),
        "/".into(),
        "relative".into(),
        room.sandboxes().join(".layers/x"),
    ] {
        let failure = refused(wait(disks.end_capture(&foreign)));
        assert!(failure.message.contains("nothing was done"), "{failure}");
    }
    fs::write(capture.join("memory"), "x").unwrap();
    for _ in 0..2 {
        wait(disks.end_capture(&capture)).unwrap();
    }
    assert!(!capture.exists() && room.sandboxes().exists());
}
