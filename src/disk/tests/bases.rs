//! Finding, checking and locking bases.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::Room;
use super::room::{MIB, eventually, plan, qemu_io, refused, run, text, wait};
use crate::disk::{Disks, FileDisks, StrategySetting};
use crate::error::{ErrorCode, Failure};

/// Locks a file as a running hypervisor does.
pub fn lock_exclusively(path: &Path) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let all =
        libc::flock { l_type: libc::F_WRLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&all)).unwrap();
    file
}

fn create(room: &Room, base: Option<&str>, size: u64) -> Result<crate::disk::SandboxDisks, Failure> {
    let disks = room.disks(StrategySetting::Overlay);
    let answer = wait(disks.create(&plan("one", base, size))).map_err(Failure::from);
    if answer.is_err() {
        assert!(room.left().is_empty());
    }
    answer
}

fn unprocessable(room: &Room, base: Option<&str>, words: &[&str]) {
    let failure = create(room, base, 64).unwrap_err();
    assert_eq!(failure.code, ErrorCode::UnprocessableEntity, "{failure}");
    for words in words {
        assert!(failure.message.contains(words), "{words:?} is not in: {failure}");
    }
}

#[test]
fn both_layouts_of_the_guide_work_whichever_is_configured() {
    for (there, configured) in [
        ("ubuntu-base.1.qcow2", "ubuntu-base.1/disk.qcow2"),
        ("ubuntu-base.1/disk.qcow2", "ubuntu-base.1.qcow2"),
        ("ubuntu-base.1/disk.raw", "ubuntu-base.1.raw"),
    ] {
        let room = Room::new();
        let file = if there.ends_with("raw") { room.raw(there, 8, b'A') } else { room.qcow2(there, 8, b'A') };
        let mut settings = room.settings(StrategySetting::Overlay);
        settings.base_image = room.snapshots().join(configured);
        let disks = FileDisks::open(settings).unwrap();
        for base in [None, Some("ubuntu-base.1")] {
            assert_eq!(wait(disks.create(&plan("one", base, 8))).unwrap().root.base, file);
        }
        assert_eq!(disks.check_base(None).unwrap(), (file, 8 * MIB));
    }
}

#[test]
fn snapshots_are_looked_for_in_order() {
    let room = Room::new();
    for name in ["org/it.raw", "org/it.qcow2", "org/it/disk.qcow2", "org/it/disk.raw"] {
        let file = if name.ends_with("raw") { room.raw(name, 8, b'A') } else { room.qcow2(name, 8, b'A') };
        assert_eq!(create(&room, Some("org/it"), 8).unwrap().root.base, file);
    }
    assert_eq!(wait(room.disks(StrategySetting::Overlay).snapshot_count()).unwrap(), 1);
}

#[test]
fn what_is_missing_is_named_with_all_paths_and_a_remedy() {
    let room = Room::new();
    unprocessable(
        &room,
        None,
        &["CH_BASE_IMAGE_PATH", "snapshots/ubuntu-base.1/disk.qcow2", "snapshots/ubuntu-base.1.qcow2"],
    );
    room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let paths = ["org/it/disk.raw", "org/it/disk.qcow2", "org/it.qcow2", "org/it.raw", "snapshot org/it", "pull"];
    unprocessable(&room, Some("org/it"), &paths);
    unprocessable(&room, Some(&"x".repeat(250)), &["is not on this host"]);
}

#[test]
fn links_out_of_the_snapshots_are_refused_and_links_within_are_followed() {
    let room = Room::new();
    let outside = room.root.join("secret.raw");
    fs::write(&outside, [1; 512]).unwrap();
    room.place("x");
    symlink(&outside, room.snapshots().join("leak.raw")).unwrap();
    symlink("../secret.raw", room.snapshots().join("relative.raw")).unwrap();
    symlink("..", room.snapshots().join("up")).unwrap();
    for base in ["leak", "relative", "up/secret"] {
        unprocessable(&room, Some(base), &["leads out of the snapshots directory", text(&room.snapshots())]);
    }
    let real = room.qcow2("v1.qcow2", 8, b'A');
    symlink("v1.qcow2", room.snapshots().join("current.qcow2")).unwrap();
    assert_eq!(create(&room, Some("current"), 8).unwrap().root.base, real);
}

#[test]
fn a_backing_file_outside_the_snapshots_is_refused_for_a_snapshot() {
    let room = Room::new();
    let outside = room.root.join("host.raw");
    fs::write(&outside, [1; 1 << 20]).unwrap();
    let evil = room.place("evil.qcow2");
    for below in [text(&outside), "../host.raw"] {
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", text(&evil), "8M"]);
        unprocessable(&room, Some("evil"), &["leads out of the snapshots directory", "host.raw"]);
    }
    // The operator's own base image may lie and lead anywhere.
    let mut settings = room.settings(StrategySetting::Overlay);
    settings.base_image = evil;
    assert!(FileDisks::open(settings).unwrap().check_base(None).is_ok());
}

