//! The copy of guest pages during the pause.

use std::io;
use std::thread;

use super::Error;
use super::process::Vmm;
use super::scan::Run;
use super::target::Target;

/// Below so many bytes more threads cost more than they bring.
const WORTH_A_THREAD: u64 = 8 << 20;
/// Bytes that go to the file at a time when the buffer is full.
const SCRATCH: usize = 4 << 20;

/// What one thread does.
struct Share<'a> {
    buffered: &'a [Run],
    out: &'a mut [u8],
    direct: &'a [Run],
}

/// How many of the runs, from the first, fit in `room` bytes.
pub(super) fn fitting(runs: &[Run], room: u64) -> usize {
    let mut total = 0;
    let fits = |run: &&Run| {
        total += run.len;
        total <= room
    };
    runs.iter().take_while(fits).count()
}

/// Reads the first runs, `buffered` of them, one after another into `buffer`, and the others into the file.
pub(super) fn copy(
    vmm: &Vmm,
    (buffered, direct): (&[Run], &[Run]),
    buffer: &mut [u8],
    target: &Target,
    threads: usize,
) -> Result<(), Error> {
    let total = bytes(buffered) + bytes(direct);
    let threads = (total / WORTH_A_THREAD).clamp(1, threads.max(1) as u64) as usize;
    let mut shares = deal(buffered, direct, buffer, threads).into_iter();
    let Some(own) = shares.next() else { return Ok(()) };
    thread::scope(|scope| {
        let mut others = Vec::with_capacity(threads);
        for share in shares {
            let work = move || share.work(vmm, target);
            let started = thread::Builder::new().name("guest-memory".into()).spawn_scoped(scope, work);
            others.push(started.map_err(Error::io("start a thread that copies memory to", target.path()))?);
        }
        let first = own.work(vmm, target);
        let rest = others.into_iter().map(|other| other.join().unwrap_or(Err(Error::Died { what: "copying memory" })));
        rest.fold(first, Result::and)
    })
}

impl Share<'_> {
    fn work(self, vmm: &Vmm, target: &Target) -> Result<(), Error> {
        vmm.read(self.buffered, self.out)?;
        let mut left = self.direct;
        let mut scratch = vec![0; SCRATCH.min(bytes(left) as usize)];
        while !left.is_empty() {
            let (now, later) = left.split_at(fitting(left, scratch.len() as u64));
            vmm.read(now, &mut scratch[..bytes(now) as usize])?;
            write(now, &scratch, target)?;
            left = later;
        }
        Ok(())
    }
}

/// Writes the runs, which lie one after another in `pages`, to their places.
pub(super) fn write(runs: &[Run], mut pages: &[u8], target: &Target) -> Result<(), Error> {
    let mut runs = runs.iter().peekable();
    while let Some(first) = runs.next() {
        let mut len = first.len;
        while let Some(next) = runs.next_if(|next| next.offset == first.offset + len) {
            len += next.len;
        }
        let Some((run, rest)) = pages.split_at_checked(len as usize) else {
            return Err(Error::io("write guest memory to", target.path())(io::Error::from(
                io::ErrorKind::UnexpectedEof,
            )));
        };
        target.write(run, first.offset)?;
        pages = rest;
    }
    Ok(())
}

fn deal<'a>(buffered: &'a [Run], direct: &'a [Run], buffer: &'a mut [u8], parts: usize) -> Vec<Share<'a>> {
    let mut rest = buffer;
    let pairs = split(buffered, parts).into_iter().zip(split(direct, parts));
    let share = |(buffered, direct)| {
        let (out, left) = std::mem::take(&mut rest).split_at_mut(bytes(buffered) as usize);
        rest = left;
        Share { buffered, out, direct }
    };
    pairs.map(share).collect()
}

/// Cuts the list in `parts` of about as many bytes each; some may be empty.
fn split(runs: &[Run], parts: usize) -> Vec<&[Run]> {
    let mut left = runs;
    let mut total = bytes(runs);
    let mut cut = Vec::with_capacity(parts);
    for remaining in (1..=parts as u64).rev() {
        // The last part takes all, and every part at least one run while there are any.
        let count = fitting(left, total.div_ceil(remaining)).max(1).min(left.len());
        let (part, rest) = left.split_at(count);
        total -= bytes(part);
        cut.push(part);
        left = rest;
    }
    cut
}

pub(super) fn bytes(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(lengths: &[u64]) -> Vec<Run> {
        lengths.iter().map(|&len| Run { address: 0, offset: 0, len }).collect()
    }

    #[test]
    fn parts_are_even_and_complete() {
        for (lengths, parts) in
            [(vec![], 3), (vec![5], 3), (vec![4; 9], 3), (vec![100, 1, 1, 1], 2), (vec![1, 1, 100], 2)]
        {
            let all = runs(&lengths);
            let cut = split(&all, parts);
            assert_eq!(cut.len(), parts);
            assert_eq!(cut.concat(), all);
        }
        assert!(split(&runs(&[4; 9]), 3).iter().all(|part| part.len() == 3));
    }

    #[test]
    fn what_fits() {
        let all = runs(&[4, 4, 8]);
        assert_eq!([0, 3, 4, 8, 15, 16].map(|room| fitting(&all, room)), [0, 0, 1, 2, 2, 3]);
    }
}
