//! Why a VMM process ended. Exit code 0 says little: a guest power-off, an orderly shutdown and a
//! crashed processor thread all end with it (cloud-hypervisor.md 3), so events and logs are read.
//!
//! The hypervisor's events are written by a thread that the end of the process does not wait for, so
//! the last ones (`vmm:shutdown` and before) are often missing from the file. Only those of the VM's
//! start are relied on. That the process took its orderly way out shows in its exit code, or, when
//! nobody could collect that, in its socket, which it then removes itself.
//!
//! Builds with glibc may break the rule of the exit code: after the last event the thread that serves HTTP ends, and
//! if its heap has grown enough, the C library looks into /proc before it gives memory back, which the thread's
//! seccomp filter punishes with SIGSYS. All work is done by then.
//!
//! A panic of the guest's kernel ends no VMM: pvpanic tells it by an event, and the runner then ends the VMM. The serial
//! line tells it where a guest without that driver powers off, or has itself powered off, after a panic.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::hypervisor::Exit;
use crate::hypervisor::launch::files::{Files, last_run};
use crate::hypervisor::tail::tail;

/// Bytes read from the end of each file.
const READ: u64 = 64 * 1024;
/// Longest line that is kept, in characters.
const LINE: usize = 400;

/// Words of errors after which the VMM takes its orderly way out although it has failed.
const FATAL: [&str; 5] =
    ["VCPU generated error", "panicked", "UFFD handler exited", "applying seccomp filter", "seccomp violation"];

/// What the kernel told about the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Exit code.
    Code(i32),
    /// Number of the signal.
    Signal(i32),
    /// Nothing: the process was no child of this life of the runner.
    Unseen,
}

/// What the runner itself had asked of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// To end, through the API or by SIGTERM.
    End,
    /// SIGKILL was sent.
    Kill,
}

/// What the process left behind.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Events as `source:event`, oldest first, without those of devices.
    events: Vec<String>,
    /// The last error line, of the log or else of the output.
    error: Option<String>,
    /// The last line that tells of a failure which ends the process.
    fatal: Option<String>,
    /// Whether the process removed its API socket.
    socket_removed: bool,
    /// The line in which the guest's kernel said that it panics.
    panic_line: Option<String>,
    /// Whether the kernel's log has proof that it killed the process for want of memory.
    out_of_memory: bool,
}

/// The last event of an orderly end: VM and configuration are gone, disks are written and unlocked.
const DONE: &str = "vmm:shutdown";

/// Events after which there is a guest that can power itself off.
const RUNNING: [&str; 5] = ["vm:booted", "vm:rebooting", "vm:rebooted", "vm:restored", "vm:resumed"];

/// The event of pvpanic. With a kdump kernel loaded the guest goes on by itself: that is no end.
const PANIC: &str = "guest:panic";
const CRASH_LOADED: &str = "crash_loaded";
/// After it another kernel runs.
const REBOOTING: &str = "vm:rebooting";

/// How the Linux kernel begins its last words.
const PANIC_WORDS: &str = "Kernel panic - not syncing";

#[derive(Deserialize)]
struct Event {
    source: String,
    event: String,
    #[serde(default)]
    properties: Option<BTreeMap<String, String>>,
}

impl Event {
    fn name(self) -> Option<String> {
        let told = self.properties.as_ref().and_then(|properties| properties.get("event"));
        let counts = match self.source.as_str() {
            "vm" | "vmm" => true,
            "guest" => told.is_none_or(|told| told != CRASH_LOADED),
            _ => false,
        };
        counts.then(|| format!("{}:{}", self.source, self.event))
    }
}

impl Evidence {
    /// Reads it; a file that is not there or not readable is no evidence. Blocks.
    pub fn read(files: &Files, socket: &Path) -> Self {
        let log = text(tail(&files.log(), READ).ok());
        let output = text(tail(&files.output(), READ).ok());
        let serial = text(tail(&files.serial(), READ).ok());
        let evidence = Self::from_texts(&text(tail(&files.events(), READ).ok()), &log, last_run(&output));
        let panic_line = serial.lines().rfind(|line| line.contains(PANIC_WORDS)).map(short);
        Self { socket_removed: !socket.exists(), panic_line, ..evidence }
    }

