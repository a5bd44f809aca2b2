//! Snapshots on real file systems.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use tempfile::TempDir;

use super::digest::sha256;
use super::{Error, FORMAT, FileSnapshots, Save, SaveMemory, Snapshots};
use crate::disk::{Format, RootDisk};
use crate::error::{ErrorCode, Failure};
use crate::hypervisor::Version;
use crate::ids::SnapshotRef;

const MIB: u64 = 1 << 20;

struct Place {
    root: PathBuf,
    work: PathBuf,
    snapshots: FileSnapshots,
    _directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let base = directory.path().canonicalize().unwrap();
        let (root, work) = (base.join("snapshots"), base.join("work"));
        fs::create_dir(&work).unwrap();
        let snapshots = FileSnapshots::open(&root).unwrap();
        Self { root, work, snapshots, _directory: directory }
    }

    /// A cold save of a raw disk with some data.
    fn cold(&self, reference: &str) -> Save {
        let path = self.work.join("frozen.raw");
        let disk = File::create(&path).unwrap();
        disk.set_len(4 * MIB).unwrap();
        disk.write_all_at(&[7; 100_000], MIB + 17).unwrap();
        let size = 4 * MIB;
        Save {
            reference: name(reference),
            name: "my snapshot:1".into(),
            source: "box".parse().unwrap(),
            parent: None,
            created_at: 1_700_000_000_123,
            vcpus: 2,
            memory: MIB,
            disk: RootDisk { path, format: Format::Raw, backed: false, size, base: "/b".into(), layers: Vec::new() },
            warm: None,
        }
    }

    fn warm(&self, reference: &str) -> Save {
        let (file, device) = (self.work.join("memory"), self.work.clone());
        let memory = File::create(&file).unwrap();
        memory.set_len(2 * MIB).unwrap();
        memory.write_all_at(&[9; 5000], MIB).unwrap();
        fs::write(device.join("config.json"), "{\"a\":1}").unwrap();
        fs::write(device.join("state.json"), "{\"b\":2}").unwrap();
        let version = Version::parse("v53.0").unwrap();
        let warm = SaveMemory { file, device, version, mac: [2, 0, 0, 0, 0, 1] };
        Save { warm: Some(warm), ..self.cold(reference) }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(&self.root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn image(&self, path: &str) -> PathBuf {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, [1; 8192]).unwrap();
        path
    }
}

fn name(text: &str) -> SnapshotRef {
    text.parse().unwrap()
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> Failure {
    answer.unwrap_err().into()
}

fn sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

#[test]
fn a_warm_snapshot_is_whole_and_is_found() {
    let place = Place::new();
    let save = place.warm("org/team/it:1");
    let manifest = wait(place.snapshots.save(&save)).unwrap();
    let dir = place.root.join("org/team/it:1");
    let found = wait(place.snapshots.find(&save.reference)).unwrap().unwrap();
    assert_eq!((found.dir.as_path(), found.created_at), (dir.as_path(), 1_700_000_000_123));
    assert_eq!((found.manifest.as_ref(), found.bytes), (Some(&manifest), manifest.bytes()));
    assert_eq!((manifest.format, manifest.name.as_str()), (FORMAT, "my snapshot:1"));
    let warm = manifest.warm.as_ref().unwrap();
    for (entry, original) in [(&manifest.disk, "frozen.raw"), (&warm.file, "memory"), (&warm.device[1], "state.json")] {
        let (path, original) = (dir.join(&entry.name), place.work.join(original));
        assert_eq!((&entry.sha256, &sum(&path)), (&sum(&original), &sum(&original)));
        let about = fs::metadata(&path).unwrap();
        assert_eq!((entry.length, entry.allocated), (about.len(), about.blocks() * 512));
    }
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
    for file in ["disk.raw", "manifest.json", "config.json"] {
        assert_eq!(fs::metadata(dir.join(file)).unwrap().mode() & 0o7777, 0o600);
    }
    assert_eq!(fs::metadata(dir.join("memory")).unwrap().nlink(), 2);
    assert!(fs::metadata(dir.join("disk.raw")).unwrap().blocks() * 512 < MIB);
    assert_eq!(place.names(), ["org"]);
    assert!(wait(place.snapshots.remove(&save.reference, &[])).unwrap());
    assert!(place.names().is_empty() && save.disk.path.exists() && place.work.join("memory").exists());
    assert!(!wait(place.snapshots.remove(&save.reference, &[])).unwrap());
    assert!(wait(place.snapshots.find(&save.reference)).unwrap().is_none());
}

#[test]
fn a_layered_disk_is_flattened_with_all_its_layers() {
    let place = Place::new();
    let (base, layer, top) = (place.work.join("b.raw"), place.work.join("l.qcow2"), place.work.join("t.qcow2"));
    fs::write(&base, vec![b'B'; 2 * MIB as usize]).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let create = |image: &Path, below: &Path, format: &str| {
        let (below, image) = (text(below), text(image));
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &below, "-F", format, &image, "8M"]);
    };
    create(&layer, &base, "raw");
    run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 76 1M 64k", &text(&layer)]);
    create(&top, &layer, "qcow2");
    run("qemu-io", &["-f", "qcow2", "-c", "write -q -P 84 6M 64k", "-c", "write -q -z 0 64k", &text(&top)]);
    let disk = RootDisk { path: top.clone(), format: Format::Qcow2, backed: true, ..place.cold("x").disk };
    let manifest = wait(place.snapshots.save(&Save { disk, ..place.cold("flat") })).unwrap();
    assert_eq!((manifest.disk.length, manifest.warm), (8 * MIB, None));
    let made = place.root.join("flat/disk.raw");
    run("qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "raw", &text(&top), &text(&made)]);
    assert_eq!(sum(&made), manifest.disk.sha256);
}

