//! What is kept of a VMM's end: the cause, and the ends of its files as they were, so that the next start may truncate
//! them. Bounded in number and bytes, and left out on a disk that is almost full.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::identity::TICKS;
use super::launch::Files;
use super::launch::files::last_run;
use super::tail::tail;
use super::{Error, ProcessIdentity};

/// Directory of the bundles inside the sandbox's directory.
pub const DIR: &str = "crashes";
/// Bundles that are kept of one sandbox.
pub const MOST: usize = 5;
/// Bytes that all bundles of one sandbox may have.
pub const MOST_BYTES: u64 = 2 << 20;
/// Bytes kept of each file.
const TAIL: u64 = 64 * 1024;
/// Bytes that must be free on the file system, or nothing is kept.
const ROOM: u64 = 64 << 20;
/// Begins the name of a bundle that is being written.
const UNFINISHED: &str = ".new-";

/// The cause, for programs and people.
const CAUSE: &str = "cause.json";
/// Names in a bundle; nothing else can be asked for.
pub const NAMES: [&str; 5] = [CAUSE, "serial.log", "vmm.log", "vmm.out", "events.json"];

/// What is known of an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// In one word: `guest_power_off`, `guest_panic`, `out_of_memory`, `host_rebooted`, `orderly`, `signal`, `failed`,
    /// `unknown`, or `start_failed`.
    pub cause: String,
    /// In a sentence.
    pub detail: String,
    /// When it was noticed, in milliseconds since 1970.
    pub at: u64,
    /// What the sandbox was doing.
    pub during: String,
    /// Number of the run that ended.
    pub run: u64,
    /// Version of the hypervisor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Pid of the VMM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// How long the VMM had run when its end was noticed, in seconds; none if the host was rebooted since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_seconds: Option<u64>,
}

/// What is to be kept.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The sandbox's directory.
    pub dir: PathBuf,
    /// The cause; [`Report::uptime_seconds`] is filled in from `process`.
    pub report: Report,
    /// The VMM.
    pub process: Option<ProcessIdentity>,
}

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A bundle that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Crash {
    /// Its name in paths: when the end was noticed, in milliseconds since 1970.
    pub time: u64,
    /// What is known of the end.
    #[serde(flatten)]
    pub report: Report,
    /// Its files.
    pub files: Vec<Kept>,
}

/// Writes a bundle and removes old ones; false when the disk is too full for it. A bundle that is there is complete.
/// Blocks.
pub fn write(bundle: &Bundle) -> Result<bool, Error> {
    let stat = rustix::fs::statvfs(&bundle.dir)
        .map_err(|error| fail("look at the file system of", &bundle.dir)(error.into()))?;
    if stat.f_bavail.saturating_mul(stat.f_frsize) < ROOM {
        return Ok(false);
    }
    let crashes = bundle.dir.join(DIR);
    private_dir(&crashes)?;
    for name in names(&crashes)?.into_iter().filter(|name| name.starts_with(UNFINISHED)) {
        remove(&crashes.join(name))?;
    }
    let unfinished = crashes.join(format!("{UNFINISHED}{}", bundle.report.at));
    private_dir(&unfinished)?;
    let filled = fill(bundle, &unfinished).and_then(|()| publish(&crashes, &unfinished, bundle.report.at));
    if filled.is_err() {
        // Half a bundle only takes space; the next one removes it if this cannot.
        let _ = remove(&unfinished);
    }
    filled?;
    prune(&crashes)?;
    Ok(true)
}

fn fill(bundle: &Bundle, to: &Path) -> Result<(), Error> {
    let files = Files::new(&bundle.dir);
    for (name, path) in [
        ("serial.log", files.serial()),
        ("vmm.log", files.log()),
        ("vmm.out", files.output()),
        ("events.json", files.events()),
    ] {
        let mut bytes = match tail(&path, TAIL) {
            Ok(bytes) => bytes,
            // A VMM that did not come far has not made all of them.
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if name == "vmm.out" {
            bytes = last_run(&String::from_utf8_lossy(&bytes)).as_bytes().to_vec();
        }
        put(&to.join(name), &bytes)?;
    }
    let report = Report { uptime_seconds: uptime(bundle.process.as_ref()), ..bundle.report.clone() };
    let json = serde_json::to_vec_pretty(&report).map_err(|error| fail("describe", &to.join(CAUSE))(error.into()))?;
    put(&to.join(CAUSE), &json)
}

/// Gives a finished bundle its name; two ends may be noticed in one millisecond.
fn publish(crashes: &Path, unfinished: &Path, at: u64) -> Result<(), Error> {
    let mut time = at;
    while crashes.join(time.to_string()).exists() {
        time += 1;
    }
    let name = crashes.join(time.to_string());
    std::fs::rename(unfinished, &name).map_err(fail("name", &name))
}

fn prune(crashes: &Path) -> Result<(), Error> {
    let mut times = times(crashes)?;
    let size = |time: &u64| kept(&crashes.join(time.to_string())).iter().map(|file| file.bytes).sum::<u64>();
    let mut bytes: u64 = times.iter().map(size).sum();
    while times.len() > MOST || (bytes > MOST_BYTES && times.len() > 1) {
        let oldest = times.remove(0);
        bytes -= size(&oldest);
        remove(&crashes.join(oldest.to_string()))?;
    }
    Ok(())
}

/// All bundles in a sandbox's directory, the newest first. Blocks.
pub fn list(dir: &Path) -> Result<Vec<Crash>, Error> {
    let crashes = dir.join(DIR);
    if !crashes.exists() {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for time in times(&crashes)?.into_iter().rev() {
        let bundle = crashes.join(time.to_string());
        let path = bundle.join(CAUSE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            // Removed meanwhile, to make room for a newer one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(fail("read", &path)(error)),
        };
        let report = serde_json::from_slice(&bytes).map_err(|error| fail("understand", &path)(error.into()))?;
        all.push(Crash { time, report, files: kept(&bundle) });
    }
    Ok(all)
}

/// A file of a bundle; none when there is no such bundle or file. `name` must be one of [`NAMES`]. Blocks.
pub fn read(dir: &Path, time: u64, name: &str) -> Result<Option<Vec<u8>>, Error> {
    if !NAMES.contains(&name) {
        return Ok(None);
    }
    let path = dir.join(DIR).join(time.to_string()).join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fail("read", &path)(error)),
    }
}

