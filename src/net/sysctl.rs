//! Kernel settings of the thread's network namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;

/// Reads `net/...` as a number.
pub(super) fn get(name: &str) -> Result<u64, Error> {
    let path = path(name);
    let fault = |error| Error::kernel(format!("read {}", path.display()), error);
    let text = fs::read_to_string(&path).map_err(fault)?;
    text.trim().parse().map_err(|_| fault(io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no number"))))
}

/// Sets `net/...`.
pub(super) fn set(name: &str, value: u64) -> Result<(), Error> {
    let path = path(name);
    fs::write(&path, value.to_string())
        .map_err(|error| Error::kernel(format!("write {value} to {}", path.display()), error))
}

/// Sets `net/...` unless it has at least that value.
pub(super) fn raise(name: &str, value: u64) -> Result<(), Error> {
    if get(name)? < value { set(name, value) } else { Ok(()) }
}

/// True when the kernel has the setting at all; without IPv6 it lacks a whole branch.
pub(super) fn exists(name: &str) -> bool {
    path(name).exists()
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}