#[test]
fn digests_are_those_of_the_whole_content() {
    let place = Place::new();
    let path = place.work.join("f");
    for (length, at) in [
        (0, None),
        (5, None),
        (3 * MIB + 1, None),
        (3 * MIB + 1, Some(MIB)),
        (2 * MIB, Some(0)),
        (2 * MIB, Some(2 * MIB - 9)),
    ] {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        if let Some(at) = at {
            file.write_all_at(b"something", at).unwrap();
        }
        assert_eq!(sha256(&file, &|| false).unwrap().unwrap(), sum(&path));
    }
    assert_eq!(sha256(&File::open(&path).unwrap(), &|| true).unwrap(), None);
}

#[test]
fn a_name_is_given_once_in_any_layout() {
    let place = Place::new();
    wait(place.snapshots.save(&place.cold("a/b"))).unwrap();
    place.image("flat.qcow2");
    place.image("by-hand/disk.qcow2");
    for taken in ["a/b", "flat", "by-hand", "a"] {
        let failure = refused(wait(place.snapshots.save(&place.cold(taken))));
        assert_eq!(failure.code, ErrorCode::Conflict, "{failure}");
        assert!(failure.message.contains("exists already"), "{failure}");
    }
    for odd in ["a/b/c", "by-hand/x", "new.raw", "new.qcow2"] {
        let failure = refused(wait(place.snapshots.save(&place.cold(odd))));
        assert_eq!(failure.code, ErrorCode::UnprocessableEntity, "{failure}");
    }
    assert_eq!(place.names(), ["a", "by-hand", "flat.qcow2"]);
    let saves = [place.cold("twice/x"), place.cold("twice/x")];
    let both = wait(futures::future::join_all(saves.iter().map(|save| place.snapshots.save(save))));
    assert_eq!(both.iter().filter(|answer| answer.is_ok()).count(), 1);
    // Left by a crash between making the parent and the rename.
    fs::create_dir_all(place.root.join("empty/e")).unwrap();
    wait(place.snapshots.save(&place.cold("empty/e"))).unwrap();
    assert!(!place.names().iter().any(|name| name.starts_with('.')));
}

#[test]
fn what_fails_leaves_nothing() {
    let place = Place::new();
    let missing = RootDisk { path: place.work.join("none"), ..place.cold("x").disk };
    let failure = refused(wait(place.snapshots.save(&Save { disk: missing, ..place.cold("p/q/x") })));
    assert!(failure.message.contains("none"), "{failure}");
    let mut save = place.warm("p/q/x");
    fs::remove_file(place.work.join("state.json")).unwrap();
    assert!(refused(wait(place.snapshots.save(&save))).message.contains("state.json"));
    save.warm.as_mut().unwrap().file = place.work.clone();
    assert!(refused(wait(place.snapshots.save(&save))).message.contains("not a regular file"));
    place.snapshots.stop();
    assert_eq!(refused(wait(place.snapshots.save(&place.cold("x")))).code, ErrorCode::Interrupted);
    assert!(place.names().is_empty());
}

#[test]
fn images_put_there_by_hand_are_found() {
    let place = Place::new();
    for (path, reference, dir) in [
        ("one/disk.qcow2", "one", "one"),
        ("org/two/disk.raw", "org/two", "org/two"),
        ("org/three.qcow2", "org/three", "org/three.qcow2"),
        ("four.raw", "four", "four.raw"),
    ] {
        let image = place.image(path);
        let found = wait(place.snapshots.find(&name(reference))).unwrap().unwrap();
        assert_eq!((found.dir, found.manifest.is_none(), found.bytes), (place.root.join(dir), true, 8192));
        assert_eq!(found.created_at / 1000, fs::metadata(&image).unwrap().mtime() as u64);
        assert!(wait(place.snapshots.remove(&name(reference), &[])).unwrap());
        assert!(!image.exists());
    }
    assert!(place.names().is_empty());
}

