//! What a snapshot is on disk, whatever it is called and whatever happens while it is made.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::common::{eventually, leftovers};
use super::life::{failed, host, marked, post, refused, tree};
use super::{from, make, take};

fn sha256(mut content: impl std::io::Read) -> String {
    let mut digest = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match content.read(&mut piece).unwrap() {
            0 => return digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            length => digest.update(&piece[..length]),
        }
    }
}

/// The entry says what the file is.
#[track_caller]
fn true_entry(dir: &Path, entry: &Value) {
    use std::os::unix::fs::MetadataExt;
    let path = dir.join(entry["name"].as_str().unwrap());
    let about = std::fs::metadata(&path).unwrap();
    assert_eq!(entry["length"], about.len(), "{entry}");
    assert!(
        entry["allocated"].as_u64().unwrap() <= about.blocks() * 512 + (1 << 20),
        "{entry} {}",
        about.blocks() * 512
    );
    assert_eq!(entry["sha256"], sha256(std::fs::File::open(&path).unwrap()), "{path:?}");
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn a_manifest_tells_the_truth(strategy: &str) {
    let host = host(strategy);
    let _runner = host.runner();
    marked(&host, "box");
    let made = take(&host, "box", "warm", true);
    let dir = host.path("snap/org/warm");
    assert_eq!(tree(&dir), ["config.json", "disk.raw", "manifest.json", "memory", "state.json"]);
    let manifest = read(&dir.join("manifest.json"));
    assert_eq!(manifest["format"], 1, "{manifest}");
    assert_eq!((&manifest["reference"], &manifest["name"]), (&json!("org/warm"), &json!("warm")));
    assert_eq!((&manifest["source"], &manifest["parent"]), (&json!("box"), &json!("ubuntu-base.1")));
    assert_eq!((&manifest["vcpus"], &manifest["memory"]), (&json!(1), &json!(1_u64 << 30)));
    assert!(manifest["warm"]["version"].to_string().contains("53"), "{manifest}");
    true_entry(&dir, &manifest["disk"]);
    true_entry(&dir, &manifest["warm"]["file"]);
    for entry in manifest["warm"]["device"].as_array().unwrap() {
        true_entry(&dir, entry);
    }
    assert_eq!(manifest["disk"]["length"], 1_u64 << 30);
    // The hash of all of it is what the API gets.
    let parts =
        [&manifest["disk"], &manifest["warm"]["file"], &manifest["warm"]["device"][0], &manifest["warm"]["device"][1]];
    let text: String = parts.iter().map(|part| part["sha256"].as_str().unwrap()).collect();
    assert_eq!(made["hash"], sha256(text.as_bytes()));

    // Lineage: the snapshot of a sandbox that was made of a snapshot.
    make(&host, &from(&host, "child", "org/warm"));
    take(&host, "child", "grandchild", false);
    let manifest = read(&host.path("snap/org/grandchild/manifest.json"));
    assert_eq!((&manifest["parent"], &manifest["source"]), (&json!("org/warm"), &json!("child")));
    assert!(manifest["warm"].is_null());
    assert_eq!(tree(&host.path("snap/org/grandchild")), ["disk.raw", "manifest.json"]);
    true_entry(&host.path("snap/org/grandchild"), &manifest["disk"]);
}

#[test]
fn a_manifest_tells_the_truth_on_reflink() {
    a_manifest_tells_the_truth("reflink");
}

#[test]
fn a_manifest_tells_the_truth_on_overlays() {
    a_manifest_tells_the_truth("overlay");
}

#[test]
fn names_are_text_and_lead_nowhere() {
    let host = host("reflink");
    let _runner = host.runner();
    marked(&host, "box");
    let before = tree(host.dir.path());
    let names = ["../../x", "a b/é$(x)", "..", "-rf"];
    for name in names {
        let made = take(&host, "box", name, false);
        let path = made["snapshotPath"].as_str().unwrap().to_owned();
        assert_eq!(path.split('/').count(), 2, "{name:?} is one directory: {path}");
        assert!(host.path("snap").join(&path).join("manifest.json").exists(), "{path}");
        // Found again under its reference, and only there.
        let encoded = path.replace('%', "%25");
        assert_eq!(host.http().get(&format!("/snapshots/exists?snapshot={encoded}")).json(), json!({ "exists": true }));
        assert_eq!(host.http().get(&format!("/snapshots/exists?ref={encoded}")).json(), true);
        let body = json!({ "sandboxId": "box", "name": name, "organizationId": "org" }).to_string();
        let message = refused(&host, "/snapshots/create", &body, 409);
        assert!(message.contains(&path) && message.contains("exists"), "{message}");
    }
    let snap = format!("{}/", host.path("snap").strip_prefix(host.dir.path()).unwrap().display());
    let new: Vec<String> = tree(host.dir.path()).into_iter().filter(|path| !before.contains(path)).collect();
    let outside = new.iter().filter(|path| !path.contains(&snap) && !path.starts_with("runner.log"));
    // What the runner keeps of each sandbox and base is none of the names' business.
    let odd: Vec<&String> = outside
        .filter(|path| !path.starts_with("boxes/") && !path.starts_with("volume/boxes/") && !path.starts_with("state"))
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
    assert_eq!(std::fs::read_dir(host.path("snap/org")).unwrap().count(), names.len());
    assert!(!Path::new("/etc/x").exists() && !host.path("x").exists());
    // A name that cannot be, and one that a snapshot by hand has.
    let create = |name: &str, organization: Value| {
        json!({ "sandboxId": "box", "name": name, "organizationId": organization }).to_string()
    };
    refused(&host, "/snapshots/create", &create(&"x".repeat(400), json!("org")), 400);
    refused(&host, "/snapshots/create", &create("", json!("org")), 400);
    refused(&host, "/snapshots/create", &create("ubuntu-base.1", Value::Null), 409);
    assert!(leftovers::of_copies(&host).is_empty());
}

#[test]
fn a_crash_while_it_is_made_leaves_nothing_that_has_a_name() {
    let host = host("overlay");
    let runner = host.runner();
    let marks = marked(&host, "box");
    host.in_guest("box", "touch-ram 16");
    let job = host.api.snapshot_sandbox("box", "cut", true).unwrap();
    let temporary = || tree(&host.path("snap")).into_iter().find(|path| path.starts_with(".tmp-"));
    eventually("the snapshot is being written", temporary);
    runner.murder();
    assert!(temporary().is_some(), "it was too fast to be cut off");
    assert!(!host.path("snap/sim-organization/cut").exists());
    let again = host.spawn();
    eventually("what was cut off is gone, and made anew by its job", || {
        let tree = tree(&host.path("snap"));
        let left = tree.iter().any(|path| path.starts_with(".tmp-"));
        (!left && tree.contains(&"sim-organization/cut/manifest.json".to_owned())).then_some(())
    });
    host.completed(&job);
    marks.still_runs(&host, "box");
    make(&host, &from(&host, "child", "sim-organization/cut"));
    marks.went_on(&host, "child");
    drop(again);
}

#[test]
fn what_is_damaged_is_refused_by_name() {
    let host = host("reflink");
    let _runner = host.runner();
    marked(&host, "box");
    take(&host, "box", "good", true);
    for (name, words) in [
        ("memory", "manifest says"),
        ("disk.raw", "manifest says"),
        ("state.json", "it is missing"),
        ("manifest.json", "manifest"),
    ] {
        let dir = host.path("snap/org/bad");
        let copied =
            Command::new("cp").args(["-r", "--sparse=always"]).arg(host.path("snap/org/good")).arg(&dir).status();
        assert!(copied.unwrap().success());
        let manifest = std::fs::read_to_string(dir.join("manifest.json")).unwrap();
        std::fs::write(dir.join("manifest.json"), manifest.replace("org/good", "org/bad")).unwrap();
        let path = dir.join(name);
        if words == "it is missing" {
            std::fs::remove_file(&path).unwrap();
        } else {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(std::fs::metadata(&path).unwrap().len() / 2).unwrap();
        }
        let reason = failed(&host, &host.api.create_sandbox(&from(&host, "child", "org/bad")).unwrap());
        assert!(reason.contains(path.to_str().unwrap()) && reason.contains(words), "{name}: {reason}");
        let info = host.http().get("/snapshots/info?snapshot=org/bad");
        assert!(info.status >= 400 && info.body.contains(name), "{info:?}");
        assert_eq!(host.http().get("/sandboxes/child").status, 404);
        std::fs::remove_dir_all(&dir).unwrap();
    }
    assert_eq!(host.http().get("/snapshots/info?snapshot=org/none").status, 404);
    make(&host, &from(&host, "child", "org/good"));
}

#[test]
fn what_is_damaged_can_be_removed() {
    let host = host("reflink");
    let _runner = host.runner();
    marked(&host, "box");
    take(&host, "box", "bad", false);
    std::fs::OpenOptions::new().write(true).open(host.path("snap/org/bad/disk.raw")).unwrap().set_len(7).unwrap();
    let info = host.http().get("/snapshots/info?snapshot=org/bad");
    assert!(info.body.contains("remove the snapshot and take it again"), "{info:?}");
    assert_eq!(post(&host, "/snapshots/remove?snapshot=org/bad", ""), "Snapshot removed");
    take(&host, "box", "bad", false);
}

#[test]
fn a_full_volume_leaves_no_snapshot() {
    let host = host("overlay");
    let snap = host.path("snap");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&snap).status();
    assert!(mounted.unwrap().success());
    std::fs::create_dir(snap.join("ubuntu-base.1")).unwrap();
    std::fs::File::create(snap.join("ubuntu-base.1/disk.raw")).unwrap().set_len(64 << 20).unwrap();
    let _runner = host.runner();
    let marks = marked(&host, "box");
    let before = tree(&snap);
    host.in_guest("box", "touch-ram 8");
    let body = json!({ "sandboxId": "box", "name": "n", "organizationId": "org", "live": true }).to_string();
    let answer = host.http().post("/snapshots/create", &body);
    assert_eq!((answer.status, answer.json()["code"].as_str()), (507, Some("NO_SPACE")), "{answer:?}");
    assert_eq!(tree(&snap), before);
    marks.still_runs(&host, "box");
    assert!(leftovers::of_copies(&host).is_empty(), "{:?}", leftovers::of_copies(&host));
}
