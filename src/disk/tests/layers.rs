//! Splitting, continuing and merging qcow2 disks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Room;
use super::bases::lock_exclusively;
use super::room::{MIB, plan, qemu_io, refused, run, sha256, text, wait};
use crate::disk::{Disks, FileDisks, Format, Graft, RootDisk, SandboxDisks, StrategySetting};
use crate::error::ErrorCode;
use crate::ids::SandboxId;

pub fn id(text: &str) -> SandboxId {
    text.parse().unwrap()
}

pub fn graft(name: &str, disk: &RootDisk, size: u64) -> Graft {
    let plan = plan(name, None, size);
    Graft { sandbox: plan.sandbox, disk: disk.clone(), size: plan.size, seed: plan.seed }
}

pub fn parent(room: &Room, disks: &FileDisks) -> SandboxDisks {
    if !room.snapshots().join("ubuntu-base.1").exists() {
        room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'B');
    }
    let made = wait(disks.create(&plan("parent", None, 16))).unwrap();
    qemu_io(&made.root.path, "qcow2", "write -P 80 2M 1M");
    made
}

pub fn layers(room: &Room) -> Vec<PathBuf> {
    let all = fs::read_dir(room.sandboxes().join(".layers")).unwrap();
    all.map(|entry| entry.unwrap().path()).collect()
}

/// The sum of what a guest would read.
pub fn content(room: &Room, disk: &Path) -> String {
    let raw = room.root.join("content.raw");
    run("qemu-img", &["convert", "-U", "-f", "qcow2", "-O", "raw", text(disk), text(&raw)]);
    let sum = sha256(&raw);
    fs::remove_file(raw).unwrap();
    sum
}

#[test]
fn a_child_and_its_parent_go_separate_ways() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let before = content(&room, &made.root.path);
    let (root, frozen) = wait(disks.split(&id("parent"), &made.root)).unwrap();
    assert_eq!((&root.path, root.size, &root.base), (&made.root.path, 16 * MIB, &made.root.base));
    assert_eq!((&root.layers, root.format, root.backed), (&vec![frozen.path.clone()], Format::Qcow2, true));
    assert_eq!((&frozen.layers, &frozen.base, frozen.size), (&vec![], &made.root.base, 16 * MIB));
    assert_eq!(fs::metadata(&frozen.path).unwrap().permissions().mode() & 0o7777, 0o400);
    wait(disks.room(&id("child"))).unwrap();
    fs::write(disks.dir(&id("child")).join("ch.log"), "a VMM waits").unwrap();
    let child = wait(disks.graft(&graft("child", &frozen, 32))).unwrap();
    assert_eq!((&child.root.layers, child.root.size), (&root.layers, 32 * MIB));
    assert!(child.seed.exists() && disks.dir(&id("child")).join("ch.log").exists());
    assert_eq!(content(&room, &root.path), before);
    qemu_io(&root.path, "qcow2", "write -P 120 3M 1M");
    qemu_io(&child.root.path, "qcow2", "write -P 121 2M 1M");
    wait(disks.release(&frozen)).unwrap();
    qemu_io(&root.path, "qcow2", "read -P 80 2M 1M");
    wait(disks.remove(&id("parent"))).unwrap();
    for command in ["read -P 66 1M 1M", "read -P 121 2M 1M", "read -P 0 3M 1M", "read -P 66 7M 1M", "read -P 0 8M 24M"]
    {
        qemu_io(&child.root.path, "qcow2", command);
    }
    run("qemu-img", &["check", "-q", text(&child.root.path)]);
    assert_eq!(layers(&room), [frozen.path]);
    wait(disks.remove(&id("child"))).unwrap();
    assert!(layers(&room).is_empty() && room.left().is_empty());
}

