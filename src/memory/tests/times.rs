//! How long it takes; printed, not asserted.

use std::time::{Duration, Instant};

use super::guest::{Guest, Order};
use super::support::{MIB, Room, source, wait};
use crate::memory::Memory;
use crate::memory::maps::{FileId, guest_ram};
use crate::memory::process::Vmm;
use crate::memory::scan::{Scanner, Way};

fn report(what: &str, size: u64, work: impl FnOnce(&mut Guest)) {
    let room = Room::new();
    let base = room.blank(size);
    let half = size / 2;
    let mut guest = Guest::start(&base, &[(0, half), (half, half)], libc::MAP_PRIVATE);
    work(&mut guest);
    let (memory, source, target) = (room.memory(), source(&guest, &base, size), room.path("captured"));
    wait(async {
        let (delta, prepare) = timed(memory.prepare(&source, &target)).await;
        let delta = delta.unwrap();
        let (taken, take) = timed(delta.take()).await;
        let (kept, keep) = timed(delta.keep(false)).await;
        kept.unwrap();
        println!("{what}: prepare {prepare:?}, take {take:?}, keep {keep:?}: {:?}", taken.unwrap());
    });
    let vmm = Vmm::open(&guest.identity).unwrap();
    let file = FileId::new(&base, &std::fs::metadata(&base).unwrap());
    for way in [Way::Request, Way::Entries] {
        let mut scanner = Scanner::new();
        scanner.way = way;
        let times: Vec<_> = (0..5).map(|_| scan(&vmm, &file, size, &mut scanner)).collect();
        println!("{what}: mappings and scan by {way:?}: {times:?}");
    }
}

fn scan(vmm: &Vmm, file: &FileId, size: u64, scanner: &mut Scanner) -> (Duration, Duration) {
    let start = Instant::now();
    let pieces = guest_ram(vmm, file, size).unwrap();
    let found = start.elapsed();
    scanner.scan(&vmm.pagemap, &pieces).unwrap();
    (found, start.elapsed() - found)
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    (work.await, start.elapsed())
}

#[test]
fn a_large_delta() {
    report("256 MiB of 1 GiB written", 1024 * MIB, |guest| guest.order(Order::Touch, 0, 256 * MIB, 1));
}

#[test]
fn a_large_guest_that_wrote_little() {
    report("4 MiB of 8 GiB written", 8192 * MIB, |guest| {
        for number in 0..64 {
            guest.order(Order::Touch, number * 128 * MIB, 64 << 10, 1);
        }
    });
}

/// More of the same for who wants to know: `RUNNER_TIMES=written,read,size;...` in MiB.
#[test]
fn other_sizes() {
    for pair in std::env::var("RUNNER_TIMES").unwrap_or_default().split(';').filter(|pair| !pair.is_empty()) {
        let numbers: Vec<u64> = pair.split(',').map(|number| number.parse().unwrap()).collect();
        let [written, read, size] = numbers[..] else { panic!("three numbers: {pair}") };
        report(&format!("{written} MiB written, {read} MiB read of {size} MiB"), size * MIB, |guest| {
            // In two places, because it may not cross the two mappings.
            for half in [0, size / 2 * MIB] {
                guest.order(Order::Read, half, read / 2 * MIB, 0);
                guest.order(Order::Touch, half, written / 2 * MIB, 1);
            }
        });
    }
}
