//! Blank files and shared names.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::guest::Guest;
use super::support::{MIB, PAGE, Room, wait, words};
use crate::error::ErrorCode;
use crate::memory::{Error, FileMemory, Memory};

fn mode(path: &std::path::Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn all_blank_files_of_one_size_are_one() {
    let room = Room::new();
    let memory = room.memory();
    let (a, b, c) = (room.path("a"), room.path("b"), room.path("c"));
    fs::write(&b, "something older").unwrap();
    for (path, size) in [(&a, MIB), (&b, MIB), (&c, 2 * MIB), (&a, MIB)] {
        wait(memory.blank(path, size)).unwrap();
    }
    let (first, second, other) = (fs::metadata(&a).unwrap(), fs::metadata(&b).unwrap(), fs::metadata(&c).unwrap());
    assert_eq!(first.ino(), second.ino());
    assert_ne!(first.ino(), other.ino());
    assert_eq!((first.len(), other.len(), first.blocks()), (MIB, 2 * MIB, 0));
    assert_eq!((mode(&a), mode(&room.path(".memory"))), (0o400, 0o700));
    assert_eq!(room.names(), ["a", "b", "c"]);
}

#[test]
fn unused_blank_files_go_at_the_next_start() {
    let room = Room::new();
    let dir = room.path(".memory");
    let memory = room.memory();
    let (a, b) = (room.path("a"), room.path("b"));
    wait(memory.blank(&a, MIB)).unwrap();
    wait(memory.blank(&b, 2 * MIB)).unwrap();
    fs::remove_file(&b).unwrap();
    fs::write(dir.join(".blank-7.1-1.unfinished"), "").unwrap();
    fs::hard_link(dir.join(format!("blank-{MIB}")), dir.join(".blank-7.1-2.unfinished")).unwrap();
    fs::write(dir.join("notes"), "of somebody").unwrap();
    FileMemory::open(&room.root).unwrap();
    let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [format!("blank-{MIB}").as_str(), "notes"]);
    assert_eq!(fs::metadata(&a).unwrap().nlink(), 2);
    fs::remove_file(&a).unwrap();
    FileMemory::open(&room.root).unwrap();
    assert!(!dir.join(format!("blank-{MIB}")).exists());
}

#[test]
fn a_wrong_thing_under_the_blank_name_is_replaced() {
    let room = Room::new();
    let memory = room.memory();
    let blank = room.path(".memory").join(format!("blank-{MIB}"));
    fs::write(&blank, "short").unwrap();
    wait(memory.blank(&room.path("a"), MIB)).unwrap();
    assert_eq!(fs::metadata(room.path("a")).unwrap().len(), MIB);
    fs::remove_file(&blank).unwrap();
    symlink("/dev/zero", &blank).unwrap();
    wait(memory.blank(&room.path("a"), MIB)).unwrap();
    assert!(fs::symlink_metadata(room.path("a")).unwrap().is_file());
}

#[test]
fn senseless_sizes() {
    let room = Room::new();
    for size in [0, 1, PAGE + 1] {
        let error = wait(room.memory().blank(&room.path("a"), size)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::BadRequest);
    }
    assert!(room.names().is_empty());
}

#[test]
fn many_at_once_share_one() {
    let room = Room::new();
    let memory = room.memory();
    let paths: Vec<_> = (0..40).map(|number| room.path(&format!("vm-{number}"))).collect();
    let made = wait(futures::future::join_all(paths.iter().map(|path| memory.blank(path, MIB))));
    made.into_iter().for_each(|made| made.unwrap());
    assert_eq!(fs::metadata(&paths[0]).unwrap().nlink(), 41);
}

#[test]
fn a_shared_name_outlives_the_first_and_replaces_what_was_there() {
    let room = Room::new();
    let memory = room.memory();
    let (file, name) = (room.base(MIB, &[(0, vec![7; 10])]), room.path("child"));
    fs::write(&name, "older").unwrap();
    // Twice: the second time both are names of one file already.
    for _ in 0..2 {
        wait(memory.share(&file, &name)).unwrap();
        assert_eq!(room.names(), ["base", "child"]);
    }
    assert_eq!(fs::metadata(&name).unwrap().ino(), fs::metadata(&file).unwrap().ino());
    fs::remove_file(&file).unwrap();
    assert_eq!(fs::read(&name).unwrap()[..11], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
    let text = words(wait(memory.share(&file, &name)).unwrap_err());
    assert!(text.contains("child") && text.contains("No such file"), "{text}");
    assert_eq!(room.names(), ["child"]);
}

#[test]
fn a_name_on_another_file_system_is_a_sparse_copy() {
    let here = Room::new();
    let there = Room::tmpfs(4 * MIB);
    let memory = here.memory();
    let file = here.base(64 * MIB, &[(0, vec![7; 10]), (50 * MIB, vec![8; 100_000])]);
    let name = there.path("child");
    wait(memory.share(&file, &name)).unwrap();
    assert_eq!(mode(&name), 0o400);
    assert_eq!(fs::read(&name).unwrap(), fs::read(&file).unwrap());
    assert!(fs::metadata(&name).unwrap().blocks() * 512 < MIB);

    let blank = there.path("blank");
    wait(memory.blank(&blank, 64 * MIB)).unwrap();
    assert_eq!((mode(&blank), fs::metadata(&blank).unwrap().len()), (0o400, 64 * MIB));
    assert_eq!(there.names(), ["blank", "child"]);
}

#[test]
fn a_copy_that_does_not_fit_leaves_nothing() {
    let here = Room::new();
    let there = Room::tmpfs(MIB);
    let file = here.base(4 * MIB, &[(0, vec![7; 3 << 20])]);
    let error = wait(here.memory().share(&file, &there.path("child"))).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NoSpace, "{error}");
    assert!(there.names().is_empty());
}

#[test]
fn a_file_has_as_many_names_as_the_file_system_allows() {
    let room = Room::new();
    let memory = room.memory();
    let first = room.path("first");
    wait(memory.blank(&first, MIB)).unwrap();
    let links = room.path("links");
    fs::create_dir(&links).unwrap();
    // ext4 allows 65,000; where there is no such limit, there is nothing to see.
    let full = (0..66_000).any(|number| fs::hard_link(&first, links.join(number.to_string())).is_err());
    let second = room.path("second");
    wait(memory.blank(&second, MIB)).unwrap();
    assert_eq!(fs::metadata(&first).unwrap().ino() != fs::metadata(&second).unwrap().ino(), full);
    let third = room.path("third");
    wait(memory.share(&first, &third)).unwrap();
    assert_eq!(fs::metadata(&third).unwrap().len(), MIB);
    assert_eq!(room.names(), ["first", "links", "second", "third"]);
}

#[test]
fn a_mapped_file_keeps_its_content_when_its_name_goes() {
    let room = Room::new();
    let base = room.base(MIB, &[(0, vec![7; 10])]);
    let guest = Guest::plain(&base, MIB);
    wait(room.memory().blank(&base, MIB)).unwrap();
    assert_eq!(guest.view()[..10], [7; 10]);
    let error = wait(room.memory().verify(&guest.identity, &base, MIB)).unwrap_err();
    assert!(matches!(error, Error::Mapping { .. }), "another file has the name now: {error}");
}
