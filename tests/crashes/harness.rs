//! Running one job many times, each time with a kill at another point.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use daytona_sim::{Job, JobStatus};
use serde_json::{Value, json};

use super::common::{Host, Runner, SOON, leftovers};
use super::life;

/// A job with what comes before it. `{n}` in ids is the number of the round, so that no round meets another's.
pub struct Story {
    pub strategy: &'static str,
    /// Makes what the job is about; returns nothing but leaves it at rest.
    pub prepare: fn(&Host, &Ids),
    /// Orders the job; its id.
    pub order: fn(&Host, &Ids) -> String,
    /// What is looked at beside what is always looked at.
    pub look: fn(&Host, &Ids) -> Value,
    /// Ends what the round has made.
    pub clear: fn(&Host, &Ids),
}

/// The names of one round.
pub struct Ids {
    pub sandbox: String,
    pub copy: String,
    pub snapshot: String,
}

impl Ids {
    fn of(round: usize) -> Self {
        Self { sandbox: format!("box-{round}"), copy: format!("copy-{round}"), snapshot: format!("snap-{round}") }
    }

    /// The text as it would be in any round.
    fn anonymous(&self, text: &str) -> String {
        text.replace(&self.sandbox, "BOX").replace(&self.copy, "COPY").replace(&self.snapshot, "SNAP")
    }
}

/// What goes on beside any job, and when it does is chance.
const BACKGROUND: &[&str] = &[
    "api.in_progress",
    "api.healthcheck",
    "api.started_sandboxes",
    "api.put_state",
    "disk.space",
    "disk.snapshot_count",
    "disk.merge",
    "store.remove_jobs",
    // The ledger's looks.
    "net.survey",
    "disk.survey",
    "snapshots.survey",
    "vmm.survey",
    "vm.state",
    "guest.init",
];

/// What a runner does before it has recovered, as far as it writes or acts: where a second kill meets the recovery.
const RECOVERY: &[&str] = &[
    "store.load:after",
    "disk.sweep:after",
    "disk.hold:after",
    "net.open:after",
    "vmm.adopt:after",
    "vmm.clear:before",
    "vm.end:before",
    "vm.resume:before",
    "net.remove:before",
    "disk.remove:before",
    "store.remove_sandbox:after",
];

type Point = (String, usize);

struct Bench<'a> {
    host: &'a Host,
    story: &'a Story,
    rounds: usize,
}

/// How a round went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Met {
    /// The runner died there.
    Once,
    /// So did the next one.
    Twice,
    /// The point was not reached.
    Never,
}

