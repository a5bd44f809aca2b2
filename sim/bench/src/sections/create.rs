//! Creates through jobs, each followed by its destroy and by one start of the bare VMM, so that
//! whatever else this machine does hits both alike.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use daytona_sim::Job;
use serde_json::Value;

use super::{Section, Timeline};
use crate::args::Args;
use crate::netlock;
use crate::setup::{Disks, Setup};
use crate::stats::{Samples, ratio};
use crate::table::{Cell, Table};
use crate::vmm::{Plain, Times};
use crate::world::World;

/// Stages of a create, with what they do where the name does not tell.
const STAGES: [(&str, &str); 7] = [
    ("gate", "gate"),
    ("provide", "provide (disk + network)"),
    ("launch", "launch (spawn)"),
    ("vm.create", "vm.create"),
    ("vm.boot", "vm.boot"),
    ("ready", "ready (toolbox)"),
    ("commit", "commit"),
];
/// Creates before the measured ones: the base is checked and tables are made.
const WARM_UP: u32 = 3;

/// Everything measured.
#[derive(Debug)]
pub struct Measured {
    /// Creates: stage times from `GET /sandboxes/{id}`.
    views: Vec<Vec<(String, Duration)>>,
    /// Creates.
    pub creates: Vec<Timeline>,
    /// Destroys.
    pub destroys: Vec<Timeline>,
    /// Submission to the written poll answer, of all these jobs.
    pub answered: Samples,
    /// The bare VMM.
    floors: Vec<Times>,
    /// Waits for the kernel's lock on links, one per round.
    lock: Samples,
    /// What the runner warned of, and how often.
    warnings: BTreeMap<String, u32>,
}

impl Measured {
    /// Claimed until the VM runs.
    pub fn running(&self) -> Samples {
        self.creates.iter().map(|create| create.end_of("vm.boot") - create.claimed).collect()
    }

    fn stage(&self, name: &str) -> Samples {
        let times = self.views.iter().flatten().filter(|(stage, _)| stage == name);
        times.map(|(_, took)| *took).collect()
    }

    fn floor(&self, part: impl Fn(&Times) -> Duration) -> Samples {
        self.floors.iter().map(part).collect()
    }
}