#[test]
fn a_raw_file_is_raw_whatever_a_guest_wrote_into_it() {
    let room = Room::new();
    let fake = room.qcow2("inner.qcow2", 8, b'A');
    fs::rename(fake, room.snapshots().join("guest.raw")).unwrap();
    let made = create(&room, Some("guest"), 64).unwrap();
    assert!(run("qemu-img", &["info", text(&made.root.path)]).contains("backing file format: raw"));
}

type Damage<'a> = &'a dyn Fn(&File);

#[test]
fn damaged_images_are_refused_in_words() {
    let room = Room::new();
    let good = room.qcow2("good.qcow2", 64, b'A');
    let bad = room.place("ubuntu-base.1/disk.qcow2");
    let damage = |what: &dyn Fn(&File)| {
        fs::write(&bad, fs::read(&good).unwrap()).unwrap();
        what(&File::options().write(true).open(&bad).unwrap());
    };
    let length = fs::metadata(&good).unwrap().len();
    let poke = |at: u64, bytes: &'static [u8]| move |file: &File| file.write_all_at(bytes, at).unwrap();
    let cut = |length: u64| move |file: &File| file.set_len(length).unwrap();
    let cases: [(Damage<'_>, &str); 13] = [
        (&poke(0, b"XXXX"), "does not begin like one"),
        (&poke(4, &[0, 0, 0, 9]), "version is 9"),
        (&poke(20, &[0, 0, 0, 99]), "cluster_bits 99"),
        (&poke(24, &[0; 8]), "virtual size of 0 bytes"),
        (&poke(24, &[0x3f, 0, 0, 0, 0, 0, 0, 0]), "L1 table"),
        (&poke(32, &[0, 0, 0, 1]), "encrypted"),
        (&poke(79, &[1]), "qemu-img check"),
        (&poke(79, &[2]), "marked corrupt"),
        (&poke(79, &[4]), "another file"),
        (&poke(78, &[1]), "not known here"),
        (&cut(length - 2 * MIB), "copy it again"),
        (&cut(50), "ends inside its own header"),
        (&cut(0), "does not begin like one"),
    ];
    for (what, words) in cases {
        damage(what);
        unprocessable(&room, None, &[words, text(&bad)]);
    }
}

#[test]
fn odd_raw_images_and_files_that_are_none_are_refused() {
    let room = Room::new();
    fs::write(room.place("empty.raw"), []).unwrap();
    fs::write(room.place("odd.raw"), [1; 700]).unwrap();
    unprocessable(&room, Some("empty"), &["is empty"]);
    unprocessable(&room, Some("odd"), &["700 bytes", "multiple of 512"]);
    nix::unistd::mkfifo(&room.place("pipe.raw"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(room.place("folder.raw")).unwrap();
    for base in ["pipe", "folder"] {
        let failure = create(&room, Some(base), 8).unwrap_err();
        assert!(failure.message.contains("not a regular file"), "{failure}");
    }
}

#[test]
fn chains_end() {
    let room = Room::new();
    let mut below = room.raw("level0.raw", 8, b'A');
    for level in 1..=8 {
        let image = room.place(&format!("level{level}.qcow2"));
        let format = if level == 1 { "raw" } else { "qcow2" };
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&below), "-F", format, text(&image), "8M"]);
        below = image;
    }
    let deep = create(&room, Some("level7"), 8).unwrap();
    qemu_io(&deep.root.path, "qcow2", "read -P 65 1M 1M");
    unprocessable(&room, Some("level8"), &["more than 8 images"]);
    fs::remove_file(room.snapshots().join("level0.raw")).unwrap();
    unprocessable(&room, Some("level3"), &["backing file", "level0.raw", "missing"]);
}

#[test]
fn sizes_are_checked() {
    let room = Room::new();
    room.qcow2("ubuntu-base.1/disk.qcow2", 64, b'A');
    let failure = create(&room, None, 32).unwrap_err();
    assert_eq!(failure.code, ErrorCode::UnprocessableEntity);
    for words in ["67108864", "33554432", "storageQuota"] {
        assert!(failure.message.contains(words), "{failure}");
    }
    let mut odd = plan("one", None, 64);
    odd.size += 1;
    let failure = refused(wait(room.disks(StrategySetting::Overlay).create(&odd)));
    assert_eq!(failure.code, ErrorCode::BadRequest);
}

