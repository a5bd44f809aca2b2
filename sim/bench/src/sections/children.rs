//! Many copies from one pause: how long they take together, and what memory they need.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::Section;
use super::create::timings;
use super::fork::STAGES;
use crate::args::Args;
use crate::copying::{Kind, resumed};
use crate::guest;
use crate::log::Line;
use crate::process;
use crate::setup::Setup;
use crate::stats::{Samples, ratio};
use crate::table::{Cell, Table};
use crate::world::World;
use crate::xfs::Xfs;

const MEMORY: u32 = 1;
const TOUCHED: u64 = 64;
/// As many as must take at most twice as long as one.
const TEN: u32 = 10;

/// Copies of one request.
struct Batch {
    ids: Vec<String>,
    stages: Vec<(String, Duration)>,
    asked: Instant,
    answered: Duration,
    pause: Duration,
}

/// Measures.
pub fn section(setup: &Setup, args: &Args) -> anyhow::Result<Section> {
    let title = format!("8. Many copies from one pause; guests of {MEMORY} GiB, {TOUCHED} MiB touched");
    let mut section = Section::new(&title);
    let xfs = Xfs::mount(setup, "children")?;
    let kind = Kind::on_xfs(&xfs, "children")?.swap_remove(0);
    let (world, runner) = kind.world(setup, TOUCHED, false)?;
    world.create_with("source", MEMORY)?;
    guest::touch(&world, "source", TOUCHED)?;
    let mut rounds = Vec::new();
    for count in [1, TEN] {
        for number in 0..=args.repeats {
            let mut batch = ask(&world, count)?;
            batch.stages = stages_of(&world, &batch.ids)?;
            for id in &batch.ids {
                world.destroy(id)?;
            }
            // The first one warms up.
            if number > 0 {
                rounds.push((count, batch));
            }
        }
    }
    let before = available()?;
    let mut many = ask(&world, args.children)?;
    let taken = before.saturating_sub(available()?);
    let pss = memory_of(&world, &many)?;
    many.stages = stages_of(&world, &many.ids)?;
    for id in &many.ids {
        world.destroy(id)?;
    }
    rounds.push((args.children, many));
    world.destroy("source")?;
    runner.stop()?;

    let lines = world.log()?;
    let (table, one, ten) = times(&kind, &rounds, &lines)?;
    section.tables = vec![table, stages(&rounds), memory(args, pss, taken)];
    section.at_most(&format!("{TEN} copies run, against 1, p50"), ratio(ten, one), 2.0, "x");
    let whole = (u64::from(args.children) * u64::from(MEMORY)) << 10;
    let percent = pss as f64 / 1024.0 / whole as f64 * 100.0;
    section.at_most(&format!("memory of {} copies against all of their RAM", args.children), percent, 20.0, " %");
    section.note("memory right after they run and have their identities; PSS of the VMMs, and what the host has less");
    Ok(section)
}

fn ask(world: &World, count: u32) -> anyhow::Result<Batch> {
    let asked = Instant::now();
    let answer = world.http().post("/sandboxes/source/fork", &json!({ "count": count }))?;
    let answered = asked.elapsed();
    let made = answer["sandboxes"].as_array().context("the answer lists no copies")?;
    let started = made.iter().filter(|copy| copy["state"] == "started");
    let ids: Vec<String> = started.filter_map(|copy| copy["id"].as_str().map(str::to_owned)).collect();
    ensure!(ids.len() == count as usize, "of {count} copies {} run: {answer}", ids.len());
    let pauses: Vec<&Value> = made.iter().map(|copy| &copy["begin"]["copy"]["pauseMicros"]).collect();
    ensure!(pauses.iter().all(|pause| *pause == pauses[0]), "not all copies are of one pause: {pauses:?}");
    let pause = Duration::from_micros(pauses[0].as_u64().context("a copy does not tell its pause")?);
    Ok(Batch { ids, stages: Vec::new(), asked, answered, pause })
}

