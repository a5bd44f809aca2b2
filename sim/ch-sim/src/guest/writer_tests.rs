//! The writer on a machine without a VMM: memory, a raw disk, no network.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{FILE, FIRST_BLOCK, Machine, RING, block, command, number, resume, step, window};
use crate::context::Context;
use crate::disk::{BLOCK_BYTES, Disk};
use crate::events::Events;
use crate::faults::Faults;
use crate::guest::state::State;
use crate::log::Log;
use crate::ram::Ram;

struct Bench {
    dir: TempDir,
    ram: Ram,
    machine: Machine,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("disk")).unwrap().set_len(8 << 20).unwrap();
        let ram = Ram::new(&serde_json::from_str(r#"{"size":4194304}"#).unwrap()).unwrap();
        let machine = machine(&dir, &ram, State::default());
        Self { dir, ram, machine, now: Instant::now() }
    }

    fn run(&mut self, word: &str) -> (i32, String) {
        command(&[word.to_owned()], self.now, &mut self.machine)
    }

    fn steps(&mut self, count: u64) {
        for _ in 0..count {
            self.now += Duration::from_millis(2);
            step(&mut self.machine, self.now);
        }
    }

    fn check(&mut self) -> (bool, serde_json::Value) {
        let (code, text) = self.run("check");
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(code == 0, found["consistent"] == true);
        (code == 0, found)
    }

    fn disk(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.dir.path().join("disk")).unwrap()
    }
}

fn machine(dir: &TempDir, ram: &Ram, state: State) -> Machine {
    let version = crate::version::Version::parse("v53.0").unwrap();
    let context = Context {
        version,
        log: Log::open(None, 0).unwrap(),
        events: Events::open(None).unwrap(),
        faults: Faults::new(None, String::new()),
    };
    let path = dir.path().join("disk");
    let json = format!(r#"{{"id":"d","path":"{}","image_type":"Raw"}}"#, path.display());
    let disk = Disk::open(&mut serde_json::from_str(&json).unwrap(), "d".to_owned(), version).unwrap();
    Machine::new(state, Some(disk.image()), window(ram), Arc::new(AtomicU32::new(1)), Arc::new(context))
}

#[test]
fn memory_disk_and_file_agree_at_every_step() {
    let mut bench = Bench::new();
    assert_eq!(bench.run("status"), (0, "stopped 0\n".to_owned()));
    assert_eq!(bench.run("start"), (0, String::new()));
    for n in 2..=200 {
        bench.steps(1);
        let (good, found) = bench.check();
        assert!(good, "{found}");
        assert_eq!((&found["memory"], &found["disk"], &found["file"]), (&n.into(), &n.into(), &n.into()));
    }
    bench.run("stop");
    bench.steps(5);
    assert_eq!(bench.run("status"), (0, "stopped 200\n".to_owned()));
    bench.steps(2000);
    bench.run("start");
    bench.steps(2000);
    assert!(bench.check().0);
    assert!(bench.machine.state.files.read(FILE).unwrap().len() < 5000, "the file is bounded");
}

#[test]
fn a_copy_of_another_time_is_noticed_although_the_writer_goes_on() {
    for (old_disk, steps) in [(true, 1000), (true, 2), (false, 1000)] {
        let mut bench = Bench::new();
        bench.run("start");
        bench.steps(100);
        let mut disk = vec![0; 8 << 20];
        bench.disk().read_exact_at(&mut disk, 0).unwrap();
        let memory = bench.ram.read(super::WRITER_GPA, super::WRITER_BYTES as usize).unwrap();
        let state = bench.machine.state.clone();
        bench.steps(steps);
        // One half of the machine goes back in time.
        match old_disk {
            true => bench.disk().write_all_at(&disk, 0).unwrap(),
            false => {
                bench.ram.write(super::WRITER_GPA, &memory).unwrap();
                bench.machine = machine(&bench.dir, &bench.ram, state);
            }
        }
        resume(&mut bench.machine, bench.now);
        bench.steps(500);
        let (good, found) = bench.check();
        assert!(!good, "{found}");
        resume(&mut bench.machine, bench.now);
        assert!(!bench.check().0, "a bad finding stays");
    }
}

#[test]
fn a_true_copy_goes_on() {
    let mut bench = Bench::new();
    bench.run("start");
    bench.steps(100);
    let state: State = State::from_bytes(&bench.machine.saved_state().state).unwrap();
    bench.machine = machine(&bench.dir, &bench.ram, state);
    assert_eq!(bench.machine.state.writer.next_time(), None, "it stands still until the machine goes on");
    resume(&mut bench.machine, bench.now);
    bench.steps(100);
    let (good, found) = bench.check();
    assert!(good && found["memory"].as_u64() > Some(150), "{found}");
    assert_eq!(found["atResume"]["memory"], 101);
}

#[test]
fn a_lost_page_and_a_damaged_block_are_noticed() {
    let mut bench = Bench::new();
    bench.run("start");
    bench.steps(100);
    let page = bench.ram.read(super::WRITER_GPA + 5 * 4096, 8).unwrap();
    bench.ram.write(super::WRITER_GPA + 5 * 4096, &[0; 8]).unwrap();
    assert!(!bench.check().0);
    bench.ram.write(super::WRITER_GPA + 5 * 4096, &page).unwrap();
    assert!(bench.check().0);
    bench.disk().write_all_at(&[7], (FIRST_BLOCK + 3) * BLOCK_BYTES as u64 + 3000).unwrap();
    assert!(!bench.check().0);
}

#[test]
fn a_fresh_boot_goes_on_after_the_disk() {
    let mut bench = Bench::new();
    bench.run("start");
    bench.steps(99);
    let ram = Ram::new(&serde_json::from_str(r#"{"size":4194304}"#).unwrap()).unwrap();
    bench.machine = machine(&bench.dir, &ram, State::default());
    bench.ram = ram;
    bench.run("start");
    bench.steps(10);
    let (good, found) = bench.check();
    assert!(good, "{found}");
    assert_eq!((&found["memory"], &found["disk"]), (&111.into(), &111.into()));
}

#[test]
fn a_disk_that_is_too_small_or_full_stops_it() {
    let mut bench = Bench::new();
    bench.disk().set_len(1 << 20).unwrap();
    assert_eq!(bench.run("start").0, 1);
    bench.disk().set_len(8 << 20).unwrap();
    bench.run("start");
    bench.disk().set_len(1 << 20).unwrap();
    bench.steps(3);
    assert!(bench.run("status").1.starts_with("stopped "));
    let (good, found) = bench.check();
    assert!(!good && found["error"].is_string(), "{found}");
}

#[test]
fn blocks_carry_their_number() {
    let mut bytes = block(RING + 9);
    assert_eq!(number(&bytes), Some(RING + 9));
    bytes[4000] ^= 1;
    assert_eq!(number(&bytes), None);
    assert_eq!(number(&[0; BLOCK_BYTES]), None);
}
