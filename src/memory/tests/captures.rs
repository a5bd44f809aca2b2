//! Captures of real processes: the target is what the process sees.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::rc::Rc;

use proptest::prelude::*;

use super::guest::{Guest, Order};
use super::support::{MIB, PAGE, Room, capture, source, wait};
use crate::error::ErrorCode;
use crate::memory::{Delta, Error, FileMemory, Memory, Taken};

fn assert_same(guest: &Guest, target: &std::path::Path) {
    let (found, wanted) = (fs::read(target).unwrap(), guest.view());
    assert_eq!(found.len(), wanted.len());
    let different = found.chunks(4096).zip(wanted.chunks(4096)).position(|(found, wanted)| found != wanted);
    assert_eq!(different, None, "first page that differs");
}

#[test]
fn a_booted_vm_in_two_mappings() {
    let room = Room::new();
    let size = 16 * MIB;
    let base = room.blank(size);
    let mut guest = Guest::start(&base, &[(0, 4 * MIB), (4 * MIB, 12 * MIB)], libc::MAP_PRIVATE);
    guest.fill(0, PAGE, 1);
    guest.fill(4 * MIB - 10, 10, 2);
    guest.fill(4 * MIB, 10, 3);
    guest.fill(9 * MIB, 3 * MIB, 4);
    guest.fill(size - 1, 1, 5);
    guest.order(Order::Read, 13 * MIB, MIB, 0);
    let target = room.path("captured");
    let taken = capture(&room.memory(), &source(&guest, &base, size), &target).unwrap();
    // The two mappings are neighbours in the file, but not in memory: two runs meet there.
    assert_eq!((taken.bytes, taken.runs), (3 * MIB + 4 * PAGE, 5));
    assert_same(&guest, &target);
    let metadata = fs::metadata(&target).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o400);
    assert!(metadata.blocks() * 512 < 4 * MIB, "sparse: {} blocks", metadata.blocks());
}

#[test]
fn a_fork_of_a_fork_has_the_file_and_what_came_after_it() {
    for room in [Room::new(), Room::xfs()] {
        let size = 8 * MIB;
        let base = room.base(size, &[(0, vec![7; 9000]), (6 * MIB, vec![8; 70000])]);
        let mut guest = Guest::plain(&base, size);
        guest.order(Order::Read, 0, size, 0);
        guest.fill(PAGE, 1, 9);
        guest.fill(6 * MIB, PAGE, 0);
        let first = room.path("first");
        let taken = capture(&room.memory(), &source(&guest, &base, size), &first).unwrap();
        assert_eq!((taken.bytes, taken.runs), (2 * PAGE, 2));
        assert_same(&guest, &first);

        let mut child = Guest::plain(&first, size);
        child.fill(2 * MIB, 2 * PAGE, 10);
        let second = room.path("second");
        assert_eq!(capture(&room.memory(), &source(&child, &first, size), &second).unwrap().bytes, 2 * PAGE);
        assert_same(&child, &second);
        assert_same(&guest, &first);
    }
}

#[test]
fn nothing_written_and_forgotten_pages() {
    let room = Room::new();
    let base = room.base(MIB, &[(0, vec![7; 100])]);
    let mut guest = Guest::plain(&base, MIB);
    let taken = capture(&room.memory(), &source(&guest, &base, MIB), &room.path("a")).unwrap();
    assert_eq!((taken.bytes, taken.runs), (0, 0));
    assert_same(&guest, &room.path("a"));
    guest.fill(0, MIB, 3);
    guest.order(Order::Forget, 0, MIB, 0);
    assert_eq!(capture(&room.memory(), &source(&guest, &base, MIB), &room.path("b")).unwrap().bytes, 0);
    assert_same(&guest, &room.path("b"));
}

