//! Faults on order: `CH_SIM_FAULTS` names a JSON file that is read anew at each decision point.
//!
//! The file is a list of `{"when", "sandbox"?, "action", "value"?, "times"?}`. Uses of an entry with `times`
//! are counted in `<file>.hits`, so the count holds across processes.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use serde_json::Value;

/// Environment variable with the path of the fault file.
pub const FAULTS_VARIABLE: &str = "CH_SIM_FAULTS";

/// How often a file that does not parse is read.
const READ_ATTEMPTS: u32 = 20;

/// What happens at a decision point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Go on after this time.
    Delay(Duration),
    /// End the process by SIGKILL, at once or (toolbox only) after this time.
    Crash(Duration),
    /// Never come back; only SIGKILL helps.
    Hang,
    /// Fail with this text.
    Error(String),
    /// Fail as on a full disk.
    Enospc,
    /// End the process with this exit code, without cleaning up.
    Exit(i32),
    /// The guest's kernel panics instead (toolbox only).
    Panic,
    /// Do not react (power button).
    Ignore,
}

#[derive(Debug, Deserialize)]
struct Entry {
    when: String,
    sandbox: Option<String>,
    action: String,
    #[serde(default)]
    value: Value,
    times: Option<u64>,
}

/// The faults of this process.
pub struct Faults {
    path: Option<PathBuf>,
    sandbox: String,
}

impl Faults {
    /// Faults from the environment for the process whose API socket file is `sandbox` (without directory and suffix).
    pub fn from_env(sandbox: String) -> Self {
        Self::new(std::env::var_os(FAULTS_VARIABLE).map(PathBuf::from), sandbox)
    }

    /// Faults from a file.
    pub fn new(path: Option<PathBuf>, sandbox: String) -> Self {
        Self { path, sandbox }
    }

    /// The action ordered for a decision point, counted as used.
    pub fn at(&self, point: &str) -> Option<Action> {
        let path = self.path.as_ref()?;
        let entries = read(path)?;
        entries.iter().enumerate().find_map(|(index, entry)| {
            let mine = entry.sandbox.as_ref().is_none_or(|name| *name == self.sandbox);
            (entry.when == point && mine && self.take(index, entry)).then(|| action(entry))
        })
    }

    /// Like [`Faults::at`] and carried out here, except for failures, which are returned as text.
    pub fn strike(&self, point: &str) -> Option<Action> {
        match self.at(point)? {
            Action::Delay(time) => std::thread::sleep(time),
            Action::Crash(_) => {
                // SAFETY: plain system calls.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            }
            Action::Hang => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            // SAFETY: ends the process without running exit handlers, which is the point.
            Action::Exit(code) => unsafe { libc::_exit(code) },
            other => return Some(other),
        }
        None
    }

    /// Counts one use of the entry; false when its `times` are used up.
    fn take(&self, index: usize, entry: &Entry) -> bool {
        let (Some(limit), Some(path)) = (entry.times, &self.path) else {
            return true;
        };
        let mut hits = path.clone().into_os_string();
        hits.push(".hits");
        let opened = OpenOptions::new().read(true).append(true).create(true).open(&hits);
        let locked = opened.ok().and_then(|f| Flock::lock(f, FlockArg::LockExclusive).ok());
        let Some(mut file) = locked else { return false };
        let mut text = String::new();
        let mark = format!("{index}:{}:{}", entry.when, entry.action);
        if file.read_to_string(&mut text).is_err() {
            return false;
        }
        let used = text.lines().filter(|line| *line == mark).count() as u64;
        used < limit && writeln!(file, "{mark}").is_ok()
    }
}

/// The entries of the file; `None` while there is no file. It may just be being written: a text that does not
/// parse is read again for a while.
fn read(path: &Path) -> Option<Vec<Entry>> {
    for _ in 0..READ_ATTEMPTS {
        let text = std::fs::read_to_string(path).ok()?;
        if let Ok(entries) = serde_json::from_str(&text) {
            return Some(entries);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    refuse(&format!("{} is not a list of faults", path.display()))
}

/// A test that orders nonsense must notice it: ends the process.
fn refuse(problem: &str) -> ! {
    eprintln!("{FAULTS_VARIABLE}: {problem}");
    std::process::exit(70)
}

fn action(entry: &Entry) -> Action {
    let ms = Duration::from_millis(entry.value.as_u64().unwrap_or(0));
    match entry.action.as_str() {
        "delay_ms" | "delay" => Action::Delay(ms),
        "crash" => Action::Crash(ms),
        "hang" | "never" => Action::Hang,
        "error" => Action::Error(entry.value.as_str().unwrap_or("Injected fault").to_owned()),
        "enospc" => Action::Enospc,
        "exit" => Action::Exit(i32::try_from(entry.value.as_i64().unwrap_or(1)).unwrap_or(1)),
        "panic" => Action::Panic,
        "ignore" => Action::Ignore,
        other => refuse(&format!("unknown action {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Action, Faults};

    #[test]
    fn entries_are_chosen_by_point_and_sandbox_and_run_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faults.json");
        std::fs::write(
            &path,
            r#"[{"when":"vm.boot","action":"error","value":"no","times":2},
                {"when":"vm.boot","sandbox":"b","action":"delay_ms","value":7}]"#,
        )
        .unwrap();
        let a = Faults::new(Some(path.clone()), "a".to_owned());
        let b = Faults::new(Some(path), "b".to_owned());
        assert_eq!(a.at("vm.create"), None);
        assert_eq!(a.at("vm.boot"), Some(Action::Error("no".to_owned())));
        assert_eq!(b.at("vm.boot"), Some(Action::Error("no".to_owned())));
        assert_eq!(a.at("vm.boot"), None);
        assert_eq!(b.at("vm.boot"), Some(Action::Delay(Duration::from_millis(7))));
    }
}
