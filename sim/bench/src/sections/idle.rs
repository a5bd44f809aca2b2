//! What many idle sandboxes cost, and how a runner that was killed finds them again.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use daytona_sim::{Job, JobStatus};
use serde_json::Value;

use super::Section;
use crate::args::Args;
use crate::isolate::go_on;
use crate::process::{self, Memory};
use crate::setup::Setup;
use crate::stats::median;
use crate::table::{Cell, Table};
use crate::world::World;

/// Jobs submitted and not finished: more than the runner does at once, so that it is never idle.
const WINDOW: usize = 20;
/// A moment for what follows the last answer.
const SETTLE: Duration = Duration::from_secs(2);

/// Measures.
pub fn section(setup: &Setup, args: &Args) -> anyhow::Result<Section> {
    let mut section = Section::new("4. Idle sandboxes");
    let world = World::new(setup, setup.subdir("idle")?, "auto")?;
    let (runner, empty_start) = world.runner()?;
    world.create("warm")?;
    world.destroy("warm")?;
    pause(SETTLE)?;
    let before = process::memory(runner.pid())?;

    let ids: Vec<String> = (1..=args.sandboxes).map(|number| format!("idle-{number}")).collect();
    let created = in_window(&world, &ids, args.create_limit(), |id| Ok(world.api.create_sandbox(&world.spec(id))?))?;
    let made = created.done.len();
    ensure!(made > 0, "no sandbox could be created: {:?}", created.failures.first());
    pause(SETTLE)?;
    let (after, threads) = (process::memory(runner.pid())?, process::threads(runner.pid()));
    let pids = running(&world)?;
    ensure!(pids.len() == made, "{made} sandboxes were created and {} run", pids.len());
    let (idle_runner, idle_vmms) = idle_cpu(runner.pid(), pids.values(), args.idle())?;
    let vmms: Vec<Memory> = pids.values().map(|&pid| process::memory(pid)).collect::<anyhow::Result<_>>()?;

    runner.murder()?;
    let (runner, adoption) = world.runner()?;
    ensure!(running(&world)? == pids, "not all sandboxes were found again with their processes");
    let destroyed = in_window(&world, &created.done, Duration::MAX, |id| Ok(world.api.destroy_sandbox(id)?))?;
    let left = world.vmms().len();
    runner.stop()?;

    let mut times = Table::new("Times", &["", "sandboxes", "s", "ms each"]);
    let mut row = |name: &str, count: usize, whole: Duration| {
        let each = if count == 0 { Cell::Empty } else { Cell::ms(whole / u32::try_from(count).unwrap_or(u32::MAX)) };
        times.row(name, [Cell::Number(count as f64, 0), Cell::Number(whole.as_secs_f64(), 3), each]);
    };
    row(&format!("create all, {WINDOW} jobs queued"), made, created.took);
    row("start of the runner without sandboxes", 0, empty_start);
    row("start after SIGKILL until GET / says ok", made, adoption);
    row(&format!("destroy all, {WINDOW} jobs queued"), destroyed.done.len(), destroyed.took);
    section.tables = vec![memory(made, before, after, &vmms), cpu(args, idle_runner, idle_vmms, threads), times];
    section.note(format!("{left} VMM processes were left after the last destroy"));
    if made + created.failures.len() < args.sandboxes as usize {
        section.note(format!("only {made} of {} sandboxes: --create-limit was reached", args.sandboxes));
    }
    for failure in created.failures.iter().chain(&destroyed.failures) {
        section.note(format!("FAILED: {failure}"));
    }
    Ok(section)
}

fn memory(count: usize, before: Memory, after: Memory, vmms: &[Memory]) -> Table {
    let mut table = Table::new("Memory", &["", "RSS KiB", "PSS KiB"]);
    let whole = |kib: u64| Cell::Number(kib as f64, 0);
    table.row("runner without sandboxes", [whole(before.rss), whole(before.pss)]);
    table.row(format!("runner with {count}"), [whole(after.rss), whole(after.pss)]);
    let each = |before: u64, after: u64| Cell::Number((after as f64 - before as f64) / count as f64, 1);
    table.row("runner, per sandbox", [each(before.rss, after.rss), each(before.pss, after.pss)]);
    let middle = |part: fn(&Memory) -> u64| whole(median(vmms.iter().map(part).collect()));
    table.row("VMM process, median", [middle(|memory| memory.rss), middle(|memory| memory.pss)]);
    table
}

fn cpu(args: &Args, runner: f64, vmms: f64, threads: usize) -> Table {
    let title = format!("CPU over {} s, nothing to do", args.idle_seconds);
    let mut table = Table::new(title, &["", "% of one core"]);
    table.row(format!("runner ({threads} threads)"), [Cell::Number(runner, 2)]);
    table.row("all VMM processes together", [Cell::Number(vmms, 2)]);
    table
}

/// How many jobs went.
struct Batch {
    done: Vec<String>,
    failures: Vec<String>,
    took: Duration,
}

/// Runs a job per id, some at a time; begins none after `limit`.
fn in_window(
    world: &World,
    ids: &[String],
    limit: Duration,
    submit: impl Fn(&str) -> anyhow::Result<String>,
) -> anyhow::Result<Batch> {
    let began = Instant::now();
    let (mut open, mut jobs) = (VecDeque::new(), Vec::new());
    for id in ids.iter().take_while(|_| began.elapsed() <= limit) {
        open.push_back(submit(id)?);
        if open.len() == WINDOW
            && let Some(oldest) = open.pop_front()
        {
            jobs.push(world.ended(&oldest)?);
        }
    }
    for job in open {
        jobs.push(world.ended(&job)?);
    }
    let took = began.elapsed();
    let (done, failed): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.status == JobStatus::Completed);
    let failures = failed.into_iter().map(|job| job.error_message.unwrap_or_default()).collect();
    Ok(Batch { done: done.into_iter().map(|job| job.resource_id).collect(), failures, took })
}

/// Pids of the VMMs of all started sandboxes, by id.
fn running(world: &World) -> anyhow::Result<BTreeMap<String, i32>> {
    let list = world.http().get("/sandboxes")?;
    let list = list.as_array().context("GET /sandboxes is no list")?;
    let read = |view: &Value| {
        let pid = view["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        Some((view["id"].as_str()?.to_owned(), pid?))
    };
    let started = list.iter().filter(|view| view["state"] == "started");
    started.map(|view| read(view).context("a started sandbox has no pid")).collect()
}

/// Percent of one core of the runner and of all VMMs.
fn idle_cpu<'a>(
    runner: i32,
    vmms: impl Iterator<Item = &'a i32> + Clone,
    watched: Duration,
) -> anyhow::Result<(f64, f64)> {
    let used = || -> anyhow::Result<(Duration, Duration)> {
        let vmms = vmms.clone().map(|&pid| process::cpu(pid)).sum::<anyhow::Result<Duration>>()?;
        Ok((process::cpu(runner)?, vmms))
    };
    let (began, before) = (Instant::now(), used()?);
    pause(watched)?;
    let (took, after) = (began.elapsed(), used()?);
    let percent = |before: Duration, after: Duration| (after - before).as_secs_f64() / took.as_secs_f64() * 100.0;
    Ok((percent(before.0, after.0), percent(before.1, after.1)))
}

fn pause(whole: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + whole;
    while let Some(rest) = until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
        go_on()?;
        std::thread::sleep(rest.min(Duration::from_millis(200)));
    }
    Ok(())
}
