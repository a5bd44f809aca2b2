use super::*;
use crate::jobs::journal::Entry;
use crate::sandbox::record::Phase;

mod churn;
mod full;

fn open(dir: &Path) -> Engine {
    let mut engine = Engine::open(dir, 0, Pressure::default()).unwrap();
    engine.upgrade().unwrap();
    engine
}

fn put(engine: &mut Engine, kind: Kind, key: &str, bytes: &[u8]) {
    engine.commit(&[Change::Put(kind, key.as_bytes().to_owned(), bytes.to_owned())]).unwrap();
}

fn job(id: &str) -> Vec<u8> {
    format::encode(Kind::Job, id, &Entry::for_tests(id)).unwrap()
}

fn set_format(engine: &mut Engine, format: u8) {
    let open = engine.db().unwrap();
    open.db.insert(FORMAT_KEY, &[format]).unwrap();
    open.db.flush().unwrap();
}

/// A store as the runner of format 1 has left it.
fn format_1(dir: &Path) -> Engine {
    let mut engine = Engine::open(dir, 0, Pressure::default()).unwrap();
    for (kind, sub, names) in [
        (Kind::Sandbox, "sandboxes", &["creating", "started", "stopped", "forked", "older"][..]),
        (Kind::Job, "jobs", &["running", "finished", "reported", "failed"]),
    ] {
        for name in names {
            let path = format!("{}/tests/fixtures/store/format-1/{sub}/{name}.json", env!("CARGO_MANIFEST_DIR"));
            let json = std::fs::read(path).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let key = if kind == Kind::Job { &value["job"]["id"] } else { &value["id"] };
            put(&mut engine, kind, key.as_str().unwrap(), &[vec![1], json].concat());
        }
    }
    set_format(&mut engine, 1);
    engine
}

fn formats(engine: &mut Engine, kind: Kind) -> Vec<u8> {
    engine.all(kind).unwrap().into_iter().map(|(_, bytes)| bytes[0]).collect()
}

#[test]
fn a_store_of_format_1_is_upgraded_once() {
    let dir = tempfile::tempdir().unwrap();
    let before = format_1(dir.path()).load().unwrap();
    assert_eq!((before.sandboxes.len(), before.jobs.len(), before.unreadable.len()), (5, 4, 0));
    let mut engine = open(dir.path());
    assert_eq!(engine.format().unwrap(), Some(STORE));
    assert_eq!(formats(&mut engine, Kind::Sandbox), [2; 5]);
    assert_eq!(formats(&mut engine, Kind::Job), [1; 4]);
    let after = engine.load().unwrap();
    assert_eq!((after.sandboxes, after.jobs), (before.sandboxes, before.jobs));
    assert!(after.unreadable.is_empty(), "{:?}", after.unreadable);
}

#[test]
fn an_upgrade_that_was_cut_off_is_finished() {
    for written in 0..=5 {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = format_1(dir.path());
        // As many records as had come to disk when the runner was killed; the store's format was not raised yet.
        for (key, bytes) in engine.all(Kind::Sandbox).unwrap().into_iter().take(written) {
            let new = format::upgraded(Kind::Sandbox, &key, &bytes).unwrap().unwrap();
            put(&mut engine, Kind::Sandbox, std::str::from_utf8(&key).unwrap(), &new);
        }
        drop(engine);
        let mut engine = open(dir.path());
        assert_eq!(formats(&mut engine, Kind::Sandbox), [2; 5]);
        let loaded = engine.load().unwrap();
        assert_eq!((loaded.sandboxes.len(), loaded.unreadable.len()), (5, 0));
    }
}

#[test]
fn a_newer_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    set_format(&mut open(dir.path()), STORE + 1);
    let error = Engine::open(dir.path(), 0, Pressure::default()).unwrap_err();
    assert!(matches!(error, Error::Newer { .. }));
    let words = error.to_string();
    assert!(words.contains("format 3") && words.contains("up to 2") && words.contains("newer runner"), "{words}");
    let engine = Engine {
        path: dir.path().to_owned(),
        open: Some(open_patiently(dir.path()).unwrap()),
        failing: false,
        space: Space::new(dir.path(), 0, Pressure::default()),
    };
    assert_eq!(engine.format().unwrap(), Some(STORE + 1));
}

#[test]
fn a_newer_record_is_set_aside_and_stays_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = open(dir.path());
    let newer = b"\x07{\"id\":\"box\",\"slot\":3}";
    put(&mut engine, Kind::Sandbox, "box", newer);
    for _ in 0..2 {
        let loaded = engine.load().unwrap();
        assert_eq!(loaded.unreadable.len(), 1);
        let one = &loaded.unreadable[0];
        assert_eq!(one.sandbox.as_ref().unwrap().as_str(), "box");
        assert_eq!(one.slot, Some(crate::net::Slot(3)));
        assert!(one.reason.contains("format 7") && one.reason.contains("newer runner"), "{}", one.reason);
    }
    assert_eq!(engine.get(Kind::Sandbox, b"box").unwrap().as_deref(), Some(&newer[..]));
    assert!(engine.quarantined().unwrap().is_empty());
    let summary = engine.summary().unwrap();
    assert_eq!((summary.set_aside.len(), summary.set_aside[0].at), (1, None));
}