#[test]
fn a_bad_manifest_or_file_is_named() {
    let place = Place::new();
    let reference = name("it");
    wait(place.snapshots.save(&place.warm("it"))).unwrap();
    let (manifest, dir) = (place.root.join("it/manifest.json"), place.root.join("it"));
    let good = fs::read_to_string(&manifest).unwrap();
    let other = good.replace("\"reference\": \"it\"", "\"reference\": \"other\"");
    let escape = good.replace("\"disk.raw\"", "\"../x\"");
    for (text, words) in [
        ("", "EOF"),
        ("{}", "format"),
        ("{\"format\":99,\"future\":true}", "format 99"),
        ("{\"format\":1}", "missing field"),
        (other.as_str(), "snapshot other"),
        (escape.as_str(), "../x"),
    ] {
        fs::write(&manifest, text).unwrap();
        let failure = refused(wait(place.snapshots.find(&reference)));
        assert_eq!(failure.code, ErrorCode::UnprocessableEntity, "{failure}");
        assert!(failure.message.contains(words) && failure.message.contains("manifest.json"), "{words}: {failure}");
    }
    fs::write(&manifest, good).unwrap();
    for file in ["config.json", "disk.raw", "memory"] {
        let (path, away) = (dir.join(file), dir.join("away"));
        fs::rename(&path, &away).unwrap();
        let failure = refused(wait(place.snapshots.find(&reference)));
        assert!(failure.message.contains(file) && failure.message.contains("missing"), "{failure}");
        fs::write(&path, "short").unwrap();
        let failure = refused(wait(place.snapshots.find(&reference)));
        assert!(failure.message.contains(file) && failure.message.contains("5 bytes"), "{failure}");
        fs::rename(&away, &path).unwrap();
    }
    assert!(wait(place.snapshots.find(&reference)).unwrap().is_some());
    fs::write(&manifest, "").unwrap();
    assert!(wait(place.snapshots.remove(&reference, &[])).unwrap(), "a damaged one can be removed");
}

#[test]
fn a_snapshot_in_use_stays() {
    let place = Place::new();
    wait(place.snapshots.save(&place.cold("it"))).unwrap();
    let users = ["box1".parse().unwrap(), "box2".parse().unwrap()];
    let failure = refused(wait(place.snapshots.remove(&name("it"), &users)));
    assert_eq!(failure.code, ErrorCode::Conflict);
    assert!(failure.message.contains("box1, box2"), "{failure}");
    let image = File::open(place.root.join("it/disk.raw")).unwrap();
    let lock = libc::flock { l_type: libc::F_RDLCK as i16, l_whence: 0, l_start: 0, l_len: 101, l_pid: 0 };
    fcntl(&image, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    let failure = refused(wait(place.snapshots.remove(&name("it"), &[])));
    assert_eq!(failure.code, ErrorCode::Conflict);
    assert!(failure.message.contains("locked"), "{failure}");
    assert_eq!(place.names(), ["it"]);
    place.image("outer/disk.raw");
    place.image("outer/inner/disk.raw");
    let failure = refused(wait(place.snapshots.remove(&name("outer"), &[])));
    assert!(failure.code == ErrorCode::Conflict && failure.message.contains("inner/disk.raw"), "{failure}");
    place.image("shelf/one/disk.raw");
    assert!(!wait(place.snapshots.remove(&name("shelf"), &[])).unwrap(), "a shelf is no snapshot");
    assert!(place.root.join("shelf/one/disk.raw").exists());
}

#[test]
fn links_lead_nowhere() {
    let place = Place::new();
    let precious = place.work.join("precious/disk.raw");
    fs::create_dir(precious.parent().unwrap()).unwrap();
    fs::write(&precious, "x").unwrap();
    symlink(precious.parent().unwrap(), place.root.join("link")).unwrap();
    symlink(&place.work, place.root.join("way")).unwrap();
    assert!(refused(wait(place.snapshots.find(&name("link")))).message.contains("symbolic link"));
    assert!(refused(wait(place.snapshots.remove(&name("way/precious"), &[]))).message.contains("symbolic link"));
    fs::create_dir(place.work.join("bare")).unwrap();
    for way in ["way/new", "way/sub/new", "way/bare/new"] {
        assert!(refused(wait(place.snapshots.save(&place.cold(way)))).message.contains("symbolic link"));
    }
    assert!(!place.work.join("new").exists() && !place.work.join("sub").exists() && place.work.join("bare").exists());
    assert!(wait(place.snapshots.remove(&name("link"), &[])).unwrap());
    assert!(precious.exists());
    assert_eq!(place.names(), ["way"]);
}

#[test]
fn a_start_removes_temporary_names_only() {
    let place = Place::new();
    wait(place.snapshots.save(&place.cold("it"))).unwrap();
    fs::create_dir(place.root.join(".tmp-1")).unwrap();
    fs::write(place.root.join(".tmp-1/disk.raw"), "x").unwrap();
    fs::write(place.root.join(".tmp-2"), "x").unwrap();
    symlink(&place.work, place.root.join(".tmp-3")).unwrap();
    fs::write(place.root.join(".other"), "x").unwrap();
    assert_eq!(wait(place.snapshots.sweep()).unwrap(), 3);
    assert_eq!(wait(place.snapshots.sweep()).unwrap(), 0);
    assert_eq!(place.names(), [".other", "it"]);
    assert!(place.work.exists());
}
