//! The guest as the witness of a fork: its writer tells whether memory and disk of a copy are of one point in
//! time, its random generator and its identity whether two copies are twins.

mod common;

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use common::net::{Namespace, shell};
use common::{Binary, Vmm, copy, disk, kernel, wait_for};
use serde_json::{Value, json};

const RAM: u64 = 64 << 20;
const PAGE: u64 = 4096;

/// A VMM in a namespace of its own, and what its guest is made of.
struct Machine {
    namespace: Namespace,
    vmm: Vmm,
}

impl Machine {
    fn new(setup: impl FnOnce(&mut Command)) -> Self {
        let namespace = Namespace::new();
        let vmm = Vmm::start_with(&Binary::simulator(), &[], |command| {
            namespace.enter(command);
            setup(command);
        });
        kernel(vmm.dir.path());
        Self { namespace, vmm }
    }

    /// Boots on a blank memory file that nobody may write, mapped privately, as a fork needs it.
    fn boot(&self) {
        let memory = self.vmm.path("memory");
        disk(&memory, RAM);
        std::fs::set_permissions(&memory, Permissions::from_mode(0o400)).unwrap();
        disk(&self.vmm.path("disk"), 8 << 20);
        let config = json!({
            "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
            "memory": {"size": 0, "zones": [{"id": "mem0", "size": RAM, "file": "$DIR/memory", "shared": false}]},
            "payload": {"kernel": "$DIR/kernel"},
            "serial": {"mode": "File", "file": "$DIR/serial"}, "console": {"mode": "Off"},
            "disks": [{"id": "disk0", "path": "$DIR/disk", "image_type": "Raw"}],
            "net": [{"id": "net0", "tap": "tap0", "mac": "02:11:22:33:44:55"}],
        });
        self.vmm.put("vm.create", Some(&config.to_string()));
        self.vmm.put("vm.boot", None);
    }

    fn shell(&self, command: &str) -> (i64, String) {
        shell(&mut self.namespace.connect(2280), command)
    }

    fn line(&self, command: &str) -> String {
        let (code, text) = self.shell(command);
        assert_eq!(code, 0, "{command}: {text}");
        text.trim_end().to_owned()
    }

    /// Waits until the writer has come beyond a number.
    fn wait_written(&self, beyond: u64) -> u64 {
        wait_for("the writer", || {
            let status = self.line("writer status");
            status.strip_prefix("running ")?.parse().ok().filter(|n| *n > beyond)
        })
    }

    fn check(&self) -> Value {
        serde_json::from_str(&self.line("writer check")).unwrap()
    }

