//! The files that a VMM process writes into its sandbox's directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::hypervisor::Error;
use crate::hypervisor::tail::{KEPT, bound};

/// Begins the line that separates one run's output from the one before.
const MARK: &str = "--- VMM started at ";

/// Longest path of a unix socket, without the closing NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Paths of the files in one sandbox's directory.
#[derive(Debug, Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    /// Files below that directory; it must exist before a VMM is started.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// stdout and stderr of all runs.
    pub fn output(&self) -> PathBuf {
        self.dir.join("vmm.out")
    }

    /// The hypervisor's log of the present run.
    pub fn log(&self) -> PathBuf {
        self.dir.join("vmm.log")
    }

    /// The hypervisor's events of the present run.
    pub fn events(&self) -> PathBuf {
        self.dir.join("events.json")
    }

    /// The guest's serial output; the path that belongs into the VM's configuration.
    pub fn serial(&self) -> PathBuf {
        self.dir.join("serial.log")
    }

    /// Gives back the disk space of everything but the last [`KEPT`] bytes of each file. A guest can
    /// make all of them grow: by printing, by rebooting, by driving devices into warnings. Blocks.
    pub fn bound(&self) -> Result<u64, Error> {
        let files = [self.serial(), self.events(), self.log(), self.output()];
        files.iter().try_fold(0, |sum, file| Ok(sum + bound(file, KEPT)?))
    }

    /// Puts the previous run's log and events aside, where the hypervisor would truncate them, and
    /// opens the output file behind a line that marks the new run. Blocks.
    pub(super) fn begin_run(&self) -> Result<File, Error> {
        for file in [self.log(), self.events()] {
            set_aside(&file)?;
        }
        let path = self.output();
        let fail = |what: &'static str| {
            let path = path.clone();
            move |source| Error::File { what, path, source }
        };
        let mut options = OpenOptions::new();
        let options = options.append(true).create(true).mode(0o600);
        let mut file = options.open(&path).map_err(fail("open the VMM's output file"))?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        writeln!(file, "{MARK}{seconds}").map_err(fail("write to"))?;
        Ok(file)
    }
}

fn set_aside(file: &Path) -> Result<(), Error> {
    let mut old = file.as_os_str().to_owned();
    old.push(".1");
    match std::fs::rename(file, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::File { what: "put aside", path: file.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// The part of the output file's text that belongs to the last run.
pub fn last_run(output: &str) -> &str {
    let Some(mark) = output.rfind(MARK) else { return output };
    output[mark..].split_once('\n').map_or("", |(_, rest)| rest)
}

/// Refuses paths that the hypervisor's option parser would read as something else, as it gives a
/// meaning to commas, quotes and brackets.
pub fn check_path(path: &Path) -> Result<(), Error> {
    let refuse = |why| Err(Error::Path { path: path.to_owned(), why });
    let Some(text) = path.to_str() else { return refuse("it is not UTF-8") };
    if !path.is_absolute() {
        return refuse("it is not absolute");
    }
    if text.contains([',', '"', '[', ']', '\n']) {
        return refuse("it contains a comma, a quote, a bracket or a line break");
    }
    Ok(())
}

/// [`check_path`] for a unix socket.
pub fn check_socket_path(path: &Path) -> Result<(), Error> {
    check_path(path)?;
    if path.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
        return Err(Error::Path { path: path.to_owned(), why: "a socket's path has at most 107 bytes" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_its_own_log_and_its_own_part_of_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        writeln!(files.begin_run().unwrap(), "first run").unwrap();
        std::fs::write(files.log(), "first log").unwrap();
        writeln!(files.begin_run().unwrap(), "second run").unwrap();
        assert!(!files.log().exists());
        assert_eq!(std::fs::read_to_string(dir.path().join("vmm.log.1")).unwrap(), "first log");
        let output = std::fs::read_to_string(files.output()).unwrap();
        assert!(output.contains("first run"));
        assert_eq!(last_run(&output), "second run\n");
        assert_eq!(last_run("cut off in the middle\n"), "cut off in the middle\n");
    }

    #[test]
    fn paths_with_a_meaning_for_the_option_parser_are_refused() {
        assert!(check_path(Path::new("/var/lib/box-1_a.b/x")).is_ok());
        for path in ["relative/x", "/a,b", "/a\"b", "/a[1]", "/a\nb"] {
            assert!(check_path(Path::new(path)).is_err(), "{path:?}");
        }
        assert!(check_socket_path(Path::new(&format!("/{}", "s".repeat(106)))).is_ok());
        assert!(check_socket_path(Path::new(&format!("/{}", "s".repeat(107)))).is_err());
    }
}
