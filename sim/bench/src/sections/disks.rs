//! What each disk strategy takes: creates on XFS by reflink next to overlays, there and on the file
//! system of the work directory.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use daytona_sim::CreateSpec;

use super::Section;
use crate::args::Args;
use crate::machine;
use crate::sections::create::timings;
use crate::setup::Setup;
use crate::stats::Samples;
use crate::table::{Cell, Table};
use crate::world::World;
use crate::xfs::Xfs;

/// What one strategy took.
struct Took {
    first: Duration,
    provide: Samples,
    disk: Samples,
}

/// Measures.
pub fn section(setup: &Setup, args: &Args) -> anyhow::Result<Section> {
    let mut section = Section::new("5. Disk strategies");
    let xfs = Xfs::mount(setup, "xfs")?;
    let here = machine::file_system(setup.dir.path())?;
    let mut provide = Table::of_samples("Stage provide: disk and network side by side");
    let mut disk = Table::of_samples("Stage disk: the disk alone, creates that do not start");
    let mut first = Table::new("First create, with checking or flattening of the base", &["", "provide ms"]);
    let places = [
        (setup.subdir("disks")?, here.as_str(), "overlay"),
        (xfs.dir("overlay")?, "XFS", "overlay"),
        (xfs.dir("reflink")?, "XFS", "reflink"),
    ];
    for (dir, file_system, strategy) in places {
        let name = format!("{strategy} on {file_system}");
        let took = measure(setup, args, dir, strategy)?;
        first.row(name.as_str(), [Cell::ms(took.first)]);
        provide.samples(name.as_str(), &took.provide);
        disk.samples(name, &took.disk);
    }
    section.tables = vec![provide, disk, first];
    section.note("XFS is a loop file in the work directory: its flushes pass two file systems");
    section.note("reflink disks are raw; overlays are qcow2, which cannot be forked safely while they run");
    Ok(section)
}

fn measure(setup: &Setup, args: &Args, dir: PathBuf, strategy: &str) -> anyhow::Result<Took> {
    let world = World::new(setup, dir, strategy)?;
    let (runner, _) = world.runner()?;
    let first = stage(&world, "provide", &world.spec("first"))?;
    let (mut provide, mut disk) = (Vec::new(), Vec::new());
    for number in 1..=args.disk_creates {
        provide.push(stage(&world, "provide", &world.spec(&format!("disk-{number}")))?);
        let unstarted = CreateSpec { skip_start: true, ..world.spec(&format!("only-{number}")) };
        disk.push(stage(&world, "disk", &unstarted)?);
    }
    runner.stop()?;
    Ok(Took { first, provide: provide.into_iter().collect(), disk: disk.into_iter().collect() })
}

/// How long a stage of a create took; the sandbox is destroyed afterwards.
fn stage(world: &World, name: &str, spec: &CreateSpec) -> anyhow::Result<Duration> {
    world.finished(&world.api.create_sandbox(spec)?)?;
    let stages = timings(&world.view(&spec.id)?)?;
    world.destroy(&spec.id)?;
    let found = stages.into_iter().find(|(stage, _)| stage == name);
    found.map(|(_, took)| took).with_context(|| format!("the create had no stage {name}"))
}
