//! A reserve against a full volume: a file with real blocks beside the store. When space runs low it is given back, so
//! that states can still be written while everything that needs space is refused; when space is back it is made again.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use serde::Serialize;
use tracing::{info, warn};
use utoipa::ToSchema;

use crate::pressure::Pressure;

/// Free bytes that the store wants in front of it. It writes by segments of 512 KiB and one batch of writes takes at
/// most a few; an open takes up to one (measured with sled 0.34.7).
pub const NEEDED: u64 = 4 << 20;
/// Name of the reserve in the store's directory.
const FILE: &str = "reserve";

/// What to do with the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// Remove it.
    GiveBack,
    /// Make it.
    Make,
}

/// What to do, and whether space is low, for `free` bytes on the volume beside a reserve that is there (`held`) or not.
/// A reserve of `size` is made only where twice [`NEEDED`] is left after that, so that it does not come and go.
pub fn decide(free: u64, held: bool, size: u64) -> (Step, bool) {
    match held {
        true if free < NEEDED => (Step::GiveBack, true),
        true => (Step::Keep, false),
        false if size == 0 => (Step::Keep, free < NEEDED),
        false if free >= wanted(size) => (Step::Make, false),
        // One of another size may be there.
        false if free < NEEDED => (Step::GiveBack, true),
        false => (Step::Keep, true),
    }
}

/// Free bytes at which a reserve that was given back is made again.
pub fn wanted(size: u64) -> u64 {
    if size == 0 { NEEDED } else { size.saturating_add(2 * NEEDED) }
}

/// How the store's volume stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SpaceReport {
    /// Bytes that are free on the volume; absent if it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Size of the reserve in bytes (RUNNER_STATE_RESERVE).
    pub reserve_bytes: u64,
    /// False while it is given back.
    pub reserve_held: bool,
    /// Why space is low; absent while it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<String>,
}

/// The volume of the store and the reserve on it.
#[derive(Debug)]
pub(super) struct Space {
    dir: PathBuf,
    size: u64,
    pressure: Pressure,
    low: Option<String>,
}

impl Space {
    /// A reserve of `size` bytes in this directory; with 0 none is made, and one that is there is used when needed.
    pub fn new(dir: &Path, size: u64, pressure: Pressure) -> Self {
        Self { dir: dir.to_owned(), size, pressure, low: None }
    }

    /// Compares the volume with what the store needs, acts, and raises or lowers the flag.
    pub fn look(&mut self) {
        let Some(free) = self.free() else { return };
        let low = match decide(free, self.held(), self.size) {
            (Step::Keep, low) => low,
            (Step::GiveBack, low) => {
                self.give_back();
                low
            }
            (Step::Make, low) => low || !self.make(),
        };
        let reason = || {
            format!(
                "the volume of the state store {} has {} bytes free, {} are needed",
                self.dir.display(),
                self.free().unwrap_or(free),
                wanted(self.size)
            )
        };
        self.tell(low.then(reason));
    }

    /// Gives the reserve back if there is too little to open the store.
    pub fn make_room(&self) {
        if self.free().is_some_and(|free| free < NEEDED) {
            self.give_back();
        }
    }

    /// Removes the reserve, whatever is free: a write has failed.
    pub fn give_back(&self) {
        match std::fs::remove_file(self.dir.join(FILE)) {
            Ok(()) => warn!(path = %self.dir.display(), bytes = self.size, "gave back the reserve of the state store"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(path = %self.dir.display(), %error, "cannot give back the reserve of the state store"),
        }
    }

    /// For people.
    pub fn report(&self) -> SpaceReport {
        SpaceReport {
            free_bytes: self.free(),
            reserve_bytes: self.size,
            reserve_held: self.held(),
            low: self.low.clone(),
        }
    }

    /// Size of the reserve.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Free bytes of the volume.
    pub fn free(&self) -> Option<u64> {
        match rustix::fs::statvfs(&self.dir) {
            Ok(found) => Some(found.f_bavail.saturating_mul(found.f_frsize)),
            Err(error) => {
                warn!(path = %self.dir.display(), %error, "cannot read the free space of the state store's volume");
                None
            }
        }
    }

    /// By blocks: a file with holes reserves nothing. Of another size: it is made anew.
    fn held(&self) -> bool {
        std::fs::metadata(self.dir.join(FILE)).is_ok_and(|about| {
            let fits = if self.size == 0 { about.len() > 0 } else { about.len() == self.size };
            fits && about.blocks() * 512 >= about.len()
        })
    }

    /// True when there is room, so also where the file system cannot reserve: then the volume is judged by what is
    /// free alone.
    fn make(&mut self) -> bool {
        let Err(error) = allocate(&self.dir.join(FILE), self.size) else { return true };
        warn!(path = %self.dir.display(), bytes = self.size, %error,
            "cannot make the reserve of the state store; on a full volume its writes will fail sooner");
        self.give_back();
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if !full {
            self.size = 0;
        }
        !full
    }

    fn tell(&mut self, low: Option<String>) {
        match (&self.low, &low) {
            (None, Some(reason)) => warn!(reason, "space for the state store is low: new work is refused"),
            (Some(_), None) => info!(path = %self.dir.display(), "there is space for the state store again"),
            _ => {}
        }
        self.pressure.set_store(low.clone());
        self.low = low;
    }
}

fn allocate(path: &Path, size: u64) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 16 << 20;

    #[test]
    fn it_is_given_back_when_space_runs_low_and_made_when_it_is_back() {
        assert_eq!(decide(NEEDED, true, SIZE), (Step::Keep, false));
        assert_eq!(decide(NEEDED - 1, true, SIZE), (Step::GiveBack, true));
        assert_eq!(decide(SIZE + NEEDED - 1, false, SIZE), (Step::Keep, true));
        assert_eq!(decide(SIZE + 2 * NEEDED, false, SIZE), (Step::Make, false));
    }

    #[test]
    fn without_a_reserve_the_free_space_alone_counts() {
        assert_eq!(decide(NEEDED, false, 0), (Step::Keep, false));
        assert_eq!(decide(NEEDED - 1, false, 0), (Step::Keep, true));
        // One that a runner has made is there for everybody.
        assert_eq!(decide(0, true, 0), (Step::GiveBack, true));
    }

    proptest! {
        #[test]
        fn one_step_is_enough(free in 0_u64..1 << 28, held: bool, size in 1_u64..1 << 27) {
            let (step, low) = decide(free, held, size);
            let (free, held) = match step {
                Step::Keep => (free, held),
                Step::GiveBack => (free + if held { size } else { 0 }, false),
                Step::Make => (free - size, true),
            };
            // A reserve that was just given back may leave enough to make it again: then it was not low.
            let (next, still) = decide(free, held, size);
            prop_assert!(next != Step::Make && still == low, "{step:?} {low} then {next:?} {still}");
        }
    }

    #[test]
    fn a_reserve_has_real_blocks_and_follows_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let pressure = Pressure::default();
        let mut space = Space::new(dir.path(), 1 << 20, pressure.clone());
        space.look();
        let blocks = || std::fs::metadata(dir.path().join(FILE)).map_or(0, |about| about.blocks() * 512);
        assert!(space.held() && blocks() >= 1 << 20);
        let mut space = Space::new(dir.path(), 2 << 20, pressure.clone());
        assert!(!space.held());
        space.look();
        assert!(space.held() && blocks() >= 2 << 20 && pressure.reason().is_none());
        space.give_back();
        assert_eq!((space.held(), blocks()), (false, 0));
        space.give_back();
    }
}