/// Splits as often as can be, with other content each time.
fn deepen(disks: &FileDisks, made: SandboxDisks, times: u64) -> RootDisk {
    let mut root = made.root;
    for level in 0..times {
        qemu_io(&root.path, "qcow2", &format!("write -P {} {} 192k", 97 + level, level * 100_000 / 512 * 512));
        qemu_io(&root.path, "qcow2", &format!("write -z {}k 64k", 1024 + level * 64));
        qemu_io(&root.path, "qcow2", &format!("write -P {} 9M 64k", 97 + level));
        let (next, frozen) = wait(disks.split(&id("parent"), &root)).unwrap();
        wait(disks.release(&frozen)).unwrap();
        root = next;
    }
    root
}

#[test]
fn six_layers_are_merged_into_one_with_the_same_content() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let root = deepen(&disks, made, 6);
    assert_eq!((root.layers.len(), layers(&room).len()), (6, 6));
    let failure = refused(wait(disks.split(&id("parent"), &root)));
    assert_eq!(failure.code, ErrorCode::Conflict);
    assert!(failure.message.contains("6 layers") && failure.message.contains("being merged"), "{failure}");
    qemu_io(&root.path, "qcow2", "write -P 33 10M 64k");
    let before = content(&room, &root.path);
    let child_root = RootDisk { path: root.layers[0].clone(), layers: root.layers[1..].to_vec(), ..root.clone() };
    let child = wait(disks.graft(&graft("child", &child_root, 16))).unwrap();
    let of_child = content(&room, &child.root.path);
    let merged = wait(disks.merge(&root)).unwrap().unwrap();
    // The VM has gone on meanwhile.
    qemu_io(&root.path, "qcow2", "write -P 33 11M 64k");
    run("qemu-img", &["check", "-q", text(&merged)]);
    assert!(fs::metadata(&merged).unwrap().len() < 4 * MIB, "only the layers' own content is copied");
    let stamp = wait(disks.stamp(&root)).unwrap();
    let rebased = wait(disks.rebase(&id("parent"), &root, &merged)).unwrap();
    assert_eq!((&rebased.layers, &rebased.base), (&vec![merged.clone()], &root.base));
    assert_eq!(wait(disks.stamp(&rebased)).unwrap(), stamp);
    qemu_io(&rebased.path, "qcow2", "read -P 33 11M 64k");
    qemu_io(&rebased.path, "qcow2", "write -z 11M 64k");
    assert_eq!(content(&room, &rebased.path), before);
    run("qemu-img", &["check", "-q", text(&rebased.path)]);
    assert_eq!(layers(&room).len(), 7, "the child stands on the old ones");
    assert_eq!(content(&room, &child.root.path), of_child);
    wait(disks.remove(&id("child"))).unwrap();
    assert_eq!(layers(&room), [merged]);
    // And again, so that the name in the header moves back.
    let root = deepen(&disks, SandboxDisks { root: rebased, seed: made_seed() }, 2);
    let before = content(&room, &root.path);
    let merged = wait(disks.merge(&root)).unwrap().unwrap();
    let root = wait(disks.rebase(&id("parent"), &root, &merged)).unwrap();
    assert_eq!(content(&room, &root.path), before);
    assert_eq!(layers(&room), [merged]);
}

fn made_seed() -> PathBuf {
    PathBuf::new()
}

#[test]
fn a_merge_that_comes_too_late_is_refused_and_cleaned_up() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let root = {
        let made = parent(&room, &disks);
        deepen(&disks, made, 3)
    };
    assert_eq!(wait(disks.merge(&RootDisk { layers: root.layers[..2].to_vec(), ..root.clone() })).unwrap(), None);
    let merged = wait(disks.merge(&root)).unwrap().unwrap();
    let (next, frozen) = wait(disks.split(&id("parent"), &root)).unwrap();
    assert_eq!(refused(wait(disks.rebase(&id("parent"), &next, &merged))).code, ErrorCode::Conflict);
    wait(disks.release(&frozen)).unwrap();
    assert!(merged.exists());
    wait(disks.release(&RootDisk { path: merged.clone(), ..frozen })).unwrap();
    assert!(!merged.exists());
    let merged = wait(disks.merge(&next)).unwrap().unwrap();
    wait(disks.remove(&id("parent"))).unwrap();
    assert!(!merged.exists() && layers(&room).is_empty(), "a merge for a sandbox that is gone");
}

