//! Kernel settings of a network namespace.
//!
//! A path below /proc/sys/net means another file in every network namespace, and the kernel finds the
//! right `net` by going through those of all namespaces that were looked at. So the directory is opened
//! once, and the settings are opened from there: with thousands of sandboxes that is what keeps making one
//! more from slowing down.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Access, AtFlags, Mode, OFlags};

use super::error::Error;

const DIRECTORY: &str = "/proc/sys/net";

/// The settings below `net` of one network namespace.
#[derive(Debug)]
pub(super) struct Sysctl {
    dir: OwnedFd,
}

impl Sysctl {
    /// Those of the namespace that the thread is in now; they stay those of that namespace.
    pub(super) fn open() -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(DIRECTORY, flags, Mode::empty());
        dir.map(|dir| Self { dir }).map_err(|error| Error::kernel(format!("open {DIRECTORY}"), error))
    }

    /// Reads a setting, such as `ipv4/ip_forward`, as a number.
    pub(super) fn get(&self, name: &str) -> Result<u64, Error> {
        let fault = |error| Error::kernel(format!("read {DIRECTORY}/{name}"), error);
        let mut text = String::new();
        self.file(name, OFlags::RDONLY).and_then(|mut file| file.read_to_string(&mut text)).map_err(fault)?;
        let odd = || io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no number"));
        text.trim().parse().map_err(|_| fault(odd()))
    }

    /// Sets a setting.
    pub(super) fn set(&self, name: &str, value: u64) -> Result<(), Error> {
        let write = |mut file: File| file.write_all(value.to_string().as_bytes());
        self.file(name, OFlags::WRONLY)
            .and_then(write)
            .map_err(|error| Error::kernel(format!("write {value} to {DIRECTORY}/{name}"), error))
    }

    /// Sets a setting unless it has at least that value.
    pub(super) fn raise(&self, name: &str, value: u64) -> Result<(), Error> {
        if self.get(name)? < value { self.set(name, value) } else { Ok(()) }
    }

    /// True when the kernel has the setting at all; without IPv6 it lacks a whole branch.
    pub(super) fn has(&self, name: &str) -> bool {
        rustix::fs::accessat(&self.dir, name, Access::EXISTS, AtFlags::empty()).is_ok()
    }

    fn file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let file = rustix::fs::openat(&self.dir, name, flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(File::from(file))
    }
}
