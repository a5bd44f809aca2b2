//! Snapshots as directories: reading one, writing the adapted one. Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::patch::{self, Mismatch};
use super::{Adaptation, RestoreMode};
use crate::hypervisor::Error;
use crate::hypervisor::launch::files::check_path;

/// The VM's configuration in a snapshot.
pub const CONFIG: &str = "config.json";
/// The state of its devices and processors.
pub const STATE: &str = "state.json";
/// Its memory.
pub const MEMORY: &str = "memory-ranges";

/// Largest JSON file that is read; a state has some tens of kB per processor.
const MAX_JSON: u64 = 64 << 20;

/// Makes the snapshot in `from` another VM's, in `to`.
pub fn adapt(from: &Path, to: &Path, adaptation: &Adaptation) -> Result<(), Error> {
    check_paths(from, to, adaptation)?;
    let config = patched(from, CONFIG, adaptation, patch::config)?;
    let state = patched(from, STATE, adaptation, patch::state)?;
    check_memory(adaptation)?;
    make_empty(to)?;
    let written = write(to, CONFIG, &config).and_then(|()| write(to, STATE, &state));
    let written = written.and_then(|()| match adaptation.mode {
        RestoreMode::Map => Ok(()),
        RestoreMode::Copy => link(&adaptation.memory, &to.join(MEMORY)),
    });
    written.inspect_err(|_| {
        // Half a snapshot is of no use; the error to tell is the first one.
        let _ = fs::remove_dir_all(to);
    })
}

/// Nothing that is to be kept may lie where `to` is emptied.
fn check_paths(from: &Path, to: &Path, adaptation: &Adaptation) -> Result<(), Error> {
    let kept = [from, &adaptation.root.0, &adaptation.seed, &adaptation.serial, &adaptation.memory];
    for path in kept.iter().chain(&[to]) {
        check_path(path)?;
    }
    // As far as it exists: what does not exist cannot be lost.
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let emptied = real(to);
    match kept.iter().find(|path| real(path).starts_with(&emptied)) {
        Some(path) => Err(refused(to, format!("{} is in it and would be removed", path.display()))),
        None => Ok(()),
    }
}

/// A shorter file would kill the guest at the first access behind its end, a longer one is not this VM's.
fn check_memory(adaptation: &Adaptation) -> Result<(), Error> {
    let path = &adaptation.memory;
    let found = fs::metadata(path).map_err(failed("look at memory file", path))?;
    let expected = adaptation.memory_bytes;
    if found.is_file() && found.len() == expected {
        return Ok(());
    }
    let what = if found.is_file() { format!("{} bytes", found.len()) } else { "something else".into() };
    Err(Error::SnapshotMismatch { path: path.clone(), expected: format!("a file of {expected} bytes"), found: what })
}

fn patched(
    from: &Path,
    name: &str,
    adaptation: &Adaptation,
    change: fn(&mut Value, &Adaptation) -> Result<(), Mismatch>,
) -> Result<Vec<u8>, Error> {
    let path = from.join(name);
    let mut value: Value = read(&path)?;
    change(&mut value, adaptation).map_err(|Mismatch { expected, found }| Error::SnapshotMismatch {
        path: path.clone(),
        expected,
        found,
    })?;
    serde_json::to_vec(&value).map_err(|source| Error::SnapshotJson { path, source })
}

/// Reads a JSON file of a snapshot.
fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let file = File::open(path).map_err(failed("open snapshot file", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON + 1).read_to_end(&mut bytes).map_err(failed("read snapshot file", path))?;
    if bytes.len() as u64 > MAX_JSON {
        let expected = format!("at most {MAX_JSON} bytes");
        return Err(Error::SnapshotMismatch { path: path.to_owned(), expected, found: "more".into() });
    }
    serde_json::from_slice(&bytes).map_err(|source| Error::SnapshotJson { path: path.to_owned(), source })
}

/// Checks that configuration and state in `dir` were written to their ends.
pub fn check_complete(dir: &Path) -> Result<(), Error> {
    [CONFIG, STATE].iter().try_for_each(|name| read::<IgnoredAny>(&dir.join(name)).map(drop))
}

/// Checks that a restore from `dir` would write the serial output below `own`: the file is emptied even by a
/// restore that fails, so it must not be another VM's (cloud-hypervisor.md 8).
pub fn check_serial(dir: &Path, own: &Path) -> Result<(), Error> {
    let path = dir.join(CONFIG);
    let config: Value = read(&path)?;
    let serial = match config["serial"]["file"].as_str() {
        Some(file) => PathBuf::from(file),
        None => {
            let (expected, found) = ("a file for the serial output".into(), config["serial"].to_string());
            return Err(Error::SnapshotMismatch { path, expected, found });
        }
    };
    // Compared by name: `..` would lead out of it again.
    if serial.starts_with(own) && !serial.components().any(|part| part == std::path::Component::ParentDir) {
        return Ok(());
    }
    Err(Error::ForeignSerial { path: dir.to_owned(), serial, own: own.to_owned() })
}

/// Copies configuration and state into the new directory `to`.
pub fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    make_empty(to)?;
    [CONFIG, STATE].iter().try_for_each(|name| {
        let path = from.join(name);
        let bytes = fs::read(&path).map_err(failed("read snapshot file", &path))?;
        write(to, name, &bytes)
    })
}

/// Makes an empty directory (mode 0700) in the place of what is there.
pub fn make_empty(dir: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(dir).map_err(failed("empty snapshot directory", dir))?,
        Ok(_) => return Err(refused(dir, "it is no directory".into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at snapshot directory", dir)(error)),
    }
    DirBuilder::new().mode(0o700).create(dir).map_err(failed("make snapshot directory", dir))
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let path = dir.join(name);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(bytes)).map_err(failed("write snapshot file", &path))
}

/// Another name for the memory file; on another file system, or where its owner forbids that, a symbolic link.
fn link(memory: &Path, name: &Path) -> Result<(), Error> {
    let linked = fs::hard_link(memory, name).or_else(|_| std::os::unix::fs::symlink(memory, name));
    linked.map_err(failed("link the memory file to", name))
}

/// Refuses a directory that is not there or has something in it.
pub fn check_empty(dir: &Path) -> Result<(), Error> {
    let mut entries = fs::read_dir(dir).map_err(failed("read snapshot directory", dir))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(refused(dir, "it is not empty".into())),
    }
}

fn refused(dir: &Path, why: String) -> Error {
    Error::SnapshotDir { path: dir.to_owned(), why }
}

pub(super) fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path: path.clone(), source }
}

#[cfg(test)]
mod tests;