    /// Pauses, takes device state, changed pages and disk, and lets the machine go on; a copy that runs.
    fn fork(&self) -> Self {
        let child = Self::new(|_| {});
        let snap = child.vmm.path("snap");
        std::fs::create_dir(&snap).unwrap();
        File::create(snap.join("memory-ranges")).unwrap();
        copy(&self.vmm.path("memory"), &child.vmm.path("memory"));
        self.vmm.put("vm.pause", None);
        let url = json!({"destination_url": format!("file://{}", snap.display())}).to_string();
        let reply = self.vmm.request("PUT", "vm.snapshot", Some(&url));
        assert!(reply.status == 500 && reply.body.contains("File exists"), "{reply:?}");
        take_changed_pages(self.vmm.child.id(), &self.vmm.path("memory"), &child.vmm.path("memory"));
        copy(&self.vmm.path("disk"), &child.vmm.path("disk"));
        self.vmm.put("vm.resume", None);
        let own_paths =
            |text: String| text.replace(self.vmm.dir.path().to_str().unwrap(), child.vmm.dir.path().to_str().unwrap());
        edit(&snap.join("config.json"), |config| {
            *config = serde_json::from_str(&own_paths(config.to_string())).unwrap();
            config["net"][0].as_object_mut().unwrap().remove("host_mac");
        });
        edit(&snap.join("state.json"), |state| {
            let text = &mut state["snapshots"]["memory-manager"]["snapshot_data"]["state"];
            let mut memory: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
            memory["memory_ranges"]["data"] = json!([]);
            *text = memory.to_string().into();
        });
        std::fs::set_permissions(child.vmm.path("memory"), Permissions::from_mode(0o400)).unwrap();
        child.vmm.put("vm.restore", Some(r#"{"source_url":"file://$DIR/snap","resume":true}"#));
        child
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// Copies the pages that a process has changed in its private mapping of a file into another file.
fn take_changed_pages(pid: u32, mapped: &Path, to: &Path) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|line| line.ends_with(mapped.to_str().unwrap())).expect("the mapping");
    let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let to = OpenOptions::new().write(true).open(to).unwrap();
    let mut entries = vec![0; usize::try_from(RAM / PAGE * 8).unwrap()];
    pagemap.read_exact_at(&mut entries, start / PAGE * 8).unwrap();
    for (index, entry) in (0..).zip(entries.chunks_exact(8)) {
        let entry = u64::from_le_bytes(entry.try_into().unwrap());
        let (present, file) = (entry >> 62 != 0, entry >> 61 & 1 == 1);
        if present && !file {
            let mut page = vec![0; PAGE as usize];
            memory.read_exact_at(&mut page, start + index * PAGE).unwrap();
            to.write_all_at(&page, index * PAGE).unwrap();
        }
    }
}

#[test]
fn memory_and_disk_of_forks_of_forks_agree() {
    let parent = Machine::new(|_| {});
    parent.boot();
    assert_eq!(parent.line("touch-ram 8; writer start; writer check").lines().count(), 1);
    let mut last = parent.wait_written(100);
    let mut generations = vec![parent];
    for _ in 0..3 {
        let parent = generations.last().unwrap();
        let child = parent.fork();
        let found = child.check();
        let at_resume = found["atResume"]["memory"].as_u64().unwrap();
        assert!(found["consistent"] == true && at_resume >= last, "{last}: {found}");
        last = child.wait_written(at_resume + 100);
        assert!(parent.wait_written(at_resume) > at_resume, "the parent goes on, and not backwards");
        generations.push(child);
    }
    for machine in &generations {
        let found = machine.check();
        assert_eq!(found["consistent"], true, "{found}");
    }
}

#[test]
fn the_first_pause_after_a_restore_is_complete_too() {
    let parent = Machine::new(|_| {});
    parent.boot();
    parent.line("writer start");
    parent.wait_written(10);
    let child = parent.fork();
    assert_eq!(child.line("echo from-the-child > /tmp/mark"), "");
    let grandchild = child.fork();
    assert_eq!(grandchild.line("cat /tmp/mark"), "from-the-child");
    assert_eq!(grandchild.check()["consistent"], true);
    assert_eq!(parent.shell("cat /tmp/mark").0, 1);
}

#[test]
fn a_disk_of_another_time_is_seen_in_the_copy() {
    let parent = Machine::new(|_| {});
    parent.boot();
    parent.line("writer start");
    parent.wait_written(100);
    parent.vmm.put("vm.pause", None);
    let old = parent.vmm.path("old-disk");
    copy(&parent.vmm.path("disk"), &old);
    parent.vmm.put("vm.resume", None);
    let n = parent.wait_written(0);
    parent.wait_written(n + 5);
    parent.vmm.put("vm.pause", None);
    // The acknowledged writes since then are lost.
    let lost = std::fs::read(&old).unwrap();
    OpenOptions::new().write(true).open(parent.vmm.path("disk")).unwrap().write_all_at(&lost, 0).unwrap();
    parent.vmm.put("vm.resume", None);
    parent.wait_written(n + 300);
    let (code, text) = parent.shell("writer check");
    assert!(code == 1 && text.contains("\"consistent\":false"), "{text}");
}

fn hook(sandbox: &str, digit: &str) -> String {
    let (machine_id, entropy) = (digit.repeat(32), digit.repeat(128));
    format!(
        "/usr/local/sbin/runner-ch-identity --sandbox {sandbox} --machine-id {machine_id} --entropy {entropy} \
         --time 1700000000123456789"
    )
}

#[test]
fn copies_are_twins_until_the_hook_has_run() {
    let parent = Machine::new(|_| {});
    parent.boot();
    let (one, two) = (parent.fork(), parent.fork());
    let told = "hostname; cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key; random; boot-id";
    assert_eq!(one.line(told), two.line(told));
    for (machine, id, digit) in [(&one, "one", "1"), (&two, "two", "2")] {
        let confirmed = machine.line(&hook(id, digit));
        assert_eq!(confirmed, format!("runner-ch-identity ok {id} rng,clock,machine-id,hostname,ssh"));
        assert_eq!(machine.line("hostname; cat /etc/hostname"), format!("{id}\n{id}"));
        assert_eq!(machine.line("cat /etc/machine-id"), digit.repeat(32));
        assert!(machine.line("date").starts_with("17000000"), "{}", machine.line("date"));
    }
    for command in ["random", "cat /etc/ssh/ssh_host_ed25519_key"] {
        assert_ne!(one.line(command), two.line(command), "{command}");
        assert_ne!(one.line(command), parent.line(command), "{command}");
    }
    let (code, text) = one.shell("runner-ch-identity --sandbox a.b");
    assert!(code == 2 && text.starts_with("runner-ch-identity: "), "{text}");
}

#[test]
fn a_guest_can_be_without_the_hook_or_fail_in_it() {
    let absent = Machine::new(|command| {
        command.env("CH_SIM_NO_IDENTITY", "1");
    });
    absent.boot();
    assert_eq!(absent.shell(&hook("a", "1")).0, 127);
    let dir = tempfile::tempdir().unwrap();
    let faults = dir.path().join("faults");
    std::fs::write(
        &faults,
        r#"[{"when":"identity","action":"error","value":"no entropy","times":1},
            {"when":"identity","action":"delay_ms","value":300,"times":1},
            {"when":"identity","action":"never","times":1}]"#,
    )
    .unwrap();
    let failing = Machine::new(|command| {
        command.env("CH_SIM_FAULTS", &faults);
    });
    failing.boot();
    assert_eq!(failing.shell(&hook("a", "1")), (1, "runner-ch-identity: no entropy\n".to_owned()));
    let before = failing.line("uptime").parse::<f64>().unwrap();
    failing.line(&hook("a", "1"));
    assert!(failing.line("uptime").parse::<f64>().unwrap() >= before + 0.3);
    let body = json!({"command": hook("a", "1"), "timeout": 1}).to_string();
    let mut stream = failing.namespace.connect(2280);
    assert_eq!(common::net::http(&mut stream, "POST", "/process/execute", body.as_bytes()).0, 408);
}

#[test]
fn the_guest_sees_its_vcpus_change() {
    let machine = Machine::new(|_| {});
    machine.boot();
    assert_eq!(machine.line("nproc"), "2");
    machine.vmm.put("vm.resize", Some(r#"{"desired_vcpus":4}"#));
    assert_eq!(machine.line("nproc"), "4");
    let info: Value = serde_json::from_str(&machine.vmm.request("GET", "vm.info", None).body).unwrap();
    assert_eq!(info["config"]["cpus"]["boot_vcpus"], 4);
    assert_eq!(machine.vmm.request("PUT", "vm.resize", Some(r#"{"desired_vcpus":5}"#)).status, 500);
    assert_eq!(machine.fork().line("nproc"), "4", "a copy has as many");
}
