//! Whose memory it is, and what is mapped.

use std::fs;

use super::guest::{Guest, Order};
use super::support::{MIB, PAGE, Room, capture, source, wait, words};
use crate::hypervisor::ProcessIdentity;
use crate::memory::maps::{FileId, guest_ram};
use crate::memory::process::Vmm;
use crate::memory::scan::{Scanner, Way};
use crate::memory::{Error, Memory, Proof};

#[test]
fn a_private_map_of_all_of_the_file_is_proof() {
    let room = Room::new();
    let base = room.base(4 * MIB, &[(0, vec![7; 10])]);
    let mut guest = Guest::start(&base, &[(0, MIB), (MIB, 3 * MIB)], libc::MAP_PRIVATE);
    guest.order(Order::Read, 0, MIB, 0);
    guest.fill(2 * MIB, 3 * PAGE, 1);
    let name = room.path("renamed");
    fs::rename(&base, &name).unwrap();
    let proof = wait(room.memory().verify(&guest.identity, &name, 4 * MIB)).unwrap();
    assert_eq!(proof, Proof { mapped: 4 * MIB, anonymous: 3 * PAGE });
}

#[test]
fn everything_else_is_not_and_the_error_tells_what_it_is() {
    let room = Room::new();
    let base = room.base(4 * MIB, &[]);
    let check = |guest: &Guest, path, size| words(wait(room.memory().verify(&guest.identity, path, size)).unwrap_err());

    let shared = Guest::start(&base, &[(0, 4 * MIB)], libc::MAP_SHARED);
    let text = check(&shared, &base, 4 * MIB);
    assert!(text.contains("rw-s from 0 to 4194304") && text.contains("base"), "{text}");

    let partial = Guest::start(&base, &[(0, MIB), (2 * MIB, 2 * MIB)], libc::MAP_PRIVATE);
    let text = check(&partial, &base, 4 * MIB);
    assert!(text.contains("rw-p from 0 to 1048576") && text.contains("rw-p from 2097152 to 4194304"), "{text}");

    let other = room.blank(4 * MIB);
    let text = check(&partial, &other, 4 * MIB);
    assert!(text.contains("nothing of it; its biggest mappings are"), "{text}");

    let text = check(&partial, &base, 8 * MIB);
    assert!(text.contains("4194304 bytes") && text.contains("8388608 bytes"), "{text}");

    let text = check(&partial, &room.path("gone"), 4 * MIB);
    assert!(text.contains("gone") && text.contains("No such file"), "{text}");
}

#[test]
fn a_capture_wants_the_same_proof() {
    let room = Room::new();
    let base = room.base(4 * MIB, &[]);
    let shared = Guest::start(&base, &[(0, 4 * MIB)], libc::MAP_SHARED);
    let target = room.path("captured");
    let error = capture(&room.memory(), &source(&shared, &base, 4 * MIB), &target).unwrap_err();
    assert!(matches!(error, Error::Mapping { .. }), "{error}");
    assert_eq!(room.names(), ["base"]);
}

#[test]
fn another_process_with_the_same_pid_is_not_read() {
    let room = Room::new();
    let base = room.base(MIB, &[]);
    let guest = Guest::plain(&base, MIB);
    let own = guest.identity.clone();
    let impostors = [
        ProcessIdentity { start_ticks: own.start_ticks + 1, ..own.clone() },
        ProcessIdentity { boot_id: "another".into(), ..own.clone() },
    ];
    for process in impostors {
        let error = wait(room.memory().verify(&process, &base, MIB)).unwrap_err();
        assert!(matches!(error, Error::Gone { .. }), "{error}");
        let source = crate::memory::Source { process, ..source(&guest, &base, MIB) };
        let error = capture(&room.memory(), &source, &room.path("captured")).unwrap_err();
        assert!(matches!(error, Error::Gone { .. }), "{error}");
    }
    assert_eq!(room.names(), ["base"]);
}

