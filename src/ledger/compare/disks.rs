//! What is below the sandboxes' directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::{Claim, NOBODY, claim, leaked, missing, restart};
use crate::disk::survey::{DirectorySeen, DiskSurvey};
use crate::ids::SandboxId;
use crate::ledger::{Difference, Expected, Kind, Remedy, Sandbox};

/// No copy and no snapshot takes longer; one that does is spoken of and left alone.
const LONGEST_CAPTURE: Duration = Duration::from_secs(60 * 60);

pub(super) fn compare(expected: &Expected, survey: &DiskSurvey, found: &mut Vec<Difference>) {
    for seen in &survey.directories {
        match claim(expected, &seen.sandbox) {
            Claim::LeftOut => {}
            Claim::Rests(sandbox) => inside(&seen.sandbox, sandbox, seen, found),
            Claim::Nobody => found.push(directory(seen)),
        }
    }
    for (path, since) in &survey.captures {
        let object = path.display().to_string();
        match since {
            None => {
                let why = "no copy and no snapshot is being made from it";
                found.push(leaked(Kind::Capture, object, None, why, Remedy::RemoveFiles { path: path.clone() }));
            }
            Some(since) if *since > LONGEST_CAPTURE => {
                let why = "work that has not ended for more than an hour holds it";
                let advice = "if no copy and no snapshot is being made, restart the runner, which removes it";
                found.push(leaked(Kind::Capture, object, None, why, Remedy::advice(advice)));
            }
            Some(_) => {}
        }
    }
    for seen in survey.layers.iter().filter(|seen| seen.needed == Some(false)) {
        let why = "no disk stands on it, and nothing under way holds it";
        let remedy = Remedy::RemoveFiles { path: seen.path.clone() };
        found.push(leaked(Kind::Layer, seen.path.display().to_string(), None, why, remedy));
    }
    let seen: BTreeMap<&SandboxId, &DirectorySeen> =
        survey.directories.iter().map(|seen| (&seen.sandbox, seen)).collect();
    for (id, sandbox) in expected.at_rest() {
        lacks(id, sandbox, seen.get(id).copied(), survey, found);
    }
}

fn directory(seen: &DirectorySeen) -> Difference {
    let (why, remedy) = match seen.stranger() {
        None => (NOBODY.to_owned(), Remedy::RemoveFiles { path: seen.path.clone() }),
        Some(stranger) => (
            format!("{NOBODY}; {stranger}"),
            Remedy::advice(format!("look into {}, and move or remove it by hand", seen.path.display())),
        ),
    };
    leaked(Kind::Directory, seen.path.display().to_string(), Some(&seen.sandbox), why, remedy)
}

/// What a sandbox at rest has too much.
fn inside(id: &SandboxId, sandbox: &Sandbox, seen: &DirectorySeen, found: &mut Vec<Difference>) {
    if seen.has_checkpoint() && !sandbox.checkpoint {
        let path = seen.path.join("checkpoint");
        let why = "its record knows of no checkpoint, so no start will use it";
        let object = path.display().to_string();
        found.push(leaked(Kind::Checkpoint, object, Some(id), why, Remedy::RemoveFiles { path }));
    }
    for name in seen.unfinished() {
        // The whole checkpoint is one difference already.
        if name.starts_with("checkpoint/") && !sandbox.checkpoint {
            continue;
        }
        let path = seen.path.join(name);
        let why = "it is not complete, and nothing of the sandbox is under way";
        let object = path.display().to_string();
        found.push(leaked(Kind::Unfinished, object, Some(id), why, Remedy::RemoveFiles { path }));
    }
}

/// What a sandbox at rest has too little.
fn lacks(
    id: &SandboxId,
    sandbox: &Sandbox,
    seen: Option<&DirectorySeen>,
    survey: &DiskSurvey,
    found: &mut Vec<Difference>,
) {
    let Some(disks) = &sandbox.disks else { return };
    let dir = sandbox.dir.display().to_string();
    if survey.unread.iter().any(|line| line.contains(&dir)) {
        return;
    }
    let Some(seen) = seen else {
        let why = "the sandbox exists, and its directory does not";
        let remedy = Remedy::advice(format!("put it back from a copy, or destroy sandbox {id}"));
        return found.push(missing(Kind::Directory, dir, id, why, remedy));
    };
    let gone = |path: &Path| sandbox.inside(path).is_some_and(|name| !seen.files.contains(name));
    for path in [&disks.root.path, &disks.seed].into_iter().filter(|path| gone(path)) {
        let why = "its record names it, and it is not there";
        let remedy = Remedy::advice(format!("put it back from a copy, or destroy sandbox {id}"));
        found.push(missing(Kind::Disk, path.display().to_string(), id, why, remedy));
    }
    if let Some(memory) = sandbox.alive.as_ref().and_then(|alive| alive.memory.as_ref()).filter(|path| gone(path)) {
        let why = "the running VM maps it; the sandbox runs on, and cannot be copied with its memory";
        found.push(missing(Kind::Memory, memory.display().to_string(), id, why, restart(id)));
    }
    if let Some(name) = seen.lacks_of_checkpoint().filter(|_| sandbox.checkpoint) {
        let why = "its record has a checkpoint, and this part of it is not there; the next start boots";
        let remedy = Remedy::advice(format!("start sandbox {id} with {{\"cold\": true}}"));
        found.push(missing(Kind::Checkpoint, seen.path.join(name).display().to_string(), id, why, remedy));
    }
    for layer in &disks.root.layers {
        // By name: the directory may have been moved since.
        let known = survey.layers.iter().any(|seen| seen.path.file_name() == layer.file_name());
        if !known {
            let why = "the sandbox's disk stands on it, and it is not there";
            let remedy = Remedy::advice(format!("put it back from a copy, or destroy sandbox {id}"));
            found.push(missing(Kind::Layer, layer.display().to_string(), id, why, remedy));
        }
    }
}
