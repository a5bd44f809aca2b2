//! Kernel settings of a network namespace.
//!
//! /proc/sys/net/ipv4 is another directory in every network namespace, and the kernel finds the right one by
//! going through those of all namespaces that were looked at. So it is opened once, and the settings are
//! opened from there: with thousands of sandboxes the search is a large part of the time for one more.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{Access, AtFlags, Mode, OFlags};

use super::error::Error;

const DIRECTORY: &str = "/proc/sys/net";

/// The settings of one network namespace.
#[derive(Debug)]
pub(super) struct Sysctl {
    ipv4: OwnedFd,
    /// Missing when the kernel has no IPv6.
    ipv6: Option<OwnedFd>,
}

impl Sysctl {
    /// Those of the namespace that the thread is in now; they stay those of that namespace.
    pub(super) fn open() -> Result<Self, Error> {
        let open = |branch: &str| {
            let path = format!("{DIRECTORY}/{branch}");
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| Error::kernel(format!("open {path}"), error))
        };
        let ipv6 = match open("ipv6") {
            Err(error) if error.errno() == Some(libc::ENOENT) => None,
            result => Some(result?),
        };
        Ok(Self { ipv4: open("ipv4")?, ipv6 })
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

    /// True when the kernel has the setting at all, and shows it in this namespace.
    pub(super) fn has(&self, name: &str) -> bool {
        self.split(name)
            .is_ok_and(|(dir, rest)| rustix::fs::accessat(dir, rest, Access::EXISTS, AtFlags::empty()).is_ok())
    }

    fn file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let (dir, rest) = self.split(name)?;
        let file = rustix::fs::openat(dir, rest, flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(File::from(file))
    }

    /// The open directory that a setting is below, and its name from there.
    fn split<'a>(&self, name: &'a str) -> io::Result<(&OwnedFd, &'a str)> {
        let found = match name.split_once('/') {
            Some(("ipv4", rest)) => Some((&self.ipv4, rest)),
            Some(("ipv6", rest)) => self.ipv6.as_ref().map(|dir| (dir, rest)),
            _ => None,
        };
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
