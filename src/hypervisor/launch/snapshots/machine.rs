//! A VMM with everything a VM needs, and a look into its guest's memory.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::hypervisor::launch::support::{
    Bench, COUNTER, LONG, counting_kernel, hypervisor, hypervisor_binary, simulator,
};
use crate::hypervisor::launch::{CloudHypervisor, Files};
use crate::hypervisor::snapshot::{Adaptation, RestoreMode};
use crate::hypervisor::wire::{ImageType, MemoryLayout, VmSpec};
use crate::hypervisor::{Error, Hypervisor, VmConfig, VmState, Vmm};

/// RAM of most guests here.
pub const RAM: u64 = 64 << 20;
/// Where the simulated guest keeps what it remembers: a magic number, a length, JSON.
const SIMULATED_STATE: u64 = 1 << 20;

/// Which guest it is, and how far it has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Mark {
    /// Random per boot in the simulator; the real tiny guest has none.
    pub boot: String,
    /// Grows while the guest runs.
    pub count: u64,
}

pub struct Machine {
    pub bench: Bench,
    pub hypervisor: CloudHypervisor,
    pub vmm: Rc<dyn Vmm>,
}

impl Machine {
    /// A VMM without a VM, and the files for one.
    pub async fn empty() -> Self {
        let bench = Bench::new();
        let hypervisor = hypervisor(&hypervisor_binary());
        Self::with(bench, hypervisor).await
    }

    pub async fn with(bench: Bench, hypervisor: CloudHypervisor) -> Self {
        for disk in ["root.raw", "seed.img"] {
            File::create(bench.path(disk)).unwrap().set_len(1 << 20).unwrap();
        }
        fs::write(bench.path("vmlinux"), counting_kernel()).unwrap();
        let vmm = hypervisor.launch(&bench.launch).await.unwrap_or_else(|error| panic!("{error}"));
        Self { bench, hypervisor, vmm }
    }

    /// A running VM whose memory file, if it has one, is `memory`, blank and read-only where that is enough.
    pub async fn booted(layout: impl Fn(PathBuf) -> MemoryLayout, memory_bytes: u64) -> Self {
        let machine = Self::empty().await;
        machine.boot(layout(machine.path("memory")), memory_bytes).await;
        machine
    }

    pub async fn boot(&self, layout: MemoryLayout, memory_bytes: u64) {
        blank(&self.path("memory"), memory_bytes);
        if matches!(layout, MemoryLayout::Private { .. }) {
            fs::set_permissions(self.path("memory"), Permissions::from_mode(0o400)).unwrap();
        }
        let spec = VmSpec {
            vcpus: 1,
            memory_bytes,
            layout,
            max_vcpus: 2,
            kernel: self.path("vmlinux"),
            initramfs: None,
            cmdline: "console=ttyS0".into(),
            root: (self.path("root.raw"), ImageType::Raw),
            backed: false,
            seed: self.path("seed.img"),
            tap: "tap0".into(),
            mac: "02:00:00:00:00:01".into(),
            serial: self.serial(),
        };
        self.vmm.create(&VmConfig::for_sandbox(spec, self.vmm.version())).await.unwrap();
        timed("boot", self.vmm.boot()).await.unwrap();
        self.says_more_than(0).await;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.bench.path(name)
    }

    fn serial(&self) -> PathBuf {
        Files::new(self.bench.dir.path()).serial()
    }

    /// A fresh directory.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }

    pub async fn state(&self) -> Option<VmState> {
        self.vmm.state().await.unwrap()
    }

    /// Bytes of serial output so far.
    pub fn said(&self) -> u64 {
        fs::metadata(self.serial()).unwrap().len()
    }