#[test]
fn stopping_ends_a_merge_and_leaves_nothing() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let root = deepen(&disks, made, 3);
    disks.stop();
    assert_eq!(refused(wait(disks.merge(&root))).code, ErrorCode::Interrupted);
    assert_eq!(layers(&room).len(), 3);
}

#[test]
fn a_disk_with_a_vmm_is_neither_split_nor_rebased_nor_grown_nor_replaced() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let root = deepen(&disks, made, 3);
    let merged = wait(disks.merge(&root)).unwrap().unwrap();
    let running = lock_exclusively(&root.path);
    let frozen = RootDisk { path: root.layers[0].clone(), ..root.clone() };
    for failure in [
        refused(wait(disks.split(&id("parent"), &root))),
        refused(wait(disks.rebase(&id("parent"), &root, &merged))),
        refused(wait(disks.grow(&root, 64 * MIB))),
        refused(wait(disks.graft(&graft("parent", &frozen, 16)))),
        refused(wait(disks.room(&id("parent")))),
    ] {
        assert_eq!(failure.code, ErrorCode::Conflict, "{failure}");
        assert!(failure.message.contains("disk.qcow2"), "{failure}");
    }
    drop(running);
    assert_eq!(layers(&room).len(), 4);
    qemu_io(&root.path, "qcow2", "read -P 80 2M 1M");
}

#[test]
fn only_a_sandbox_s_own_qcow2_image_is_split() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let raw = RootDisk { format: Format::Raw, ..made.root.clone() };
    assert!(refused(wait(disks.split(&id("parent"), &raw))).message.contains("freeze it instead"));
    let failure = refused(wait(disks.split(&id("other"), &made.root)));
    assert!(failure.message.contains("own image"), "{failure}");
    let failure = refused(wait(disks.freeze(&made.root, &room.sandboxes())));
    assert!(failure.message.contains("split the disk"), "{failure}");
    assert!(layers(&room).is_empty());
}

#[test]
fn a_failed_graft_leaves_the_room_to_its_vmm() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let (_, frozen) = wait(disks.split(&id("parent"), &made.root)).unwrap();
    let small = refused(wait(disks.graft(&graft("child", &frozen, 8))));
    assert_eq!(small.code, ErrorCode::BadRequest);
    assert_eq!(room.left(), ["parent"]);
    wait(disks.room(&id("child"))).unwrap();
    fs::write(disks.dir(&id("child")).join("ch.log"), "x").unwrap();
    fs::write(disks.dir(&id("child")).join("disk.raw"), "stale").unwrap();
    refused(wait(disks.graft(&graft("child", &frozen, 8))));
    let left: Vec<_> = fs::read_dir(disks.dir(&id("child"))).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["ch.log"]);
    fs::write(disks.dir(&id("child")).join("seed.img"), "stale").unwrap();
    let child = wait(disks.graft(&graft("child", &frozen, 16))).unwrap();
    assert_eq!(fs::metadata(&child.seed).unwrap().permissions().mode() & 0o7777, 0o600);
    qemu_io(&child.root.path, "qcow2", "read -P 80 2M 1M");
}

#[test]
fn a_split_without_space_leaves_the_disk_as_it_was() {
    let room = Room::tmpfs(24 * MIB);
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let before = content(&room, &made.root.path);
    let filler = room.root.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(refused(wait(disks.split(&id("parent"), &made.root))).code, ErrorCode::NoSpace);
    assert!(layers(&room).is_empty() && !made.root.path.with_extension("qcow2.new").exists());
    fs::remove_file(filler).unwrap();
    drop(file);
    assert_eq!(content(&room, &made.root.path), before);
    let (root, _) = wait(disks.split(&id("parent"), &made.root)).unwrap();
    assert_eq!(content(&room, &root.path), before);
}

