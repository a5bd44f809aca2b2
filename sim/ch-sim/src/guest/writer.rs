//! A writer that never rests: with each number it writes guest memory, then the disk, then a file. Whoever takes
//! a copy of the machine can see from it whether memory and disk are of one point in time.
//!
//! | what | where |
//! |---|---|
//! | the number, and a ring of the last 64, one page each | guest memory from [`WRITER_GPA`] on |
//! | the last 64, each with a checksum | disk blocks from [`FIRST_BLOCK`] on |
//! | the last ones, one per line | the file [`FILE`] |

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::machine::Machine;
use crate::disk::BLOCK_BYTES;
use crate::ram::Window;

/// Where the writer's pages are in guest memory (guest physical address).
pub const WRITER_GPA: u64 = 256 << 10;
/// All of them, in bytes: the number's page and the ring.
pub const WRITER_BYTES: u64 = (1 + RING) * PAGE as u64;
/// First block of the writer on the disk.
pub const FIRST_BLOCK: u64 = 1000;
/// The file of the last numbers.
pub const FILE: &str = "/var/log/writer";
/// Numbers that are kept.
const RING: u64 = 64;
const PAGE: usize = 4096;
/// Time between two numbers.
const PERIOD: Duration = Duration::from_millis(1);
/// The file is cut to half of its lines beyond this many bytes.
const FILE_LIMIT: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"CHSIMWRT");

/// What the guest remembers of the writer, beside the number itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Writer {
    running: bool,
    /// First number of this boot; 0 before the first start.
    first: u64,
    /// Why it stopped by itself.
    error: Option<String>,
    /// What was found when the machine went on after a pause or a restore; the first bad finding stays.
    at_resume: Option<Report>,
    /// When the next number is due.
    #[serde(skip)]
    next: Option<Instant>,
}

/// The newest number in each place, and whether they fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    memory: u64,
    disk: u64,
    file: u64,
    consistent: bool,
}

impl Writer {
    /// When [`step`] has something to do.
    pub fn next_time(&self) -> Option<Instant> {
        self.next
    }
}

/// `writer start|stop|status|check`: exit code and output.
pub fn command(args: &[String], now: Instant, machine: &mut Machine) -> (i32, String) {
    match args.first().map(String::as_str) {
        Some("start") => match start(machine, now) {
            Ok(()) => (0, String::new()),
            Err(text) => (1, format!("writer: {text}\n")),
        },
        Some("stop") => {
            let writer = &mut machine.state.writer;
            (writer.running, writer.next) = (false, None);
            (0, String::new())
        }
        Some("status") => {
            let word = if machine.state.writer.running { "running" } else { "stopped" };
            (0, format!("{word} {}\n", machine.window.as_ref().map_or(0, |window| window.load(0))))
        }
        Some("check") => {
            let found = findings(machine);
            (i32::from(found["consistent"] != true), format!("{found}\n"))
        }
        _ => (2, "usage: writer start|stop|status|check\n".to_owned()),
    }
}

/// Goes on after the newest number that memory or disk know.
fn start(machine: &mut Machine, now: Instant) -> Result<(), String> {
    let Some(window) = &machine.window else {
        return Err("there is too little memory".to_owned());
    };
    let known = window.load(0);
    let base = known.max(newest(&disk_numbers(machine)?));
    if machine.state.writer.first == 0 || base != known {
        machine.state.writer.first = base + 1;
        // What the last boot has left of the file does not belong to these numbers.
        let _ = machine.state.files.remove(FILE, false);
    }
    window.store(0, base);
    let writer = &mut machine.state.writer;
    (writer.running, writer.error, writer.next) = (true, None, Some(now));
    write_next(machine).inspect_err(|_| (machine.state.writer.running, machine.state.writer.next) = (false, None))
}

/// Writes the next number when it is due.
pub fn step(machine: &mut Machine, now: Instant) {
    if machine.state.writer.next.is_none_or(|at| at > now) {
        return;
    }
    machine.state.writer.next = Some(now + PERIOD);
    if let Err(error) = write_next(machine) {
        let writer = &mut machine.state.writer;
        (writer.running, writer.next, writer.error) = (false, None, Some(error));
    }
}

/// The machine goes on after a pause or a restore: looks before anything is written again.
pub fn resume(machine: &mut Machine, now: Instant) {
    if machine.state.writer.first == 0 {
        return;
    }
    let found = inspect(machine).unwrap_or(Report { memory: 0, disk: 0, file: 0, consistent: false });
    let writer = &mut machine.state.writer;
    if writer.at_resume.is_none_or(|before| before.consistent) {
        writer.at_resume = Some(found);
    }
    writer.next = writer.running.then_some(now);
}

