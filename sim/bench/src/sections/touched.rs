//! Copies of running guests that have touched much, next to one memcpy of as much.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::Section;
use crate::args::Args;
use crate::copying::{self, Copy, Kind, samples};
use crate::setup::Setup;
use crate::stats::{Samples, ratio};
use crate::table::{Cell, Table};
use crate::xfs::Xfs;

/// MiB that a guest of 2 GiB has touched.
const TOUCHED: [u64; 3] = [64, 256, 1024];
const MEMORY: u32 = 2;
/// What a pause may take that copies nothing.
const BASE: Duration = Duration::from_millis(8);
const COPIES: u32 = 5;

/// Measures.
pub fn section(setup: &Setup, args: &Args) -> anyhow::Result<Section> {
    let mut section = Section::new("7. Copies of running guests of 2 GiB that have touched much, page cache hot");
    let xfs = Xfs::mount(setup, "touched")?;
    let columns = [
        "",
        "n",
        "pause p50",
        "max",
        "by the guest p50",
        "memcpy",
        "pause : memcpy",
        "MiB copied",
        "keep",
        "running p50",
    ];
    let mut table = Table::new("The source's pause next to one memcpy of as much by one thread; ms", &columns);
    let mut verdicts = Vec::new();
    for mib in TOUCHED {
        let memcpy = memcpy(mib);
        for kind in Kind::on_xfs(&xfs, "touched")? {
            let (copies, running) = measure(setup, args, &kind, mib)?;
            let pause = samples(&copies, |copy| copy.reported);
            let name = format!("{}, {mib} MiB touched", kind.name);
            table.row(name.as_str(), row(&copies, &running, memcpy));
            verdicts.push((name, pause.median(), memcpy));
        }
    }
    section.tables = vec![table];
    for (name, pause, memcpy) in verdicts {
        let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
        section.at_most(&format!("{name}: pause, p50"), ms(pause), ms(memcpy + BASE), " ms");
    }
    section
        .note("A: the VMM writes what was touched; F: nothing is copied, a new VMM takes over; G: the runner copies");
    section.note(
        "target: one memcpy and 8 ms; memcpy: between two buffers of this process that are there already, median of 5",
    );
    Ok(section)
}

fn measure(setup: &Setup, args: &Args, kind: &Kind, mib: u64) -> anyhow::Result<(Vec<Copy>, Samples)> {
    let (world, runner) = kind.world(setup, mib, false)?;
    let copies = copying::copies(&world, kind, (MEMORY, mib), args.repeats)?;
    runner.stop()?;
    let lines = world.log()?;
    let running = copies.iter().map(|copy| copy.running(&lines)).collect::<anyhow::Result<_>>()?;
    Ok((copies, running))
}

fn row(copies: &[Copy], running: &Samples, memcpy: Duration) -> Vec<Cell> {
    let pause = samples(copies, |copy| copy.reported);
    let guest: Samples = copies.iter().filter_map(|copy| copy.by_guest).collect();
    let bytes = copies.last().and_then(|copy| copy.report["memoryBytes"].as_u64()).unwrap_or_default();
    vec![
        Cell::Number(copies.len() as f64, 0),
        Cell::ms(pause.median()),
        Cell::ms(pause.percentile(100)),
        if guest.count() == 0 { Cell::Empty } else { Cell::ms(guest.median()) },
        Cell::ms(memcpy),
        Cell::Number(ratio(pause.median(), memcpy), 2),
        Cell::Number(bytes as f64 / f64::from(1 << 20), 1),
        Cell::ms(samples(copies, |copy| copy.reported("keepMicros")).median()),
        Cell::ms(running.median()),
    ]
}

/// What one thread needs to copy so much.
fn memcpy(mib: u64) -> Duration {
    let length = usize::try_from(mib << 20).unwrap_or(usize::MAX);
    let (from, mut to) = (vec![7_u8; length], vec![1_u8; length]);
    let once = |_| {
        let began = Instant::now();
        black_box(&mut to).copy_from_slice(black_box(&from));
        began.elapsed()
    };
    (0..COPIES).map(once).collect::<Samples>().median()
}