#[test]
fn a_corrupt_record_is_quarantined_for_good_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let broken: [(&str, &[u8]); 4] = [
        ("cut", b"\x02{\"id\":\"cut\",\"slot\":5"),
        ("typed", b"\x02{\"id\":\"typed\",\"slot\":6,\"phase\":\"moon\"}"),
        ("empty", b""),
        ("misplaced", b"\x02{\"id\":\"other\"}"),
    ];
    {
        let mut engine = format_1(dir.path());
        engine.upgrade().unwrap();
        for (key, bytes) in broken {
            put(&mut engine, Kind::Sandbox, key, bytes);
        }
        put(&mut engine, Kind::Job, "job", b"\x01[]");
    }
    // The same after each further restart.
    for _ in 0..3 {
        let mut engine = open(dir.path());
        let loaded = engine.load().unwrap();
        assert_eq!((loaded.sandboxes.len(), loaded.jobs.len()), (5, 4));
        let mut names: Vec<_> =
            loaded.unreadable.iter().filter_map(|one| one.sandbox.as_ref().map(|id| id.as_str().to_owned())).collect();
        names.sort();
        assert_eq!(names, ["cut", "empty", "misplaced", "other", "typed"]);
        let slots: Vec<_> = loaded.unreadable.iter().filter_map(|one| one.slot).collect();
        assert_eq!(slots, [crate::net::Slot(6)]);
        for (key, bytes) in broken {
            assert_eq!(engine.get(Kind::Sandbox, key.as_bytes()).unwrap(), None);
            let kept = engine.quarantined_one(&format!("sandboxes/{key}")).unwrap();
            assert_eq!((kept.bytes.as_slice(), kept.key.as_slice()), (bytes, key.as_bytes()));
            assert!(kept.at > 0 && !kept.reason.is_empty());
        }
        assert_eq!(engine.quarantined().unwrap().len(), 5);
        assert_eq!(engine.summary().unwrap().set_aside.len(), 5);
    }
}

#[test]
fn a_move_that_was_cut_off_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = open(dir.path());
    put(&mut engine, Kind::Job, "job", b"\x01[]");
    engine.load().unwrap();
    // Killed between the two writes: it is in both places.
    put(&mut engine, Kind::Job, "job", b"\x01[]");
    engine.load().unwrap();
    assert_eq!(engine.quarantined().unwrap().len(), 1);
    assert_eq!(engine.get(Kind::Job, b"job").unwrap(), None);
    // Another one under the same key is another one.
    put(&mut engine, Kind::Job, "job", b"\x01{}");
    engine.load().unwrap();
    let names: Vec<_> = engine.quarantined().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["jobs/job", "jobs/job+1"]);
}

#[test]
fn a_quarantined_record_goes_back_only_where_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = open(dir.path());
    put(&mut engine, Kind::Job, "job", b"\x01[]");
    engine.load().unwrap();
    let error = engine.restore_quarantined("jobs/job").unwrap_err();
    assert!(matches!(&error, Error::StaysQuarantined { .. }), "{error}");
    assert!(matches!(engine.restore_quarantined("jobs/x"), Err(Error::NotQuarantined { .. })));
    assert!(matches!(engine.discard_quarantined("jobs/x"), Err(Error::NotQuarantined { .. })));
    engine.discard_quarantined("jobs/job").unwrap();
    assert!(engine.quarantined().unwrap().is_empty());
    // One that this version can read after all.
    let (key, bytes) = (b"good".to_vec(), job("good"));
    let entry = Quarantined { tree: "jobs".into(), key, bytes, reason: "a defect of the last version".into(), at: 1 };
    put(&mut engine, Kind::Quarantine, "jobs/good", &format::encode(Kind::Quarantine, "", &entry).unwrap());
    put(&mut engine, Kind::Job, "good", &job("good"));
    let error = engine.restore_quarantined("jobs/good").unwrap_err().to_string();
    assert!(error.contains("another record under its key"), "{error}");
    engine.commit(&[Change::Remove(Kind::Job, vec![b"good".to_vec()])]).unwrap();
    engine.restore_quarantined("jobs/good").unwrap();
    assert_eq!(engine.load().unwrap().jobs, [Entry::for_tests("good")]);
    assert!(engine.quarantined().unwrap().is_empty());
}

#[test]
fn a_readable_record_is_not_shadowed_by_an_old_one_in_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = format_1(dir.path());
    engine.upgrade().unwrap();
    let entry = Quarantined {
        tree: "sandboxes".into(),
        key: b"box-started".to_vec(),
        bytes: b"\x02{\"slot\":1}".to_vec(),
        reason: "old".into(),
        at: 1,
    };
    put(&mut engine, Kind::Quarantine, "sandboxes/box-started", &format::encode(Kind::Quarantine, "", &entry).unwrap());
    let loaded = engine.load().unwrap();
    assert!(loaded.unreadable.is_empty(), "{:?}", loaded.unreadable);
    assert!(loaded.sandboxes.iter().any(|record| record.phase == Phase::Started));
}
