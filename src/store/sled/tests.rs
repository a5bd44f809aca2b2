use super::*;
use crate::store::Error;

#[actix::test]
async fn many_writers_at_once_all_come_to_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    for round in 0..50 {
        let entries: Vec<Entry> = (0..24).map(|n| Entry::for_tests(&format!("job-{round}-{n}"))).collect();
        let written = futures::future::join_all(entries.iter().map(|entry| store.put_job(entry)));
        let written = tokio::time::timeout(Duration::from_secs(20), written).await.expect("no writer hangs");
        assert!(written.iter().all(Result::is_ok));
    }
    assert_eq!(store.load().await.unwrap().jobs.len(), 50 * 24);
}

#[actix::test]
async fn a_second_runner_is_told_who_is_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let _first = SledStore::open(dir.path()).unwrap();
    let error = SledStore::open(dir.path()).map(drop).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains("RUNNER_STATE_PATH"));
}

#[actix::test]
async fn what_was_put_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let entry = Entry::for_tests("one");
    SledStore::open(dir.path()).unwrap().put_job(&entry).await.unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    assert_eq!(store.load().await.unwrap().jobs, std::slice::from_ref(&entry));
    store.remove_jobs(&[entry.job.id]).await.unwrap();
    assert!(store.load().await.unwrap().jobs.is_empty());
}

/// A stage that is interrupted drops its write; what is written after it must not be overtaken.
#[actix::test]
async fn writes_keep_their_order_also_when_nobody_waits_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    for n in 1..200 {
        let mut entry = Entry::for_tests("one");
        for at in 0..5 {
            entry.at = n * 10 + at;
            drop(store.put_job(&entry));
        }
        entry.at = n * 10 + 9;
        store.put_job(&entry).await.unwrap();
        assert_eq!(store.load().await.unwrap().jobs[0].at, n * 10 + 9);
    }
}

#[actix::test]
async fn a_backup_is_of_one_instant() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    // Two records that are always written one after the other.
    let writer = store.clone();
    let writing = actix::spawn(async move {
        for n in 1..300 {
            for key in ["a", "b"] {
                let entry = Entry { at: n, ..Entry::for_tests(key) };
                writer.put_job(&entry).await.unwrap();
            }
        }
    });
    let mut backups = 0;
    while !writing.is_finished() {
        let file = store.backup().await.unwrap();
        let mut at = Vec::new();
        crate::store::backup::read(std::io::BufReader::new(file), |saved| {
            let entry: Entry = format::decode(saved.kind, &saved.key, &saved.value).map_err(|e| e.to_string())?;
            at.push(entry.at);
            Ok(())
        })
        .unwrap();
        let (a, b) = (at.first().copied().unwrap_or(0), at.get(1).copied().unwrap_or(0));
        assert!(a == b || a == b + 1, "{at:?}");
        backups += 1;
    }
    writing.await.unwrap();
    assert!(backups > 1, "{backups}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("backup")), "{left:?}");
}