/// Measures.
pub fn measure(setup: &Setup, args: &Args) -> anyhow::Result<Measured> {
    let world = World::new(setup, setup.subdir("create")?, "auto")?;
    let (runner, _) = world.runner()?;
    for number in 1..WARM_UP {
        world.create(&format!("warm-{number}"))?;
        world.destroy(&format!("warm-{number}"))?;
    }
    world.create("warm-last")?;
    let disks = Disks::copy_of(&world.sandbox("warm-last"), &setup.subdir("plain")?)?;
    world.destroy("warm-last")?;
    let plain = Plain::new(setup, &disks)?;
    plain.start()?;

    let (mut views, mut jobs, mut floors, mut waits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 1..=args.creates {
        let id = format!("bench-{number}");
        let created = world.create(&id)?;
        views.push(timings(&world.view(&id)?)?);
        jobs.push((created, world.destroy(&id)?));
        floors.push(plain.start()?);
        waits.push(netlock::wait()?);
    }
    runner.stop()?;

    let lines = world.log()?;
    let mut warnings = BTreeMap::new();
    for line in lines.iter().filter(|line| line.warns()) {
        *warnings.entry(line.message.clone()).or_default() += 1;
    }
    let (created, destroyed): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
    let ids: Vec<&str> = created.iter().chain(&destroyed).map(|job| job.id.as_str()).collect();
    let latencies = world.api.claim_latencies().into_iter().filter(|latency| ids.contains(&latency.job_id.as_str()));
    let answered = latencies.map(|latency| Duration::from_micros(latency.answered_us)).collect();
    let timelines =
        |jobs: &[Job]| -> anyhow::Result<Vec<Timeline>> { jobs.iter().map(|job| Timeline::of(job, &lines)).collect() };
    Ok(Measured {
        views,
        creates: timelines(&created)?,
        destroys: timelines(&destroyed)?,
        answered,
        floors,
        lock: waits.into_iter().collect(),
        warnings,
    })
}

/// The `timings` of a sandbox.
pub fn timings(view: &Value) -> anyhow::Result<Vec<(String, Duration)>> {
    let stages = view["timings"].as_array().context("the sandbox has no timings")?;
    let read = |stage: &Value| {
        let (name, micros) = (stage["stage"].as_str()?.to_owned(), stage["micros"].as_u64()?);
        Some((name, Duration::from_micros(micros)))
    };
    stages.iter().map(|stage| read(stage).context("a timing has no known form")).collect()
}

/// The tables.
pub fn section(measured: &Measured) -> Section {
    let mut section = Section::new("1. CREATE_SANDBOX, one at a time, each destroyed afterwards");
    section.tables = vec![stages(measured), floor(measured), above(measured), destroy(measured)];
    let (ours, floor) = (measured.running().median(), measured.floor(Times::floor).median());
    section.at_most("VM running, measured from the claimed job, against the bare floor", ratio(ours, floor), 2.0, "x");
    section.note("a stage's time includes storing the sandbox's record before it, where something is to be stored");
    for (message, count) in &measured.warnings {
        section.note(format!("the runner warned {count} times: {message}"));
    }
    section
}

fn stages(measured: &Measured) -> Table {
    let mut table = Table::of_samples("Ours");
    let spans = |from: fn(&Timeline) -> std::time::Instant, to: fn(&Timeline) -> std::time::Instant| -> Samples {
        measured.creates.iter().map(|create| to(create) - from(create)).collect()
    };
    table.samples("claimed -> first stage (journal)", &spans(|c| c.claimed, Timeline::first_stage));
    for (stage, name) in STAGES {
        table.samples(name, &measured.stage(stage));
    }
    table.samples("last stage -> reported (journal)", &spans(Timeline::last_stage, |c| c.reported));
    table.samples("job received (claimed) -> VM running", &measured.running());
    table.samples("submitted -> completed reported", &spans(|c| c.submitted, |c| c.reported));
    table
}

fn floor(measured: &Measured) -> Table {
    let mut table =
        Table::of_samples("Bare floor: the same VMM and configuration; disk, TAP and namespace made before");
    table.samples("spawn", &measured.floor(|times| times.spawn));
    table.samples("vmm.ping (not in the floor)", &measured.floor(|times| times.ping));
    table.samples("vm.create", &measured.floor(|times| times.create));
    table.samples("vm.boot", &measured.floor(|times| times.boot));
    table.samples("kernel's lock on links (not in the floor)", &measured.lock);
    table.samples("floor = spawn + vm.create + vm.boot", &measured.floor(Times::floor));
    table
}

/// Where the time above the floor goes, by medians.
fn above(measured: &Measured) -> Table {
    let mut table = Table::new("Above the floor until the VM runs, medians", &["", "ours ms", "floor ms", "above ms"]);
    let mut row = |name: &str, ours: Samples, floor: Samples| {
        let (ours, floor) = (ours.median(), floor.median());
        let above = (ours.as_secs_f64() - floor.as_secs_f64()) * 1e3;
        table.row(name, [Cell::ms(ours), Cell::ms(floor), Cell::Number(above, 2)]);
    };
    let begin = measured.creates.iter().map(|create| create.first_stage() - create.claimed).collect();
    row("claimed -> first stage", begin, Samples::default());
    row("gate", measured.stage("gate"), Samples::default());
    row("provide", measured.stage("provide"), Samples::default());
    row("launch", measured.stage("launch"), measured.floor(|times| times.spawn));
    row("vm.create", measured.stage("vm.create"), measured.floor(|times| times.create));
    row("vm.boot", measured.stage("vm.boot"), measured.floor(|times| times.boot));
    row("all", measured.running(), measured.floor(Times::floor));
    table
}

fn destroy(measured: &Measured) -> Table {
    let mut table = Table::of_samples("DESTROY_SANDBOX of a running sandbox");
    for stage in ["end", "unplug", "erase"] {
        let took =
            |destroy: &Timeline| destroy.stages.iter().find(|(name, ..)| name == stage).map(|(_, _, took)| *took);
        table.samples(stage, &measured.destroys.iter().filter_map(took).collect());
    }
    let whole = measured.destroys.iter().map(|destroy| destroy.reported - destroy.submitted);
    table.samples("submitted -> completed reported", &whole.collect());
    table
}