pub fn enumerate(name: &str, story: &Story) {
    let mut host = life::host(story.strategy);
    host.set("TEST_CRASH_FILE", host.path("crash").display().to_string());
    let host = host;
    let mut bench = Bench { host: &host, story, rounds: 0 };
    let (expected, points) = bench.undisturbed();
    let rounds = std::env::var("CRASH_ROUNDS").unwrap_or_default();
    let double = rounds == "double";
    let taken: Vec<Point> = match rounds.as_str() {
        "all" | "double" => points.clone(),
        "each" => distinct(&points),
        // A third, and not the same third in each story.
        _ => distinct(&points).into_iter().skip(name.len() % 3).step_by(3).collect(),
    };
    let began = Instant::now();
    let mut met = BTreeMap::<Met, usize>::new();
    for (index, point) in taken.iter().enumerate() {
        let second = if double { bench.seconds(&points) } else { vec![points[(index * 7 + 3) % points.len()].clone()] };
        let seconds: Vec<Option<Point>> = match (double, index % 3) {
            (true, _) => std::iter::once(None).chain(second.into_iter().map(Some)).collect(),
            (false, 0) => second.into_iter().map(Some).collect(),
            (false, 1) => vec![Some((RECOVERY[index % RECOVERY.len()].to_owned(), 1))],
            (false, _) => vec![None],
        };
        for second in seconds {
            let (how, found) = bench.disturbed(point, second.as_ref());
            *met.entry(how).or_default() += 1;
            assert_eq!(
                pretty(&found),
                pretty(&expected),
                "{name}: killed at {point:?}, then at {second:?}\n{}",
                host.log()
            );
        }
    }
    let count = |how| met.get(&how).copied().unwrap_or_default();
    println!(
        "{name}: {} of {} points, {} rounds: {} died once, {} twice, {} not at all; all as undisturbed; {:.1} s",
        taken.len(),
        points.len(),
        bench.rounds - 1,
        count(Met::Once),
        count(Met::Twice),
        count(Met::Never),
        began.elapsed().as_secs_f64()
    );
    // Which of two things that run side by side comes first is chance, and so is how often some points are reached.
    assert!(count(Met::Never) <= 1 + bench.rounds / 4, "{name}: too many points were not reached: {met:?}");
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

impl Bench<'_> {
    fn ids(&mut self) -> Ids {
        self.rounds += 1;
        Ids::of(self.rounds)
    }

    fn command(&self, text: &str) {
        let next = self.host.path("crash.next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, self.host.path("crash")).unwrap();
    }

    /// A run that nothing happens to: what comes out, and the points on its way.
    fn undisturbed(&mut self) -> (Value, Vec<Point>) {
        let ids = self.ids();
        let runner = self.host.runner();
        self.prepare(&ids);
        self.command("trace");
        let job = (self.story.order)(self.host, &ids);
        let job = self.host.completed(&job);
        // The last of it is stored after the API has the result.
        let trace = super::common::eventually("the end of the job is stored", || {
            let text = std::fs::read_to_string(self.host.path("crash.trace")).ok()?;
            let reported = text.find("api.report:after")?;
            text[reported..].contains("store.put_job:after").then_some(text)
        });
        self.command("");
        let found = self.look(&ids, &job);
        self.clear(&ids);
        assert!(runner.stop().success());
        (found, points(&trace))
    }

    /// The same with a kill at this point, and maybe one more after that.
    fn disturbed(&mut self, (point, count): &Point, second: Option<&Point>) -> (Met, Value) {
        let ids = self.ids();
        let mut runner = self.host.runner();
        self.prepare(&ids);
        self.command(&format!("kill {point} {count}"));
        let id = (self.story.order)(self.host, &ids);
        let mut met = Met::Never;
        if self.dies(&mut runner, &id) {
            met = Met::Once;
            self.command(&second.map_or(String::new(), |(point, count)| format!("kill {point} {count}")));
            runner = self.host.spawn();
            if second.is_some() && self.dies(&mut runner, &id) {
                met = Met::Twice;
                self.command("");
                runner = self.host.spawn();
            }
        }
        let job = self.host.completed(&id);
        self.command("");
        self.ready();
        let found = self.look(&ids, &job);
        self.clear(&ids);
        assert!(runner.stop().success());
        (met, found)
    }

    /// Makes what the job is about, and waits until the end of each job for that is stored.
    fn prepare(&self, ids: &Ids) {
        let trace = self.host.path("crash.trace");
        let _ = std::fs::remove_file(&trace);
        self.command("trace");
        let before = self.host.api.jobs().len();
        (self.story.prepare)(self.host, ids);
        let jobs = self.host.api.jobs().len() - before;
        super::common::eventually("all jobs are stored as reported", || {
            let text = std::fs::read_to_string(&trace).unwrap_or_default();
            // Begun, finished, reported.
            (text.matches("store.put_job:after").count() >= 3 * jobs).then_some(())
        });
        self.command("");
        let _ = std::fs::remove_file(&trace);
    }

    /// Whether the runner dies before the job is done and a little after that.
    fn dies(&self, runner: &mut Runner, job: &str) -> bool {
        let (deadline, mut done) = (Instant::now() + SOON, None);
        loop {
            if runner.child.try_wait().expect("wait").is_some() {
                return true;
            }
            if done.is_none() && self.host.api.job(job).is_some_and(|job| job.status.is_terminal()) {
                done = Some(Instant::now());
            }
            if done.is_some_and(|done| done.elapsed() > Duration::from_millis(150)) {
                // From here on no point strikes; one that was just reached may still do.
                self.command("");
                std::thread::sleep(Duration::from_millis(30));
                return runner.child.try_wait().expect("wait").is_some();
            }
            assert!(Instant::now() < deadline, "neither death nor result of {job}\n{}", self.host.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn ready(&self) {
        super::common::eventually("the runner has recovered", || {
            self.host.http().try_get("/")?.body.contains("\"ok\"").then_some(())
        });
    }

    /// Everything that can be told from outside, without what differs between any two runs.
    fn look(&self, ids: &Ids, job: &Job) -> Value {
        let ids_of = |text: String| ids.anonymous(&text);
        let listed = super::common::eventually("all is settled", || {
            let listed = self.host.http().get("/sandboxes").json();
            // One whose VMM is being replaced runs and has a checkpoint.
            let rests = |view: &Value| match view["state"].as_str() {
                Some("started") => view["checkpoint"] == false,
                Some("stopped" | "paused") => true,
                _ => false,
            };
            listed.as_array()?.iter().all(rests).then_some(listed)
        });
        let sandboxes = listed.as_array().unwrap().iter().map(|view| {
            json!({
                "id": ids_of(view["id"].as_str().unwrap().to_owned()),
                "state": view["state"], "error": view["errorReason"],
                "checkpoint": view["checkpoint"], "parent": view["parentId"].as_str().map(|id| ids.anonymous(id)),
                "size": [&view["cpu"], &view["memoryMiB"], &view["diskGiB"]],
                "runs": view["pid"].is_i64(), "network": view["netns"].is_string(),
            })
        });
        let rows = super::common::eventually("the API knows the states", || self.rows(ids, &listed));
        let results = super::common::eventually("a report", || self.results(job));
        super::common::eventually("nothing is being copied", || {
            leftovers::of_copies(self.host).is_empty().then_some(())
        });
        json!({
            "job": [job.status == JobStatus::Completed, results.len() == 1],
            "sandboxes": sandboxes.collect::<Vec<_>>(),
            "rows": rows,
            "host": leftovers::census(self.host).into_iter().map(ids_of).collect::<Vec<_>>(),
            "story": (self.story.look)(self.host, ids),
        })
    }

    /// The API's rows, once they tell what the runner does.
    fn rows(&self, ids: &Ids, listed: &Value) -> Option<Vec<String>> {
        let rows = self.host.api.sandboxes().into_iter().filter(|row| [&ids.sandbox, &ids.copy].contains(&&row.id));
        rows.map(|row| {
            let state = format!("{:?}", row.state).to_lowercase();
            let view = listed.as_array()?.iter().find(|view| view["id"] == row.id);
            let agreed = view.map_or(state == "destroyed", |view| view["state"] == state);
            agreed.then(|| format!("{} {state}", ids.anonymous(&row.id)))
        })
        .collect()
    }

    /// The different results that were told of a job.
    fn results(&self, job: &Job) -> Option<Vec<String>> {
        let reports = self.host.api.reports();
        let told = reports.iter().filter(|report| report.job_id == job.id && report.body["status"] != "IN_PROGRESS");
        let mut results: Vec<String> = told.map(|report| report.body["status"].to_string()).collect();
        results.dedup();
        (!results.is_empty()).then_some(results)
    }

    fn clear(&self, ids: &Ids) {
        (self.story.clear)(self.host, ids);
        for id in [&ids.copy, &ids.sandbox] {
            let answer = self.host.http().delete(&format!("/sandboxes/{id}"));
            assert_eq!(answer.status, 200, "{answer:?}\n{}", self.host.log());
        }
        leftovers::none(self.host);
        assert_eq!(leftovers::layers(self.host), 0, "layers are left");
    }

    /// Points for a second kill: those of the job itself, and those of the recovery.
    fn seconds(&self, points: &[Point]) -> Vec<Point> {
        let recovery = RECOVERY.iter().map(|point| ((*point).to_owned(), 1));
        points.iter().cloned().chain(recovery).collect()
    }
}

/// Without the points before an effect that directly follow the end of another one: nothing has changed in between.
fn distinct(points: &[Point]) -> Vec<Point> {
    let mut after = false;
    let kept = points.iter().filter(|(name, _)| {
        let same = after && name.ends_with(":before");
        after = name.ends_with(":after");
        !same
    });
    kept.cloned().collect()
}

/// Names with how often each was reached, in order.
fn points(trace: &str) -> Vec<Point> {
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut points = Vec::new();
    for name in trace.lines() {
        let effect = name.split(':').next().unwrap_or(name);
        if BACKGROUND.contains(&effect) || (effect == "api.poll" && name.ends_with(":before")) {
            continue;
        }
        let count = counts.entry(name).or_default();
        *count += 1;
        points.push((name.to_owned(), *count));
    }
    points
}
