//! Copies of running guests that have touched little: how long the source stands still and how soon the copy
//! runs, with every recipe for memory and both kinds of disks.

use std::time::Duration;

use super::Section;
use crate::args::Args;
use crate::copying::{self, Copy, Kind, samples};
use crate::log::Line;
use crate::setup::Setup;
use crate::stats::Samples;
use crate::table::{Cell, Table};
use crate::xfs::Xfs;

/// Memory of the guests, in GiB.
const SIZES: [u32; 3] = [1, 2, 8];
/// MiB that a guest has touched.
const TOUCHED: u64 = 4;
/// Targets.
const PAUSE_MS: f64 = 25.0;
const RUNNING_MS: f64 = 60.0;
/// Stages of a copy's creation.
pub const STAGES: [&str; 9] =
    ["room", "launch", "graft", "gate", "vm.restore", "vm.resume", "ready", "identify", "commit"];

/// All copies of one size on one kind of host.
struct Row {
    name: String,
    copies: Vec<Copy>,
    running: Samples,
}

/// Measures.
pub fn section(setup: &Setup, args: &Args) -> anyhow::Result<Section> {
    let mut section = Section::new(&format!("6. Copies of running guests, {TOUCHED} MiB touched, page cache hot"));
    let xfs = Xfs::mount(setup, "fork")?;
    let mut kinds = Kind::on_xfs(&xfs, "fork")?;
    kinds.push(Kind::on_overlays(setup, "fork")?);
    let mut rows = Vec::new();
    for kind in &kinds {
        rows.extend(measure(setup, args, kind)?);
    }
    section.tables = vec![pauses(&rows), ready(&rows), inside(&rows), around(&rows), stages(&rows)];
    for row in &rows {
        verdicts(&mut section, row);
    }
    for row in rows.iter().step_by(SIZES.len()) {
        section.note(format!("{}: {}", row.name, row.copies.last().map(copying::how).unwrap_or_default()));
    }
    section.note("by events: from `pausing` to `resumed` in the file that the source's VMM writes");
    section.note("by the guest: time of day less the time that it has run, read before and after; ± 1 ms");
    Ok(section)
}

fn measure(setup: &Setup, args: &Args, kind: &Kind) -> anyhow::Result<Vec<Row>> {
    let (world, runner) = kind.world(setup, TOUCHED, args.counting)?;
    let mut measured = Vec::new();
    for gib in SIZES {
        let copies = copying::copies(&world, kind, (gib, TOUCHED), args.forks)?;
        measured.push((format!("{}, {gib} GiB", kind.name), copies));
    }
    runner.stop()?;
    let lines: Vec<Line> = world.log()?;
    let rows = measured.into_iter().map(|(name, copies)| {
        let running = copies.iter().map(|copy| copy.running(&lines)).collect::<anyhow::Result<_>>()?;
        Ok(Row { name, copies, running })
    });
    rows.collect()
}

fn pauses(rows: &[Row]) -> Table {
    let columns = ["", "n", "p50", "p99", "by events p50", "p99", "by the guest p50", "p99"];
    let mut table = Table::new("The source's pause, ms", &columns);
    for row in rows {
        let reported = samples(&row.copies, |copy| copy.reported);
        let events: Samples = row.copies.iter().filter_map(|copy| copy.by_events).collect();
        let guest: Samples = row.copies.iter().filter_map(|copy| copy.by_guest).collect();
        let two = |samples: &Samples| match samples.count() {
            0 => [Cell::Empty, Cell::Empty],
            _ => [Cell::ms(samples.median()), Cell::ms(samples.percentile(99))],
        };
        let count = Cell::Number(row.copies.len() as f64, 0);
        let cells = [two(&reported), two(&events), two(&guest)];
        table.row(row.name.as_str(), std::iter::once(count).chain(cells.into_iter().flatten()));
    }
    table
}

fn ready(rows: &[Row]) -> Table {
    let columns = ["", "running p50", "p99", "request answered p50", "p99"];
    let mut table = Table::new("From the request until the copy runs, and is known to be itself; ms", &columns);
    for row in rows {
        let answered = samples(&row.copies, |copy| copy.answered);
        let cells =
            [&row.running, &answered].map(|samples| [Cell::ms(samples.median()), Cell::ms(samples.percentile(99))]);
        table.row(row.name.as_str(), cells.into_iter().flatten());
    }
    table
}

/// What the pause is made of.
fn inside(rows: &[Row]) -> Table {
    let columns = ["", "vm.pause", "then device", "memory", "disk", "vm.resume", "MiB copied"];
    let mut table = Table::new("Inside the pause, medians in ms; device, memory and disk side by side", &columns);
    for row in rows {
        let part = |name: &'static str| Cell::ms(samples(&row.copies, |copy| copy.reported(name)).median());
        let resume = Cell::ms(samples(&row.copies, Copy::resume).median());
        let bytes = row.copies.last().and_then(|copy| copy.report["memoryBytes"].as_u64()).unwrap_or_default();
        let mib = Cell::Number(bytes as f64 / f64::from(1 << 20), 1);
        let parts = ["pausedAfterMicros", "deviceMicros", "memoryMicros", "diskMicros"].map(part);
        table.row(row.name.as_str(), parts.into_iter().chain([resume, mib]));
    }
    table
}

/// What is done for it before and after.
fn around(rows: &[Row]) -> Table {
    let columns = ["", "prepare", "pause", "keep"];
    let mut table = Table::new("The source's part, medians in ms", &columns);
    for row in rows {
        let parts = ["prepareMicros", "pauseMicros", "keepMicros"]
            .map(|name| Cell::ms(samples(&row.copies, |copy| copy.reported(name)).median()));
        table.row(row.name.as_str(), parts);
    }
    table
}

fn stages(rows: &[Row]) -> Table {
    let columns: Vec<&str> = std::iter::once("").chain(STAGES).collect();
    let mut table = Table::new("The copy's stages, medians in ms; graft waits for all of the source's part", &columns);
    for row in rows {
        let stage = |name: &str| {
            let of = |copy: &Copy| copy.stages.iter().find(|(stage, _)| stage == name).map(|(_, took)| *took);
            let took: Samples = row.copies.iter().filter_map(of).collect();
            Cell::ms(took.median())
        };
        table.row(row.name.as_str(), STAGES.map(stage));
    }
    table
}

fn verdicts(section: &mut Section, row: &Row) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let pause = samples(&row.copies, |copy| copy.by_events.unwrap_or(copy.reported)).percentile(99);
    section.at_most(&format!("{}: pause, p99", row.name), ms(pause), PAUSE_MS, " ms");
    section.at_most(&format!("{}: copy runs, p50", row.name), ms(row.running.median()), RUNNING_MS, " ms");
}
