//! Places to work in: temporary directories, file systems in files, images.

use std::fs::{self, File};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::disk::{Error, FileDisks, Plan, Seed, Settings, StrategySetting};

pub const MIB: u64 = 1 << 20;

/// Mounts a file system at a path.
type Mount = Box<dyn Fn(&Path)>;

/// A data volume: a sandboxes and a snapshots directory.
pub struct Room {
    pub root: PathBuf,
    mounted: bool,
    _directory: TempDir,
}

impl Room {
    /// On the file system of the temporary directory.
    pub fn new() -> Self {
        Self::over(TempDir::new().unwrap(), None)
    }

    /// On an XFS of its own, in a file on a loop device.
    pub fn xfs() -> Self {
        let directory = TempDir::new().unwrap();
        let image = directory.path().join("volume.img");
        File::create(&image).unwrap().set_len(400 * MIB).unwrap();
        run("mkfs.xfs", &["-q", "-m", "reflink=1", image.to_str().unwrap()]);
        Self::over(directory, Some(Box::new(move |at| drop(run("mount", &["-o", "loop", text(&image), text(at)])))))
    }

    /// On a memory file system of `bytes`.
    pub fn tmpfs(bytes: u64) -> Self {
        let mount_it = move |at: &Path| {
            let options = format!("size={bytes}");
            mount(Some("runner-ch-test"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        };
        Self::over(TempDir::new().unwrap(), Some(Box::new(mount_it)))
    }

    fn over(directory: TempDir, mount_it: Option<Mount>) -> Self {
        let root = directory.path().canonicalize().unwrap().join("volume");
        fs::create_dir(&root).unwrap();
        if let Some(mount_it) = &mount_it {
            // A mount namespace of this thread alone: whatever happens, nothing outlives the process.
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
            mount_it(&root);
        }
        let room = Self { root, mounted: mount_it.is_some(), _directory: directory };
        fs::create_dir(room.snapshots()).unwrap();
        room
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    pub fn settings(&self, strategy: StrategySetting) -> Settings {
        Settings {
            sandboxes: self.sandboxes(),
            snapshots: self.snapshots(),
            base_image: self.snapshots().join("ubuntu-base.1/disk.qcow2"),
            strategy,
            guest_mtu: None,
        }
    }

    pub fn disks(&self, strategy: StrategySetting) -> FileDisks {
        FileDisks::open(self.settings(strategy)).unwrap()
    }

    /// A qcow2 image of `size` MiB below the snapshots with `letter`s in its second and its last MiB.
    pub fn qcow2(&self, name: &str, size: u64, letter: u8) -> PathBuf {
        let path = self.place(name);
        run("qemu-img", &["create", "-q", "-f", "qcow2", text(&path), &format!("{size}M")]);
        self.fill(&path, "qcow2", size, letter);
        path
    }

    /// The same, raw.
    pub fn raw(&self, name: &str, size: u64, letter: u8) -> PathBuf {
        let path = self.place(name);
        File::create(&path).unwrap().set_len(size * MIB).unwrap();
        self.fill(&path, "raw", size, letter);
        path
    }

    fn fill(&self, path: &Path, format: &str, size: u64, letter: u8) {
        for at in [1, size - 1] {
            qemu_io(path, format, &format!("write -P {letter} {at}M 1M"));
        }
    }

    /// A path below the snapshots whose directory exists.
    pub fn place(&self, name: &str) -> PathBuf {
        let path = self.snapshots().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// All names in the sandboxes directory that are not hidden.
    pub fn left(&self) -> Vec<String> {
        let names = fs::read_dir(self.sandboxes()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// All names among the flattened bases.
    pub fn copies(&self) -> Vec<String> {
        let bases = fs::read_dir(self.sandboxes().join(".bases")).unwrap();
        bases.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.mounted && umount2(&self.root, MntFlags::empty()).is_err() {
            if Instant::now() > deadline {
                // The loop device goes with the last open file.
                let _ = umount2(&self.root, MntFlags::MNT_DETACH);
                break;
            }
            std::thread::yield_now();
        }
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a tool to success; its output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One qemu-io command on an image; fails when a pattern does not match.
pub fn qemu_io(path: &Path, format: &str, command: &str) {
    let said = run("qemu-io", &["-f", format, "-c", command, text(path)]);
    assert!(!said.contains("failed"), "{command} on {path:?}: {said}");
}

/// The sum of a file's content, by a tool: unoptimised code would take seconds per file.
pub fn sha256(path: &Path) -> String {
    run("sha256sum", &[text(path)]).split(' ').next().unwrap().to_owned()
}

pub fn plan(id: &str, base: Option<&str>, size: u64) -> Plan {
    let seed = Seed {
        sandbox: id.parse().unwrap(),
        hostname: id.into(),
        mac: [2, 0, 0, 0, 0, 1],
        env: [("GREETING".to_owned(), "hello \"world\"\n".to_owned())].into(),
        os_user: "daytona".into(),
    };
    Plan { sandbox: id.parse().unwrap(), base: base.map(|base| base.parse().unwrap()), size: size * MIB, seed }
}

/// Runs a future as the daemon does: on a current-thread runtime.
pub fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The failure of something that must fail, as callers see it.
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> crate::error::Failure {
    answer.unwrap_err().into()
}

/// Waits for something to become true. Locks may outlast their file by a moment: a tool that another
/// test starts at the same time has copies of all open files until it runs.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not become true");
        std::thread::yield_now();
    }
}
