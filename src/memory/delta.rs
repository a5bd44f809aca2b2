//! [`FileDelta`]: one capture of a VM's memory, from before the pause to the finished file.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::buffer::Buffer;
use super::maps::{FileId, Piece, guest_ram};
use super::process::Vmm;
use super::scan::Scanner;
use super::target::Target;
use super::work::blocking;
use super::{Delta, Error, Source, Taken, copy, room};

/// A capture. [`Delta::take`] works once. [`Delta::keep`] may be repeated: after a failure it writes
/// everything again, after a success it does at most what `durable` adds. Dropping it before a success of
/// `keep` removes the target at once, also while a thread still works on it.
#[derive(Debug)]
pub(super) struct FileDelta {
    capture: Option<Arc<Capture>>,
}

/// What the blocking threads share.
#[derive(Debug)]
pub(super) struct Capture {
    vmm: Vmm,
    base: FileId,
    size: u64,
    target: Target,
    threads: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Where the memory was in the preparation.
    pieces: Vec<Piece>,
    scanner: Scanner,
    /// Freed as soon as its content is in the target.
    buffer: Option<Buffer>,
    /// How many of the runs are in the buffer; the others are in the target already.
    buffered: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prepared,
    /// Also when taking failed half-way: then it cannot be completed.
    Broken,
    Taken,
    Kept,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Broken => "broken",
            Self::Taken => "taken",
            Self::Kept => "kept",
        }
    }
}

impl Capture {
    /// Everything that can be done while the VM runs. Blocking.
    pub(super) fn prepare(
        source: &Source,
        target: &Path,
        cap: u64,
        threads: usize,
        abandoned: &AtomicBool,
    ) -> Result<Self, Error> {
        let (base, file) = open_base(&source.base, source.size)?;
        let vmm = Vmm::open(&source.process)?;
        let pieces = vmm.sure(guest_ram(&vmm, &base, source.size))?;
        let target = Target::new(target, (&source.base, &file), source.size, abandoned)?;
        let mut scanner = Scanner::new();
        vmm.sure(scan(&vmm, &mut scanner, &pieces))?;
        let buffer = Buffer::new(room::wanted(scanner.written.bytes, cap))?;
        scanner.remember();
        let state = State { phase: Phase::Prepared, pieces, scanner, buffer: Some(buffer), buffered: 0 };
        Ok(Self { vmm, base, size: source.size, target, threads, state: Mutex::new(state) })
    }

    /// The only part that runs during the pause.
    fn take(&self) -> Result<Taken, Error> {
        let mut state = self.state("taken", &[Phase::Prepared])?;
        state.phase = Phase::Broken;
        let start = Instant::now();
        // Again: a guest that rebooted meanwhile has its memory at other addresses.
        let pieces = self.vmm.sure(guest_ram(&self.vmm, &self.base, self.size))?;
        let State { pieces: earlier, scanner, buffer, buffered, .. } = &mut *state;
        let scan = if pieces == *earlier { scan_again } else { scan };
        self.vmm.sure(scan(&self.vmm, scanner, &pieces))?;
        let scanned = start.elapsed();
        let runs = &scanner.written.runs;
        *buffered = copy::fitting(runs, buffer.as_ref().map_or(0, Buffer::len));
        let room = buffer.as_mut().map_or(&mut [][..], Buffer::bytes_mut);
        self.vmm.sure(copy::copy(&self.vmm, runs.split_at(*buffered), room, &self.target, self.threads))?;
        let (bytes, runs) = (scanner.written.bytes, scanner.written.whole);
        state.phase = Phase::Taken;
        Ok(Taken { bytes, runs, scan: scanned, copy: start.elapsed() - scanned })
    }

    fn keep(&self, durable: bool) -> Result<(), Error> {
        let mut state = self.state("kept", &[Phase::Taken, Phase::Kept])?;
        if state.phase == Phase::Taken {
            let State { scanner, buffer, buffered, .. } = &*state;
            let pages = buffer.as_ref().map_or(&[][..], Buffer::bytes);
            copy::write(&scanner.written.runs[..*buffered], pages, &self.target)?;
        }
        self.target.freeze()?;
        if durable {
            self.target.sync()?;
        }
        if state.phase == Phase::Taken {
            state.phase = Phase::Kept;
            state.buffer = None;
        }
        Ok(())
    }

    fn state(&self, what: &'static str, allowed: &[Phase]) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state.lock().map_err(|_| Error::Died { what: "an earlier step of the capture" })?;
        if allowed.contains(&state.phase) {
            return Ok(state);
        }
        Err(Error::Order { path: self.target.path().to_owned(), what, phase: state.phase.name() })
    }
}

/// Opens a memory file that a VM maps; what it is, whatever its names become.
pub(super) fn open_base(path: &Path, size: u64) -> Result<(FileId, File), Error> {
    let file = File::open(path).map_err(Error::io("open the memory file", path))?;
    let metadata = file.metadata().map_err(Error::io("look at the memory file", path))?;
    if metadata.len() != size {
        return Err(Error::Length { path: path.to_owned(), found: metadata.len(), wanted: size });
    }
    Ok((FileId::new(path, &metadata), file))
}

/// Finds the pages that were written since the memory file was frozen.
pub(super) fn scan(vmm: &Vmm, scanner: &mut Scanner, pieces: &[Piece]) -> Result<(), Error> {
    scanner.scan(&vmm.pagemap, pieces).map_err(|source| Error::Scan { pid: vmm.pid, source })
}

/// The same, knowing what the preparation found.
fn scan_again(vmm: &Vmm, scanner: &mut Scanner, pieces: &[Piece]) -> Result<(), Error> {
    scanner.again(&vmm.pagemap, pieces).map_err(|source| Error::Scan { pid: vmm.pid, source })
}

impl FileDelta {
    pub(super) fn new(capture: Capture) -> Self {
        Self { capture: Some(Arc::new(capture)) }
    }

    fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Capture) -> Result<T, Error> + Send + 'static,
    ) -> LocalBoxFuture<'_, Result<T, Error>> {
        // It is there until the drop.
        let Some(capture) = self.capture.clone() else {
            return futures::future::ready(Err(Error::Died { what })).boxed_local();
        };
        blocking(what, move |_| work(&capture)).boxed_local()
    }
}

impl Delta for FileDelta {
    fn take(&self) -> LocalBoxFuture<'_, Result<Taken, Error>> {
        self.run("copying the guest's memory", Capture::take)
    }

    fn keep(&self, durable: bool) -> LocalBoxFuture<'_, Result<(), Error>> {
        async move {
            self.run("writing the guest's memory", move |capture| capture.keep(durable)).await?;
            // Only now: a caller that did not wait for the success does not know that there is a file.
            self.capture.iter().for_each(|capture| capture.target.keep());
            Ok(())
        }
        .boxed_local()
    }
}

impl Drop for FileDelta {
    fn drop(&mut self) {
        let Some(capture) = self.capture.take() else { return };
        // The name goes now, so that the caller may use it again; the rest takes longer.
        capture.target.discard();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(capture)));
        }
    }
}