fn stages_of(world: &World, ids: &[String]) -> anyhow::Result<Vec<(String, Duration)>> {
    let stages = ids.iter().map(|id| timings(&world.view(id)?)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(stages.into_iter().flatten().collect())
}

/// How long the stages of the copies took, by how many were made together.
fn stages(rounds: &[(u32, Batch)]) -> Table {
    let columns: Vec<&str> = std::iter::once("").chain(STAGES).collect();
    let mut table = Table::new("The copies' stages, medians in ms", &columns);
    for count in counts(rounds) {
        let all = || rounds.iter().filter(|(wanted, _)| *wanted == count).flat_map(|(_, batch)| &batch.stages);
        let median = |name: &str| {
            let times: Samples = all().filter(|(stage, _)| stage == name).map(|(_, took)| *took).collect();
            Cell::ms(times.median())
        };
        table.row(format!("{count} copies"), STAGES.map(median));
    }
    table
}

fn counts(rounds: &[(u32, Batch)]) -> Vec<u32> {
    let mut counts: Vec<u32> = rounds.iter().map(|(count, _)| *count).collect();
    counts.dedup();
    counts
}

/// The table, and the median time until the last of one and of ten runs.
fn times(kind: &Kind, rounds: &[(u32, Batch)], lines: &[Line]) -> anyhow::Result<(Table, Duration, Duration)> {
    let columns = ["", "n", "pause p50", "first runs p50", "all run p50", "answered p50", "each"];
    let mut table = Table::new(format!("From the request, ms; {}", kind.name), &columns);
    let mut medians = Vec::new();
    for count in counts(rounds) {
        let batches: Vec<&Batch> =
            rounds.iter().filter(|(wanted, _)| *wanted == count).map(|(_, batch)| batch).collect();
        let run = |batch: &Batch| -> anyhow::Result<Samples> {
            batch.ids.iter().map(|id| Ok(resumed(id, lines)? - batch.asked)).collect()
        };
        let runs: Vec<Samples> = batches.iter().map(|batch| run(batch)).collect::<anyhow::Result<_>>()?;
        let of = |part: &dyn Fn(&Samples) -> Duration| runs.iter().map(part).collect::<Samples>().median();
        let (first, all) = (of(&|run| run.percentile(0)), of(&|run| run.percentile(100)));
        let pause: Samples = batches.iter().map(|batch| batch.pause).collect();
        let answered: Samples = batches.iter().map(|batch| batch.answered).collect();
        let cells = [pause.median(), first, all, answered.median(), all / count].map(Cell::ms);
        let n = Cell::Number(batches.len() as f64, 0);
        table.row(format!("{count} copies"), std::iter::once(n).chain(cells));
        medians.push(all);
    }
    Ok((table, medians[0], medians[1]))
}

/// Sum of the VMMs' PSS in KiB.
fn memory_of(world: &World, batch: &Batch) -> anyhow::Result<u64> {
    let pss = |id: &String| -> anyhow::Result<u64> {
        let pid = world.view(id)?["pid"].as_i64().context("a copy has no pid")?;
        Ok(process::memory(i32::try_from(pid)?)?.pss)
    };
    batch.ids.iter().map(pss).sum()
}

fn memory(args: &Args, pss: u64, taken: u64) -> Table {
    let mut table = Table::new(format!("Memory of {} copies", args.children), &["", "MiB", "MiB each"]);
    let mut row = |name: &str, mib: f64| {
        table.row(name, [Cell::Number(mib, 0), Cell::Number(mib / f64::from(args.children), 1)]);
    };
    row("sum of PSS", pss as f64 / 1024.0);
    row("less available on the host", taken as f64 / 1024.0);
    row("their RAM", f64::from(args.children * MEMORY) * 1024.0);
    table
}

/// What the host could give to new processes, in KiB.
fn available() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.context("/proc/meminfo has no MemAvailable")
}
