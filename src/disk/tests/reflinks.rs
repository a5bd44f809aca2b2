//! The reflink strategy on an XFS in a file.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use super::Room;
use super::room::{MIB, plan, qemu_io, refused, run, sha256, text, wait};
use crate::disk::{Disks, Format, Strategy, StrategySetting};
use crate::error::{Certainty, ErrorCode};

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn letters(path: &Path, at: u64) -> u8 {
    let mut bytes = vec![0; MIB as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, at * MIB).unwrap();
    assert!(bytes.iter().all(|&byte| byte == bytes[0]), "MiB {at} of {path:?} is mixed");
    bytes[0]
}

#[test]
fn a_clone_of_a_flattened_chain() {
    let room = Room::xfs();
    let lowest = room.raw("lowest.raw", 8, b'L');
    let (middle, top) = (room.place("middle.qcow2"), room.place("ubuntu-base.1/disk.qcow2"));
    let create = |image: &Path, below: &Path, format: &str, size: &str| {
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(below), "-F", format, text(image), size]);
    };
    create(&middle, &lowest, "raw", "16M");
    qemu_io(&middle, "qcow2", "write -P 77 2M 1M");
    create(&top, &middle, "qcow2", "32M");
    qemu_io(&top, "qcow2", "write -P 84 3M 1M");
    qemu_io(&top, "qcow2", "write -z 7M 1M");
    let before = [sha256(&lowest), sha256(&middle), sha256(&top)];
    let disks = room.disks(StrategySetting::Auto);
    assert_eq!(disks.strategy(), Strategy::Reflink);
    let root = wait(disks.create(&plan("one", None, 64))).unwrap().root;
    assert_eq!((root.format, root.backed, root.size), (Format::Raw, false, 64 * MIB));
    assert_eq!(fs::metadata(&root.path).unwrap().len(), 64 * MIB);
    let found: Vec<u8> = [0, 1, 2, 3, 7, 31, 63].into_iter().map(|at| letters(&root.path, at)).collect();
    assert_eq!(found, [0, b'L', b'M', b'T', 0, 0, 0]);
    let copy = room.sandboxes().join(".bases").join(&room.copies()[0]);
    assert_eq!((allocated(&copy), fs::metadata(&copy).unwrap().mode() & 0o7777), (3 * MIB, 0o400));
    run("qemu-img", &["compare", "-q", "-U", "-f", "qcow2", "-F", "raw", text(&top), text(&copy)]);
    File::options().write(true).open(&root.path).unwrap().write_all_at(b"guest", MIB).unwrap();
    assert_eq!(letters(&copy, 1), b'L');
    assert_eq!([sha256(&lowest), sha256(&middle), sha256(&top)], before);
}

#[test]
fn compressed_clusters_are_read() {
    let room = Room::xfs();
    let plain = room.raw("plain.raw", 8, b'C');
    let base = room.place("ubuntu-base.1/disk.qcow2");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&plain), text(&base)]);
    let disks = room.disks(StrategySetting::Reflink);
    let root = wait(disks.create(&plan("one", None, 8))).unwrap().root;
    assert_eq!(sha256(&root.path), sha256(&plain));
}

#[test]
fn raw_bases_are_cloned_or_copied_sparsely() {
    let (room, other) = (Room::xfs(), Room::new());
    let near = room.raw("near.raw", 16, b'N');
    let far = other.raw("far.raw", 16, b'F');
    let disks = room.disks(StrategySetting::Reflink);
    let root = wait(disks.create(&plan("one", Some("near"), 16))).unwrap().root;
    assert_eq!(sha256(&root.path), sha256(&near));
    let mut settings = room.settings(StrategySetting::Reflink);
    settings.base_image = far.clone();
    let disks = crate::disk::FileDisks::open(settings).unwrap();
    let root = wait(disks.create(&plan("two", None, 16))).unwrap().root;
    assert_eq!(sha256(&root.path), sha256(&far));
    assert_eq!(allocated(&root.path), 2 * MIB);
}

