//! Everything at once, by chance from a seed: users who make, copy, stop, start, resize and destroy sandboxes by jobs and
//! over HTTP, VMMs that fail, hang a while or are killed, a runner that is killed and ended, an API that is away, repeats
//! itself and loses answers, and a volume that runs full. What must be true all the time is looked at all the time: what
//! was acknowledged holds, what a guest has in its memory and on its disk is there as long as that is promised, a copied
//! sandbox never goes back, a job that nothing disturbed does not fail, each job has one result, no sandbox has two VMMs
//! and no two have one address, reads are answered, and at the end everything can be destroyed and nothing is left.
//!
//! `CHAOS_SECONDS` (60; `make chaos`: 600) and `CHAOS_SEED`. A seed repeats what is ordered, not how the threads of a
//! whole host meet. After a failure the log with all that was done is in `target/tmp`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

mod common;
#[path = "chaos/crowd.rs"]
mod crowd;
#[path = "chaos/harm.rs"]
mod harm;
mod load;
#[path = "chaos/sandbox.rs"]
mod sandbox;
#[path = "chaos/trouble.rs"]
mod trouble;
#[path = "chaos/user.rs"]
mod user;
#[path = "chaos/watch.rs"]
mod watch;

use common::{Host, eventually};
use load::{Chance, Lives, note, nothing_left, number, one_result_each, seed};

const USERS: u64 = 4;
const CROWD: u64 = 2;

/// What the threads share.
struct Run {
    host: Host,
    lives: Lives,
    end: AtomicBool,
    /// Odd while the volume is full, or was a moment ago.
    full: AtomicU64,
    vmm_faults: Mutex<BTreeMap<String, Value>>,
    counts: Mutex<BTreeMap<String, usize>>,
}

impl Run {
    fn note(&self, line: &str) {
        note(&self.host, line);
    }

    fn count(&self, what: impl Into<String>) {
        *self.counts.lock().expect("no thread has failed").entry(what.into()).or_default() += 1;
    }

    fn is_over(&self) -> bool {
        self.end.load(Ordering::SeqCst)
    }

    fn full(&self) -> u64 {
        self.full.load(Ordering::SeqCst)
    }

    /// The VMMs of this sandbox fail like this until told otherwise.
    fn vmm_fault(&self, id: &str, fault: Option<Value>) {
        let mut faults = self.vmm_faults.lock().expect("no thread has failed");
        match fault {
            Some(fault) => drop(faults.insert(id.to_owned(), fault)),
            None => drop(faults.remove(id)),
        }
        self.host.faults(faults.values().cloned().collect());
    }
}

/// Ends everybody also when a thread ends by a failure, and keeps the log then.
struct Ends<'a>(&'a Run, u64);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{}.log", self.1));
            let copied = std::fs::write(&kept, self.0.host.log());
            eprintln!("CHAOS_SEED={} failed; log: {} ({copied:?})", self.1, kept.display());
            self.0.end.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn nothing_is_lost_whatever_happens() {
    let (seed, seconds) = (seed("CHAOS_SEED"), number("CHAOS_SECONDS").unwrap_or(60));
    let mut host = Host::on_xfs();
    let mut chance = Chance::new(seed, 99);
    let strategy = *chance.one(&["reflink", "overlay"]);
    let memory = *chance.one(&["private", "shared", "file"]);
    let restarts = *chance.one(&["never", "on-failure", "always"]);
    println!("disks: {strategy}, memory: {memory}, restarts: {restarts}");
    host.set("RUNNER_DISK_STRATEGY", strategy);
    host.set("RUNNER_MEMORY", memory);
    host.set("RUNNER_RESTART_POLICY", restarts);
    host.set("RUNNER_MIN_FREE_DISK_MB", "64");
    host.set("RUNNER_DRAIN_TIMEOUT_SEC", "2");
    let runner = host.runner();
    let run = Run {
        host,
        lives: Lives::default(),
        end: AtomicBool::new(false),
        full: AtomicU64::new(0),
        vmm_faults: Mutex::default(),
        counts: Mutex::default(),
    };
    let (run, began) = (&run, Instant::now());
    let (runner, mut owned, seen) = std::thread::scope(|scope| {
        let users = (0..USERS).map(|who| {
            scope.spawn(move || {
                let _ends = Ends(run, seed);
                user::lives(run, who, Chance::new(seed, who))
            })
        });
        let users = users.collect::<Vec<_>>();
        for who in 0..CROWD {
            scope.spawn(move || {
                let _ends = Ends(run, seed);
                crowd::asks(run, who, Chance::new(seed, 20 + who));
            });
        }
        let watcher = scope.spawn(move || {
            let _ends = Ends(run, seed);
            watch::looks(run)
        });
        let trouble = scope.spawn(move || {
            let _ends = Ends(run, seed);
            trouble::makes(run, runner, Chance::new(seed, 50))
        });
        while began.elapsed() < Duration::from_secs(seconds) && !run.is_over() {
            std::thread::sleep(Duration::from_millis(50));
        }
        run.end.store(true, Ordering::SeqCst);
        let runner = trouble.join().expect("the runner ends only when it is told to");
        let owned = users.into_iter().flat_map(|user| user.join().expect("what was promised is kept"));
        (runner, owned.collect::<Vec<_>>(), watcher.join().expect("reads are answered"))
    });

    let _ends = Ends(run, seed);
    let host = &run.host;
    for sandbox in &mut owned {
        sandbox.look(run);
        host.completed(&host.api.destroy_sandbox(&sandbox.id).unwrap());
    }
    // The API has handed out what was asked for at the end by then.
    eventually("all jobs have ended", || host.api.jobs().iter().all(|job| job.status.is_terminal()).then_some(()));
    for shared in host.http().get("/sandboxes").json().as_array().expect("a list") {
        let id = shared["id"].as_str().expect("an id");
        host.completed(&host.api.destroy_sandbox(id).unwrap());
        assert_eq!(sandbox::settled(id), None, "it is destroyed");
    }
    let jobs = host.api.jobs();
    one_result_each(host);
    eventually("all copies are written", || common::leftovers::of_copies(host).is_empty().then_some(()));
    nothing_left(host);
    assert!(runner.stop().success());
    let panics = host.log().lines().filter(|line| line.contains("panicked at")).count();
    assert_eq!(panics, 0, "the runner has panicked");
    let failed = jobs.iter().filter(|job| job.status == daytona_sim::JobStatus::Failed).count();
    println!("{} jobs, {failed} of them failed with a cause; {seen}", jobs.len());
    println!("{}", json!(*run.counts.lock().unwrap()));
    println!("CHAOS_SEED={seed}: nothing was lost in {:.0} s", began.elapsed().as_secs_f64());
}
