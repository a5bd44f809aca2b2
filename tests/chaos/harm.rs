//! What happens to a sandbox's VMM while something is asked of it.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::Run;
use super::common::leftovers;
use super::load::{Chance, request};

/// What may follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// It only takes longer.
    Slow,
    /// What was asked may fail, and the sandbox is as before.
    Refused,
    /// The memory may be lost.
    Lost,
}

/// Decision point, action, and what may follow.
const FAULTS: &[(&str, &str, Harm)] = &[
    ("vm.pause", "delay_ms", Harm::Slow),
    ("vm.snapshot", "delay_ms", Harm::Slow),
    ("vm.resume", "delay_ms", Harm::Slow),
    ("vm.restore", "delay_ms", Harm::Slow),
    ("vm.boot", "delay_ms", Harm::Slow),
    ("vmm.shutdown", "delay_ms", Harm::Slow),
    ("vmm.ping", "delay_ms", Harm::Slow),
    ("toolbox", "delay_ms", Harm::Slow),
    ("vm.pause", "error", Harm::Refused),
    ("vm.snapshot", "error", Harm::Refused),
    ("vm.snapshot", "enospc", Harm::Refused),
    ("vm.restore", "error", Harm::Lost),
    ("vm.boot", "error", Harm::Lost),
    ("vm.create", "error", Harm::Lost),
    ("identity", "error", Harm::Lost),
    ("spawn", "exit", Harm::Lost),
    ("vm.pause", "crash", Harm::Lost),
    ("vm.snapshot", "crash", Harm::Lost),
    ("vm.snapshot:done", "crash", Harm::Lost),
    ("vm.restore:done", "crash", Harm::Lost),
    ("vm.resume", "crash", Harm::Lost),
    ("vm.boot:done", "crash", Harm::Lost),
];

/// A fault of the VMMs of a sandbox; gone when dropped.
pub struct Fault<'a> {
    run: &'a Run,
    id: String,
    pub harm: Harm,
}

impl<'a> Fault<'a> {
    pub fn new(run: &'a Run, id: &str, chance: &mut Chance) -> Self {
        let (when, action, harm) = *chance.one(FAULTS);
        let value = if action == "delay_ms" { json!(chance.below(1200)) } else { json!("Injected by chance") };
        run.note(&format!("{id}: {when} {action} {value}"));
        run.count(format!("VMM fault {action}"));
        run.vmm_fault(id, Some(json!({ "when": when, "sandbox": id, "action": action, "value": value })));
        Self { run, id: id.to_owned(), harm }
    }
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        self.run.vmm_fault(&self.id, None);
    }
}

/// Kills the VMM that the sandbox has after this time; false if it has none then.
pub fn murder(run: &Run, id: &str, after: Duration) -> bool {
    std::thread::sleep(after);
    let Some(pid) = pid(run, id) else { return false };
    run.note(&format!("{id}: SIGKILL to its VMM {pid}"));
    run.count("VMM killed");
    // It may have ended by itself since.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    true
}

/// The pid of a sandbox's VMM, found by its socket: the runner may be away.
pub fn pid(run: &Run, id: &str) -> Option<i32> {
    let socket = run.host.path("sock").join(format!("{id}.sock")).display().to_string();
    vmms(run).into_iter().find(|(_, of)| *of == socket).map(|(pid, _)| pid)
}

/// Pids of VMMs with their sockets.
pub fn vmms(run: &Run) -> Vec<(i32, String)> {
    let socket_of = |pid: i32| {
        let arguments = procfs::process::Process::new(pid).and_then(|process| process.cmdline()).unwrap_or_default();
        arguments.into_iter().skip_while(|argument| argument != "--api-socket").nth(1).map(|socket| (pid, socket))
    };
    leftovers::vmms(&run.host.path("sock")).into_iter().filter_map(socket_of).collect()
}

/// What the runner shows of a sandbox; none if it is not there, an error if nobody answers.
pub fn view(id: &str) -> Result<Option<Value>, String> {
    let answer = request("GET", &format!("/sandboxes/{id}"), "").map_err(|error| error.to_string())?;
    match answer.status {
        200 => Ok(Some(answer.json())),
        404 => Ok(None),
        _ => Err(format!("{answer:?}")),
    }
}