fn write_next(machine: &mut Machine) -> Result<(), String> {
    let window = machine.window.as_ref().ok_or("there is too little memory")?;
    let n = window.load(0) + 1;
    window.store(ring_offset(n), n);
    window.store(0, n);
    let disk = machine.disk.as_ref().ok_or("no writable disk")?;
    let mut disk = disk.lock().map_err(|_| "disk is unusable")?;
    disk.write_block(FIRST_BLOCK + n % RING, &block(n)).map_err(|error| format!("block {n}: {error}"))?;
    drop(disk);
    let files = &mut machine.state.files;
    let kept = files.read(FILE).map_or(0, <[u8]>::len);
    if kept > FILE_LIMIT {
        let text = String::from_utf8_lossy(files.read(FILE).unwrap_or_default()).into_owned();
        let half = text[kept / 2..].find('\n').map_or("", |at| &text[kept / 2 + at + 1..]);
        files.write(FILE, half.as_bytes(), false).map_err(|error| error.to_string())?;
    }
    files.write(FILE, format!("{n}\n").as_bytes(), true).map_err(|error| error.to_string())
}

fn ring_offset(n: u64) -> usize {
    PAGE * (1 + usize::try_from(n % RING).unwrap_or(0))
}

/// The block of a number: magic, number, checksum, and a filling that differs from number to number.
fn block(n: u64) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    for (index, word) in block.chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => MAGIC,
            1 => n,
            _ => n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64,
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    let sum = checksum(&block);
    block[16..24].copy_from_slice(&sum.to_le_bytes());
    block
}

/// Number of a block that is whole.
fn number(block: &[u8; BLOCK_BYTES]) -> Option<u64> {
    let [magic, n, sum] = [0, 1, 2].map(|index| word(block, index));
    (magic == MAGIC && sum == checksum(block)).then_some(n)
}

fn word(block: &[u8; BLOCK_BYTES], index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[index * 8..index * 8 + 8]);
    u64::from_le_bytes(bytes)
}

/// FNV-1a over all words but the checksum itself.
fn checksum(block: &[u8; BLOCK_BYTES]) -> u64 {
    let words = (0..BLOCK_BYTES / 8).filter(|index| *index != 2).map(|index| word(block, index));
    words.fold(0xcbf2_9ce4_8422_2325, |sum, word| (sum ^ word).wrapping_mul(0x0100_0000_01b3))
}

/// The number in each of the writer's blocks.
fn disk_numbers(machine: &Machine) -> Result<Vec<Option<u64>>, String> {
    let disk = machine.disk.as_ref().ok_or("no writable disk")?;
    let mut disk = disk.lock().map_err(|_| "disk is unusable")?;
    let blocks = (0..RING).map(|index| disk.read_block(FIRST_BLOCK + index).map(|block| number(&block)));
    blocks.collect::<std::io::Result<_>>().map_err(|error| format!("blocks from {FIRST_BLOCK} on: {error}"))
}

fn newest(numbers: &[Option<u64>]) -> u64 {
    numbers.iter().flatten().copied().max().unwrap_or(0)
}

/// Whether a place holds exactly the last 64 numbers up to `last`, each at its index; none from before `first`.
fn is_whole(numbers: &[Option<u64>], first: u64, last: u64) -> bool {
    let oldest = last.saturating_sub(RING - 1).max(first);
    let at = |n: u64| numbers.get(usize::try_from(n % RING).unwrap_or(0)).copied().flatten();
    (oldest..=last).all(|n| at(n) == Some(n)) && newest(numbers) <= last
}

fn inspect(machine: &Machine) -> Result<Report, String> {
    let window = machine.window.as_ref().ok_or("there is too little memory")?;
    let first = machine.state.writer.first;
    let memory = window.load(0);
    let ring: Vec<Option<u64>> =
        (0..RING).map(|index| Some(window.load(ring_offset(index))).filter(|n| *n >= first)).collect();
    let blocks = disk_numbers(machine)?;
    let disk = newest(&blocks);
    let text = String::from_utf8_lossy(machine.state.files.read(FILE).unwrap_or_default()).into_owned();
    let lines: Option<Vec<u64>> = text.lines().map(|line| line.parse().ok()).collect();
    let file = lines.as_ref().and_then(|lines| lines.last().copied()).unwrap_or(0);
    let in_order = lines.is_some_and(|lines| lines.windows(2).all(|pair| pair[1] == pair[0] + 1));
    let near = |earlier: u64, later: u64| earlier >= later && earlier - later <= 1;
    let places = near(memory, disk) && (memory < first || (in_order && near(disk, file.max(first.saturating_sub(1)))));
    let consistent = places && is_whole(&ring, first, memory) && is_whole(&blocks, 1, disk);
    Ok(Report { memory, disk, file, consistent })
}

/// The present report; it is consistent only if every resume found things in order, too.
fn findings(machine: &Machine) -> Value {
    let writer = &machine.state.writer;
    let mut found = match inspect(machine) {
        Ok(report) => json!(report),
        Err(error) => json!({"memory": 0, "disk": 0, "file": 0, "consistent": false, "error": error}),
    };
    if let Some(report) = writer.at_resume {
        found["atResume"] = json!(report);
        found["consistent"] = json!(report.consistent && found["consistent"] == true);
    }
    if let Some(error) = &writer.error {
        found["error"] = json!(error);
        found["consistent"] = json!(false);
    }
    found
}

/// The window that a writer needs, if there is memory enough.
pub fn window(ram: &crate::ram::Ram) -> Option<Window> {
    ram.window(WRITER_GPA, WRITER_BYTES).ok()
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
