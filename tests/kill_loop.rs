//! The runner dies again and again at random moments, while twenty sandboxes run and are talked to, others are worked on,
//! and the runner before may not even have recovered. The twenty must not notice: the same process, a counter that only
//! grows, an answer to every request that is sent while a runner that has recovered lives.
//!
//! `KILL_ROUNDS` says how often (50), `KILL_SEED` repeats a run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use daytona_sim::{JobStatus, job_type};
use serde_json::Value;

mod common;
mod load;

use common::{Host, Runner, SOON};
use load::{Chance, Lives, guest, nothing_left, number, one_result_each, request, seed};

const UNTOUCHED: usize = 20;
const WORKED_ON: usize = 5;
/// Threads that talk to guests.
const CALLERS: usize = 4;
/// A restart of an unoptimised runner on a busy machine.
const RECOVERED: Duration = Duration::from_secs(20);

/// What the threads share.
struct Run {
    host: Host,
    lives: Lives,
    end: AtomicBool,
    answered: AtomicUsize,
    cut: AtomicUsize,
}

fn untouched(number: usize) -> String {
    format!("box-{number}")
}

/// One look at a guest's counter and boot; the error is what went wrong.
fn counter(id: &str) -> Result<(u64, String), String> {
    let answer = request("GET", &format!("/sandboxes/{id}/toolbox/counter"), "").map_err(|error| error.to_string())?;
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    match (answer.status, body["counter"].as_u64(), body["bootId"].as_str()) {
        (200, Some(counter), Some(boot)) => Ok((counter, boot.to_owned())),
        _ => Err(format!("{answer:?}")),
    }
}

