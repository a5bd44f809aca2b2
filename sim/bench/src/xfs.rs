//! A file system that can clone files, in a loop file of the work directory.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::sys::statvfs::statvfs;

use crate::isolate::run;
use crate::setup::Setup;

/// Size of the image, sparse; XFS itself demands 300 MB.
const IMAGE: u64 = 12 << 30;
/// What the benchmark writes to it at most, with some to spare.
const NEEDED: u64 = 6 << 30;

/// A mounted XFS in a file; goes with this value, or with the benchmark's mount namespace.
#[derive(Debug)]
pub struct Xfs {
    point: PathBuf,
    image: PathBuf,
}

impl Xfs {
    /// Makes and mounts one.
    pub fn mount(setup: &Setup, name: &str) -> anyhow::Result<Self> {
        let space = statvfs(setup.dir.path()).context("cannot look for free space")?;
        let free = space.blocks_available() * space.fragment_size();
        let (dir, mib) = (setup.dir.path().display(), free >> 20);
        ensure!(
            free >= NEEDED,
            "{dir} has {mib} MiB free and {} are needed: name another place by --dir",
            NEEDED >> 20
        );
        let (image, point) = (setup.dir.path().join(format!("{name}.img")), setup.subdir(name)?);
        let file = std::fs::File::create(&image).with_context(|| format!("cannot create {}", image.display()))?;
        file.set_len(IMAGE)?;
        let text = |path: &Path| path.display().to_string();
        run("mkfs.xfs", ["-q", "-m", "reflink=1", &text(&image)])?;
        // Discarded, so that what is removed there takes no room here.
        run("mount", ["-o", "loop,discard", &text(&image), &text(&point)])?;
        Ok(Self { point, image })
    }

    /// A new directory there.
    pub fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.point.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let unmounted = run("umount", [&self.point]);
        let removed = std::fs::remove_file(&self.image).map_err(anyhow::Error::from);
        for error in [unmounted, removed].into_iter().filter_map(Result::err) {
            eprintln!("{error:#}");
        }
    }
}