fn kept(bundle: &Path) -> Vec<Kept> {
    let size = |name: &str| std::fs::metadata(bundle.join(name)).ok().map(|metadata| metadata.len());
    NAMES.iter().filter_map(|name| Some(Kept { name: (*name).to_owned(), bytes: size(name)? })).collect()
}

fn times(crashes: &Path) -> Result<Vec<u64>, Error> {
    let mut times: Vec<u64> = names(crashes)?.iter().filter_map(|name| name.parse().ok()).collect();
    times.sort_unstable();
    Ok(times)
}

fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = std::fs::read_dir(dir).map_err(fail("list", dir))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(fail("list", dir))
}

fn private_dir(dir: &Path) -> Result<(), Error> {
    // Not with what is above it: a sandbox that was removed meanwhile stays so.
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(fail("make", dir)),
    }
}

fn remove(dir: &Path) -> Result<(), Error> {
    std::fs::remove_dir_all(dir).map_err(fail("remove", dir))
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let written =
        options.write(true).create_new(true).mode(0o600).open(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(fail("write", path))
}

/// Seconds since the start of a process of this boot.
fn uptime(process: Option<&ProcessIdentity>) -> Option<u64> {
    let process = process.filter(|process| process.of_this_boot().unwrap_or(false))?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let host: u64 = uptime.split('.').next()?.parse().ok()?;
    Some(host.saturating_sub(process.start_ticks / TICKS))
}

fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(dir: &Path, at: u64) -> Bundle {
        let report = Report {
            cause: "signal".into(),
            detail: "the VMM was ended by signal 9".into(),
            at,
            during: "running".into(),
            run: 3,
            version: Some("v53.0.0".into()),
            pid: Some(42),
            uptime_seconds: None,
        };
        Bundle { dir: dir.to_owned(), report, process: ProcessIdentity::own().ok() }
    }

    #[test]
    fn the_ends_of_the_files_are_kept_and_no_more_than_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        std::fs::write(files.serial(), vec![b's'; 300 << 10]).unwrap();
        std::fs::write(files.log(), "log\n").unwrap();
        std::fs::write(files.output(), "before\n--- VMM started at 5\nthis run\n").unwrap();
        assert_eq!(list(dir.path()).unwrap(), []);
        for at in [30, 10, 20, 40, 60, 50, 60] {
            assert!(write(&bundle(dir.path(), at)).unwrap());
        }
        let all = list(dir.path()).unwrap();
        assert_eq!(all.iter().map(|crash| crash.time).collect::<Vec<_>>(), [61, 60, 50, 40, 30]);
        let newest = &all[0];
        assert_eq!((newest.report.run, newest.report.at), (3, 60));
        assert!(newest.report.uptime_seconds.is_some());
        let sizes: Vec<_> = newest.files.iter().map(|file| (file.name.as_str(), file.bytes)).collect();
        assert_eq!(sizes[1..], [("serial.log", TAIL), ("vmm.log", 4), ("vmm.out", 9)], "there were no events");
        assert_eq!(read(dir.path(), 61, "vmm.out").unwrap().unwrap(), b"this run\n");
        assert_eq!(read(dir.path(), 61, "events.json").unwrap(), None);
        assert_eq!(read(dir.path(), 1, "vmm.log").unwrap(), None);
        assert_eq!(read(dir.path(), 61, "../../vmm.log").unwrap(), None);
    }

    #[test]
    fn what_a_crash_of_the_runner_left_half_done_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let half = dir.path().join(DIR).join(format!("{UNFINISHED}7"));
        std::fs::create_dir_all(&half).unwrap();
        std::fs::write(half.join("serial.log"), "half").unwrap();
        assert_eq!(list(dir.path()).unwrap(), [], "it is not shown");
        write(&bundle(dir.path(), 7)).unwrap();
        assert!(!half.exists());
        assert_eq!(list(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_directory_that_is_gone_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let error = write(&bundle(&gone, 7)).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }
}
