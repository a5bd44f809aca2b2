//! The original's procedure for a copy of a running guest, next to ours: all of its memory is written to disk
//! and read back, and the source stands still until the copy runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use runner_ch::hypervisor::wire::{ImageType, MemoryLayout};
use serde_json::{Value, json};

use super::{Section, original};
use crate::args::Args;
use crate::copying::{self, Kind, samples};
use crate::guest;
use crate::http;
use crate::isolate::{go_on, run};
use crate::setup::{Disks, Setup};
use crate::stats::{Samples, ratio};
use crate::table::Table;
use crate::vmm::{self, Process, TAP};
use crate::world::World;
use crate::xfs::Xfs;

/// Memory of the guests, in GiB.
const MEMORY: u32 = 1;
const TOUCHED: u64 = 4;
const SOURCE: &str = "bench-source";
const COPY: &str = "bench-copy";

/// Times of one copy.
#[derive(Debug, Default, Clone, Copy)]
struct Times {
    pause: Duration,
    snapshot: Duration,
    spawn: Duration,
    restore: Duration,
    whole: Duration,
}

/// Measures.
pub fn section(setup: &Setup, args: &Args) -> anyhow::Result<Section> {
    let title = format!("10. The original's procedure for a copy of a guest of {MEMORY} GiB, page cache hot");
    let mut section = Section::new(&title);
    let ours = ours(setup, args)?;
    let place = Place::new(setup)?;
    let times: Vec<Times> = (0..args.repeats).map(|_| place.copy(setup)).collect::<anyhow::Result<_>>()?;

    let of = |part: fn(&Times) -> Duration| times.iter().map(part).collect::<Samples>();
    let mut table = Table::of_samples("The original's way");
    table.samples("vm.pause", &of(|times| times.pause));
    table.samples("vm.snapshot, all of the memory", &of(|times| times.snapshot));
    table.samples("overlay, spawn, 50 ms polling, 200 ms sleep", &of(|times| times.spawn));
    table.samples("vm.restore, vm.resume of the copy", &of(|times| times.restore));
    table.samples("the source's pause: all of it", &of(|times| times.whole));
    table.samples("ours: the source's pause", &ours);
    section.tables.push(table);

    let whole = of(|times| times.whole).median();
    section.at_least("shorter pause than the original's way, by medians", ratio(whole, ours.median()), 100.0, "x");
    let without = of(|times| times.whole - times.spawn).median();
    let factor = ratio(without, ours.median());
    section.note(format!(
        "without overlay, spawn, polling and sleep, the original's pause is still {factor:.0} times as long"
    ));
    section.note("a reconstruction from what its documents and reviews say, with the copy's configuration put right");
    Ok(section)
}

fn ours(setup: &Setup, args: &Args) -> anyhow::Result<Samples> {
    let xfs = Xfs::mount(setup, "ours")?;
    let kind = Kind::on_xfs(&xfs, "ours")?.swap_remove(0);
    let (world, runner) = kind.world(setup, TOUCHED, false)?;
    world.create_with("source", MEMORY)?;
    guest::touch(&world, "source", TOUCHED)?;
    let mut copies = Vec::new();
    for number in 0..=args.repeats {
        let copy = copying::copy(&world, "source", &format!("copy-{number}"))?;
        world.destroy(&copy.id)?;
        copies.push(copy);
    }
    world.destroy("source")?;
    runner.stop()?;
    Ok(samples(&copies[1..], |copy| copy.reported))
}

/// Two namespaces with a TAP each, and disks to boot from.
struct Place {
    dir: PathBuf,
    disks: Disks,
}

impl Place {
    fn new(setup: &Setup) -> anyhow::Result<Self> {
        let dir = setup.subdir("original-fork")?;
        let world = World::new(setup, setup.subdir("original-fork-base")?, "auto")?;
        let (runner, _) = world.runner()?;
        world.create("base")?;
        let disks = Disks::copy_of(&world.sandbox("base"), &dir)?;
        world.destroy("base")?;
        runner.stop()?;
        for netns in [SOURCE, COPY] {
            run("ip", ["netns", "add", netns])?;
            run("ip", ["-n", netns, "tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])?;
            run("ip", ["-n", netns, "link", "set", TAP, "up"])?;
        }
        Ok(Self { dir, disks })
    }

    fn copy(&self, setup: &Setup) -> anyhow::Result<Times> {
        go_on()?;
        let dirs = ["source", "copy", "snapshot"].map(|name| self.dir.join(name));
        for dir in &dirs {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let [source_dir, copy_dir, snapshot] = &dirs;
        let source = self.boot(setup, source_dir)?;
        let mut stream = http::unix(&source.socket)?;
        let began = Instant::now();
        let mut times =
            Times { pause: vmm::timed(|| vmm::call(&mut stream, "PUT", "vm.pause", ""))?, ..Times::default() };
        let to = json!({ "destination_url": url(snapshot) }).to_string();
        times.snapshot = vmm::timed(|| vmm::call(&mut stream, "PUT", "vm.snapshot", &to))?;
        let step = Instant::now();
        self.adapt(&snapshot.join("config.json"), copy_dir)?;
        let copy = original::spawn(setup, COPY, copy_dir)?;
        times.spawn = step.elapsed();
        let step = Instant::now();
        restore(&copy, snapshot)?;
        times.restore = step.elapsed();
        vmm::call(&mut stream, "PUT", "vm.resume", "")?;
        times.whole = began.elapsed();
        drop((source, copy));
        for dir in &dirs {
            std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        Ok(times)
    }

    fn boot(&self, setup: &Setup, dir: &Path) -> anyhow::Result<Process> {
        let config = vmm::config(setup, &self.disks, MemoryLayout::Anonymous, dir.join("serial.log"))?;
        let vmm = original::spawn(setup, SOURCE, dir)?;
        let mut stream = http::unix(&vmm.socket)?;
        vmm::call(&mut stream, "PUT", "vm.create", &config)?;
        vmm::call(&mut stream, "PUT", "vm.boot", "")?;
        Ok(vmm)
    }

    /// Gives the copy an overlay on the source's disk and a serial file of its own.
    fn adapt(&self, config: &Path, dir: &Path) -> anyhow::Result<()> {
        let text = |path: &Path| path.display().to_string();
        let format = if self.disks.format == ImageType::Raw { "raw" } else { "qcow2" };
        let overlay = dir.join("disk.qcow2");
        // The source has it open.
        let options = ["create", "-q", "-u", "-f", "qcow2", "-F", format, "-b"].map(str::to_owned);
        run("qemu-img", options.into_iter().chain([text(&self.disks.root), text(&overlay), "1G".to_owned()]))?;
        let read = std::fs::read(config).with_context(|| format!("cannot read {}", config.display()))?;
        let mut value: Value = serde_json::from_slice(&read).context("the snapshot's configuration is no JSON")?;
        let root = &mut value["disks"][0];
        root["path"] = json!(overlay);
        root["image_type"] = json!("Qcow2");
        root["backing_files"] = json!(true);
        value["serial"]["file"] = json!(dir.join("serial.log"));
        std::fs::write(config, value.to_string()).with_context(|| format!("cannot write {}", config.display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for netns in [SOURCE, COPY] {
            if let Err(error) = run("ip", ["netns", "del", netns]) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn restore(copy: &Process, snapshot: &Path) -> anyhow::Result<()> {
    let mut stream = http::unix(&copy.socket)?;
    let from = json!({ "source_url": url(snapshot) }).to_string();
    vmm::call(&mut stream, "PUT", "vm.restore", &from)?;
    vmm::call(&mut stream, "PUT", "vm.resume", "")
}

fn url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}