#[test]
fn many_children_at_once_and_removals_beside_them() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let before = content(&room, &made.root.path);
    let (root, frozen) = wait(disks.split(&id("parent"), &made.root)).unwrap();
    let grafts: Vec<_> = (0..12).map(|n| graft(&format!("child{n}"), &frozen, 16)).collect();
    let all = wait(futures::future::join_all(grafts.iter().map(|graft| async {
        let made = disks.graft(graft).await.unwrap();
        // The last two go again, while the rest come to be.
        if graft.sandbox.as_str().len() > 6 {
            disks.remove(&graft.sandbox).await.unwrap();
        }
        made
    })));
    wait(disks.release(&frozen)).unwrap();
    assert_eq!((room.left().len(), layers(&room).len()), (11, 1));
    for made in &all[..10] {
        assert_eq!(content(&room, &made.root.path), before);
    }
    assert_eq!(content(&room, &root.path), before);
    wait(futures::future::join_all(grafts.iter().map(|graft| disks.remove(&graft.sandbox))));
    assert_eq!((room.left(), layers(&room).len()), (vec!["parent".to_owned()], 1));
}

#[test]
fn qcow2_disks_grow() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let mut root = made.root;
    for size in [16, 1024, 6 * 1024, 9 * 1024 * 1024] {
        root = wait(disks.grow(&root, size * MIB)).unwrap();
        assert_eq!(root.size, size * MIB);
        run("qemu-img", &["check", "-q", text(&root.path)]);
        let info = run("qemu-img", &["info", "--output=json", text(&root.path)]);
        assert!(info.contains(&format!("\"virtual-size\": {}", size * MIB)), "{info}");
        for command in ["read -P 66 1M 1M", "read -P 80 2M 1M", "read -P 66 7M 1M", "read -P 0 8M 7M"] {
            qemu_io(&root.path, "qcow2", command);
        }
        qemu_io(&root.path, "qcow2", &format!("write -P 71 {}M 64k", size - 1));
    }
    let failure = refused(wait(disks.grow(&root, 8 * MIB)));
    assert_eq!(failure.code, ErrorCode::BadRequest);
    assert!(failure.message.contains("disks only grow"), "{failure}");
    assert_eq!(refused(wait(disks.grow(&root, root.size + 1))).code, ErrorCode::BadRequest);
}

#[test]
fn a_split_that_nobody_remembers_is_found_again() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let stamp = wait(disks.stamp(&made.root)).unwrap();
    let look = |disks: &FileDisks| wait(disks.after_split(&id("parent"), &made.root, stamp)).unwrap();
    assert_eq!(look(&disks), None, "it was not split");
    let (root, frozen) = wait(disks.split(&id("parent"), &made.root)).unwrap();
    let now = wait(disks.stamp(&root)).unwrap();
    assert_eq!(look(&disks), Some((root.clone(), now)));
    assert_eq!(wait(disks.stamp(&root)).unwrap(), now, "to look changes nothing");
    drop(disks);
    let disks = room.disks(StrategySetting::Overlay);
    wait(disks.sweep()).unwrap();
    assert_eq!(look(&disks), Some((root.clone(), now)), "in the next life as well");
    qemu_io(&root.path, "qcow2", "write -P 120 3M 1M");
    assert_eq!(look(&disks), None, "the guest has written to it since");
    assert!(layers(&room) == [frozen.path]);
}

#[test]
fn a_disk_that_grew_still_holds_what_it_held() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    let made = parent(&room, &disks);
    let before = wait(disks.stamp(&made.root)).unwrap();
    let grown = wait(disks.grow(&made.root, 64 * MIB)).unwrap();
    assert!(before.still_holds(&wait(disks.stamp(&grown)).unwrap()));
    qemu_io(&grown.path, "qcow2", "write -P 120 3M 1M");
    assert!(!before.still_holds(&wait(disks.stamp(&grown)).unwrap()));
}
