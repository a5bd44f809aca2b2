//! Processes, API sockets, and what VMMs say of their VMs.

use super::{Claim, NOBODY, STOPPED, claim, leaked, missing, restart, wrong};
use crate::hypervisor::survey::{ProcessSeen, SocketSeen, VmmSurvey, sandbox_of};
use crate::hypervisor::{ProcessIdentity, VmState};
use crate::ids::SandboxId;
use crate::ledger::{Alive, Difference, Expected, Kind, Remedy, Sandbox};

pub(super) fn compare(expected: &Expected, survey: &VmmSurvey, found: &mut Vec<Difference>) {
    for seen in &survey.processes {
        process(expected, seen, found);
    }
    for (id, (path, seen)) in &survey.sockets {
        let path = path.display().to_string();
        let remedy = || Remedy::RemoveSocket { socket: path.clone().into() };
        let why = match (claim(expected, id), seen) {
            (Claim::LeftOut | Claim::Rests(Sandbox { alive: Some(_), .. }), _) => continue,
            // Its process is one of the processes.
            (_, SocketSeen::Served(_)) => continue,
            (Claim::Nobody, SocketSeen::Stale) => NOBODY,
            (Claim::Rests(_), SocketSeen::Stale) => STOPPED,
        };
        found.push(leaked(Kind::Socket, &path, Some(id), format!("nobody serves it, and {why}"), remedy()));
    }
    for (id, path) in &survey.locks {
        let socket = path.with_extension("");
        // One beside a socket goes with it.
        let alone = !survey.sockets.contains_key(id);
        let why = match claim(expected, id) {
            Claim::LeftOut | Claim::Rests(Sandbox { alive: Some(_), .. }) => continue,
            _ if !alone || survey.processes.iter().any(|seen| seen.socket == socket) => continue,
            Claim::Nobody => NOBODY,
            Claim::Rests(_) => STOPPED,
        };
        let remedy = Remedy::RemoveSocket { socket };
        found.push(leaked(Kind::Lock, path.display().to_string(), Some(id), why, remedy));
    }
    for (id, sandbox) in expected.at_rest() {
        if let Some(alive) = &sandbox.alive {
            living(id, sandbox, alive, survey, found);
        }
    }
}

fn name(process: &ProcessIdentity) -> String {
    format!("process {} (started at tick {})", process.pid, process.start_ticks)
}

fn process(expected: &Expected, seen: &ProcessSeen, found: &mut Vec<Difference>) {
    let ProcessSeen { process, socket } = seen;
    // A name that no sandbox can have is not one that a runner gave.
    let Some(id) = sandbox_of(socket) else { return };
    let why = match claim(expected, &id) {
        Claim::LeftOut => return,
        Claim::Rests(Sandbox { alive: Some(alive), .. }) if alive.process == *process => return,
        Claim::Rests(Sandbox { alive: Some(alive), .. }) => format!("the sandbox's VMM is {}", name(&alive.process)),
        Claim::Rests(_) => STOPPED.to_owned(),
        Claim::Nobody => NOBODY.to_owned(),
    };
    let why = format!("it was started with --api-socket {}, and {why}", socket.display());
    let remedy = Remedy::EndProcess { process: process.clone(), socket: socket.clone() };
    found.push(leaked(Kind::Vmm, name(process), Some(&id), why, remedy));
}

fn living(id: &SandboxId, sandbox: &Sandbox, alive: &Alive, survey: &VmmSurvey, found: &mut Vec<Difference>) {
    if !survey.processes.iter().any(|seen| seen.process == alive.process) {
        let why = "its record says that this is its VMM, and there is no such process for its socket";
        let remedy = Remedy::advice(format!("stop and start sandbox {id}; a restart of the runner finds it, too"));
        found.push(missing(Kind::Vmm, name(&alive.process), id, why, remedy));
        return;
    }
    let path = sandbox.socket.display().to_string();
    let unread = survey.unread.iter().any(|line| line.contains(&path));
    let socket = match survey.sockets.get(id) {
        _ if unread => None,
        None => Some(missing(Kind::Socket, &path, id, "its VMM lives and cannot be spoken to", restart(id))),
        Some((_, SocketSeen::Stale)) => {
            Some(wrong(Kind::Socket, &path, id, "its VMM lives, and nobody serves the socket", restart(id)))
        }
        Some((_, SocketSeen::Served(pid))) if *pid != alive.process.pid => {
            let why = format!("it is served by process {pid}, and the sandbox's VMM is {}", name(&alive.process));
            let remedy = Remedy::advice(format!("find out what process {pid} is, end it, then restart sandbox {id}"));
            Some(wrong(Kind::Socket, &path, id, why, remedy))
        }
        Some((_, SocketSeen::Served(_))) => None,
    };
    found.extend(socket);
    found.extend(alive.vm.as_ref().and_then(|vm| Some(vm.as_ref().ok()?.as_ref())).and_then(|vm| state(id, alive, vm)));
}

/// A VMM that did not answer says nothing about its VM.
fn state(id: &SandboxId, alive: &Alive, vm: Option<&VmState>) -> Option<Difference> {
    let recorded = if alive.paused { "paused" } else { "started" };
    let object = format!("the VM of {id}");
    let (why, remedy) = match (vm, alive.paused) {
        (Some(VmState::Paused), true) | (Some(VmState::Running), false) => return None,
        (Some(VmState::Paused), false) => {
            ("its record says that it runs, and its VMM says that it is paused".to_owned(), Remedy::Resume)
        }
        (None, _) => (format!("its record says {recorded}, and its VMM has no VM"), restart(id)),
        (Some(other), _) => (format!("its record says {recorded}, and its VMM says {other}"), restart(id)),
    };
    Some(wrong(Kind::State, object, id, why, remedy))
}
