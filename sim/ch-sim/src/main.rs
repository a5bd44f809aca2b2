//! A stand-in for the `cloud-hypervisor` binary.

mod api;
mod cli;
mod config;
mod context;
mod daemon;
mod disk;
mod error;
mod events;
mod faults;
mod guest;
mod http;
mod log;
mod ram;
mod random;
mod serial;
mod sparse;
mod tap;
mod version;
mod vmm;

use std::process::exit;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    exit(daemon::run(&args));
}