    /// The same with what the kernel's log says.
    #[must_use]
    pub fn with_out_of_memory(self, out_of_memory: bool) -> Self {
        Self { out_of_memory, ..self }
    }

    fn from_texts(events: &str, log: &str, output: &str) -> Self {
        // Written as one pretty-printed object after the other with a blank line between them; the
        // first one may be cut off.
        let events = events.split("\n\n").filter_map(|object| serde_json::from_str::<Event>(object).ok());
        let lines = || log.lines().chain(output.lines());
        let fatal = lines().rfind(|line| FATAL.iter().any(|words| line.contains(words)));
        let error = log.lines().rfind(|line| line.contains("ERROR"));
        let error = error.or_else(|| output.lines().rfind(|line| !line.trim().is_empty()));
        Self {
            events: events.filter_map(Event::name).collect(),
            error: error.map(short),
            fatal: fatal.map(short),
            ..Self::default()
        }
    }

    fn says(&self, event: &str) -> bool {
        self.events.iter().any(|found| found == event)
    }

    /// The guest's kernel has panicked, and no other runs since: what it said on its serial line, if it did.
    pub fn guest_panic(&self) -> Option<Option<String>> {
        let last = |name: &str| self.events.iter().rposition(|event| event == name);
        let panicked = last(PANIC).is_some_and(|at| last(REBOOTING).is_none_or(|rebooted| rebooted < at));
        panicked.then(|| self.panic_line.clone())
    }

    /// Weighs the evidence.
    pub fn judge(self, status: Status, asked: Asked) -> Exit {
        let killed = status == Status::Signal(libc::SIGKILL) || status == Status::Unseen;
        if killed && self.out_of_memory && asked != Asked::Kill {
            return Exit::OutOfMemory;
        }
        let (code, orderly) = match status {
            Status::Signal(libc::SIGSYS) if asked != Asked::Nothing && self.says(DONE) => return Exit::Orderly,
            Status::Signal(signal) => return Exit::Signal { signal },
            Status::Code(code) => (Some(code), code == 0),
            Status::Unseen => (None, self.socket_removed),
        };
        if orderly && asked != Asked::Nothing {
            return Exit::Orderly;
        }
        if asked == Asked::Kill {
            return Exit::Signal { signal: libc::SIGKILL };
        }
        if orderly && self.fatal.is_none() {
            if RUNNING.iter().any(|event| self.says(event)) {
                return match (self.guest_panic(), self.panic_line) {
                    (Some(line), _) => Exit::GuestPanic { line },
                    (None, Some(line)) => Exit::GuestPanic { line: Some(line) },
                    (None, None) => Exit::GuestPowerOff,
                };
            }
            // Somebody else asked it to. A program that knows no events is no hypervisor, though.
            if code.is_none() || !self.events.is_empty() {
                return Exit::Orderly;
            }
        }
        let reason = self.fatal.or(self.error);
        if code.is_none() && reason.is_none() { Exit::Unknown } else { Exit::Failed { code, reason } }
    }
}

/// The last lines that a process said, for the error of a failed start. Blocks.
pub fn last_words(files: &Files) -> Vec<String> {
    const LINES: usize = 6;
    let output = text(tail(&files.output(), READ).ok());
    let log = text(tail(&files.log(), READ).ok());
    let errors = log.lines().filter(|line| line.contains("ERROR"));
    let lines = errors.chain(last_run(&output).lines()).filter(|line| !line.trim().is_empty());
    let lines: Vec<String> = lines.map(short).collect();
    lines[lines.len().saturating_sub(LINES)..].to_vec()
}

