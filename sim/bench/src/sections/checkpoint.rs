//! Stop and start with memory, and creates from a snapshot with memory.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use daytona_sim::CreateSpec;
use serde_json::{Value, json};

use super::{Section, Timeline};
use crate::args::Args;
use crate::copying::{Kind, resumed};
use crate::guest;
use crate::log::Line;
use crate::setup::Setup;
use crate::stats::Samples;
use crate::table::Table;
use crate::world::World;
use crate::xfs::Xfs;

const MEMORY: u32 = 2;
const TOUCHED: u64 = 64;
/// Target for a create from a snapshot with memory.
const WARM_MS: f64 = 60.0;

/// One stop and start.
struct Cycle {
    pause: Duration,
    stop: Duration,
    asked: Instant,
    start: Duration,
}

/// Measures.
pub fn section(setup: &Setup, args: &Args) -> anyhow::Result<Section> {
    let title = format!("9. Memory kept on disk; guests of {MEMORY} GiB, {TOUCHED} MiB touched, page cache hot");
    let mut section = Section::new(&title);
    let xfs = Xfs::mount(setup, "keep")?;
    let kind = Kind::on_xfs(&xfs, "keep")?.swap_remove(0);
    let (world, runner) = kind.world(setup, TOUCHED, false)?;
    world.create_with("box", MEMORY)?;
    guest::touch(&world, "box", TOUCHED)?;
    let first = cycle(&world)?;
    let cycles = (0..args.forks).map(|_| cycle(&world)).collect::<anyhow::Result<Vec<_>>>()?;
    let (took, reference) = snapshot(&world)?;
    let mut created = Vec::new();
    for number in 0..=args.forks {
        let id = format!("warm-{number}");
        created.push(warm(&world, &id, &reference)?);
        world.destroy(&id)?;
    }
    world.destroy("box")?;
    runner.stop()?;

    let lines = world.log()?;
    section.tables = vec![cycled(&kind, &first, &cycles, &lines)?, warmed(&created[1..], took, &lines)?];
    let running = running(&created[1..], &lines)?;
    let ms = running.median().as_secs_f64() * 1e3;
    section.at_most("create from a snapshot with memory until it runs, p50", ms, WARM_MS, " ms");
    section.note("a stop is durable: what was touched, and the disk, are flushed before the VMM ends");
    section.note("the first stop writes all that was touched; later ones what was touched since the last start");
    Ok(section)
}

fn cycle(world: &World) -> anyhow::Result<Cycle> {
    let began = Instant::now();
    world.http().post("/sandboxes/box/stop", &json!({ "mode": "checkpoint" }))?;
    let stop = began.elapsed();
    let stopped = world.view("box")?;
    let pause = stopped["begin"]["copy"]["pauseMicros"].as_u64().context("a stop does not tell how it went")?;
    let asked = Instant::now();
    world.http().post("/sandboxes/box/start", &Value::Null)?;
    let start = asked.elapsed();
    let view = world.view("box")?;
    ensure!(view["begin"]["from"] == "memory", "it was booted: {view}");
    Ok(Cycle { pause: Duration::from_micros(pause), stop, asked, start })
}

fn cycled(kind: &Kind, first: &Cycle, cycles: &[Cycle], lines: &[Line]) -> anyhow::Result<Table> {
    let mut table = Table::of_samples(format!("Stop with memory and start; {}", kind.name));
    let of = |part: fn(&Cycle) -> Duration| cycles.iter().map(part).collect::<Samples>();
    table.samples("first stop", &std::iter::once(first.stop).collect());
    table.samples("stop: paused, memory taken", &of(|cycle| cycle.pause));
    table.samples("stop: all", &of(|cycle| cycle.stop));
    let running = |cycle: &Cycle| {
        let later: Vec<Line> = lines.iter().filter(|line| line.at >= cycle.asked).cloned().collect();
        Ok(resumed("box", &later)? - cycle.asked)
    };
    let running = cycles.iter().map(running).collect::<anyhow::Result<Samples>>()?;
    table.samples("start: until it runs", &running);
    table.samples("start: all", &of(|cycle| cycle.start));
    Ok(table)
}

/// Makes a snapshot with memory; how long it took, and its reference.
fn snapshot(world: &World) -> anyhow::Result<(Duration, String)> {
    let began = Instant::now();
    let body = json!({ "sandboxId": "box", "name": "warm", "organizationId": "bench", "live": true });
    let made = world.http().post("/snapshots/create", &body)?;
    let took = began.elapsed();
    let reference = made["snapshotPath"].as_str().context("the snapshot has no reference")?;
    Ok((took, reference.to_owned()))
}

fn warm(world: &World, id: &str, reference: &str) -> anyhow::Result<daytona_sim::Job> {
    let spec = CreateSpec { snapshot: reference.to_owned(), memory: MEMORY, ..world.spec(id) };
    let job = world.finished(&world.api.create_sandbox(&spec)?)?;
    let view = world.view(id)?;
    ensure!(view["begin"]["from"] == "memory", "it was booted: {view}");
    Ok(job)
}

fn running(jobs: &[daytona_sim::Job], lines: &[Line]) -> anyhow::Result<Samples> {
    let running = |job: &daytona_sim::Job| Ok(resumed(&job.resource_id, lines)? - job.timing.submitted);
    jobs.iter().map(running).collect()
}

fn warmed(jobs: &[daytona_sim::Job], took: Duration, lines: &[Line]) -> anyhow::Result<Table> {
    let mut table = Table::of_samples("CREATE_SANDBOX from a snapshot with memory");
    table.samples("making that snapshot, with its checksums", &std::iter::once(took).collect());
    let timelines: Vec<Timeline> = jobs.iter().map(|job| Timeline::of(job, lines)).collect::<anyhow::Result<_>>()?;
    let names: Vec<String> = timelines.first().map(Timeline::stage_names).unwrap_or_default();
    for name in names {
        let took =
            |timeline: &Timeline| timeline.stages.iter().find(|(stage, ..)| *stage == name).map(|(.., took)| *took);
        table.samples(name.as_str(), &timelines.iter().filter_map(took).collect());
    }
    table.samples("submitted -> runs", &running(jobs, lines)?);
    table.samples(
        "submitted -> completed reported",
        &timelines.iter().map(|job| job.reported - job.submitted).collect(),
    );
    Ok(table)
}