    pub async fn says_more_than(&self, bytes: u64) {
        let give_up = Instant::now() + LONG;
        while self.said() <= bytes {
            assert!(Instant::now() < give_up, "the guest is silent");
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// What makes a snapshot this machine's.
    pub fn adaptation(&self, mode: RestoreMode, memory: &Path, memory_bytes: u64) -> Adaptation {
        Adaptation {
            root: (self.path("root.raw"), ImageType::Raw),
            backed: false,
            seed: self.path("seed.img"),
            tap: "tap0".into(),
            serial: self.serial(),
            memory: memory.to_owned(),
            memory_bytes,
            mode,
        }
    }

    /// Adapts a snapshot, restores it and lets the guest run.
    pub async fn run_from(&self, snapshot: &Path, adaptation: &Adaptation) {
        let to = self.path("adapted");
        timed("adapt", self.hypervisor.adapt(snapshot, &to, adaptation)).await.unwrap();
        timed("restore", self.vmm.restore(&to)).await.unwrap();
        assert_eq!(self.state().await, Some(VmState::Paused));
        timed("resume", self.vmm.resume()).await.unwrap();
        assert_eq!(self.state().await, Some(VmState::Running));
    }

    /// Pauses and looks how far the guest has come, then lets it go on.
    pub async fn mark(&self, name: &str) -> Mark {
        let dir = self.dir(name);
        self.vmm.pause().await.unwrap();
        self.vmm.snapshot(&dir, crate::hypervisor::snapshot::SnapshotMemory::Written).await.unwrap();
        self.vmm.resume().await.unwrap();
        mark_in(&dir.join("memory-ranges"))
    }

    /// Parts of the process's memory that map `file`: start, end and offset in the file.
    pub fn mappings_of(&self, file: &Path) -> Vec<(u64, u64, u64)> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.vmm.identity().pid)).unwrap();
        let lines = maps.lines().filter(|line| line.ends_with(file.to_str().unwrap()));
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let mapping = |line: &str| {
            let mut fields = line.split_whitespace();
            let (start, end) = fields.next().unwrap().split_once('-').unwrap();
            (hex(start), hex(end), hex(fields.nth(1).unwrap()))
        };
        lines.map(mapping).collect()
    }

    /// The paused guest's memory, which is a private map of `base`, as a new file.
    pub fn copy_memory(&self, base: &Path, target: &Path) {
        let memory = File::open(format!("/proc/{}/mem", self.vmm.identity().pid)).unwrap();
        blank(target, fs::metadata(base).unwrap().len());
        let copy = File::options().write(true).open(target).unwrap();
        let mut piece = vec![0; 1 << 20];
        for (start, end, offset) in self.mappings_of(base) {
            for at in (start..end).step_by(piece.len()) {
                memory.read_exact_at(&mut piece, at).unwrap();
                if piece.iter().any(|&byte| byte != 0) {
                    copy.write_all_at(&piece, offset + (at - start)).unwrap();
                }
            }
        }
        fs::set_permissions(target, Permissions::from_mode(0o400)).unwrap();
    }
}

/// A sparse file of zeroes.
pub fn blank(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

/// Reads the guest's mark from a file with its memory.
pub fn mark_in(memory: &Path) -> Mark {
    let file = File::open(memory).unwrap();
    let bytes = |length: usize, at: u64| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    if hypervisor_binary() != simulator() {
        let count = bytes(4, COUNTER).try_into().unwrap();
        return Mark { boot: String::new(), count: u32::from_le_bytes(count).into() };
    }
    let length = u64::from_le_bytes(bytes(8, SIMULATED_STATE + 8).try_into().unwrap());
    let state = bytes(usize::try_from(length).unwrap(), SIMULATED_STATE + 16);
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    Mark { boot: state["boot_id"].as_str().unwrap().to_owned(), count: state["running_ms"].as_u64().unwrap() }
}

/// Waits for the result and tells how long it took, for those who read the test's output.
pub async fn timed<T>(what: &str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let begun = Instant::now();
    let result = work.await;
    println!("{what}: {:?}", begun.elapsed());
    result
}