#[test]
fn a_vmm_that_ends_between_the_steps() {
    let room = Room::new();
    let base = room.base(MIB, &[]);
    let mut guest = Guest::plain(&base, MIB);
    guest.fill(0, MIB, 1);
    wait(async {
        let memory = room.memory();
        let (source, target) = (source(&guest, &base, MIB), room.path("captured"));
        let delta = memory.prepare(&source, &target).await.unwrap();
        guest.kill();
        let error = delta.take().await.unwrap_err();
        assert!(matches!(error, Error::Gone { .. }), "{error}");
        assert!(matches!(delta.take().await, Err(Error::Order { phase: "broken", .. })));
        assert!(matches!(delta.keep(false).await, Err(Error::Order { phase: "broken", .. })));
        drop(delta);
        assert!(matches!(memory.prepare(&source, &target).await, Err(Error::Gone { .. })));
    });
    assert_eq!(room.names(), ["base"]);
}

#[test]
fn both_ways_to_ask_the_kernel_find_the_same() {
    let room = Room::new();
    let size = 600 * MIB;
    let base = room.base(size, &[(0, vec![7; 3 << 20])]);
    let mut guest = Guest::start(&base, &[(0, 300 * MIB), (300 * MIB, 300 * MIB)], libc::MAP_PRIVATE);
    guest.order(Order::Read, 0, 8 * MIB, 0);
    // More runs than one request returns, long ones, and the edges of mappings and blocks.
    for page in 0..9000 {
        guest.fill(page * 2 * PAGE, 1, 1);
    }
    guest.order(Order::Touch, 100 * MIB, 5 * MIB + PAGE, 1);
    guest.order(Order::Touch, 256 * MIB - PAGE, 2 * PAGE, 0);
    for page in [0, size - PAGE, 300 * MIB - PAGE, 300 * MIB] {
        guest.fill(page, 1, 1);
    }
    let vmm = Vmm::open(&guest.identity).unwrap();
    let file = FileId::new(&base, &fs::metadata(&base).unwrap());
    let pieces = guest_ram(&vmm, &file, size).unwrap();
    let (mut first, mut second) = (Scanner::new(), Scanner::new());
    second.way = Way::Entries;
    first.scan(&vmm.pagemap, &pieces).unwrap();
    second.scan(&vmm.pagemap, &pieces).unwrap();
    same(&first, &second);
    assert_eq!((first.written.bytes, first.written.whole), (second.written.bytes, second.written.whole));
    assert_eq!(first.written.whole, 9000 + 1 + 1 + 3);
    assert!(first.written.runs.iter().all(|run| run.len <= MIB));
    // A scan that knows the first one finds what came after it, on both sides of what it knows.
    first.remember();
    for (at, len) in [(99 * MIB, MIB), (105 * MIB, 3 * PAGE), (299 * MIB, 5 * PAGE), (400 * MIB, MIB)] {
        guest.order(Order::Touch, at, len, 3);
    }
    first.again(&vmm.pagemap, &pieces).unwrap();
    second.scan(&vmm.pagemap, &pieces).unwrap();
    same(&first, &second);
    assert_eq!((first.written.bytes, first.written.whole), (second.written.bytes, second.written.whole));
    // Where the kernel has no such request, the second way is taken by itself: /dev/null has none.
    let mut third = Scanner::new();
    let null = fs::File::open("/dev/null").unwrap();
    assert!(third.scan(&null, &pieces).is_err(), "no entries there");
    assert_eq!(third.way, Way::Entries);
    third.scan(&vmm.pagemap, &pieces).unwrap();
    same(&third, &first);
}

/// Without printing thousands of runs.
fn same(a: &Scanner, b: &Scanner) {
    let (a, b) = (&a.written.runs, &b.written.runs);
    let differ = a.iter().zip(b).find(|(a, b)| a != b);
    assert_eq!((differ, a.len()), (None, b.len()));
}
