//! What is on the host of a test that should not be there any more.

use std::path::Path;
use std::process::Command;

use super::Host;

/// Pids of VMMs whose API socket lies in this directory.
pub fn vmms(sockets: &Path) -> Vec<i32> {
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    let mark = sockets.display().to_string();
    processes
        .filter_map(Result::ok)
        .filter(|process| {
            let arguments = process.cmdline().unwrap_or_default();
            let is_vmm = arguments.iter().any(|argument| argument == "--api-socket");
            is_vmm && arguments.iter().any(|argument| argument.contains(&mark))
        })
        .map(|process| process.pid)
        .collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}

fn links() -> Vec<String> {
    let listed = Command::new("ip").args(["-o", "link", "show", "type", "veth"]).output().expect("ip runs");
    String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect()
}

/// Everything that belongs to sandboxes: processes, namespaces, links, sockets, directories.
pub fn all(host: &Host) -> Vec<String> {
    let mut found: Vec<String> = vmms(&host.path("sock")).iter().map(|pid| format!("process {pid}")).collect();
    found.extend(entries(Path::new("/run/netns")).into_iter().map(|name| format!("namespace {name}")));
    found.extend(links().into_iter().map(|link| format!("link {link}")));
    found.extend(entries(&host.path("sock")).into_iter().map(|name| format!("socket {name}")));
    // Flattened bases and blank memory files stay: they are made once per base and size.
    let kept = [".bases", ".memory", ".captures", ".layers"];
    let boxes = entries(&host.path("boxes")).into_iter().filter(|name| !kept.contains(&name.as_str()));
    found.extend(boxes.map(|name| format!("directory {name}")));
    found.extend(of_copies(host));
    found
}

/// What there is on the host, told so that two hosts in the same state tell the same.
pub fn census(host: &Host) -> Vec<String> {
    let mut found = vec![format!("{} VMMs", vmms(&host.path("sock")).len()), format!("{} links", links().len())];
    found.extend(entries(Path::new("/run/netns")).into_iter().map(|name| format!("namespace {name}")));
    found.extend(entries(&host.path("sock")).into_iter().map(|name| format!("socket {name}")));
    let boxes = entries(&host.path("boxes")).into_iter().filter(|name| !name.starts_with('.'));
    for name in boxes {
        let files = entries(&host.path("boxes").join(&name));
        // Logs are kept from run to run, and how many runs there were differs.
        let files = files.into_iter().filter(|file| !file.starts_with("vmm.") && !file.starts_with("serial"));
        found.extend(files.map(|file| format!("file {name}/{file}")));
    }
    found.extend(of_copies(host));
    found.sort();
    found
}

/// What copies have while they are made, and must not have afterwards.
pub fn of_copies(host: &Host) -> Vec<String> {
    let captures = entries(&host.path("boxes/.captures")).into_iter().map(|name| format!("capture {name}"));
    let temporary = entries(&host.path("snap")).into_iter().filter(|name| name.starts_with(".tmp"));
    captures.chain(temporary.map(|name| format!("snapshot {name}"))).collect()
}

/// Frozen images that sandboxes stand on.
pub fn layers(host: &Host) -> usize {
    entries(&host.path("boxes/.layers")).len()
}

/// Fails with the list unless it is empty soon.
#[track_caller]
pub fn none(host: &Host) {
    super::eventually(&format!("no leftovers, but there are {:?}", all(host)), || all(host).is_empty().then_some(()));
}