#[test]
fn eight_creations_at_once_flatten_once() {
    let room = Room::xfs();
    let base = room.qcow2("ubuntu-base.1/disk.qcow2", 16, b'A');
    let before = sha256(&base);
    let disks = room.disks(StrategySetting::Reflink);
    let plans: Vec<_> = (0..8).map(|n| plan(&format!("box{n}"), None, 16)).collect();
    let all = wait(futures::future::join_all(plans.iter().map(|plan| disks.create(plan))));
    let sums: Vec<_> = all.into_iter().map(|made| sha256(&made.unwrap().root.path)).collect();
    assert!(sums.iter().all(|sum| *sum == sums[0]));
    assert_eq!(room.copies().len(), 1);
    assert_eq!(sha256(&base), before);
}

#[test]
fn a_new_version_of_a_base_replaces_the_old_copy() {
    let room = Room::xfs();
    let base = room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let disks = room.disks(StrategySetting::Reflink);
    let old = wait(disks.create(&plan("old", None, 8))).unwrap().root;
    let first = room.copies();
    fs::remove_file(&base).unwrap();
    room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'B');
    let new = wait(disks.create(&plan("new", None, 8))).unwrap().root;
    assert_eq!((letters(&old.path, 1), letters(&new.path, 1)), (b'A', b'B'));
    assert_eq!(room.copies().len(), 1);
    assert_ne!(room.copies(), first);
}

#[test]
fn a_start_removes_unfinished_copies_and_those_of_bases_that_are_gone() {
    let room = Room::xfs();
    room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let gone = room.qcow2("gone.qcow2", 8, b'G');
    let disks = room.disks(StrategySetting::Reflink);
    wait(disks.create(&plan("one", None, 8))).unwrap();
    wait(disks.create(&plan("two", Some("gone"), 8))).unwrap();
    let copies = room.copies();
    assert_eq!(copies.len(), 2);
    drop(disks);
    fs::remove_file(gone).unwrap();
    fs::write(room.sandboxes().join(".bases/unfinished.tmp"), "half").unwrap();
    drop(room.disks(StrategySetting::Reflink));
    let kept = room.copies();
    assert!(kept.len() == 1 && copies.contains(&kept[0]), "{copies:?} {kept:?}");
}

#[test]
fn no_space_to_flatten_leaves_nothing_and_is_told_to_all() {
    let room = Room::xfs();
    let other = Room::new();
    let base = other.raw("full.raw", 64, b'F');
    let mut settings = room.settings(StrategySetting::Reflink);
    settings.base_image = base;
    let disks = crate::disk::FileDisks::open(settings).unwrap();
    let free = wait(disks.space()).unwrap().available;
    let filler = File::create(room.root.join("filler")).unwrap();
    fallocate(&filler, FallocateFlags::empty(), 0, (free - MIB) as i64).unwrap();
    let plans: Vec<_> = (0..4).map(|n| plan(&format!("box{n}"), None, 64)).collect();
    for answer in wait(futures::future::join_all(plans.iter().map(|plan| disks.create(plan)))) {
        let failure = refused(answer);
        assert_eq!((failure.code, failure.certainty), (ErrorCode::NoSpace, Certainty::NotDone), "{failure}");
        assert!(failure.recoverable() && failure.message.contains("full.raw"), "{failure}");
    }
    assert!(room.left().is_empty() && room.copies().is_empty());
    drop(filler);
    fs::remove_file(room.root.join("filler")).unwrap();
    wait(disks.create(&plans[0])).unwrap();
}

#[test]
fn stopping_ends_a_flattening() {
    let room = Room::xfs();
    room.qcow2("ubuntu-base.1/disk.qcow2", 64, b'A');
    let disks = room.disks(StrategySetting::Reflink);
    disks.stop();
    let answer = wait(disks.create(&plan("one", None, 64)));
    assert_eq!(refused(answer).code, ErrorCode::Interrupted);
    assert!(room.left().is_empty() && room.copies().is_empty());
}
