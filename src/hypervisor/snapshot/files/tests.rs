use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use serde_json::json;

use super::*;
use crate::hypervisor::wire::ImageType;

const RAM: u64 = 1 << 20;

struct Bench {
    dir: tempfile::TempDir,
    adaptation: Adaptation,
}

impl Bench {
    fn new(mode: RestoreMode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("from")).unwrap();
        let config = json!({
            "memory": {"size": RAM, "shared": true},
            "disks": [{"id": "root", "path": "/p/root"}, {"id": "seed", "path": "/p/seed"}],
            "net": [{"id": "net0", "tap": "tap0"}],
            "serial": {"mode": "File", "file": "/p/serial.log"}
        });
        fs::write(path("from/config.json"), config.to_string()).unwrap();
        let manager = json!({
            "memory_ranges": {"data": [{"gpa": 0, "length": RAM}]},
            "guest_ram_mappings": [{"slot": 0, "gpa": 0, "size": RAM, "zone_id": "mem0", "file_offset": 0}]
        });
        let manager = json!({"snapshot_data": {"state": manager.to_string()}});
        fs::write(path("from/state.json"), json!({"snapshots": {"memory-manager": manager}}).to_string()).unwrap();
        File::create(path("memory")).unwrap().set_len(RAM).unwrap();
        let adaptation = Adaptation {
            root: (path("root.raw"), ImageType::Raw),
            backed: false,
            seed: path("seed.img"),
            tap: "tap1".into(),
            serial: path("serial.log"),
            memory: path("memory"),
            memory_bytes: RAM,
            mode,
        };
        Self { dir, adaptation }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn adapt(&self) -> Result<(), Error> {
        adapt(&self.path("from"), &self.path("to"), &self.adaptation)
    }

    /// The error of an adaptation that must fail, with everything that was there still there.
    fn fails(&self) -> String {
        let error = self.adapt().unwrap_err();
        assert!(self.path("memory").symlink_metadata().is_ok());
        crate::error::chain(&error)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_directory_for_a_private_map() {
    let bench = Bench::new(RestoreMode::Map);
    let before = fs::read(bench.path("from/config.json")).unwrap();
    bench.adapt().unwrap();
    assert_eq!((mode(&bench.path("to")), mode(&bench.path("to/config.json"))), (0o700, 0o600));
    assert_eq!(mode(&bench.path("to/state.json")), 0o600);
    assert_eq!(fs::read_dir(bench.path("to")).unwrap().count(), 2, "the memory stays where it is");
    assert_eq!(bench.json("to/config.json")["memory"]["zones"][0]["file"], json!(bench.path("memory")));
    assert_eq!(fs::read(bench.path("from/config.json")).unwrap(), before);
    check_complete(&bench.path("to")).unwrap();
}

#[test]
fn a_directory_for_a_copy_has_the_memory_and_is_emptied_before() {
    let bench = Bench::new(RestoreMode::Copy);
    fs::create_dir_all(bench.path("to/old")).unwrap();
    fs::write(bench.path("to/old/file"), "x").unwrap();
    for _ in 0..2 {
        bench.adapt().unwrap();
        let (one, other) = (fs::metadata(bench.path("memory")).unwrap(), fs::metadata(bench.path("to/memory-ranges")));
        assert_eq!(one.ino(), other.unwrap().ino());
        assert_eq!(fs::read_dir(bench.path("to")).unwrap().count(), 3);
    }
}

#[test]
fn memory_on_another_file_system_is_linked_by_name() {
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut bench = Bench::new(RestoreMode::Copy);
    bench.adaptation.memory = elsewhere.path().join("memory");
    File::create(&bench.adaptation.memory).unwrap().set_len(RAM).unwrap();
    bench.adapt().unwrap();
    assert_eq!(fs::metadata(bench.path("to/memory-ranges")).unwrap().len(), RAM);
}

#[test]
fn nothing_that_is_needed_is_removed() {
    let mut bench = Bench::new(RestoreMode::Map);
    let error = adapt(&bench.path("from"), &bench.path("from"), &bench.adaptation).unwrap_err();
    assert!(matches!(error, Error::SnapshotDir { .. }), "{error}");
    let error = adapt(&bench.path("from"), bench.dir.path(), &bench.adaptation).unwrap_err();
    assert!(matches!(error, Error::SnapshotDir { .. }), "{error}");
    assert!(bench.path("from/state.json").exists());
    // Also where a symbolic link leads there.
    symlink(bench.path("from"), bench.path("to")).unwrap();
    assert!(bench.fails().contains("would be removed"));
    fs::remove_file(bench.path("to")).unwrap();
    fs::write(bench.path("to"), "a file").unwrap();
    assert!(bench.fails().contains("it is no directory"), "{}", bench.fails());
    bench.adaptation.seed = "relative".into();
    assert!(bench.fails().contains("not absolute"));
}

#[test]
fn errors_name_the_file_and_leave_the_target_alone() {
    let bench = Bench::new(RestoreMode::Map);
    bench.adapt().unwrap();
    let kept = fs::metadata(bench.path("to")).unwrap().ino();
    File::options().write(true).open(bench.path("memory")).unwrap().set_len(RAM - 1).unwrap();
    let short = bench.fails();
    assert!(short.contains("/memory does not fit: expected a file of 1048576 bytes, found 1048575 bytes"), "{short}");
    fs::write(bench.path("from/state.json"), "{\"snapshots\": {}}").unwrap();
    let other = bench.fails();
    assert!(
        other.contains("from/state.json does not fit: expected a member \"memory-manager\", found none"),
        "{other}"
    );
    fs::write(bench.path("from/state.json"), "{\"snapshots\"").unwrap();
    assert!(bench.fails().contains("from/state.json is not complete JSON"));
    fs::write(bench.path("from/config.json"), "[".repeat(100_000)).unwrap();
    assert!(bench.fails().contains("from/config.json is not complete JSON"));
    File::create(bench.path("from/config.json")).unwrap().set_len(MAX_JSON + 1).unwrap();
    assert!(bench.fails().contains("expected at most"));
    fs::remove_file(bench.path("from/config.json")).unwrap();
    assert!(bench.fails().contains("cannot open snapshot file"));
    fs::remove_file(bench.path("memory")).unwrap();
    symlink("/nowhere", bench.path("memory")).unwrap();
    bench.fails();
    assert_eq!(fs::metadata(bench.path("to")).unwrap().ino(), kept);
}

#[test]
fn serial_files_of_others_are_refused() {
    let bench = Bench::new(RestoreMode::Map);
    let error = check_serial(&bench.path("from"), bench.dir.path()).unwrap_err();
    assert!(matches!(error, Error::ForeignSerial { .. }), "{error}");
    bench.adapt().unwrap();
    check_serial(&bench.path("to"), bench.dir.path()).unwrap();
    let out = bench.dir.path().join("../elsewhere/serial.log");
    fs::write(bench.path("to/config.json"), json!({"serial": {"mode": "File", "file": out}}).to_string()).unwrap();
    let error = check_serial(&bench.path("to"), bench.dir.path()).unwrap_err();
    assert!(matches!(error, Error::ForeignSerial { .. }), "{error}");
    fs::write(bench.path("to/config.json"), "{}").unwrap();
    let error = check_serial(&bench.path("to"), bench.dir.path()).unwrap_err();
    assert!(error.to_string().contains("expected a file for the serial output, found null"), "{error}");
}
