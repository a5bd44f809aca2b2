//! What the tests of this module share: a namespace, a directory, and a binary to start.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::{CloudHypervisor, Settings};
use crate::hypervisor::Launch;
use crate::net::Namespace;

/// Longest time any wait of a test may take.
pub const LONG: Duration = Duration::from_secs(20);

/// A sandbox's directory and namespace for one test.
pub struct Bench {
    pub launch: Launch,
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch {
            sandbox: "bench".parse().unwrap(),
            socket: dir.path().join("bench.sock"),
            dir: dir.path().to_owned(),
            netns: Some(namespace()),
        };
        Self { launch, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program for CH_BINARY that is a shell script.
    pub fn script(&self, text: &str) -> CloudHypervisor {
        let path = self.path("fake-hypervisor");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        hypervisor(&path)
    }

    /// The simulator with variables set; its own environment is reduced by the launcher.
    pub fn simulator_with(&self, variables: &str) -> CloudHypervisor {
        self.script(&format!("{variables} exec '{}' \"$@\"", simulator().display()))
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn assert_nothing_left(&self) {
        assert!(!self.launch.socket.exists(), "the socket is left");
        assert!(!super::peer::lock_of(&self.launch.socket).exists(), "the lock file is left");
    }
}

impl Drop for Bench {
    /// A test that fails leaves no process behind.
    fn drop(&mut self) {
        for peer in super::peer::started_for(&self.launch.socket).unwrap_or_default() {
            let _ = rustix::process::pidfd_send_signal(&peer.pidfd, rustix::process::Signal::KILL);
        }
    }
}

/// A hypervisor with short deadlines.
pub fn hypervisor(binary: &Path) -> CloudHypervisor {
    let mut settings = Settings::new(binary);
    settings.term = Duration::from_secs(3);
    CloudHypervisor::new(settings)
}

/// A fresh namespace without a name; it lives as long as its descriptor or a process in it.
fn namespace() -> Namespace {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    Namespace::from_fd("ns-bench".parse().unwrap(), made.join().unwrap().into())
}

/// The simulator's binary: CH_SIM_BINARY, or what cargo built next to this test.
pub fn simulator() -> PathBuf {
    let path = std::env::var_os("CH_SIM_BINARY").map_or_else(beside_this_test, PathBuf::from);
    assert!(path.exists(), "{} is not there; build it with: cargo build -p ch-sim", path.display());
    path
}

fn beside_this_test() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/debug/deps/{test} -> target/debug/ch-sim
    test.ancestors().nth(2).unwrap().join("ch-sim")
}

/// The program under test where it makes a difference which: CH_BINARY, or the simulator.
pub fn hypervisor_binary() -> PathBuf {
    std::env::var_os("CH_BINARY").map_or_else(simulator, PathBuf::from)
}

/// Where [`counting_kernel`] counts, as a guest-physical address.
pub const COUNTER: u64 = 0x30_0000;

/// A guest that powers itself off at once. (The simulator only looks at a kernel's head and plays a guest of its
/// own.)
pub fn kernel() -> Vec<u8> {
    // mov dx, 0x600; mov al, 0x34 (enter S5); out dx, al; hlt; jmp to hlt
    elf(&[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4, 0xeb, 0xfd])
}

/// A guest that counts up in memory for ever and says each number on the serial line, as eight letters a to p.
pub fn counting_kernel() -> Vec<u8> {
    let code: [&[u8]; 9] = [
        // cli; mov dx, 0x3f8
        &[0xfa, 0x66, 0xba, 0xf8, 0x03],
        // next: inc dword [COUNTER]; mov ebx, [COUNTER]; mov ecx, 8
        &[0xff, 0x05, 0x00, 0x00, 0x30, 0x00],
        &[0x8b, 0x1d, 0x00, 0x00, 0x30, 0x00],
        &[0xb9, 0x08, 0x00, 0x00, 0x00],
        // digit: rol ebx, 4; mov al, bl; and al, 15; add al, 'a'; out dx, al; loop digit
        &[0xc1, 0xc3, 0x04, 0x88, 0xd8, 0x24, 0x0f, 0x04, 0x61, 0xee, 0xe2, 0xf4],
        // mov al, 10; out dx, al
        &[0xb0, 0x0a, 0xee],
        // mov ecx, 4096
        &[0xb9, 0x00, 0x10, 0x00, 0x00],
        // wait: pause; loop wait
        &[0xf3, 0x90, 0xe2, 0xfc],
        // jmp next
        &[0xeb, 0xd5],
    ];
    elf(&code.concat())
}

/// An ELF file with a PVH entry note, loaded at 2 MiB and entered in 32-bit mode.
fn elf(code: &[u8]) -> Vec<u8> {
    const BASE: u32 = 0x20_0000;
    const NOTE: u32 = 64 + 2 * 56;
    const CODE: u32 = NOTE + 20;
    let end = u64::from(CODE) + code.len() as u64;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let words = |elf: &mut Vec<u8>, words: &[u16]| words.iter().for_each(|word| elf.extend(word.to_le_bytes()));
    let longs = |elf: &mut Vec<u8>, longs: &[u64]| longs.iter().for_each(|long| elf.extend(long.to_le_bytes()));
    // Executable, x86-64, version 1; entry, program headers at 64, no sections.
    words(&mut elf, &[2, 62, 1, 0]);
    longs(&mut elf, &[u64::from(BASE + CODE), 64, 0]);
    words(&mut elf, &[0, 0, 64, 56, 2, 0, 0, 0]);
    // PT_LOAD, readable and executable, the whole file.
    words(&mut elf, &[1, 0, 5, 0]);
    longs(&mut elf, &[0, BASE.into(), BASE.into(), end, end, 4096]);
    // PT_NOTE.
    words(&mut elf, &[4, 0, 4, 0]);
    longs(&mut elf, &[NOTE.into(), (BASE + NOTE).into(), (BASE + NOTE).into(), 20, 20, 4]);
    // Xen's note 18: physical address of the 32-bit entry.
    for word in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), BASE + CODE] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}
