//! The parts of the benchmark and what they have in common.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context;
use daytona_sim::Job;
use serde_json::{Value, json};

use crate::log::Line;
use crate::table::Table;

pub mod checkpoint;
pub mod children;
pub mod create;
pub mod disks;
pub mod fork;
pub mod idle;
pub mod latency;
pub mod original;
pub mod original_fork;
pub mod proxy;
pub mod touched;

/// Results of one part.
#[derive(Debug, Default)]
pub struct Section {
    title: String,
    tables: Vec<Table>,
    verdicts: Vec<Verdict>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Verdict {
    what: String,
    measured: f64,
    unit: &'static str,
    target: String,
    met: bool,
}

impl Section {
    fn new(title: &str) -> Self {
        Self { title: title.to_owned(), ..Self::default() }
    }

    fn at_most(&mut self, what: &str, measured: f64, target: f64, unit: &'static str) {
        let (what, met) = (what.to_owned(), measured <= target);
        self.verdicts.push(Verdict { what, measured, unit, target: format!("at most {target}{unit}"), met });
    }

    fn at_least(&mut self, what: &str, measured: f64, target: f64, unit: &'static str) {
        let (what, met) = (what.to_owned(), measured >= target);
        self.verdicts.push(Verdict { what, measured, unit, target: format!("at least {target}{unit}"), met });
    }

    fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// All numbers.
    pub fn json(&self) -> Value {
        let verdicts = self.verdicts.iter().map(|verdict| {
            let Verdict { what, measured, unit, target, met } = verdict;
            json!({ "what": what, "measured": measured, "unit": unit.trim(), "target": target, "met": met })
        });
        json!({
            "title": self.title,
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
            "verdicts": verdicts.collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.title)?;
        for table in &self.tables {
            writeln!(f, "{table}")?;
        }
        for Verdict { what, measured, unit, target, met } in &self.verdicts {
            let word = if *met { "met" } else { "MISSED" };
            writeln!(f, "  {what}: {measured:.2}{unit} (target {target}: {word})")?;
        }
        for note in &self.notes {
            writeln!(f, "  - {note}")?;
        }
        Ok(())
    }
}

/// One job's way, as the API and the runner's log saw it.
#[derive(Debug)]
pub struct Timeline {
    /// Submitted to the API.
    pub submitted: Instant,
    /// Taken by the runner's poll.
    pub claimed: Instant,
    /// The runner has decided to do it.
    pub begun: Instant,
    /// Name, end and duration of each stage.
    pub stages: Vec<(String, Instant, Duration)>,
    /// The runner has its result.
    pub done: Instant,
    /// The API has its result.
    pub reported: Instant,
}

impl Timeline {
    /// Puts together what is known of a finished job. `lines` is the runner's log.
    pub fn of(job: &Job, lines: &[Line]) -> anyhow::Result<Self> {
        let lost = |what: &str| format!("the {what} of job {} cannot be found", job.id);
        let told = |message: &str| {
            let line = lines.iter().find(|line| line.message == message && line.field("job") == Some(&job.id));
            line.map(|line| line.at).with_context(|| lost(message))
        };
        let (begun, done) = (told("job begins")?, told("job completed")?);
        let during = lines.iter().filter(|line| line.field("sandbox") == Some(&job.resource_id));
        let during = during.filter(|line| (begun..=done).contains(&line.at));
        let stages = during.filter_map(|line| line.stage().map(|(name, took)| (name.to_owned(), line.at, took)));
        Ok(Self {
            submitted: job.timing.submitted,
            claimed: job.timing.claimed.with_context(|| lost("claim"))?,
            begun,
            stages: stages.collect(),
            done,
            reported: job.timing.finished.with_context(|| lost("end"))?,
        })
    }

    /// The end of a stage; the beginning of the job if there was none of that name.
    pub fn end_of(&self, stage: &str) -> Instant {
        self.stages.iter().find(|(name, ..)| name == stage).map_or(self.begun, |(_, end, _)| *end)
    }

    /// The stages in their order.
    pub fn stage_names(&self) -> Vec<String> {
        self.stages.iter().map(|(name, ..)| name.clone()).collect()
    }

    /// When the first stage began.
    pub fn first_stage(&self) -> Instant {
        self.stages.first().map_or(self.begun, |(_, end, took)| *end - *took)
    }

    /// When the last stage ended.
    pub fn last_stage(&self) -> Instant {
        self.stages.last().map_or(self.begun, |(_, end, _)| *end)
    }
}
