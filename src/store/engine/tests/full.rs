//! The store on a volume that is really full: a small tmpfs in a mount namespace of the test's own.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::FallocateFlags;

use super::*;

const RESERVE: u64 = 4 << 20;

struct Volume(tempfile::TempDir);

impl Volume {
    fn new(mib: u64) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: it mounts a volume of its own");
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount::<str, str, str, str>(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Self(dir)
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(self.0.path()).unwrap();
        found.f_bavail * found.f_frsize
    }

    /// Takes all but this many bytes. Page by page at the end, as the store's own flushes may come in between.
    fn fill(&self, leave: u64) {
        let filler = File::options().append(true).create(true).open(self.0.path().join("filler")).unwrap();
        let mut piece = 1 << 20;
        while piece >= 4096 {
            let len = filler.metadata().unwrap().len();
            let room = self.free() >= leave + piece;
            if !room || rustix::fs::fallocate(&filler, FallocateFlags::empty(), len, piece).is_err() {
                piece /= 2;
            }
        }
    }

    fn clear(&self) {
        std::fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

/// One of 50 records, each larger than the records of sandboxes are.
fn write(engine: &mut Engine, n: u64) -> Result<(), ::sled::Error> {
    let value = [n.to_le_bytes().to_vec(), vec![7; 5_000]].concat();
    engine.commit(&[Change::Put(Kind::Quarantine, key(n).into_bytes(), value)])
}

fn key(n: u64) -> String {
    format!("record-{}", n % 50)
}

fn stored(engine: &mut Engine) -> BTreeMap<String, u64> {
    let records = engine.all(Kind::Quarantine).unwrap();
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
    records.into_iter().map(|(key, bytes)| (String::from_utf8(key).unwrap(), number(&bytes))).collect()
}

#[test]
fn with_the_reserve_states_are_written_while_the_volume_is_full() {
    let volume = Volume::new(32);
    let pressure = Pressure::default();
    let mut engine = Engine::open(&volume.state(), RESERVE, pressure.clone()).unwrap();
    for n in 0..100 {
        write(&mut engine, n).unwrap();
    }
    assert!(pressure.reason().is_none() && engine.space.report().reserve_held);
    volume.fill(0);
    assert_eq!(volume.free(), 0);
    for n in 100..300 {
        write(&mut engine, n).unwrap_or_else(|error| panic!("write {n}: {error}; {} bytes free", volume.free()));
    }
    let reason = pressure.reason().expect("the flag is up");
    assert!(reason.contains("bytes free") && reason.contains(&volume.state().display().to_string()), "{reason}");
    assert!(!engine.space.report().reserve_held);
    // It is not made again where it would not leave room.
    volume.clear();
    volume.fill(RESERVE + crate::store::reserve::NEEDED);
    engine.space.look();
    assert!(pressure.reason().is_some() && !engine.space.report().reserve_held);
    volume.clear();
    engine.space.look();
    assert!(pressure.reason().is_none() && engine.space.report().reserve_held);
    assert!(stored(&mut engine).values().all(|n| *n >= 250));
}

#[test]
fn a_store_on_a_full_volume_opens_from_its_reserve() {
    let volume = Volume::new(32);
    let mut engine = Engine::open(&volume.state(), RESERVE, Pressure::default()).unwrap();
    for n in 0..100 {
        write(&mut engine, n).unwrap();
    }
    drop(engine);
    volume.fill(0);
    let pressure = Pressure::default();
    let mut engine = Engine::open(&volume.state(), RESERVE, pressure.clone()).unwrap();
    write(&mut engine, 100).unwrap();
    assert!(pressure.reason().is_some());
    assert_eq!(stored(&mut engine).len(), 50);
}

/// Without any reserve, at every distance from the end: what was acknowledged is there afterwards, and the store
/// works again as soon as there is space, although sled itself would not.
#[test]
fn no_acknowledged_record_is_lost_when_there_is_no_space_at_all() {
    let volume = Volume::new(24);
    let mut acknowledged = BTreeMap::new();
    let (mut n, mut failures) = (0, 0);
    let mut engine = Engine::open(&volume.state(), 0, Pressure::default()).unwrap();
    for round in 0..30_u64 {
        volume.fill(round * 20_000);
        for _ in 0..2_000 {
            n += 1;
            match write(&mut engine, n) {
                Ok(()) => drop(acknowledged.insert(key(n), n)),
                Err(error) => {
                    assert!(error.to_string().contains("No space left"), "{error}");
                    failures += 1;
                    break;
                }
            }
        }
        if round % 3 == 0 {
            // While it is still full.
            drop(engine);
            volume.clear();
            engine = Engine::open(&volume.state(), 0, Pressure::default()).unwrap();
        } else {
            volume.clear();
        }
        n += 1;
        write(&mut engine, n).unwrap_or_else(|error| panic!("round {round}: space is back, and {error}"));
        acknowledged.insert(key(n), n);
        for (key, is) in stored(&mut engine) {
            assert!(is >= acknowledged[&key], "round {round}: {key} is {is}, {} was acknowledged", acknowledged[&key]);
        }
        assert_eq!(stored(&mut engine).len(), acknowledged.len(), "round {round}");
    }
    assert!(failures > 5, "the volume was hardly ever full: {failures}");
}
