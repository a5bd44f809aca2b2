//! `make bench`: how long a create takes and where, next to the bare hypervisor and next to the
//! original's procedure; how soon a job begins; what idle sandboxes cost; what each disk strategy takes; how
//! long a running sandbox stands still when it is copied, and how soon the copies run.
//!
//! Everything happens in a network and a mount namespace of its own, with the real runner, the simulated
//! API, and simulated VMMs unless CH_BINARY (with BENCH_KERNEL) names a real hypervisor.

use std::fs::File;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use args::{Args, Part};
use sections::Section;
use setup::Setup;

mod args;
mod copying;
mod events;
mod guest;
mod http;
mod isolate;
mod log;
mod machine;
mod netlock;
mod process;
mod sections;
mod setup;
mod stats;
mod table;
mod vmm;
mod world;
mod xfs;

fn main() -> ExitCode {
    match bench(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("runner-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> anyhow::Result<()> {
    // Before any thread exists: threads inherit the namespaces.
    isolate::enter()?;
    isolate::watch_signals()?;
    let setup = Setup::new(args)?;
    let machine = machine::describe(&setup)?;
    println!("{}", table::text_of_machine(&machine));

    let mut sections = Vec::new();
    let mut finish = |section: Section| {
        println!("{section}");
        sections.push(section);
    };
    if args.wants(Part::Create) || args.wants(Part::Original) || args.wants(Part::Latency) {
        let measured = sections::create::measure(&setup, args)?;
        if args.wants(Part::Create) {
            finish(sections::create::section(&measured));
        }
        if args.wants(Part::Original) {
            finish(sections::original::section(&setup, args, &measured)?);
        }
        if args.wants(Part::Latency) {
            finish(sections::latency::section(&measured));
        }
    }
    if args.wants(Part::Idle) {
        finish(sections::idle::section(&setup, args)?);
    }
    if args.wants(Part::Disks) {
        finish(sections::disks::section(&setup, args)?);
    }
    if args.wants(Part::Fork) {
        finish(sections::fork::section(&setup, args)?);
    }
    if args.wants(Part::Touched) {
        finish(sections::touched::section(&setup, args)?);
    }
    if args.wants(Part::Children) {
        finish(sections::children::section(&setup, args)?);
    }
    if args.wants(Part::Checkpoint) {
        finish(sections::checkpoint::section(&setup, args)?);
    }
    if args.wants(Part::OriginalFork) {
        finish(sections::original_fork::section(&setup, args)?);
    }
    if args.wants(Part::Proxy) {
        finish(sections::proxy::section(&setup, args)?);
    }
    let end = machine::load_average()?;
    println!("Load average at the end: {end}");

    if let Some(path) = &args.json {
        let sections: Vec<_> = sections.iter().map(Section::json).collect();
        let report = serde_json::json!({ "machine": machine, "loadAverageAtEnd": end, "sections": sections });
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        serde_json::to_writer_pretty(file, &report).with_context(|| format!("cannot write {}", path.display()))?;
        println!("Numbers written to {}", path.display());
    }
    Ok(())
}