/// A process that holds a lock on the file until its input ends.
fn locker(path: &Path, kind: &str) -> Child {
    let script = "import fcntl, struct, sys\n\
                  f = open(sys.argv[1], 'r+b')\n\
                  k = {'write': fcntl.F_WRLCK, 'read': fcntl.F_RDLCK}[sys.argv[2]]\n\
                  fcntl.fcntl(f, 37, struct.pack('hhqqi4x', k, 0, 0, 0, 0))\n\
                  print('locked', flush=True)\n\
                  sys.stdin.read()\n";
    let mut child = Command::new("python3")
        .args(["-c", script, text(path), kind])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 7];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn a_base_that_somebody_writes_to_is_refused_with_a_name() {
    let room = Room::new();
    let base = room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let reader = locker(&base, "read");
    assert!(create(&room, None, 8).is_ok());
    wait(room.disks(StrategySetting::Overlay).remove(&"one".parse().unwrap())).unwrap();
    end(reader);
    // A hypervisor marks its image dirty while it runs; the lock is the better news.
    let mark = |bits: u8| File::options().write(true).open(&base).unwrap().write_all_at(&[bits], 79).unwrap();
    mark(1);
    let writer = locker(&base, "write");
    let failure = create(&room, None, 8).unwrap_err();
    assert_eq!(failure.code, ErrorCode::Conflict);
    assert!(failure.message.contains(&format!("process {} (python3", writer.id())), "{failure}");
    end(writer);
    mark(0);
    assert!(create(&room, None, 8).is_ok());
}

#[test]
fn a_base_that_qemu_writes_to_is_refused() {
    let room = Room::new();
    let base = room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let mut writer = Command::new("qemu-io")
        .args(["-f", "qcow2", text(&base)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
    // The answer to a command: the image is open.
    let said = BufReader::new(writer.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    assert!(said.into_iter().any(|line| line.contains("8 MiB")));
    let failure = create(&room, None, 8).unwrap_err();
    assert!(failure.message.contains(&format!("process {} (qemu-io", writer.id())), "{failure}");
    end(writer);
    assert!(create(&room, None, 8).is_ok());
}

#[test]
fn a_base_in_use_cannot_be_booted_read_write_until_the_last_sandbox_goes() {
    let room = Room::new();
    let base = room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let disks = room.disks(StrategySetting::Overlay);
    let free = || {
        let file = File::options().read(true).write(true).open(&base).unwrap();
        let all = libc::flock { l_type: 1, l_whence: 0, l_start: 0, l_len: 8 << 20, l_pid: 0 };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&all)).is_ok()
    };
    eventually("the new base's lock is free", free);
    let roots = ["one", "two"].map(|id| wait(disks.create(&plan(id, None, 8))).unwrap().root);
    wait(disks.remove(&"one".parse().unwrap())).unwrap();
    assert!(!free(), "two still stands on the base");
    drop(disks);
    eventually("the base's lock is free while the runner is down", free);
    let disks = room.disks(StrategySetting::Overlay);
    let two = "two".parse().unwrap();
    wait(disks.hold(&two, &roots[1])).unwrap();
    assert!(!free(), "held since the restart");
    wait(disks.remove(&two)).unwrap();
    eventually("the base's lock is free", free);
    let made = wait(disks.create(&plan("three", None, 8))).unwrap().root;
    fs::remove_file(&base).unwrap();
    let missing = refused(wait(disks.hold(&"three".parse().unwrap(), &made)));
    assert_eq!(missing.code, ErrorCode::UnprocessableEntity);
}

#[test]
fn a_base_that_changes_below_its_overlays_gets_no_more_of_them() {
    let room = Room::new();
    let base = room.qcow2("ubuntu-base.1/disk.qcow2", 8, b'A');
    let disks = room.disks(StrategySetting::Overlay);
    wait(disks.create(&plan("one", None, 8))).unwrap();
    File::options().append(true).open(&base).unwrap().set_len(fs::metadata(&base).unwrap().len() + 512).unwrap();
    let failure = refused(wait(disks.create(&plan("two", None, 8))));
    assert_eq!(failure.code, ErrorCode::Conflict);
    wait(disks.remove(&"one".parse().unwrap())).unwrap();
    wait(disks.create(&plan("two", None, 8))).unwrap();
}

#[test]
fn snapshots_are_counted_by_name() {
    let room = Room::new();
    let disks = room.disks(StrategySetting::Overlay);
    assert_eq!(wait(disks.snapshot_count()).unwrap(), 0);
    let files = [
        "a/disk.raw",
        "a.qcow2",
        "org/b/disk.qcow2",
        "org/b/memory-ranges",
        "org/c.raw",
        "1/2/3/4/disk.raw",
        "1/2/3/4/5/disk.raw",
        "1/2/3/4/e.raw",
        ".hidden/disk.raw",
        "notes.txt",
    ];
    for file in files {
        fs::write(room.place(file), [1; 512]).unwrap();
    }
    symlink("/", room.snapshots().join("root")).unwrap();
    assert_eq!(wait(disks.snapshot_count()).unwrap(), 4);
}