fn text(bytes: Option<Vec<u8>>) -> String {
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

fn short(line: &str) -> String {
    line.trim().chars().take(LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(names: &[(&str, &str)]) -> String {
        let mut text = String::new();
        for (source, event) in names {
            let (event, properties) = match event.split_once('=') {
                Some((event, told)) => (event, format!("{{ \"event\": \"{told}\" }}")),
                None => (*event, "null".to_owned()),
            };
            text += &format!(
                "{{\n  \"timestamp\": {{\n    \"secs\": 1,\n    \"nanos\": 2\n  }},\n  \"source\": \"{source}\",\n  \
                 \"event\": \"{event}\",\n  \"properties\": {properties}\n}}\n\n"
            );
        }
        text
    }

    const OFF: [(&str, &str); 5] =
        [("vmm", "starting"), ("vm", "booted"), ("vm", "shutdown"), ("vm", "deleted"), ("vmm", "shutdown")];
    const VCPU: &str = "cloud-hypervisor: 3.1s: <vcpu0> ERROR:vmm/src/cpu.rs:1460 -- VCPU generated error: VcpuRun";

    /// Judges an end after which the socket was gone, or not.
    fn exit(status: Status, asked: Asked, names: &[(&str, &str)], said: (&str, &str), socket_removed: bool) -> Exit {
        let evidence = Evidence::from_texts(&events(names), said.0, said.1);
        Evidence { socket_removed, ..evidence }.judge(status, asked)
    }

    fn failed(code: Option<i32>, reason: Option<&str>) -> Exit {
        Exit::Failed { code, reason: reason.map(str::to_owned) }
    }

    const SILENT: (&str, &str) = ("", "");

    #[test]
    fn the_same_events_mean_power_off_or_obedience() {
        for status in [Status::Code(0), Status::Unseen] {
            // Any number of the last events may be lost.
            for names in [&OFF[..2], &OFF[..3], &OFF[..4], &OFF] {
                assert_eq!(exit(status, Asked::Nothing, names, SILENT, true), Exit::GuestPowerOff);
                assert_eq!(exit(status, Asked::End, names, SILENT, true), Exit::Orderly);
            }
            for names in [&OFF[..1], &[("vmm", "starting"), ("vmm", "shutdown")]] {
                assert_eq!(exit(status, Asked::Nothing, names, SILENT, true), Exit::Orderly);
            }
        }
        let warned = ("cloud-hypervisor: 1s: <vmm> ERROR:x -- queue error", "");
        assert_eq!(exit(Status::Code(0), Asked::Nothing, &OFF, warned, true), Exit::GuestPowerOff);
    }

    #[test]
    fn exit_code_0_after_a_crash_is_a_failure() {
        assert_eq!(exit(Status::Code(0), Asked::Nothing, &OFF, (VCPU, ""), true), failed(Some(0), Some(VCPU)));
        assert_eq!(exit(Status::Unseen, Asked::Nothing, &OFF, (VCPU, ""), true), failed(None, Some(VCPU)));
        let panic = "thread 'vmm' panicked at src/lib.rs:1";
        assert_eq!(exit(Status::Code(0), Asked::Nothing, &OFF, ("", panic), true), failed(Some(0), Some(panic)));
        let no_hypervisor = exit(Status::Code(0), Asked::Nothing, &[], ("", "hello"), true);
        assert_eq!(no_hypervisor, failed(Some(0), Some("hello")));
    }

    #[test]
    fn signals_and_codes() {
        let signalled = exit(Status::Signal(31), Asked::Nothing, &OFF, SILENT, false);
        assert_eq!(signalled, Exit::Signal { signal: 31 });
        let refused = exit(Status::Code(1), Asked::Nothing, &[], ("", "Error: no\n\n"), false);
        assert_eq!(refused, failed(Some(1), Some("Error: no")));
        assert_eq!(exit(Status::Code(1), Asked::End, &OFF, SILENT, false), failed(Some(1), None));
    }

    #[test]
    fn a_signal_after_the_last_event_of_an_end_that_was_asked_for() {
        let sigsys = |asked, names: &[(&str, &str)]| exit(Status::Signal(31), asked, names, SILENT, false);
        assert_eq!(sigsys(Asked::End, &OFF), Exit::Orderly);
        for (asked, names) in [(Asked::End, &OFF[..4]), (Asked::Nothing, &OFF)] {
            assert_eq!(sigsys(asked, names), Exit::Signal { signal: 31 });
        }
        assert_eq!(exit(Status::Signal(9), Asked::End, &OFF, SILENT, false), Exit::Signal { signal: 9 });
    }

    #[test]
    fn an_unseen_end_that_leaves_its_socket_was_not_orderly() {
        let running = &OFF[..2];
        assert_eq!(exit(Status::Unseen, Asked::Kill, running, SILENT, false), Exit::Signal { signal: 9 });
        assert_eq!(exit(Status::Unseen, Asked::End, running, SILENT, false), Exit::Unknown);
        assert_eq!(exit(Status::Unseen, Asked::Nothing, running, SILENT, false), Exit::Unknown);
        let said = ("cloud-hypervisor: 1s: <vmm> ERROR:x -- no space", "");
        assert_eq!(exit(Status::Unseen, Asked::Nothing, running, said, false), failed(None, Some(said.0)));
    }

    #[test]
    fn a_guest_panic_is_one_until_another_kernel_runs() {
        let panicked = |names: &[(&str, &str)]| Evidence::from_texts(&events(names), "", "").guest_panic();
        let booted = OFF[1];
        assert_eq!(panicked(&[booted]), None);
        assert_eq!(panicked(&[booted, ("guest", "panic=panic")]), Some(None));
        assert_eq!(panicked(&[booted, ("guest", "panic")]), Some(None));
        assert_eq!(panicked(&[booted, ("guest", "panic=crash_loaded")]), None, "kdump takes over");
        assert_eq!(panicked(&[booted, ("guest", "panic=panic"), ("vm", "rebooting"), ("vm", "rebooted")]), None);
        let again = [("guest", "panic=panic"), ("vm", "rebooting"), ("vm", "rebooted"), ("guest", "panic=panic")];
        assert_eq!(panicked(&again), Some(None));
        let evidence = |names: &[(&str, &str)], line: Option<&str>| Evidence {
            panic_line: line.map(str::to_owned),
            ..Evidence::from_texts(&events(names), "", "")
        };
        let line = Some("Kernel panic - not syncing: x");
        for (names, line) in
            [(&again[..], None), (&again[..], line), (&OFF[..], line), (&[OFF[1], ("guest", "panic")][..], line)]
        {
            let exit = evidence(names, line).judge(Status::Code(0), Asked::Nothing);
            assert_eq!(exit, Exit::GuestPanic { line: line.map(str::to_owned) }, "{names:?}");
            assert_eq!(evidence(names, line).judge(Status::Code(0), Asked::End), Exit::Orderly);
            assert_eq!(evidence(names, line).judge(Status::Signal(9), Asked::Nothing), Exit::Signal { signal: 9 });
        }
    }

    #[test]
    fn only_a_proven_want_of_memory_is_one() {
        let judge = |status, asked, proven| Evidence::default().with_out_of_memory(proven).judge(status, asked);
        assert_eq!(judge(Status::Signal(9), Asked::Nothing, true), Exit::OutOfMemory);
        assert_eq!(judge(Status::Signal(9), Asked::End, true), Exit::OutOfMemory);
        assert_eq!(judge(Status::Unseen, Asked::Nothing, true), Exit::OutOfMemory);
        assert_eq!(judge(Status::Signal(9), Asked::Nothing, false), Exit::Signal { signal: 9 });
        assert_eq!(judge(Status::Signal(9), Asked::Kill, true), Exit::Signal { signal: 9 });
        assert_eq!(judge(Status::Signal(11), Asked::Nothing, true), Exit::Signal { signal: 11 });
    }

    #[test]
    fn a_cut_off_first_event_and_events_of_devices_are_skipped() {
        let mut names = OFF.to_vec();
        names.insert(2, ("virtio-device", "reset"));
        let text = events(&names);
        let evidence = Evidence::from_texts(&text[20..], "", "");
        assert_eq!(evidence.events, ["vm:booted", "vm:shutdown", "vm:deleted", "vmm:shutdown"]);
    }
}