#[test]
fn zeroes_take_no_room_in_a_blank_file() {
    let room = Room::new();
    let base = room.blank(8 * MIB);
    let mut guest = Guest::plain(&base, 8 * MIB);
    guest.fill(0, 8 * MIB, 0);
    for page in [0, 5, 700, 2047] {
        guest.fill(page * PAGE + 17, 1, 1);
    }
    let target = room.path("captured");
    let taken = capture(&room.memory(), &source(&guest, &base, 8 * MIB), &target).unwrap();
    assert_eq!((taken.bytes, taken.runs), (8 * MIB, 1));
    assert_same(&guest, &target);
    assert_eq!(fs::metadata(&target).unwrap().blocks() * 512, 4 * PAGE);
}

#[test]
fn more_than_the_buffer_holds() {
    let room = Room::new();
    let size = 64 * MIB;
    let base = room.base(size, &[(20 * MIB, vec![1; 100_000])]);
    let mut guest = Guest::plain(&base, size);
    let memory = FileMemory::with_cap(&room.root, 2 * MIB).unwrap();
    for at in 0..20 {
        guest.fill(at * 3 * MIB + 5, 2 * MIB + 3, at as u8 + 1);
    }
    let target = room.path("captured");
    let taken = capture(&memory, &source(&guest, &base, size), &target).unwrap();
    assert_eq!((taken.bytes, taken.runs), (20 * (2 * MIB + PAGE), 20));
    assert_same(&guest, &target);
}

#[test]
fn memory_and_file_may_move_between_the_steps() {
    let room = Room::new();
    let base = room.blank(MIB);
    let mut guest = Guest::plain(&base, MIB);
    wait(async {
        let (memory, target) = (room.memory(), room.path("captured"));
        let delta = memory.prepare(&source(&guest, &base, MIB), &target).await.unwrap();
        // The names may change meanwhile; the file is what counts.
        fs::remove_file(&base).unwrap();
        // So may the addresses, when the guest reboots; what was known of the old ones is nothing then.
        guest.shift();
        guest.fill(5 * PAGE, 3 * PAGE, 1);
        assert_eq!(delta.take().await.unwrap().bytes, 3 * PAGE);
        guest.fill(0, MIB, 2);
        delta.keep(true).await.unwrap();
    });
    let found = fs::read(room.path("captured")).unwrap();
    assert_eq!(found.iter().filter(|&&byte| byte == 1).count() as u64, 3 * PAGE, "as it was when taken");
    assert!(!found.contains(&2));
}

#[test]
fn steps_in_the_wrong_order() {
    let room = Room::new();
    let base = room.blank(MIB);
    let guest = Guest::plain(&base, MIB);
    wait(async {
        let (memory, target) = (room.memory(), room.path("captured"));
        let delta = memory.prepare(&source(&guest, &base, MIB), &target).await.unwrap();
        assert!(matches!(delta.keep(false).await, Err(Error::Order { phase: "prepared", .. })));
        delta.take().await.unwrap();
        assert!(matches!(delta.take().await, Err(Error::Order { phase: "taken", .. })));
        delta.keep(false).await.unwrap();
        delta.keep(true).await.unwrap();
        assert!(matches!(delta.take().await, Err(Error::Order { phase: "kept", .. })));
        drop(delta);
        assert!(target.exists());
        let error = memory.prepare(&source(&guest, &base, MIB), &target).await.err().unwrap();
        assert!(matches!(error, Error::Io { .. }), "an existing target is not touched: {error}");
        assert!(target.exists());
    });
}

#[test]
fn what_is_not_kept_goes_at_once() {
    let room = Room::new();
    let base = room.blank(MIB);
    let mut guest = Guest::plain(&base, MIB);
    guest.fill(0, MIB, 1);
    wait(async {
        let (memory, target, source) = (room.memory(), room.path("captured"), source(&guest, &base, MIB));
        for steps in 0..3 {
            let delta: Rc<dyn Delta> = memory.prepare(&source, &target).await.unwrap();
            if steps > 0 {
                delta.take().await.unwrap();
            }
            // Begun and not waited for; it may all the same be quick enough.
            let kept = steps > 1 && futures::poll!(&mut delta.keep(true)).is_ready();
            drop(delta);
            assert_eq!(target.exists(), kept, "after {steps} steps");
            fs::remove_file(&target).ok();
        }
        // A preparation that nobody waits for leaves nothing either; the next one may find its file still there.
        for _ in 0..20 {
            let _ = futures::poll!(&mut memory.prepare(&source, &target));
        }
    });
    // The runtime waits for its blocking threads.
    assert_eq!(room.names(), ["memory"]);
}