/// Asks its share of the guests without a pause, and leaves a number in each.
fn talk(run: &Run, first: usize) {
    let mut seen = BTreeMap::<usize, (u64, String)>::new();
    let mut written = BTreeMap::<usize, String>::new();
    for turn in 0.. {
        for box_number in (first..UNTOUCHED).step_by(CALLERS) {
            if run.end.load(Ordering::SeqCst) {
                return;
            }
            let id = untouched(box_number);
            let life = run.lives.now();
            let asked = counter(&id).and_then(|now| {
                let command = format!("cat /tmp/turn || true; echo {turn} > /tmp/turn; cat /tmp/turn");
                guest(&id, &command).map(|(text, _)| (now, text)).ok_or_else(|| "no answer to a command".to_owned())
            });
            match asked {
                Ok((now, text)) => {
                    run.answered.fetch_add(2, Ordering::SeqCst);
                    let before = seen.insert(box_number, now.clone()).unwrap_or(now.clone());
                    assert!(now.1 == before.1 && now.0 >= before.0, "{id} was at {before:?} and is at {now:?}");
                    let mut lines: Vec<&str> = text.lines().collect();
                    assert_eq!(lines.pop(), Some(turn.to_string().as_str()), "{id}: {text}");
                    // A command whose answer was cut off may have been carried out.
                    if let Some(before) = written.insert(box_number, turn.to_string()) {
                        assert_eq!(lines.pop(), Some(before.as_str()), "{id} has lost what was written: {text}");
                    }
                }
                Err(why) => {
                    written.remove(&box_number);
                    run.cut.fetch_add(1, Ordering::SeqCst);
                    let harmless = !run.lives.unharmed_since(life);
                    assert!(harmless, "a request to {id} after recovery failed: {why}\n{}", run.host.log());
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

/// Works on a sandbox of its own, one job after the other; each must end as completed.
fn work(run: &Run, who: usize, mut chance: Chance) -> BTreeMap<String, usize> {
    let (id, api) = (format!("work-{who}"), &run.host.api);
    let mut done = BTreeMap::new();
    let mut finish = |job: Result<String, daytona_sim::SubmitError>| {
        let job = job.expect("the API takes the job");
        // It may be begun by one runner and ended by the fifth after it.
        let job = api.wait_job(&job, 4 * SOON);
        let job = job.unwrap_or_else(|| panic!("a job of {id} did not end\n{}", run.host.log()));
        let why = &job.error_message;
        assert_eq!(job.status, JobStatus::Completed, "{} of {id}: {why:?}\n{}", job.job_type, run.host.log());
        *done.entry(job.job_type).or_default() += 1;
    };
    while !run.end.load(Ordering::SeqCst) {
        finish(api.create_sandbox(&run.host.spec(&id)));
        for number in 0..1 + chance.below(3) {
            // Each kind is somebody's first, so none is left out by chance.
            match if number == 0 { who as u64 % 3 } else { chance.below(3) } {
                0 => {
                    finish(api.stop_sandbox(&id, None));
                    finish(api.start_sandbox(&id));
                }
                1 => {
                    finish(api.pause_sandbox(&id));
                    finish(api.start_sandbox(&id));
                }
                _ => {
                    let copy = format!("{id}-copy");
                    finish(api.fork_sandbox(&id, &copy));
                    finish(api.destroy_sandbox(&copy));
                }
            }
        }
        finish(api.destroy_sandbox(&id));
    }
    done
}

/// Pids and start times of the VMMs of the untouched ones, as the runner shows the first and the kernel the second.
fn processes(run: &Run) -> BTreeMap<String, (i64, u64)> {
    let listed = run.host.http().get("/sandboxes").json();
    let of_ours = listed.as_array().expect("a list").iter().filter(|view| {
        let id = view["id"].as_str().unwrap_or_default();
        id.starts_with("box-")
    });
    of_ours
        .map(|view| {
            assert_eq!(view["state"], "started", "{view}\n{}", run.host.log());
            let pid = view["pid"].as_i64().expect("a pid");
            let process = procfs::process::Process::new(pid.try_into().expect("a pid")).expect("the VMM lives");
            let began = process.stat().expect("the VMM lives").starttime;
            (view["id"].as_str().expect("an id").to_owned(), (pid, began))
        })
        .collect()
}

fn is_recovered() -> bool {
    request("GET", "/", "").is_ok_and(|answer| answer.body.contains("\"ok\""))
}

/// Waits until the runner has recovered; how long it took since `began`.
fn recovered(host: &Host, runner: &mut Runner, began: Instant) -> Duration {
    while !is_recovered() {
        if let Some(status) = runner.child.try_wait().expect("wait") {
            panic!("the runner ended with {status}\n{}", host.log());
        }
        assert!(began.elapsed() < RECOVERED, "no recovery within {RECOVERED:?}\n{}", host.log());
        std::thread::sleep(Duration::from_millis(2));
    }
    began.elapsed()
}

/// Kills it so often; how often before it had recovered, and how long the recoveries took.
fn kill(run: &Run, mut runner: Runner, rounds: u64, mut chance: Chance) -> (Runner, u64, Vec<Duration>) {
    let before = processes(run);
    assert_eq!(before.len(), UNTOUCHED);
    let (mut early, mut took) = (0, vec![Duration::from_millis(200)]);
    for _ in 0..rounds {
        run.lives.ends();
        runner.murder();
        let began = Instant::now();
        runner = run.host.spawn();
        if chance.percent(30) {
            // Somewhere on the way to where the last one had recovered.
            let usual = took[took.len() - 1].as_micros() as u64;
            std::thread::sleep(Duration::from_micros(chance.below(usual)));
            early += u64::from(!is_recovered());
            continue;
        }
        took.push(recovered(&run.host, &mut runner, began));
        run.lives.begins();
        assert_eq!(processes(run), before, "{}", run.host.log());
        std::thread::sleep(chance.millis(1, 500));
    }
    let began = Instant::now();
    if run.lives.now() % 2 == 1 {
        recovered(&run.host, &mut runner, began);
        run.lives.begins();
    }
    assert_eq!(processes(run), before, "{}", run.host.log());
    (runner, early, took.split_off(1))
}

/// Ends everybody also when this thread ends by a failure.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn twenty_sandboxes_do_not_notice_that_the_runner_is_killed_again_and_again() {
    let (seed, rounds) = (seed("KILL_SEED"), number("KILL_ROUNDS").unwrap_or(50));
    let began = Instant::now();
    let host = Host::on_xfs();
    let runner = host.runner();
    let jobs: Vec<_> = (0..UNTOUCHED).map(|n| host.api.create_sandbox(&host.spec(&untouched(n))).unwrap()).collect();
    jobs.iter().for_each(|job| drop(host.completed(job)));
    let zero = AtomicUsize::default;
    let run = Run { host, lives: Lives::default(), end: AtomicBool::new(false), answered: zero(), cut: zero() };

    let (runner, early, mut took, done) = std::thread::scope(|scope| {
        let run = &run;
        let callers = (0..CALLERS).map(|first| scope.spawn(move || talk(run, first))).collect::<Vec<_>>();
        let chance = |who: usize| Chance::new(seed, who as u64 + 1);
        let workers = (0..WORKED_ON).map(|who| scope.spawn(move || work(run, who, chance(who)))).collect::<Vec<_>>();
        let ends = Ends(&run.end);
        let (runner, early, took) = kill(run, runner, rounds, Chance::new(seed, 0));
        drop(ends);
        callers.into_iter().for_each(|caller| caller.join().expect("all was answered"));
        let mut done = BTreeMap::<String, usize>::new();
        for worker in workers {
            let jobs = worker.join().expect("all jobs are completed");
            jobs.into_iter().for_each(|(kind, count)| *done.entry(kind).or_default() += count);
        }
        (runner, early, took, done)
    });

    let host = &run.host;
    let jobs: Vec<_> = (0..UNTOUCHED).map(|n| host.api.destroy_sandbox(&untouched(n)).unwrap()).collect();
    jobs.iter().for_each(|job| drop(host.completed(job)));
    one_result_each(host);
    nothing_left(host);
    assert!(runner.stop().success());
    took.sort();
    println!(
        "{rounds} kills, {early} of them before recovery; recovery p50 {:?}, longest {:?}; {} requests answered, {} cut \
         off by kills; {} jobs completed once beside that: {done:?}; {:.1} s",
        took[took.len() / 2],
        took[took.len() - 1],
        run.answered.load(Ordering::SeqCst),
        run.cut.load(Ordering::SeqCst),
        done.values().sum::<usize>(),
        began.elapsed().as_secs_f64()
    );
    let all = [job_type::CREATE_SANDBOX, job_type::FORK_SANDBOX, job_type::STOP_SANDBOX, job_type::PAUSE_SANDBOX];
    assert!(all.iter().all(|kind| done.contains_key(*kind)), "{done:?}");
}

/// Adoption asks the kernel and the VMM's socket, all at once, and no guest: it must not become slow with their number.
/// `scripts/bench.sh --only idle` measures an optimised runner with hundreds.
#[test]
fn fifty_sandboxes_are_adopted_in_time() {
    let host = Host::new();
    let mut runner = host.runner();
    let ids: Vec<_> = (0..50).map(untouched).collect();
    let jobs: Vec<_> = ids.iter().map(|id| host.api.create_sandbox(&host.spec(id)).unwrap()).collect();
    jobs.iter().for_each(|job| drop(host.completed(job)));
    // The best of some: other tests run beside this one.
    let mut best = RECOVERED;
    for _ in 0..5 {
        runner.murder();
        let began = Instant::now();
        runner = host.spawn();
        best = best.min(recovered(&host, &mut runner, began));
        let listed = host.http().get("/sandboxes").json();
        let started = listed.as_array().expect("a list").iter().filter(|view| view["state"] == "started");
        assert_eq!(started.count(), ids.len(), "{listed}");
    }
    println!("50 sandboxes are adopted {best:?} after the start of the process");
    assert!(best < Duration::from_secs(2), "{best:?}\n{}", host.log());
    let jobs: Vec<_> = ids.iter().map(|id| host.api.destroy_sandbox(id).unwrap()).collect();
    jobs.iter().for_each(|job| drop(host.completed(job)));
    nothing_left(&host);
}
