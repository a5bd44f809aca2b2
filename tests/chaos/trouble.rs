//! What happens to the runner, the API and the volume.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use daytona_sim::{Action, Fault, Route};
use nix::sys::signal::Signal;

use super::Run;
use super::common::Runner;
use super::load::{Chance, request};

/// From the start of a process to its first answer, and to its recovery.
const ANSWERS: Duration = Duration::from_secs(10);
const RECOVERS: Duration = Duration::from_secs(45);
/// The runner looks at the volume once a second.
const SEEN_FREE: Duration = Duration::from_secs(4);
/// A job begins anew in each life, so who is killed every two seconds finishes none that takes three. One that is as old
/// as this is left the time.
const OLD: Duration = Duration::from_secs(20);

/// Makes trouble until the end, and leaves a runner that has recovered, an API that works and a volume with space.
pub fn makes(run: &Run, mut runner: Runner, mut chance: Chance) -> Runner {
    let mut filled = None::<Instant>;
    let mut freed = None::<Instant>;
    while !run.is_over() {
        std::thread::sleep(chance.millis(50, 700));
        let ended = runner.child.try_wait().expect("wait");
        assert!(ended.is_none(), "the runner has ended by itself: {ended:?}");
        match chance.below(36) {
            0..=11 if is_waited_for(run) => run.count("runner spared"),
            0..=8 => runner = killed(run, runner, &mut chance),
            9..=11 => runner = ended_in_order(run, runner, &mut chance),
            12..=14 => outage(run, &mut chance),
            15..=17 => {
                run.note("the next jobs are handed out twice");
                run.count("double delivery");
                run.host.api.faults().double_delivery(3);
            }
            18..=26 => api_fault(run, &mut chance),
            27 if filled.is_none() && freed.is_none() => {
                fill(run, &mut chance);
                filled = Some(Instant::now());
            }
            _ => {}
        }
        if filled.is_some_and(|since| since.elapsed() > Duration::from_secs(2)) {
            free(run);
            (filled, freed) = (None, Some(Instant::now()));
        }
        if freed.is_some_and(|since| since.elapsed() > SEEN_FREE) {
            run.full.fetch_add(1, Ordering::SeqCst);
            freed = None;
        }
    }
    run.host.api.faults().clear();
    if filled.is_some() {
        free(run);
    }
    if filled.is_some() || freed.is_some() {
        std::thread::sleep(SEEN_FREE);
        run.full.fetch_add(1, Ordering::SeqCst);
    }
    runner
}

/// Somebody waits for a job for long.
fn is_waited_for(run: &Run) -> bool {
    let jobs = run.host.api.jobs();
    jobs.iter().any(|job| !job.status.is_terminal() && job.timing.submitted.elapsed() > OLD)
}

fn killed(run: &Run, mut runner: Runner, chance: &mut Chance) -> Runner {
    run.note("SIGKILL to the runner");
    run.count("runner killed");
    run.lives.ends();
    runner.murder();
    runner = run.host.spawn();
    while chance.percent(25) {
        std::thread::sleep(chance.millis(1, 600));
        run.note("SIGKILL to the runner that recovers");
        run.count("runner killed early");
        runner.murder();
        runner = run.host.spawn();
    }
    recovered(run, &mut runner);
    runner
}

fn ended_in_order(run: &Run, mut runner: Runner, chance: &mut Chance) -> Runner {
    run.note("SIGTERM to the runner");
    run.count("runner ended");
    run.lives.ends();
    runner.signal(Signal::SIGTERM);
    let status = runner.wait();
    assert_eq!(status.code(), Some(0), "an end in order");
    std::thread::sleep(chance.millis(1, 1000));
    runner = run.host.spawn();
    recovered(run, &mut runner);
    runner
}

/// Waits until it has recovered. It answers long before that.
fn recovered(run: &Run, runner: &mut Runner) {
    let (began, mut answered) = (Instant::now(), false);
    loop {
        if let Some(status) = runner.child.try_wait().expect("wait") {
            panic!("the runner did not start: {status}");
        }
        if let Ok(answer) = request("GET", "/", "") {
            answered = true;
            if answer.body.contains("\"ok\"") {
                break;
            }
        }
        assert!(answered || began.elapsed() < ANSWERS, "no answer {ANSWERS:?} after the start");
        assert!(began.elapsed() < RECOVERS, "no recovery {RECOVERS:?} after the start");
        std::thread::sleep(Duration::from_millis(5));
    }
    run.note(&format!("the runner has recovered after {:?}", began.elapsed()));
    run.lives.begins();
}

fn outage(run: &Run, chance: &mut Chance) {
    let faults = run.host.api.faults();
    let (refuses, lasts) = (chance.percent(50), chance.millis(100, 2000));
    run.note(&format!("the API is away for {lasts:?}, refuses: {refuses}"));
    run.count("API away");
    if refuses {
        faults.refuse()
    } else {
        faults.down()
    }
    std::thread::sleep(lasts);
    faults.up();
}

fn api_fault(run: &Run, chance: &mut Chance) {
    let route = *chance.one(&[Route::Poll, Route::Status, Route::Status, Route::List, Route::SandboxState, Route::Any]);
    let action = match chance.below(8) {
        0 => Action::Status { code: 503, retry_after: None },
        1 => Action::Status { code: 500, retry_after: None },
        2 => Action::Garbage,
        3 => Action::Html,
        4 => Action::CloseBefore,
        5 => Action::Delay { ms: chance.below(1500) },
        _ => Action::CloseAfter,
    };
    run.note(&format!("the API does {action:?} at {route:?}"));
    run.count("API fault");
    run.host.api.faults().add(Fault::times(route, action, 1 + u32::try_from(chance.below(3)).expect("small")));
}

/// Takes the volume's space but for a little.
fn fill(run: &Run, chance: &mut Chance) {
    let left = chance.below(80) << 20;
    run.full.fetch_add(1, Ordering::SeqCst);
    run.note(&format!("the volume is filled but for {left} bytes"));
    run.count("volume full");
    let filler = File::create(run.host.path("volume/filler")).expect("a file");
    let mut piece = {
        let about = rustix::fs::statvfs(run.host.path("volume")).expect("the volume");
        (about.f_bavail * about.f_frsize).saturating_sub(left)
    };
    // Others take space meanwhile.
    while piece > 1 << 20 && rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, piece).is_err() {
        piece -= piece / 8;
    }
}

fn free(run: &Run) {
    run.note("the volume has space again");
    std::fs::remove_file(run.host.path("volume/filler")).expect("the filler");
}