#[test]
fn a_full_volume_leaves_nothing() {
    for cap in [1 << 30, 2 * MIB] {
        let (house, room) = (Room::new(), Room::tmpfs(8 * MIB));
        let base = house.blank(32 * MIB);
        let mut guest = Guest::plain(&base, 32 * MIB);
        guest.fill(0, 32 * MIB, 1);
        let memory = FileMemory::with_cap(&room.root, cap).unwrap();
        let error = capture(&memory, &source(&guest, &base, 32 * MIB), &room.path("captured")).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NoSpace, "{error}");
        let failure = crate::error::Failure::from(error);
        assert!(failure.recoverable() && failure.message.contains("captured"), "{failure}");
        assert!(room.names().is_empty());
        assert!(guest.view().iter().all(|&byte| byte == 1), "the guest is as it was");
    }
}

#[test]
fn a_keep_that_found_no_space_can_be_repeated() {
    // Not in one place: writing to a private map of a hole takes room of a tmpfs, too.
    let (house, room) = (Room::new(), Room::tmpfs(8 * MIB));
    let ballast = room.path("ballast");
    fs::write(&ballast, vec![1; 6 * MIB as usize]).unwrap();
    let base = house.blank(4 * MIB);
    let mut guest = Guest::plain(&base, 4 * MIB);
    guest.fill(0, 4 * MIB, 1);
    wait(async {
        let (memory, target) = (room.memory(), room.path("captured"));
        let delta = memory.prepare(&source(&guest, &base, 4 * MIB), &target).await.unwrap();
        delta.take().await.unwrap();
        assert_eq!(delta.keep(false).await.unwrap_err().code(), ErrorCode::NoSpace);
        fs::remove_file(&ballast).unwrap();
        delta.keep(true).await.unwrap();
    });
    assert_same(&guest, &room.path("captured"));
}

#[test]
fn taken_can_be_stored() {
    let taken = Taken { bytes: 1, runs: 2, ..Taken::default() };
    assert_eq!(serde_json::from_str::<Taken>(&serde_json::to_string(&taken).unwrap()).unwrap(), taken);
}

#[derive(Debug, Clone)]
struct Write {
    at: u64,
    len: u64,
    value: u8,
}

fn writes(size: u64) -> impl Strategy<Value = Vec<Write>> {
    let one = (0..size, prop_oneof![1..200u64, 1..20 * PAGE], any::<u8>());
    let one = one.prop_map(move |(at, len, value)| Write { at, len: len.min(size - at), value });
    prop::collection::vec(one, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_written_is_captured(
        content in writes(6 * MIB),
        before in writes(6 * MIB),
        between in writes(6 * MIB),
        low in 1..1535u64,
        cap in prop_oneof![Just(0), Just(1u64 << 30)],
    ) {
        let room = Room::new();
        let size = 6 * MIB;
        let content: Vec<_> = content.iter().map(|write| (write.at, vec![write.value; write.len as usize])).collect();
        let base = room.base(size, &content);
        let low = low * PAGE;
        let mut guest = Guest::start(&base, &[(0, low), (low, size - low)], libc::MAP_PRIVATE);
        let write = |guest: &mut Guest, all: &[Write]| for write in all {
            let first = write.len.min(low.saturating_sub(write.at));
            guest.fill_some(write.at, first, write.value);
            guest.fill_some(write.at + first, write.len - first, write.value);
        };
        write(&mut guest, &before);
        let target = room.path("captured");
        wait(async {
            let memory = FileMemory::with_cap(&room.root, cap).unwrap();
            let delta = memory.prepare(&source(&guest, &base, size), &target).await.unwrap();
            write(&mut guest, &between);
            delta.take().await.unwrap();
            delta.keep(false).await.unwrap();
        });
        assert_same(&guest, &target);
    }
}
