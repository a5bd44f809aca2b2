//! One copy of a running sandbox, seen from all sides.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::isolate::until;
use crate::log::Line;
use crate::sections::create::timings;
use crate::setup::Setup;
use crate::stats::Samples;
use crate::world::{CMDLINE, Runner, World};
use crate::xfs::Xfs;
use crate::{events, guest, machine};

const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(1);

/// A kind of host: where disks lie, how they are made, what memory is made of.
#[derive(Debug, Clone)]
pub struct Kind {
    /// For tables.
    pub name: String,
    dir: PathBuf,
    strategy: &'static str,
    memory: &'static str,
    /// A source can be copied once only: it goes on with memory of another kind.
    pub once: bool,
}

impl Kind {
    /// Raw disks on XFS, one for each recipe for memory.
    pub fn on_xfs(xfs: &Xfs, part: &str) -> anyhow::Result<Vec<Self>> {
        let memories = [("G", "private"), ("A", "shared"), ("F", "file")];
        let kinds = memories.map(|(letter, memory)| {
            let dir = xfs.dir(&format!("{part}-{memory}"))?;
            let name = format!("{letter} {memory}, reflink on XFS");
            Ok(Self { name, dir, strategy: "reflink", memory, once: memory == "file" })
        });
        kinds.into_iter().collect()
    }

    /// The recipe that is the default, where files cannot be cloned.
    pub fn on_overlays(setup: &Setup, part: &str) -> anyhow::Result<Self> {
        let dir = setup.subdir(&format!("{part}-overlay"))?;
        let name = format!("G private, overlay on {}", machine::file_system(&dir)?);
        Ok(Self { name, dir, strategy: "overlay", memory: "private", once: false })
    }

    /// Such a host, whose guests have `touched` MiB of their own when [`guest::touch`] was called. Real ones use a
    /// CPU of the machine while they count.
    pub fn world(&self, setup: &Setup, touched: u64, counts: bool) -> anyhow::Result<(World, Runner)> {
        let mut world = World::new(setup, self.dir.join(format!("t{touched}")), self.strategy)?;
        world.counts = counts || setup.simulated;
        world.set("RUNNER_MEMORY", self.memory);
        if !setup.simulated {
            let idle = if counts { "" } else { " idle" };
            world.set("CH_KERNEL_CMDLINE", format!("{CMDLINE} touch={touched}{idle}"));
        }
        let (runner, _) = world.runner()?;
        Ok((world, runner))
    }
}

/// One copy.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Id of the copy.
    pub id: String,
    /// The source's pause as the runner reports it.
    pub reported: Duration,
    /// The same by the events of the source's VMM; none where a new one took over.
    pub by_events: Option<Duration>,
    /// The same by the source's guest; none of one that does not count.
    pub by_guest: Option<Duration>,
    /// When it was asked for.
    pub asked: Instant,
    /// From then until the answer.
    pub answered: Duration,
    /// What the runner says of it (`begin.copy`).
    pub report: Value,
    /// The copy's stages.
    pub stages: Vec<(String, Duration)>,
}

/// Copies a running sandbox by the runner's own API; the copy goes on running.
pub fn copy(world: &World, source: &str, id: &str) -> anyhow::Result<Copy> {
    let last = |view: &Value| view["lastPauseMicros"].as_u64();
    let before = last(&world.view(source)?);
    let read = world.counts.then(|| guest::read(world, source)).transpose()?;
    let asked = Instant::now();
    let answer = world.http().post(&format!("/sandboxes/{source}/fork"), &json!({ "newSandboxId": id }))?;
    let answered = asked.elapsed();
    let report = answer["begin"]["copy"].clone();
    let replaced = report["replaced"] == true;
    let reported = if replaced {
        // The source is handed to its new VMM beside the copy.
        until("the source tells its pause", PATIENCE, LOOK, || {
            Ok(last(&world.view(source)?).filter(|now| Some(*now) != before))
        })?
    } else {
        report["pauseMicros"].as_u64().with_context(|| format!("no pause in the report of a copy: {answer}"))?
    };
    let by_guest = match read {
        Some(read) => Some(read.lost_until(guest::read(world, source)?)),
        None => None,
    };
    let by_events = if replaced { None } else { events::last_pause(&world.sandbox(source).join("events.json"))? };
    let stages = timings(&world.view(id)?)?;
    let reported = Duration::from_micros(reported);
    Ok(Copy { id: id.to_owned(), reported, by_events, by_guest, asked, answered, report, stages })
}

/// Copies a guest so often, and once more before that to warm up; each copy is destroyed.
pub fn copies(world: &World, kind: &Kind, (memory, touched): (u32, u64), count: u32) -> anyhow::Result<Vec<Copy>> {
    let mut copies = Vec::new();
    let mut source = None;
    for number in 0..=count {
        let id = match source.take() {
            Some(id) => id,
            None => {
                let id = format!("source-{memory}-{number}");
                world.create_with(&id, memory)?;
                guest::touch(world, &id, touched)?;
                id
            }
        };
        let made = copy(world, &id, &format!("copy-{memory}-{number}"))?;
        world.destroy(&made.id)?;
        if number > 0 {
            copies.push(made);
        }
        if kind.once || number == count {
            world.destroy(&id)?;
        } else {
            source = Some(id);
        }
    }
    Ok(copies)
}

impl Copy {
    /// A number of the report, in microseconds there.
    pub fn reported(&self, name: &str) -> Duration {
        Duration::from_micros(self.report[name].as_u64().unwrap_or_default())
    }

    /// From the request until the copy's virtual CPUs ran.
    pub fn running(&self, lines: &[Line]) -> anyhow::Result<Duration> {
        Ok(resumed(&self.id, lines)? - self.asked)
    }

    /// What the source's resume took: what is left of the pause when its parts are taken away.
    pub fn resume(&self) -> Duration {
        let parts = ["deviceMicros", "memoryMicros", "diskMicros"].map(|name| self.reported(name));
        let longest = parts.into_iter().max().unwrap_or_default();
        self.reported("pauseMicros").saturating_sub(self.reported("pausedAfterMicros") + longest)
    }
}

/// When a sandbox that woke up from memory began to run.
pub fn resumed(id: &str, lines: &[Line]) -> anyhow::Result<Instant> {
    let resumed =
        |line: &&Line| line.field("sandbox") == Some(id) && line.stage().is_some_and(|(stage, _)| stage == "vm.resume");
    let line = lines.iter().find(resumed);
    line.map(|line| line.at).with_context(|| format!("the log does not tell when {id} was resumed"))
}

/// A part of all copies.
pub fn samples(copies: &[Copy], part: impl Fn(&Copy) -> Duration) -> Samples {
    copies.iter().map(part).collect()
}

/// How the source's memory came out and why, for a note.
pub fn how(copy: &Copy) -> String {
    let (recipe, why) = (&copy.report["recipe"], &copy.report["why"]);
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let replaced = if copy.report["replaced"] == true { ", source handed to a new VMM" } else { "" };
    format!("recipe {}{replaced}: {}", text(recipe), text(why))
}
