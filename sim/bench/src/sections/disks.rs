//! What each disk strategy takes: creates on XFS by reflink next to overlays, there and on the file
//! system of the work directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Section;
use crate::args::Args;
use crate::isolate::run;
use crate::machine;
use crate::sections::create::timings;
use crate::setup::Setup;
use crate::stats::Samples;
use crate::table::Table;
use crate::world::World;

/// Size of the XFS image, sparse; XFS itself demands 300 MB.
const IMAGE: u64 = 4 << 30;

/// Measures.
pub fn section(setup: &Setup, args: &Args) -> anyhow::Result<Section> {
    let mut section = Section::new("5. Disk strategies, stage provide (disk and network side by side)");
    let xfs = Xfs::mount(setup)?;
    let here = machine::file_system(setup.dir.path())?;
    let mut provide = Table::of_samples("Stage provide");
    let mut first = Table::new("First create, with the flattening of the base", &["", "provide ms"]);
    let here_dir = setup.subdir("disks")?;
    for (dir, file_system, strategy) in
        [(here_dir, here.as_str(), "overlay"), (xfs.dir("o")?, "XFS", "overlay"), (xfs.dir("r")?, "XFS", "reflink")]
    {
        let name = format!("{strategy} on {file_system}");
        let (begin, samples) = provides(setup, args, dir, strategy)?;
        first.row(name.as_str(), [crate::table::Cell::ms(begin)]);
        provide.samples(name, &samples);
    }
    section.tables = vec![provide, first];
    section.note("XFS is a loop file in the work directory: its flushes pass two file systems");
    section.note("reflink disks are raw; overlays are qcow2, which cannot be forked safely while they run");
    Ok(section)
}

/// The first create's provide stage and those of the next ones.
fn provides(setup: &Setup, args: &Args, dir: PathBuf, strategy: &str) -> anyhow::Result<(Duration, Samples)> {
    let world = World::new(setup, dir, strategy)?;
    let (runner, _) = world.runner()?;
    let mut times = Vec::new();
    for number in 0..=args.disk_creates {
        let id = format!("disk-{number}");
        world.create(&id)?;
        let stages = timings(&world.view(&id)?)?;
        times.extend(stages.into_iter().find(|(name, _)| name == "provide").map(|(_, took)| took));
        world.destroy(&id)?;
    }
    runner.stop()?;
    let first = times.first().copied().unwrap_or_default();
    Ok((first, times.into_iter().skip(1).collect()))
}

/// A mounted XFS in a file; goes with this value, or with the benchmark's mount namespace.
#[derive(Debug)]
struct Xfs(PathBuf);

impl Xfs {
    fn mount(setup: &Setup) -> anyhow::Result<Self> {
        let (image, point) = (setup.dir.path().join("xfs.img"), setup.subdir("xfs")?);
        std::fs::File::create(&image)?.set_len(IMAGE)?;
        let text = |path: &Path| path.display().to_string();
        run("mkfs.xfs", ["-q", "-m", "reflink=1", &text(&image)])?;
        run("mount", ["-o", "loop", &text(&image), &text(&point)])?;
        Ok(Self(point))
    }

    fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.0.join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        if let Err(error) = run("umount", [&self.0]) {
            eprintln!("{error:#}");
        }
    }
}
