//! The store does not grow without bound.

use super::*;

/// 2,000 sandboxes that each pass through a life, and 20,000 jobs of which the old ones are forgotten, as the poller
/// does it.
#[test]
fn churn_leaves_no_growth() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = format_1(dir.path());
    engine.upgrade().unwrap();
    let (_, sandbox) = engine.all(Kind::Sandbox).unwrap().remove(0);
    let (_, entry) = engine.all(Kind::Job).unwrap().remove(0);
    let rounds = 20;
    let mut most = 0;
    for round in 0..rounds {
        let mut changes = Vec::new();
        for n in 0..2_000 / rounds {
            let key = format!("box-{round}-{n}").into_bytes();
            // A life has about ten writes.
            changes.extend((0..10).map(|_| Change::Put(Kind::Sandbox, key.clone(), sandbox.clone())));
            changes.push(Change::Remove(Kind::Sandbox, vec![key]));
        }
        for n in 0..20_000 / rounds {
            let key = format!("job-{round}-{n}").into_bytes();
            changes.extend((0..3).map(|_| Change::Put(Kind::Job, key.clone(), entry.clone())));
        }
        if round >= 3 {
            let old = (0..20_000 / rounds).map(|n| format!("job-{}-{n}", round - 3).into_bytes());
            changes.push(Change::Remove(Kind::Job, old.collect()));
        }
        for chunk in changes.chunks(CHUNK) {
            engine.commit(chunk).unwrap();
        }
        most = most.max(engine.bytes_on_disk());
        println!("round {round}: {} KiB", engine.bytes_on_disk() / 1024);
    }
    assert!(most < BOUND, "{most}");
}

/// Twice what was measured, 12 MiB, for about 3 MiB of records at a time.
const BOUND: u64 = 24 << 20;
